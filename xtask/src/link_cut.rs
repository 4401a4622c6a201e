//! `cargo xtask link-cut`: what a link that is cut in pre-copy and comes back costs a migration.
//!
//! Two guests, alike, move to and fro by turns at the same limit of bandwidth; under one of them the target's link is cut once its
//! memory is crossing, and comes back so much later. Nothing of a guest's memory is kept where it was, so that all moves are whole.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified};
use vmferry_e2e::net::Lab;
use vmferry_e2e::scenario::{address, ensure_alive};

use crate::shuttle::{Shuttle, VM};

/// What makes a move take some seconds: bytes in the guest that nothing shortens, bytes a second that may cross, and bytes a second
/// that it writes meanwhile.
const FILLED_BYTES: u32 = 48 << 20;
const BANDWIDTH: &str = "8MB/s";
const DIRTY_BYTES: u32 = 4 << 20;
const DIRTY_BYTES_PER_S: u32 = 1 << 20;

/// The arguments of `link-cut`.
#[derive(Args)]
pub(crate) struct LinkCutArgs {
    /// Moves of each guest.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How long the link is gone, seconds: less than the patience with a link.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
}

/// Moves both guests and prints what each move took.
///
/// # Errors
/// When a move fails or its guest's memory differs, when a cut came too late to be one, or a guest is not whole in the end.
pub(crate) fn run(args: &LinkCutArgs) -> Result<()> {
    let binary = built_vmferry(true)?;
    let labs = (Lab::new()?, Lab::new()?);
    let mut whole = boot(&labs.0, &binary)?;
    let mut cut = boot(&labs.1, &binary)?;
    println!(
        "| move | s | s, link cut | of which it was gone | s beyond that | MB | MB, link cut | sent again |\n\
         |---|---|---|---|---|---|---|---|"
    );
    let (mut late, mut again) = (Vec::new(), Vec::new());
    for run in 0..args.runs {
        let (without, with, gone) = if run % 2 == 0 {
            let without = moves(&mut whole, None)?.0;
            let (with, gone) = moves(&mut cut, Some(args.seconds))?;
            (without, with, gone)
        } else {
            let (with, gone) = moves(&mut cut, Some(args.seconds))?;
            (moves(&mut whole, None)?.0, with, gone)
        };
        let [seconds, seconds_cut] = [&without, &with].map(|report| number(report, "total_ms").map(|ms| ms / 1e3));
        let [bytes, bytes_cut] = [&without, &with].map(|report| number(report, "wire_bytes"));
        let (seconds, seconds_cut, bytes, bytes_cut) = (seconds?, seconds_cut?, bytes?, bytes_cut?);
        let beyond = seconds_cut - seconds - gone.as_secs_f64();
        let part = number(&with, "resent_bytes")? / bytes_cut;
        ensure!(
            number(&with, "link_breaks")? > 0.0,
            "the link was cut too late: {with:#}"
        );
        ensure!(with["attempts"] == 1, "it was begun again: {with:#}");
        println!(
            "| {run} | {seconds:.2} | {seconds_cut:.2} | {:.2} | {beyond:.2} | {:.1} | {:.1} | {:.2} % |",
            gone.as_secs_f64(),
            bytes / 1e6,
            bytes_cut / 1e6,
            part * 100.0
        );
        late.push(beyond);
        again.push(part);
    }
    for moved in [&mut whole, &mut cut] {
        ensure_alive(&mut moved.guest)?;
    }
    println!(
        "\nbeyond the cut itself: median {:.2} s, most {:.2} s; sent again: median {:.2} %, most {:.2} %",
        median(&mut late),
        largest(&late),
        median(&mut again) * 100.0,
        largest(&again) * 100.0
    );
    Ok(())
}

/// Boots a guest that writes to its memory.
fn boot<'lab>(lab: &'lab Lab, binary: &Path) -> Result<Shuttle<'lab>> {
    let mut shuttle = Shuttle::boot(lab, binary, &[])?;
    shuttle.guest.ask(&format!("fill random {FILLED_BYTES}"))?;
    shuttle
        .guest
        .ask(&format!("dirty random {DIRTY_BYTES} {DIRTY_BYTES_PER_S}"))?;
    Ok(shuttle)
}

/// Moves it, with the link cut for some seconds or not; returns the report, and how long the link was gone.
fn moves(shuttle: &mut Shuttle<'_>, seconds: Option<u32>) -> Result<(Value, Duration)> {
    let [from, to] = shuttle.ends();
    let flags = ["--bandwidth", BANDWIDTH, "--verify"];
    let mut migration = Migration::begin(from, VM, &address(to.host()), &flags)?;
    let mut gone = Duration::ZERO;
    if let Some(seconds) = seconds {
        migration.until_precopy()?;
        let began = Instant::now();
        shuttle.lab.link_down(to.host())?;
        thread::sleep(Duration::from_secs(seconds.into()));
        shuttle.lab.link_up(to.host())?;
        gone = began.elapsed();
    }
    let report = migration.report()?;
    ensure_moved_and_verified(&report)?;
    shuttle.moved();
    Ok((report, gone))
}

fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("no {name}: {report:#}"))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
