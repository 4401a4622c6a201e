//! Developer commands: `cargo xtask help` lists them.

mod bench;
mod capture;
mod demo;
mod faults;
mod fuzz;
mod handover_cost;
mod link_cut;
mod profile;
mod random;
mod redis;
mod screen;
mod setup;
mod shuttle;
mod versions;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Developer commands of vmferry")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the demo, the tests and the benchmark need, and build the guests' images.
    Setup,
    /// Move a real guest between two hosts while a client uses it.
    Demo,
    /// Measure vmferry beside QEMU's own migrations: results.json, RESULTS.md, results.svg.
    Bench(bench::BenchArgs),
    /// Have something fail in each of many migrations of a real guest, and check that nothing is lost.
    Faults(faults::FaultsArgs),
    /// Show where the processor time of a move goes, by `perf`.
    Profile(profile::ProfileArgs),
    /// Keep QEMU's migration stream of a guest at work in a file.
    Capture(capture::CaptureArgs),
    /// Run the fuzz targets, one after the other.
    Fuzz(fuzz::FuzzArgs),
    /// Move guests between this version and another one, and upgrade agents in the middle.
    Versions(versions::VersionsArgs),
    /// Measure what the journal's writes and an arbiter take of a guest's pause.
    HandoverCost(handover_cost::HandoverCostArgs),
    /// Measure what a link that is cut and comes back costs a migration.
    LinkCut(link_cut::LinkCutArgs),
}

fn main() -> Result<()> {
    match Xtask::parse().command {
        Command::Setup => setup::run(),
        Command::Demo => demo::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Versions(args) => versions::run(&args),
        Command::HandoverCost(args) => handover_cost::run(&args),
        Command::LinkCut(args) => link_cut::run(&args),
    }
}
