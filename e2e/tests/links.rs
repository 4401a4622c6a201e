//! A link that fails or lies.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmferry_e2e::agent::PORT;
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
fn wrong_bytes_on_a_lane_end_the_attempt_and_never_reach_the_guest() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    for offset in [3_000_000, 2_345_678] {
        proxy.spoil(offset, Fault::Flip);
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
    let flags = ["--bandwidth", "2MB/s", "--link-patience", "2s"];
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &flags)?;
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
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--retries", "0"])?;
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

/// Whether a report tells of one attempt that a broken link did not end; returns what was sent again, as a part of all.
fn sent_again(report: &Value) -> Result<f64> {
    ensure_moved_and_verified(report)?;
    ensure!(report["attempts"] == 1, "{report:#}");
    let bytes = |name: &str| report[name].as_u64().with_context(|| format!("{name}: {report:#}"));
    Ok(bytes("resent_bytes")? as f64 / bytes("wire_bytes")? as f64)
}

#[test]
fn a_link_that_comes_back_in_precopy_costs_its_time_and_few_bytes() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let flags = ["--bandwidth", "4MB/s", "--verify"];
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &flags)?;
    migration.until_precopy()?;
    lab.link_down(Host::B)?;
    migration.until("its link was missed for 6 s", |progress| {
        progress["link_down_ms"].as_u64() > Some(6000)
    })?;
    ensure_alive(&mut guest)?;
    lab.link_up(Host::B)?;
    let report = migration.report()?;
    let again = sent_again(&report)?;
    ensure!(again <= 0.05, "{again} of all bytes: {report:#}");
    ensure!(report["link_breaks"].as_u64() >= Some(1), "{report:#}");
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_lane_that_dies_is_replaced_while_the_others_go_on() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    proxy.spoil(4_000_000, Fault::Cut);
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    let report = migration.report()?;
    let again = sent_again(&report)?;
    ensure!(again > 0.0, "no lane was cut: {report:#}");
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

/// Each of the connections in turn: the control lane, and the data lanes.
#[test]
fn a_connection_that_falls_silent_alone_is_replaced() -> Result<()> {
    let lab = Lab::new()?;
    // All of the guest crosses each time.
    let options = ["--kept-memory", "0"];
    let scenario = Scenario::set_up_with(&lab, &options, &options)?;
    let mut guest = guest_on_a(&scenario)?;
    let (mut from, mut to) = (Host::A, Host::B);
    for choice in 0..3 {
        let flags = ["--bandwidth", "12MB/s", "--lanes", "2", "--verify"];
        let mut migration = Migration::begin(scenario.agent(from), "web", &address(to), &flags)?;
        migration.until_precopy()?;
        ensure!(lab.silence_connection(from, to, PORT, choice)?, "no connection");
        // Nothing makes it audible again: the rest goes over another one.
        let report = migration.report()?;
        lab.hear_connections(from)?;
        ensure!(
            report["link_breaks"].as_u64() >= Some(1) || sent_again(&report)? > 0.0,
            "{choice}: {report:#}"
        );
        sent_again(&report)?;
        (from, to) = (to, from);
    }
    ensure_alive(&mut guest)
}

#[test]
fn a_link_that_stays_away_in_the_blackout_is_waited_for_so_long_and_then_tried_again() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let held = proxy.hold("prepared");
    let flags = ["--verify", "--max-blackout", "4s"];
    let mut migration = Migration::begin(&scenario.a, "web", &proxy.address(), &flags)?;
    held.reached()?;
    lab.link_down(Host::B)?;
    // The guest goes on, and the next attempt has to wait for the link.
    let resumed = |progress: &Value| progress["stage"] == "precopy" && progress["link_down_ms"].is_u64();
    migration.until("its guest goes on", resumed)?;
    drop(held);
    lab.link_up(Host::B)?;
    let report = migration.report()?;
    ensure_moved_and_verified(&report)?;
    ensure!(report["attempts"] == 2, "{report:#}");
    let (mut guest, _) = talk.finish()?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}
