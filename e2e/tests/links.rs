//! A link that fails or lies.

use anyhow::Result;
use vmferry_e2e::guest::Guest;
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified, reasons};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::{Fault, Proxy};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

fn guest_on_a(scenario: &Scenario) -> Result<Guest> {
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    Ok(guest)
}

fn expect_rolled_back(migration: Migration) -> Result<()> {
    let report = migration.report()?;
    assert_eq!(report["outcome"], "rolled-back", "{report:#}");
    assert!(!reasons(&report).is_empty(), "{report:#}");
    Ok(())
}

#[test]
fn wrong_or_missing_bytes_on_a_lane_end_the_attempt_and_never_reach_the_guest() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    for (offset, fault) in [
        (3_000_000, Fault::Flip),
        (2_345_678, Fault::Flip),
        (4_000_000, Fault::Cut),
    ] {
        proxy.spoil(offset, fault);
        let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
        expect_rolled_back(migration)?;
        scenario.settles(&["web"], &[])?;
        ensure_alive(&mut guest)?;
    }
    // The same way, unspoilt.
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    ensure_moved_and_verified(&migration.report()?)?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_link_that_stays_down_ends_the_attempt_on_both_sides() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &["--bandwidth", "2MB/s"])?;
    migration.until_precopy()?;
    lab.link_down(Host::B)?;
    expect_rolled_back(migration)?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;
    lab.link_up(Host::B)?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_link_lost_before_the_commit_leaves_the_guest_on_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let held = proxy.hold("prepared");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    lab.link_down(Host::B)?;
    expect_rolled_back(migration)?;
    ensure_alive(&mut guest)?;
    // The target has promised to keep its copy until it can ask.
    lab.link_up(Host::B)?;
    drop(held);
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_link_lost_after_the_commit_delays_the_guest_and_loses_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let held = proxy.hold("commit");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    held.reached()?;
    lab.link_down(Host::B)?;
    held.release();
    lab.link_up(Host::B)?;
    ensure_moved_and_verified(&migration.report()?)?;
    scenario.settles(&[], &["web"])?;
    let (mut guest, _) = talk.finish()?;
    ensure_alive(&mut guest)
}
