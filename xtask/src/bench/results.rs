//! What was measured: kept as `results.json`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::plan::{Mode, Workload};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// The guest was moved.
    Completed,
    /// It was not within the time allowed, and runs where it ran.
    NoConverge,
}

/// One migration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) workload: Workload,
    pub(crate) link_mbit: u32,
    pub(crate) mode: Mode,
    pub(crate) status: Status,
    /// Bytes that both hosts sent to the switch, with Ethernet headers.
    pub(crate) bytes: u64,
    /// From the command, with no QEMU on the target yet, to the guest running there (or to giving up).
    pub(crate) total_ms: f64,
    /// Of that, until the target's QEMU awaited the guest.
    pub(crate) reserve_ms: f64,
    /// The longest silence between two of the guest's ticks (1 ms apart) at the client.
    pub(crate) blackout_guest_ms: f64,
    /// Processor time of all processes on both hosts except the vCPUs'.
    pub(crate) cpu_s: f64,
    /// Peak of the resident memory of all processes on both hosts, both copies of the guest included, in 10^6 bytes.
    pub(crate) rss_mb: f64,
    /// The same of vmferry's processes alone.
    pub(crate) vmferry_rss_mb: f64,
    /// Passes over memory.
    pub(crate) rounds: u64,
}

/// What else ran over the link while a workload was measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Background {
    pub(crate) workload: Workload,
    /// Ticks, and the workload's own traffic.
    pub(crate) bytes_per_s: u64,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) qemu: String,
    pub(crate) accel: String,
    pub(crate) guest_memory_mib: u32,
}

/// Everything measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) background: Vec<Background>,
    pub(crate) runs: Vec<Run>,
}

impl Machine {
    /// This machine, whose guests run under `accel`.
    pub(crate) fn this(accel: &str, guest_memory_mib: u32) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let qemu = Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .context("asking QEMU for its version")?;
        let qemu = String::from_utf8_lossy(&qemu.stdout).into_owned();
        Ok(Self {
            cpu: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: field(&memory, "MemTotal")
                .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            qemu: qemu
                .lines()
                .next()
                .and_then(|line| line.split_whitespace().nth(3))
                .unwrap_or("unknown")
                .to_owned(),
            accel: accel.to_owned(),
            guest_memory_mib,
        })
    }
}

/// The value behind `name` and a colon.
fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines()
        .find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()))
}

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not of this version", path.display()))
    }

    /// One run a line, so that a change of one shows as one.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let lines = |values: Vec<String>| values.join(",\n    ");
        let runs = self.runs.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let background = self
            .background
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        let text = format!(
            "{{\n  \"machine\": {},\n  \"background\": [\n    {}\n  ],\n  \"runs\": [\n    {}\n  ]\n}}\n",
            serde_json::to_string(&self.machine)?,
            lines(background),
            lines(runs)
        );
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The runs of one cell of the table summed up; none where nothing was measured.
    pub(crate) fn cell(&self, workload: Workload, link_mbit: u32, mode: Mode) -> Option<Cell> {
        let of_cell = |run: &&Run| (run.workload, run.link_mbit, run.mode) == (workload, link_mbit, mode);
        let runs: Vec<&Run> = self.runs.iter().filter(of_cell).collect();
        let completed: Vec<&Run> = runs
            .iter()
            .copied()
            .filter(|run| run.status == Status::Completed)
            .collect();
        let of = |figure: fn(&Run) -> f64| median(completed.iter().map(|run| figure(run)).collect());
        Some(Cell {
            runs: runs.len(),
            completed: completed.len(),
            figures: of(|run| run.bytes as f64).map(|bytes| Figures {
                bytes,
                total_ms: of(|run| run.total_ms).unwrap_or(0.0),
                reserve_ms: of(|run| run.reserve_ms).unwrap_or(0.0),
                blackout_ms: of(|run| run.blackout_guest_ms).unwrap_or(0.0),
                cpu_s: of(|run| run.cpu_s).unwrap_or(0.0),
                rss_mb: of(|run| run.rss_mb).unwrap_or(0.0),
                vmferry_rss_mb: of(|run| run.vmferry_rss_mb).unwrap_or(0.0),
                rounds: of(|run| run.rounds as f64).unwrap_or(0.0),
            }),
        })
        .filter(|cell| cell.runs > 0)
    }
}

/// The runs of one workload, link and mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) runs: usize,
    pub(crate) completed: usize,
    /// Medians of the runs that completed, each figure by itself.
    pub(crate) figures: Option<Figures>,
}

/// Medians.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) bytes: f64,
    pub(crate) total_ms: f64,
    pub(crate) reserve_ms: f64,
    pub(crate) blackout_ms: f64,
    pub(crate) cpu_s: f64,
    pub(crate) rss_mb: f64,
    pub(crate) vmferry_rss_mb: f64,
    pub(crate) rounds: f64,
}

/// Of an even number, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_ignores_order_and_outliers() {
        assert_eq!(median(vec![900.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }
}
