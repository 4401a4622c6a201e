//! What becomes of a guest whose handover loses a host for ever: with etcd as the arbiter the other host finishes alone, and
//! without one an operator decides.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vmferry_e2e::agent::IN_THE_CLEAR;
use vmferry_e2e::etcd::Etcd;
use vmferry_e2e::guest::{Conversation, Guest};
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified, reasons};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::{Held, Proxy};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

fn guest_on_a(scenario: &Scenario) -> Result<Guest> {
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    Ok(guest)
}

fn arbitrated<'lab>(lab: &'lab Lab) -> Result<Scenario<'lab>> {
    let option = Etcd::option();
    let options = ["--arbiter", option.as_str(), IN_THE_CLEAR];
    Scenario::set_up_with(lab, &options, &options)
}

/// Ends host A's agent and QEMU at once, as a power cut does: a QEMU that outlived its agent for a moment would let its guest go on,
/// and peers of the guest would have heard what no copy of it has said.
fn kill_host_a(scenario: &mut Scenario) -> Result<()> {
    let qemu = i32::try_from(scenario.qemu(Host::A, "web")?)?;
    let agent = i32::try_from(scenario.a.pid().context("no agent")?)?;
    let process = |pid| Pid::from_raw(pid).context("no process");
    kill_process(process(agent)?, Signal::STOP)?;
    kill_process(process(qemu)?, Signal::KILL)?;
    scenario.a.kill()
}

/// Has the guest migrate until the source says `message`, which the target does not hear.
fn until(scenario: &Scenario, proxy: &Proxy, guest: Guest, message: &str) -> Result<(Held, Conversation)> {
    let talk = guest.converse();
    let held = proxy.hold(message);
    Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    Ok((held, talk))
}

#[test]
fn with_an_arbiter_a_guest_moves_there_and_back() -> Result<()> {
    let lab = Lab::new()?;
    let mut etcd = Etcd::start(&lab)?;
    let scenario = arbitrated(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    scenario.moves("web", Host::A, Host::B, &[])?;
    let definition = lab.folder().join("web.toml");
    let second = scenario.a.cli(["run".as_ref(), definition.as_os_str()])?;
    assert_eq!(second.code, Some(8), "{second:?}");
    ensure!(second.said.contains("host-b"), "{second:?}");
    // Two of three are enough.
    etcd.kill(0)?;
    etcd.await_leader()?;
    scenario.moves("web", Host::B, Host::A, &[])?;
    let (mut guest, _) = talk.finish()?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_node_that_dies_during_a_migration_does_not_disturb_it() -> Result<()> {
    let lab = Lab::new()?;
    let mut etcd = Etcd::start(&lab)?;
    let scenario = arbitrated(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let held = proxy.hold("prepared");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &["--verify"])?;
    held.reached()?;
    etcd.kill(0)?;
    held.release();
    ensure_moved_and_verified(&migration.report()?)?;
    let (mut guest, _) = talk.finish()?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_target_whose_source_is_gone_after_the_release_finishes_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _etcd = Etcd::start(&lab)?;
    let mut scenario = arbitrated(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    // Kept to the end: the target never hears that it was released, but from etcd.
    let (_held, talk) = until(&scenario, &proxy, guest, "commit")?;
    kill_host_a(&mut scenario)?;
    let (mut guest, _) = talk.finish()?;
    ensure_alive(&mut guest)?;
    scenario.a.restart()?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_source_whose_target_is_gone_after_the_release_takes_its_guest_back() -> Result<()> {
    let lab = Lab::new()?;
    let _etcd = Etcd::start(&lab)?;
    let mut scenario = arbitrated(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let mut guest = guest_on_a(&scenario)?;
    let held = proxy.hold("commit");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    let qemu = i32::try_from(scenario.qemu(Host::B, "web")?)?;
    // It has promised, and does not live to hear that it may.
    scenario.b.kill()?;
    kill_process(Pid::from_raw(qemu).context("no process")?, Signal::KILL)?;
    held.release();
    let report = migration.report()?;
    assert_eq!(report["outcome"], "rolled-back", "{report:#}");
    let reasons = reasons(&report);
    ensure!(
        reasons.iter().any(|reason| reason.contains("had not taken the VM")),
        "{report:#}"
    );
    ensure_alive(&mut guest)?;
    scenario.b.restart()?;
    scenario.settles(&["web"], &[])?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn a_source_agent_that_dies_before_it_asks_for_the_release_asks_when_it_is_back() -> Result<()> {
    let lab = Lab::new()?;
    let _etcd = Etcd::start(&lab)?;
    let to_etcd = Proxy::leading_to(&lab, Etcd::address(0))?;
    let (through, direct) = (format!("etcd:http://{}", to_etcd.address()), Etcd::option());
    let mut scenario = Scenario::set_up_with(
        &lab,
        &["--arbiter", &through, IN_THE_CLEAR],
        &["--arbiter", &direct, IN_THE_CLEAR],
    )?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let prepared = proxy.hold("prepared");
    Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    prepared.reached()?;
    let asked = to_etcd.hold_bytes("POST /v3/kv/range");
    prepared.release();
    // The source's QEMU is in postmigrate, its journal says `Released`, and etcd has heard nothing.
    asked.reached()?;
    scenario.a.kill()?;
    asked.release();
    scenario.a.restart()?;
    let (mut guest, _) = talk.finish()?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn without_any_node_nothing_is_moved_and_what_is_under_way_is_rolled_back() -> Result<()> {
    let lab = Lab::new()?;
    let mut etcd = Etcd::start(&lab)?;
    let scenario = arbitrated(&lab)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let held = proxy.hold("prepared");
    let migration = Migration::begin(&scenario.a, "web", &proxy.address(), &[])?;
    held.reached()?;
    etcd.kill_all()?;
    held.release();
    let report = migration.report()?;
    assert_eq!(report["outcome"], "rolled-back", "{report:#}");
    let (mut guest, _) = talk.finish()?;
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;

    let refused = Migration::begin(&scenario.a, "web", &address(Host::B), &[])?.report()?;
    let reasons = reasons(&refused);
    ensure!(reasons.iter().any(|reason| reason.contains("arbiter")), "{refused:#}");
    ensure_alive(&mut guest)?;

    etcd.start_all()?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn without_an_arbiter_an_operator_decides_for_the_target() -> Result<()> {
    let lab = Lab::new()?;
    // After the release, and before it: the source that comes back learns of it either way.
    for message in ["commit", "prepared"] {
        let mut scenario = Scenario::set_up_in_the_clear(&lab)?;
        let proxy = Proxy::start(&lab)?;
        let guest = guest_on_a(&scenario)?;
        let (_held, talk) = until(&scenario, &proxy, guest, message)?;
        kill_host_a(&mut scenario)?;

        let asked = scenario.b.cli(["resolve", "web", "--keep", "host-b"])?;
        assert_eq!(asked.code, Some(2), "{asked:?}");
        ensure!(
            asked.said.contains("powered off") && asked.said.contains("Prepared"),
            "{asked:?}"
        );
        let wrong = scenario.b.cli(["resolve", "web", "--keep", "elsewhere", "--yes"])?;
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
        scenario
            .b
            .cli(["resolve", "web", "--keep", "host-b", "--yes"])?
            .success()?;
        let (mut guest, _) = talk.finish()?;
        ensure_alive(&mut guest)?;

        scenario.a.restart()?;
        scenario.settles(&[], &["web"])?;
        ensure_alive(&mut guest)?;
        let decided = scenario.b.cli(["resolve", "web", "--keep", "host-b", "--yes"])?;
        assert_eq!(decided.code, Some(8), "{decided:?}");
        scenario.b.cli(["stop", "web"])?.success()?;
        scenario.settles(&[], &[])?;
    }
    Ok(())
}
