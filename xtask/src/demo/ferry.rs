//! The guest under vmferry: from host A to host B and back.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmferry::api::migration::{Outcome, Report};
use vmferry::cli::report;
use vmferry::cli::units::{bytes, count};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::agent::Agent;
use vmferry_e2e::image::Image;
use vmferry_e2e::net::{Host, Lab};

use super::machine::Machine;
use super::moves::{Move, time};
use super::shop::ORDERS;
use super::traffic::{self, Checked, Traffic};
use crate::screen;

const VM: &str = "shop";

/// Boots the guest, moves it there and back under traffic, and shows that nothing was lost.
pub(crate) fn show(lab: &Lab, vmferry: &Path, image: &Image, accel: Accel) -> Result<Vec<Move>> {
    let [a, b] = [
        Agent::start(lab, Host::A, vmferry)?,
        Agent::start(lab, Host::B, vmferry)?,
    ];
    let machine = Machine::new(lab, image, accel, 0)?;
    let traffic = boot(lab, &a, &machine)?;

    screen::section("host-a to host-b");
    let (there, _) = migrate(lab, &a, &b, &traffic, &[])?;
    screen::section("host-b to host-a, all memory compared while the guest stands still");
    let (back, compared) = migrate(lab, &b, &a, &traffic, &["--verify"])?;

    screen::section("What the client saw");
    let Checked {
        mut guest,
        writes,
        records,
    } = traffic.finish()?;
    guest.ask("unmount /data")?;
    a.cli(["stop", VM])?.success()?;
    machine.check_disk()?;
    screen::proven(&format!(
        "memory of both hosts equal byte for byte before the commit: {}",
        bytes(compared)
    ));
    screen::proven("no connection dropped: the same two TCP connections from the first request to the last");
    screen::proven(&format!(
        "no acknowledged write lost: {} to Redis, read back",
        count(writes)
    ));
    screen::proven(&format!(
        "nothing else in Redis changed: {} orders, read back",
        count(ORDERS.into())
    ));
    screen::proven(&format!(
        "each of {} synced records on the NBD disk once; its file system is clean",
        count(records)
    ));
    screen::proven(&format!(
        "longest pause: {} on the way there, {} on the way back, where memory was compared",
        time(there.longest_pause),
        time(back.longest_pause)
    ));
    Ok(vec![there, back])
}

/// Starts the guest on `a` and the traffic.
fn boot(lab: &Lab, a: &Agent, machine: &Machine) -> Result<Traffic> {
    let spec = &machine.spec;
    let step = screen::begin("Guest", "booting Linux");
    let started = Instant::now();
    let definition = spec.write_definition(lab.folder(), VM)?;
    a.cli([Path::new("run"), &definition])?.success()?;
    let mut guest = traffic::await_guest(lab, spec.address())?;
    step.done(&format!(
        "{VM} has {} MiB and an NBD disk from the storage host; up on host-a in {}",
        spec.memory_mib,
        time(started.elapsed())
    ));
    let step = screen::begin("Redis", "filling it");
    traffic::fill(lab, &mut guest)?;
    step.done(&format!("holds {} orders of about 4 KB each", count(ORDERS.into())));
    let traffic = Traffic::start(lab, guest)?;
    screen::begin("Client", "").done("writes to Redis, reads back, and has records synced to the disk, without pause");
    Ok(traffic)
}

/// Moves the guest between agents, shown live; returns the figures and how many bytes of memory were compared.
fn migrate(lab: &Lab, from: &Agent, to: &Agent, traffic: &Traffic, flags: &[&str]) -> Result<(Move, u64)> {
    let address = to.host().address().to_string();
    let arguments = [&["migrate", VM, "--to", &address], flags].concat();
    screen::typed(&format!("vmferry {}", arguments.join(" ")));
    traffic.longest_pause()?;
    let link_before = lab.tx_bytes(from.host())?;
    // JSON on standard output, for the figures; the live view is on standard error either way.
    let output = from
        .command(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        // Ctrl-C is for the demo, which removes hosts and guests; this command would cancel and report.
        .process_group(0)
        .output()
        .context("running vmferry")?;
    let link_bytes = lab.tx_bytes(from.host())? - link_before;
    let report: Report = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("vmferry did not migrate: {}{}", logged(from), logged(to)))?;
    screen::text(&report::render(&report, false));
    ensure!(
        report.outcome == Outcome::Completed,
        "the guest did not move:{}{}",
        logged(from),
        logged(to)
    );
    let compared = match report.verification {
        Some(verification) => {
            ensure!(verification.equal, "the memory of the hosts differs");
            verification.bytes_compared
        }
        None => 0,
    };
    let figures = Move {
        by: ["vmferry"].iter().chain(flags).copied().collect::<Vec<_>>().join(" "),
        took: Duration::from_secs_f64(report.total_ms / 1e3),
        link_bytes,
        longest_pause: traffic.longest_pause()?,
    };
    Ok((figures, compared))
}

/// The end of an agent's log, which is gone when the demo ends.
fn logged(agent: &Agent) -> String {
    const LINES: usize = 12;
    let log = fs::read_to_string(agent.log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
    format!("\n\nthe agent on {} logged:\n{tail}", agent.host().name())
}
