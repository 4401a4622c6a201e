//! `cargo xtask profile`: where the processor time of a move goes.
//!
//! The guests, their workload and their moves are the benchmark's. While its watch counts the processor time of a move, `perf`
//! samples the whole machine; of the samples those count that the watch counts too: of processes on the two hosts, without
//! QEMU's vCPU threads.
//!
//! | module | what |
//! |---|---|
//! | [`recording`] | `perf record` for the time of one move |
//! | [`script`] | what `perf script` prints, as samples |
//! | [`work`] | what a sample's time went to, by its call chain |
//! | [`table`] | samples added up, for people |

mod recording;
mod script;
mod table;
mod work;

use anyhow::Result;
use clap::Args;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::net::Lab;

use crate::bench::mode::Mode;
use crate::bench::plan::{Link, Workload};
use crate::bench::{Pair, agent_options};
use recording::Recording;
use table::Profile;

/// The arguments of `profile`.
#[derive(Args)]
pub(crate) struct ProfileArgs {
    /// What the guest holds and does.
    #[arg(long, value_enum, default_value_t = Workload::Mixed)]
    workload: Workload,
    /// The link between the hosts, million bits a second or `none` for no limit.
    #[arg(long, value_name = "MBIT", default_value = "none")]
    link: Link,
    /// How the guest is moved; may be repeated.
    #[arg(long, value_enum, default_values_t = [Mode::VmferryRaw, Mode::Plain])]
    mode: Vec<Mode>,
    /// The agents talk without TLS.
    #[arg(long)]
    plaintext: bool,
    /// Moves of each mode.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

/// Moves guests and prints a table for each mode.
///
/// # Errors
/// When there is no `perf`, before anything else; when a move fails or what the guest holds is not what was written there.
pub(crate) fn run(args: &ProfileArgs) -> Result<()> {
    recording::check()?;
    let binary = built_vmferry(true)?;
    let labs = (Lab::new()?, Lab::new()?);
    let file = labs.0.folder().join("perf.data");
    let mut guests = Pair::boot(&labs, args.workload, &binary, agent_options(args.plaintext))?;
    guests.warm_up(args.workload)?;
    let mut profiles: Vec<_> = args.mode.iter().map(|&mode| (mode, Profile::default())).collect();
    // By turns, so that whatever else the machine does meets all modes.
    for _ in 0..args.runs {
        for (mode, profile) in &mut profiles {
            let mut recording = Recording::start(&file)?;
            let run = guests.of(*mode).measure_under(*mode, args.link, &mut recording)?;
            println!("{run}");
            profile.add(&recording.finish()?, run.cpu_s)?;
        }
    }
    guests.check()?;
    for (mode, profile) in &profiles {
        println!("\n## {}, {}, {}\n", args.workload.name(), args.link, mode.name());
        print!("{profile}");
    }
    Ok(())
}
