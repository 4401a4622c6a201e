//! `cargo xtask bench`: vmferry beside QEMU's own migrations, same guest, same link, in one run.
//!
//! Each workload runs in two guests alike, one that vmferry moves and one that QEMU moves. Both go back and forth
//! between their hosts, a mode each time, round after round, so that whatever else the machine does meets all modes.
//!
//! | module | what |
//! |---|---|
//! | [`plan`], [`mode`] | workloads, links, how guests are moved, and which of all that is measured |
//! | [`world`] | a guest with its workload, and one measured move of it |
//! | [`load`], [`records`] | what the guest holds and does, and what Redis and its client do |
//! | [`movers`], [`agents`] | who moves it |
//! | [`usage`] | processor time and memory of all processes |
//! | [`rate`] | the search for the dirty rate that still converges |
//! | [`select`] | the arguments: what of the plan |
//! | [`results`] | `results.json`, medians |
//! | [`goals`], [`markdown`], [`plot`] | what people read |

mod agents;
mod goals;
pub(crate) mod load;
mod markdown;
pub(crate) mod mode;
mod movers;
pub(crate) mod plan;
mod plot;
mod rate;
mod records;
mod results;
mod select;
pub(crate) mod usage;
pub(crate) mod world;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vmferry_e2e::agent::{IN_THE_CLEAR, built_vmferry};
use vmferry_e2e::net::Lab;

use mode::Mode;
use plan::{ATTEMPTS_MAX, Link, TOO_SLOW, Workload};
use rate::Search;
use results::{Background, Machine, Results, Run, Status};
pub(crate) use select::BenchArgs;
use select::Selected;
use world::World;

/// Measures and writes `results.json`, `RESULTS.md` and `results.svg`.
///
/// # Errors
/// When a workload failed, after all others were measured and written.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let folder = args.folder();
    fs::create_dir_all(&folder)?;
    let path = folder.join("results.json");
    if args.render {
        return render(&Results::read(&path)?, &folder);
    }
    let binary = built_vmferry(true)?;
    let accel = world::spec(Workload::Idle)?.accel;
    let mut results = Results {
        machine: Machine::this(accel.name())?,
        background: Vec::new(),
        runs: Vec::new(),
        rates: Vec::new(),
    };
    if args.keep {
        results.keep(Results::read(&path)?, args);
    }
    let mut failed = Vec::new();
    for workload in args.workloads() {
        let started = Instant::now();
        // Written even so: what was measured before the failure is good.
        if let Err(error) = measure(args, workload, &binary, &mut results) {
            eprintln!("{}: {error:#}", workload.name());
            failed.push(workload.name());
        }
        println!("{}: {:.0} s", workload.name(), started.elapsed().as_secs_f64());
        results.write(&path)?;
        render(&results, &folder)?;
    }
    println!("results are in {}", folder.display());
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn render(results: &Results, folder: &Path) -> Result<()> {
    for (name, text) in [
        ("RESULTS.md", markdown::render(results)),
        ("results.svg", plot::render(results)),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// All that is asked for of one workload: its cases, then its search.
fn measure(args: &BenchArgs, workload: Workload, binary: &Path, results: &mut Results) -> Result<()> {
    let labs = (Lab::new()?, Lab::new()?);
    let mut guests = Pair::boot(&labs, workload, binary, agent_options(args.plaintext))?;
    let bytes_per_s = guests.of_qemu.background_bytes_per_s()?;
    results.background.push(Background { workload, bytes_per_s });
    guests.warm_up(workload)?;
    for Selected { link, modes } in args.cases(workload) {
        let mut able = Vec::new();
        for mode in modes {
            if guests.of(mode).can(mode)? {
                able.push(mode);
            } else {
                println!("{}: left out, this vmferry has no such codec", mode.name());
            }
        }
        for _ in 0..args.runs() {
            for &mode in &able {
                if !is_known(results, workload, link, mode) {
                    let run = guests.of(mode).measure(mode, link)?;
                    println!("{run}");
                    results.runs.push(run);
                }
            }
        }
    }
    for (mode, between) in args.searches(workload) {
        let world = guests.of(mode);
        results.rates.push(Search::run(world, workload, mode, between)?);
    }
    guests.check()
}

/// How agents are started.
pub(crate) fn agent_options(plaintext: bool) -> &'static [&'static str] {
    if plaintext { &[IN_THE_CLEAR] } else { &[] }
}

/// Two guests alike.
pub(crate) struct Pair<'lab> {
    of_vmferry: World<'lab>,
    of_qemu: World<'lab>,
}

impl<'lab> Pair<'lab> {
    /// Boots both, each on hosts of its own, and fills them.
    pub(crate) fn boot(
        labs: &'lab (Lab, Lab),
        workload: Workload,
        binary: &Path,
        agent_options: &[&str],
    ) -> Result<Self> {
        Ok(Self {
            of_vmferry: World::of_vmferry(&labs.0, workload, binary, agent_options)
                .context("the guest that vmferry moves")?,
            of_qemu: World::of_qemu(&labs.1, workload).context("the guest that QEMU moves")?,
        })
    }

    /// Moves that are not counted: agents look at their QEMU once, and programs are read from disk. Where a run begins with a
    /// move that is not counted, that is it.
    pub(crate) fn warm_up(&mut self, workload: Workload) -> Result<()> {
        if workload == Workload::Return {
            return Ok(());
        }
        for mode in [Mode::Vmferry, Mode::MultifdZstd] {
            for _ in 0..2 {
                self.of(mode).measure(mode, Link::FAST).context("warming up")?;
            }
        }
        Ok(())
    }

    /// The one that `mode` moves.
    pub(crate) fn of(&mut self, mode: Mode) -> &mut World<'lab> {
        if mode.is_of_qemu() {
            &mut self.of_qemu
        } else {
            &mut self.of_vmferry
        }
    }

    /// Has both compare all that was written with what is there.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.of_vmferry.check().context("the guest that vmferry moved")?;
        self.of_qemu.check().context("the guest that QEMU moved")
    }
}

/// Whether more runs of `mode` would tell nothing: it does not converge, or is a mode of QEMU that can't be its best.
fn is_known(results: &Results, workload: Workload, link: Link, mode: Mode) -> bool {
    let of_case = |run: &&Run| (run.workload, run.link_mbit) == (workload, link);
    let failed = results.runs.iter().filter(of_case);
    let failed = failed.filter(|run| run.mode == mode && run.status == Status::NoConverge);
    let best = results.best_of_qemu(workload, link);
    let figures = results.cell(workload, link, mode).and_then(|cell| cell.figures);
    let too_slow = best.zip(figures).is_some_and(|((best, least), figures)| {
        mode.is_of_qemu() && mode != best && figures.total_ms.min > TOO_SLOW * least.total_ms.max
    });
    failed.count() >= ATTEMPTS_MAX || too_slow
}
