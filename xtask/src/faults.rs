//! `cargo xtask faults`: a real guest is moved back and forth, and in each run something fails at some step.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what fails in which run, and when: follows from the seed |
//! | [`world`] | the hosts, the agents and the guest |
//! | [`client`] | who uses the guest, and knows what it acknowledged |
//! | [`step`] | waiting for the step |
//! | [`inject`] | the fault |
//! | [`judge`] | what must hold afterwards |
//! | [`campaign`] | run after run |
//! | [`evidence`] | what is kept of a run in which something did not hold |
//! | [`histogram`], [`plot`] | what came of all runs |

mod campaign;
mod client;
mod evidence;
mod histogram;
mod inject;
mod judge;
mod plan;
mod plot;
mod step;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::net::{Host, Lab};

use crate::setup;
use campaign::{Campaign, Run};

/// The arguments of `cargo xtask faults`.
#[derive(Args)]
pub(crate) struct FaultsArgs {
    /// How many migrations.
    #[arg(long, default_value_t = 100)]
    runs: u32,
    /// Decides what fails, when and for how long.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Only this run of the campaign, with its number from 0.
    #[arg(long, value_name = "NUMBER", conflicts_with = "runs")]
    only: Option<u32>,
    /// Print what would fail, and end.
    #[arg(long)]
    plan: bool,
    /// Where results go, and what is kept of a run in which something did not hold.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults"))]
    out: PathBuf,
    /// Put the results into docs/reliability.md and docs/reliability.svg, too.
    #[arg(long)]
    document: bool,
}

/// Carries the campaign out, up to the first run in which something does not hold.
///
/// # Errors
/// That run, and where all that is known of it was kept.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    let numbers = match args.only {
        Some(number) => number..number.saturating_add(1),
        None => 0..args.runs,
    };
    if args.plan {
        for number in numbers {
            println!("{}", plan::Plan::drawn(args.seed, number));
        }
        return Ok(());
    }
    setup::run()?;
    fs::create_dir_all(&args.out)?;
    let mut runs = Vec::new();
    let result = carry_out(args.seed, numbers, &args.out, &mut runs);
    let table = histogram::render(args.seed, &runs);
    fs::write(args.out.join("faults.md"), &table)?;
    fs::write(args.out.join("faults.svg"), plot::render(&runs))?;
    println!("\n{table}");
    result?;
    if args.document {
        document(&table, &plot::render(&runs))?;
    }
    Ok(())
}

/// Carries runs out on hosts of their own, which are gone at the end.
fn carry_out(seed: u32, numbers: impl IntoIterator<Item = u32>, out: &Path, runs: &mut Vec<Run>) -> Result<()> {
    let vmferry = built_vmferry(false)?;
    let lab = Lab::new()?;
    let mut campaign = Campaign::begin(&lab, &vmferry, seed, out)?;
    for number in numbers {
        let run = campaign.run(number)?;
        println!("{run}");
        runs.push(run);
        // A campaign takes hours: whoever ends it early has what was found until then.
        fs::write(out.join("runs.json"), serde_json::to_vec_pretty(runs)?)?;
    }
    campaign.finish()?;
    ensure_gone(lab)
}

/// Ends the lab, and checks that nothing of it is left.
fn ensure_gone(lab: Lab) -> Result<()> {
    let folder = lab.folder().to_owned();
    lab.clean_up();
    ensure!(!folder.exists(), "{} is left over", folder.display());
    for host in Host::ALL {
        let namespace = Path::new("/run/netns").join(lab.namespace(host));
        ensure!(!namespace.exists(), "{} is left over", namespace.display());
    }
    Ok(())
}

/// Replaces what stands between the marks in the document.
fn document(table: &str, svg: &str) -> Result<()> {
    const MARKS: [&str; 2] = ["<!-- figures: begin -->\n", "<!-- figures: end -->\n"];
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
    let path = docs.join("reliability.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let before = text.split_once(MARKS[0]).context("no mark in the document")?.0;
    let behind = text.split_once(MARKS[1]).context("no mark in the document")?.1;
    fs::write(&path, format!("{before}{}\n{table}\n{}{behind}", MARKS[0], MARKS[1]))?;
    fs::write(docs.join("reliability.svg"), svg)?;
    Ok(())
}

#[cfg(test)]
mod tests;
