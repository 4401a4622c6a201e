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

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::net::{Host, Lab};

use crate::setup;
use campaign::{Campaign, Run};
use plan::Plan;

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
    /// How many pairs of hosts with an arbiter are at work at a time, and as many without one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pairs: u32,
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
            println!("{}", Plan::drawn(args.seed, number));
        }
        return Ok(());
    }
    setup::run()?;
    fs::create_dir_all(&args.out)?;
    let runs = Mutex::default();
    let result = carry_out(args.seed, numbers, args.pairs, &args.out, &runs);
    let runs = sorted(&runs);
    let table = histogram::render(args.seed, args.pairs, &runs);
    fs::write(args.out.join("faults.md"), &table)?;
    fs::write(args.out.join("faults.svg"), plot::render(&runs))?;
    println!("\n{table}");
    result?;
    if args.document {
        document(&table, &plot::render(&runs))?;
    }
    Ok(())
}

/// Carries runs out on hosts of their own, several pairs of them at a time, which are gone at the end. The first run in which
/// something does not hold ends all, once those that are under way are through.
fn carry_out(
    seed: u32,
    numbers: impl IntoIterator<Item = u32>,
    pairs: u32,
    out: &Path,
    runs: &Mutex<Vec<Run>>,
) -> Result<()> {
    // As quick as its users' in a campaign of hours, and with every check of the compiler's in the tests.
    let vmferry = built_vmferry(!cfg!(debug_assertions))?;
    // Of an odd run's number the rest is odd: a pair of hosts has an arbiter in all its runs, or in none.
    let mut of_pair: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for number in numbers {
        of_pair.entry(number % (2 * pairs)).or_default().push(number);
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let one = |numbers: Vec<u32>| {
            let result = on_a_pair(&vmferry, seed, &numbers, out, &is_over, runs);
            is_over.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        };
        let begun: Vec<_> = of_pair
            .into_values()
            .map(|numbers| scope.spawn(move || one(numbers)))
            .collect();
        let ended = begun.into_iter().map(|pair| match pair.join() {
            Ok(result) => result,
            Err(_) => Err(anyhow!("the campaign itself panicked")),
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Carries runs out on one pair of hosts, one after the other, unless all is over.
fn on_a_pair(
    vmferry: &Path,
    seed: u32,
    numbers: &[u32],
    out: &Path,
    is_over: &AtomicBool,
    runs: &Mutex<Vec<Run>>,
) -> Result<()> {
    let arbiter = numbers.iter().any(|number| Plan::drawn(seed, *number).arbiter);
    let lab = Lab::new()?;
    let mut campaign = Campaign::begin(&lab, vmferry, arbiter, seed, out)?;
    for number in numbers {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let run = campaign.run(*number)?;
        println!("{run}");
        runs.lock().unwrap_or_else(PoisonError::into_inner).push(run);
        // A campaign takes hours: whoever ends it early has what was found until then.
        fs::write(out.join("runs.json"), serde_json::to_vec_pretty(&sorted(runs))?)?;
    }
    campaign.finish()?;
    ensure_gone(lab)
}

/// The runs so far, by number.
fn sorted(runs: &Mutex<Vec<Run>>) -> Vec<Run> {
    let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner).clone();
    runs.sort_unstable_by_key(|run| run.plan.number);
    runs
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
