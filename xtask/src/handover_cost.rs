//! `cargo xtask handover-cost`: what the journal's writes to the disk, and an arbiter, take of a guest's pause.
//!
//! In a handover's blackout three records are synced one after the other: `Prepared`, `Released`, `Owned`. Three guests move to and
//! fro by turns, alike but for where their agents' state is (on a disk, and in memory, where syncing costs nothing) and whether three
//! etcd nodes, with their state on the disk, are asked as well. The product has no switch for the journal, as there is none that is
//! safe.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use vmferry_core::handover::Record as Fact;
use vmferry_core::wire::hello::MigrationId;
use vmferry_core::wire::message::{Epoch, Handover};
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::etcd::Etcd;
use vmferry_e2e::guest::Ticks;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::scenario::{address, ensure_alive};
use vmferry_store::Journal;

use crate::shuttle::{Shuttle, VM};

const TICK_INTERVAL: Duration = Duration::from_millis(1);
/// Records written to see what one takes.
const APPENDS: usize = 200;
/// `TMPFS_MAGIC` and `RAMFS_MAGIC`: nothing there is on a disk.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The arguments of `handover-cost`.
#[derive(Args)]
pub(crate) struct HandoverCostArgs {
    /// Moves of each guest.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// A folder in memory.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory: PathBuf,
}

/// Moves the guests and prints their pauses.
///
/// # Errors
/// When the folder for temporary files is no disk or the other one is, when a move fails, or a guest is not whole after all of them.
pub(crate) fn run(args: &HandoverCostArgs) -> Result<()> {
    let binary = built_vmferry(true)?;
    let labs = (Lab::new()?, Lab::new()?, Lab::new()?);
    let in_memory = Folder::new(&args.memory, &labs.1)?;
    ensure!(
        !is_in_memory(labs.0.folder())?,
        "{} is in memory: name a folder on a disk in TMPDIR",
        labs.0.folder().display()
    );
    ensure!(
        is_in_memory(&in_memory.0)?,
        "{} is on a disk: name a folder in memory with --memory",
        args.memory.display()
    );
    println!("| records in | bytes of one | synced within, median | p99 |\n|---|---|---|---|");
    for (place, folder) in [
        ("a file on the disk", labs.0.folder()),
        ("a file in memory", &in_memory.0),
    ] {
        let (bytes, times) = appends(folder)?;
        println!(
            "| {place} | {bytes} | {} | {} |",
            ms(median(&times)),
            ms(percentile(&times, 99))
        );
    }

    for host in [Host::A, Host::B] {
        let state = in_memory.0.join(host.name());
        fs::create_dir(&state)?;
        symlink(&state, labs.1.folder().join(host.name()))?;
    }
    let _etcd = Etcd::start(&labs.2)?;
    let arbiter = Etcd::option();
    let mut all = [
        ("on the disk", Moved::boot(&labs.0, &binary, &[])?),
        ("in memory", Moved::boot(&labs.1, &binary, &[])?),
        (
            "on the disk, and etcd",
            Moved::boot(&labs.2, &binary, &["--arbiter", &arbiter])?,
        ),
    ];
    for _ in 0..args.runs {
        for (_, moved) in &mut all {
            moved.moves()?;
        }
        // Whatever else the machine does meets all.
        all.rotate_left(1);
    }
    all.sort_unstable_by_key(|(place, _)| *place);
    println!("\n| state directories | moves | blackout, median | p99 | longest |\n|---|---|---|---|---|");
    for (place, moved) in &mut all {
        ensure_alive(&mut moved.shuttle.guest)?;
        let times = &moved.blackouts;
        println!(
            "| {place} | {} | {} | {} | {} |",
            times.len(),
            ms(median(times)),
            ms(percentile(times, 99)),
            ms(percentile(times, 100))
        );
    }
    Ok(())
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    /// One in `parent` that no other lab uses.
    fn new(parent: &Path, lab: &Lab) -> Result<Self> {
        let name = lab.folder().file_name().context("a lab without a folder")?;
        let folder = parent.join(name);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_in_memory(folder: &Path) -> Result<bool> {
    let folder = fs::File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
    Ok(IN_MEMORY.contains(&rustix::fs::fstatfs(&folder)?.f_type))
}

/// Bytes of a record as they are written in a blackout, and how long each append took.
fn appends(folder: &Path) -> Result<(u64, Vec<Duration>)> {
    let path = folder.join("appends");
    let mut journal = Journal::open(&path)?.journal;
    let record = Fact::Released {
        handover: Handover {
            migration: MigrationId(1),
            vm: VM.to_owned(),
            epoch: Epoch(1),
        },
        arbiter: None,
    };
    let before = journal.file_bytes();
    let mut times = Vec::with_capacity(APPENDS);
    for _ in 0..APPENDS {
        let began = Instant::now();
        journal.append(&record)?;
        times.push(began.elapsed());
    }
    Ok(((journal.file_bytes() - before) / APPENDS as u64, times))
}

/// A guest, and how long it paused in each of its moves, as its client saw it.
struct Moved<'lab> {
    shuttle: Shuttle<'lab>,
    blackouts: Vec<Duration>,
}

impl<'lab> Moved<'lab> {
    fn boot(lab: &'lab Lab, binary: &Path, options: &[&str]) -> Result<Self> {
        Ok(Self {
            shuttle: Shuttle::boot(lab, binary, options)?,
            blackouts: Vec::new(),
        })
    }

    fn moves(&mut self) -> Result<()> {
        let Shuttle { lab, guest, .. } = &mut self.shuttle;
        let ticks = Ticks::start(lab, Host::Client, guest, TICK_INTERVAL)?;
        let [from, to] = self.shuttle.ends();
        let report = from.cli(["migrate", VM, "--to", &address(to.host())])?.success()?;
        // The silence has an end only with the tick after it.
        self.shuttle.guest.ask("ping")?;
        std::thread::sleep(20 * TICK_INTERVAL);
        let silence = ticks.finish()?;
        self.shuttle.guest.ask("stop-tick")?;
        ensure!(report["outcome"] == "completed", "{report:#}");
        self.shuttle.moved();
        self.blackouts.push(silence.gap_max);
        Ok(())
    }
}

fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// The shortest time that so many in a hundred do not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(median(&times), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times, 100), Duration::from_millis(200));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(200));
    }
}
