//! A QEMU or an agent that dies in the middle: exactly one host runs the guest afterwards, and it is whole.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vmferry_e2e::api::{Next, Stream};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified, reasons};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::Proxy;
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

const NOTICE_MAX: Duration = Duration::from_secs(30);
const SLOWLY: [&str; 2] = ["--bandwidth", "4MB/s"];
/// What dies is not waited for, and there is one attempt.
const ONCE: [&str; 2] = ["--link-patience", "0s"];

/// A guest on host A with something to send.
fn guest_on_a(scenario: &Scenario) -> Result<Guest> {
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    Ok(guest)
}

/// Kills the VM's QEMU on `host` and waits until the host's agent says that it has noticed.
fn kill_qemu(scenario: &Scenario, host: Host) -> Result<()> {
    let pid = i32::try_from(scenario.qemu(host, "web")?)?;
    let mut events = Stream::open(&scenario.agent(host).socket(), "/v1/events")?;
    kill_process(Pid::from_raw(pid).context("no process")?, Signal::KILL)?;
    loop {
        match events.next(NOTICE_MAX)? {
            Next::Object(event) if event["type"] == "vm-gone" || event["state"] == "stopped" => return Ok(()),
            Next::Object(_) => {}
            other => bail!("{} did not notice the end of a QEMU: {other:?}", host.name()),
        }
    }
}

fn expect_rolled_back(migration: Migration) -> Result<()> {
    let report = migration.report()?;
    assert_eq!(report["outcome"], "rolled-back", "{report:#}");
    assert!(!reasons(&report).is_empty(), "{report:#}");
    Ok(())
}

/// What must hold after every rollback: the guest goes on, the target is clean, and the next attempt succeeds.
fn goes_on_a_and_moves_then(scenario: &Scenario, mut guest: Guest) -> Result<()> {
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn the_target_qemus_death_in_any_stage_leaves_the_guest_on_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;

    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &SLOWLY)?;
    migration.until_precopy()?;
    kill_qemu(&scenario, Host::B)?;
    expect_rolled_back(migration)?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;

    // Reserved; prepared; and even after the source has let go: what the target lost it gives back.
    for message in ["reserved", "prepared", "commit"] {
        let talk = guest.converse();
        let held = proxy.hold(message);
        let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
        held.reached()?;
        kill_qemu(&scenario, Host::B)?;
        held.release();
        expect_rolled_back(migration)?;
        scenario.settles(&["web"], &[])?;
        (guest, _) = talk.finish()?;
        ensure_alive(&mut guest)?;
    }
    goes_on_a_and_moves_then(&scenario, guest)
}

#[test]
fn the_source_qemus_death_in_precopy_loses_the_guest_and_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let _guest = guest_on_a(&scenario)?;
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &SLOWLY)?;
    migration.until_precopy()?;
    kill_qemu(&scenario, Host::A)?;
    let report = migration.report()?;
    assert_eq!(report["outcome"], "lost", "{report:#}");
    assert!(!reasons(&report).is_empty(), "{report:#}");

    let listed = scenario.a.cli(["ps"])?;
    assert_eq!(listed.values[0]["state"], "stopped", "{listed:?}");
    scenario.a.cli(["stop", "web"])?.success()?;
    scenario.settles(&[], &[])
}

#[test]
fn the_source_qemus_death_after_the_target_is_prepared_loses_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let held = proxy.hold("prepared");
    let mut migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    migration.until("its guest's stop", |progress| progress["stage"] == "stop-and-copy")?;
    kill_qemu(&scenario, Host::A)?;
    held.release();
    let report = migration.report()?;
    assert_eq!(report["outcome"], "completed", "{report:#}");
    scenario.settles(&[], &["web"])?;
    let (mut guest, _) = talk.finish()?;
    ensure_alive(&mut guest)
}

#[test]
fn the_target_agents_death_before_prepared_leaves_the_guest_on_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &[SLOWLY, ONCE].concat())?;
    migration.until_precopy()?;
    scenario.b.kill()?;
    expect_rolled_back(migration)?;
    ensure_alive(&mut guest)?;
    // It finds the half of a copy that it had, and drops it.
    scenario.b.restart()?;
    goes_on_a_and_moves_then(&scenario, guest)
}

#[test]
fn agents_that_are_stopped_and_go_on_before_they_are_missed_move_the_guest() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &SLOWLY)?;
    migration.until_precopy()?;
    for agent in [&scenario.a, &scenario.b] {
        let pid = agent.pid().context("it does not run")?;
        let process = Pid::from_raw(i32::try_from(pid)?).context("no process")?;
        kill_process(process, Signal::STOP)?;
        // Until then it could go on without having stopped.
        while !fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") T ") {
            thread::yield_now();
        }
        kill_process(process, Signal::CONT)?;
    }
    let report = migration.report()?;
    assert_eq!(report["outcome"], "completed", "{report:#}");
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_target_agent_that_dies_after_prepared_asks_what_became_of_it() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;

    // The source never heard that it was prepared: the copy goes.
    let held = proxy.hold("prepared");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &ONCE)?;
    held.reached()?;
    scenario.b.kill()?;
    held.release();
    expect_rolled_back(migration)?;
    scenario.b.restart()?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;

    // The source has let go: the copy is the guest.
    let talk = guest.converse();
    let held = proxy.hold("commit");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    held.reached()?;
    scenario.b.kill()?;
    held.release();
    scenario.b.restart()?;
    ensure_moved_and_verified(&migration.report()?)?;
    scenario.settles(&[], &["web"])?;
    (guest, _) = talk.finish()?;
    ensure_alive(&mut guest)
}

#[test]
fn the_source_agents_death_in_precopy_rolls_back_when_it_is_restarted() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &SLOWLY)?;
    migration.until_precopy()?;
    scenario.a.kill()?;
    ensure_alive(&mut guest)?;
    scenario.a.restart()?;
    goes_on_a_and_moves_then(&scenario, guest)
}

#[test]
fn the_source_agents_death_while_the_target_is_prepared_is_decided_by_its_journal() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up_in_the_clear(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;

    // Not released: the guest is the source's.
    let talk = guest.converse();
    let held = proxy.hold("prepared");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    scenario.a.kill()?;
    drop((held, migration));
    scenario.a.restart()?;
    scenario.settles(&["web"], &[])?;
    (guest, _) = talk.finish()?;
    ensure_alive(&mut guest)?;

    // Released: it is the target's, even if the target has not heard of it.
    let talk = guest.converse();
    let held = proxy.hold("commit");
    // What is released was found equal.
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    held.reached()?;
    scenario.a.kill()?;
    drop(migration);
    scenario.a.restart()?;
    scenario.settles(&[], &["web"])?;
    (guest, _) = talk.finish()?;
    ensure_alive(&mut guest)
}

#[test]
fn a_guest_outlives_its_agent_and_can_be_moved_by_the_next_one() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    scenario.a.kill()?;
    scenario.a.restart()?;
    let (guest, _) = talk.finish()?;
    goes_on_a_and_moves_then(&scenario, guest)
}

#[test]
fn a_target_agent_that_is_restarted_in_precopy_is_sent_only_what_its_guest_does_not_hold() -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::set_up(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let flags = [&SLOWLY[..], &["--verify"]].concat();
    let mut migration = Migration::begin(&scenario.a, "web", &address(Host::B), &flags)?;
    let half = 12 << 20;
    migration.until("half of it crossed", |progress| {
        progress["wire_bytes"].as_u64() > Some(half)
    })?;
    scenario.b.kill()?;
    scenario.b.restart()?;
    let report = migration.report()?;
    ensure_moved_and_verified(&report)?;
    ensure!(report["attempts"] == 2, "{report:#}");
    // Half of the first attempt's bytes were random: 1,500 pages at the least, and each is found where that one left it.
    let contents = report["contents"].as_array().into_iter().flatten();
    let kept: Vec<u64> = contents
        .filter(|content| content["source"] == "the target's own")
        .filter_map(|content| content["pages"].as_u64())
        .collect();
    ensure!(matches!(kept[..], [pages] if pages > 1500), "{report:#}");
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}
