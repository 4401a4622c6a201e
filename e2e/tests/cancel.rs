//! A migration that is cancelled leaves the guest where it was, at whatever step; past the commit it completes.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use vmferry_e2e::api::{Next, Stream};
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified, reasons};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::Proxy;
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

#[test]
fn a_cancel_before_the_commit_leaves_the_guest_on_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;

    // Reserve: the target has not answered yet. Stop-and-copy: the guest stands still, and the target holds all of it.
    for (stage, message) in [("reserve", "reserved"), ("stop-and-copy", "prepared")] {
        let talk = guest.converse();
        let held = proxy.hold(message);
        let mut migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
        held.reached()?;
        migration.until(stage, |progress| progress["stage"] == stage)?;
        cancel(&scenario, 0)?;
        expect_cancelled(migration)?;
        drop(held);
        scenario.settles(&["web"], &[])?;
        (guest, _) = talk.finish()?;
        ensure_alive(&mut guest)?;
    }

    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &["--bandwidth", "4MB/s"])?;
    migration.until_precopy()?;
    cancel(&scenario, 0)?;
    expect_cancelled(migration)?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;

    // Nothing of all that stands in the way of the next attempt.
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_cancel_after_the_commit_comes_too_late() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    let held = proxy.hold("commit");
    let mut migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    held.reached()?;
    migration.until("its commit", |progress| progress["stage"] == "commit")?;
    cancel(&scenario, 0)?;
    held.release();
    ensure_moved_and_verified(&migration.report()?)?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)?;
    // It is not this host's any more.
    cancel(&scenario, 7)
}

#[test]
fn an_interrupted_command_cancels_its_migration() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    let mut events = Stream::open(&scenario.a.socket(), "/v1/events")?;
    let target = address(Host::B);
    let mut command = scenario
        .a
        .command(["migrate", "web", "--to", &target, "--bandwidth", "4MB/s", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // It listens to the interrupt from before the migration begins.
    loop {
        match events.next(Duration::from_secs(30))? {
            Next::Object(event) if event["type"] == "migration-started" => break,
            Next::Object(_) => {}
            other => panic!("no migration began: {other:?}"),
        }
    }
    kill_process(Pid::from_child(&command), Signal::INT)?;
    assert_eq!(command.wait()?.code(), Some(4));
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)
}

fn cancel(scenario: &Scenario, code: i32) -> Result<()> {
    let answer = scenario.a.cli(["cancel", "web"])?;
    assert_eq!(answer.code, Some(code), "{}", answer.said);
    Ok(())
}

fn expect_cancelled(migration: Migration) -> Result<()> {
    let report = migration.report()?;
    assert_eq!(report["outcome"], "cancelled", "{report:#}");
    assert!(!reasons(&report).is_empty(), "{report:#}");
    Ok(())
}
