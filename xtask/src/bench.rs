//! `cargo xtask bench`: vmferry beside QEMU's own migrations, same guest, same link, in one run.
//!
//! Each workload runs in two guests alike, one that vmferry moves and one that QEMU moves. Both go back and forth
//! between their hosts, a mode each time, round after round, so that whatever else the machine does meets all modes.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | workloads, links, modes |
//! | [`world`] | a guest with its workload, and one measured move of it |
//! | [`movers`] | who moves it |
//! | [`usage`] | processor time and memory of all processes |
//! | [`records`] | what Redis holds, and its client |
//! | [`results`] | `results.json`, medians |
//! | [`markdown`], [`plot`] | what people read |

mod markdown;
mod movers;
mod plan;
mod plot;
mod records;
mod results;
mod usage;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::net::Lab;

use plan::{ATTEMPTS_MAX, LINKS_MBIT, Means, Mode, Workload};
use results::{Background, Machine, Results, Status};
use world::World;

/// The arguments of `bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// One run of each cell, at the fastest link.
    #[arg(long)]
    quick: bool,
    /// Only this workload; may be repeated.
    #[arg(long, value_enum)]
    workload: Vec<Workload>,
    /// Only this link, million bits a second; may be repeated.
    #[arg(long, value_name = "MBIT")]
    link: Vec<u32>,
    /// Only this mode; may be repeated.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Runs of each cell [default: 3, or 1 with --quick].
    #[arg(long)]
    runs: Option<usize>,
    /// The folder for results [default: bench for the whole, else target/bench].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Keep the other cells of the results that are there.
    #[arg(long)]
    keep: bool,
    /// Measure nothing: write table and plot anew from the results that are there.
    #[arg(long)]
    render: bool,
}

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
    let kept = if args.keep {
        Results::read(&path)?.others(args)
    } else {
        (Vec::new(), Vec::new())
    };
    let accel = world::spec(Workload::Idle)?.accel;
    let mut results = Results {
        machine: Machine::this(accel.name(), world::MEMORY_MIB)?,
        background: kept.0,
        runs: kept.1,
    };
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

/// All cells of one workload.
fn measure(args: &BenchArgs, workload: Workload, binary: &Path, results: &mut Results) -> Result<()> {
    let labs = (Lab::new()?, Lab::new()?);
    let mut of_vmferry = World::of_vmferry(&labs.0, workload, binary).context("the guest that vmferry moves")?;
    let mut of_qemu = World::of_qemu(&labs.1, workload).context("the guest that QEMU moves")?;
    let bytes_per_s = of_qemu.background_bytes_per_s()?;
    results.background.push(Background { workload, bytes_per_s });
    // Not counted: agents look at their QEMU once, programs are read from disk, and on a virtual machine memory that was not
    // used for a while has to be had back from its host, for which the first to need it would pay.
    for (world, mode) in [(&mut of_vmferry, Mode::Vmferry), (&mut of_qemu, Mode::MultifdZstd)] {
        world.set_rate(LINKS_MBIT[0])?;
        for _ in 0..2 {
            world.measure(mode, LINKS_MBIT[0]).context("warming up")?;
        }
    }
    for link_mbit in args.links() {
        of_vmferry.set_rate(link_mbit)?;
        of_qemu.set_rate(link_mbit)?;
        for _ in 0..args.runs() {
            for mode in args.modes() {
                let hopeless = |run: &&results::Run| {
                    (run.workload, run.link_mbit, run.mode, run.status)
                        == (workload, link_mbit, mode, Status::NoConverge)
                };
                if results.runs.iter().filter(hopeless).count() >= ATTEMPTS_MAX {
                    continue;
                }
                let world = match mode.means() {
                    Means::Vmferry { .. } => &mut of_vmferry,
                    Means::Qemu(_) => &mut of_qemu,
                };
                let run = world.measure(mode, link_mbit)?;
                println!(
                    "{:<10} {link_mbit:>4} Mb/s  {:<13} {:>7.1} MB {:>7.2} s  blackout {:>6.0} ms  CPU {:>5.2} s  \
                     memory {:>5.0} MB  {:>2} rounds{}",
                    workload.name(),
                    mode.name(),
                    run.bytes as f64 / 1e6,
                    run.total_ms / 1e3,
                    run.blackout_guest_ms,
                    run.cpu_s,
                    run.rss_mb,
                    run.rounds,
                    if run.status == Status::NoConverge {
                        "  did not converge"
                    } else {
                        ""
                    },
                );
                results.runs.push(run);
            }
        }
    }
    of_vmferry.check()?;
    of_qemu.check()
}

impl Results {
    /// The kept part: what the arguments do not measure anew.
    fn others(self, args: &BenchArgs) -> (Vec<Background>, Vec<results::Run>) {
        let (workloads, links, modes) = (args.workloads(), args.links(), args.modes());
        let anew = |run: &results::Run| {
            workloads.contains(&run.workload) && links.contains(&run.link_mbit) && modes.contains(&run.mode)
        };
        (
            self.background
                .into_iter()
                .filter(|background| !workloads.contains(&background.workload))
                .collect(),
            self.runs.into_iter().filter(|run| !anew(run)).collect(),
        )
    }
}

impl BenchArgs {
    fn workloads(&self) -> Vec<Workload> {
        if self.workload.is_empty() {
            Workload::ALL.to_vec()
        } else {
            self.workload.clone()
        }
    }

    fn links(&self) -> Vec<u32> {
        match (self.link.is_empty(), self.quick) {
            (false, _) => self.link.clone(),
            (true, true) => LINKS_MBIT[..1].to_vec(),
            (true, false) => LINKS_MBIT.to_vec(),
        }
    }

    /// vmferry's and QEMU's by turns.
    fn modes(&self) -> Vec<Mode> {
        let all = [
            Mode::Vmferry,
            Mode::MultifdZstd,
            Mode::VmferryLz4,
            Mode::Plain,
            Mode::VmferryLz78,
            Mode::Xbzrle,
        ];
        all.into_iter()
            .filter(|mode| self.mode.is_empty() || self.mode.contains(mode))
            .collect()
    }

    fn runs(&self) -> usize {
        self.runs.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn folder(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let whole = !self.quick && self.workload.is_empty() && self.link.is_empty() && self.mode.is_empty();
        match &self.out {
            Some(folder) => folder.clone(),
            None if whole || self.keep || self.render => root.join("bench"),
            None => root.join("target/bench"),
        }
    }
}
