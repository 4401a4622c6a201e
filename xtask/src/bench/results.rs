//! What was measured: kept as `results.json`.

use std::path::Path;
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::plan::{Link, Workload};
use super::rate::Search;
use super::select::BenchArgs;

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
    /// Its rate in million bits a second, or none.
    pub(crate) link_mbit: Link,
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
    /// Peak of the resident memory of the source's agent, in 10^6 bytes; 0 where there is none.
    pub(crate) source_agent_mb: f64,
    /// The same of the target's.
    pub(crate) target_agent_mb: f64,
    /// Passes over memory.
    pub(crate) rounds: u64,
    /// Bytes of pages that the workload's dirtier wrote a second by the guest's account.
    pub(crate) written_bytes_per_s: Option<f64>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:>9}  {:<13} {:>7.1} MB {:>7.2} s  blackout {:>6.0} ms  CPU {:>5.2} s  memory {:>5.0} MB (agents \
             {:>3.0}, {:>3.0})  {:>2} rounds{}",
            self.workload.name(),
            self.link_mbit.to_string(),
            self.mode.name(),
            self.bytes as f64 / 1e6,
            self.total_ms / 1e3,
            self.blackout_guest_ms,
            self.cpu_s,
            self.rss_mb,
            self.source_agent_mb,
            self.target_agent_mb,
            self.rounds,
            match self.status {
                Status::Completed => "",
                Status::NoConverge => "  did not converge",
            },
        )
    }
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
}

/// Everything measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) background: Vec<Background>,
    pub(crate) runs: Vec<Run>,
    pub(crate) rates: Vec<Search>,
}

impl Machine {
    /// This machine, whose guests run under `accel`.
    pub(crate) fn this(accel: &str) -> Result<Self> {
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

    /// Takes over from `earlier` what `args` do not measure anew.
    pub(crate) fn keep(&mut self, earlier: Self, args: &BenchArgs) {
        let anew = |background: &Background| args.workloads().contains(&background.workload);
        let runs = earlier.runs.into_iter();
        let rates = earlier.rates.into_iter();
        self.background
            .extend(earlier.background.into_iter().filter(|background| !anew(background)));
        self.runs
            .extend(runs.filter(|run| !args.measures(run.workload, run.link_mbit, run.mode)));
        self.rates
            .extend(rates.filter(|search| !args.searches_for(search.workload, search.mode)));
    }

    /// One run a line, so that a change of one shows as one.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = format!(
            "{{\n  \"machine\": {},\n  \"background\": {},\n  \"runs\": {},\n  \"rates\": {}\n}}\n",
            serde_json::to_string(&self.machine)?,
            lines(&self.background)?,
            lines(&self.runs)?,
            lines(&self.rates)?,
        );
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Workloads and links of which there are runs, in the order in which they were measured.
    pub(crate) fn cases(&self) -> Vec<(Workload, Link)> {
        let mut cases = Vec::new();
        for run in &self.runs {
            let case = (run.workload, run.link_mbit);
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    /// The runs of one cell of the table summed up; none where nothing was measured.
    pub(crate) fn cell(&self, workload: Workload, link: Link, mode: Mode) -> Option<Cell> {
        let of_cell = |run: &&Run| (run.workload, run.link_mbit, run.mode) == (workload, link, mode);
        let runs: Vec<&Run> = self.runs.iter().filter(of_cell).collect();
        let completed: Vec<&Run> = runs
            .iter()
            .copied()
            .filter(|run| run.status == Status::Completed)
            .collect();
        (!runs.is_empty()).then(|| Cell {
            runs: runs.len(),
            completed: completed.len(),
            figures: Figures::of(&completed),
        })
    }

    /// The mode of QEMU that takes the least time among those whose every run converged, and its figures.
    pub(crate) fn best_of_qemu(&self, workload: Workload, link: Link) -> Option<(Mode, Figures)> {
        Mode::ALL
            .into_iter()
            .filter(|mode| mode.is_of_qemu())
            .filter_map(|mode| {
                let cell = self.cell(workload, link, mode)?;
                Some((mode, cell.figures?)).filter(|_| cell.completed == cell.runs)
            })
            .min_by(|(_, one), (_, other)| one.total_ms.median.total_cmp(&other.total_ms.median))
    }
}

/// A JSON array, one value a line.
fn lines<T: Serialize>(values: &[T]) -> Result<String> {
    let values: Vec<String> = values.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(format!("[\n    {}\n  ]", values.join(",\n    ")))
}

/// The runs of one workload, link and mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) runs: usize,
    pub(crate) completed: usize,
    /// Of the runs that completed, if any did.
    pub(crate) figures: Option<Figures>,
}

/// What runs measured, each figure by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) bytes: Spread,
    pub(crate) total_ms: Spread,
    pub(crate) reserve_ms: Spread,
    pub(crate) blackout_ms: Spread,
    pub(crate) cpu_s: Spread,
    pub(crate) rss_mb: Spread,
    pub(crate) source_agent_mb: Spread,
    pub(crate) target_agent_mb: Spread,
    pub(crate) rounds: Spread,
}

impl Figures {
    fn of(runs: &[&Run]) -> Option<Self> {
        let of = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(|run| figure(run)).collect());
        Some(Self {
            bytes: of(|run| run.bytes as f64)?,
            total_ms: of(|run| run.total_ms)?,
            reserve_ms: of(|run| run.reserve_ms)?,
            blackout_ms: of(|run| run.blackout_guest_ms)?,
            cpu_s: of(|run| run.cpu_s)?,
            rss_mb: of(|run| run.rss_mb)?,
            source_agent_mb: of(|run| run.source_agent_mb)?,
            target_agent_mb: of(|run| run.target_agent_mb)?,
            rounds: of(|run| run.rounds as f64)?,
        })
    }
}

/// Of one figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Of an even number, the mean of the two in the middle.
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get(values.len().checked_sub(1)? / 2)?;
        Some(Self {
            median: (lower + upper) / 2.0,
            min: *values.first()?,
            max: *values.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_ignores_order_and_outliers() {
        let median = |values| Spread::of(values).map(|spread| spread.median);
        assert_eq!(median(vec![900.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }
}
