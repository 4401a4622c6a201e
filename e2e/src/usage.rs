//! Processor time and memory of a process, as the kernel counts them.

use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time that a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of its threads, also those that ended.
    pub total: Duration,
    /// Of that, QEMU's vCPU threads: the guest's own work, which under TCG outweighs all else. Zero
    /// for a QEMU that runs without `-name …,debug-threads=on`.
    pub vcpus: Duration,
}

impl Cpu {
    /// What the process `pid` has used so far. Resolution: one tick of the kernel, mostly 10 ms.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let (_, total) = stat(&process)?;
        let mut vcpus = Duration::ZERO;
        for thread in fs::read_dir(process.join("task"))? {
            // A thread may end between the listing and the reading.
            if let Ok((name, used)) = stat(&thread?.path())
                && name.starts_with("CPU ")
            {
                vcpus += used;
            }
        }
        Ok(Self { total, vcpus })
    }

    /// What is not the guest's own work.
    #[must_use]
    pub fn host(&self) -> Duration {
        self.total.saturating_sub(self.vcpus)
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            vcpus: self.vcpus.saturating_sub(earlier.vcpus),
        }
    }
}

/// The largest resident memory that the process `pid` ever had, bytes (`VmHWM`); for a QEMU, its
/// guest's memory included.
///
/// # Errors
/// When there is no such process.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .with_context(|| format!("no VmHWM in {}", path.display()))
}

/// Name and user + system time from the `stat` file of a process or thread.
fn stat(folder: &Path) -> Result<(String, Duration)> {
    let path = folder.join("stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    parse_stat(&text).with_context(|| format!("{}: {text:?}", path.display()))
}

/// The name stands in parentheses and may hold spaces and parentheses itself; utime and stime are
/// the 12th and 13th fields after it.
fn parse_stat(text: &str) -> Option<(String, Duration)> {
    let (head, fields) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let used = Duration::from_secs_f64((user + system) as f64 / ticks as f64);
    Some((name.to_owned(), used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (CPU 0/TCG (x)) S 1 1 1 0 -1 4194304 10 0 0 0 250 50 0 0 20 0";
        let (name, used) = parse_stat(text).unwrap();
        assert_eq!(name, "CPU 0/TCG (x)");
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(used, Duration::from_secs_f64(300.0 / ticks as f64));
    }

    #[test]
    fn this_process_has_a_peak_of_memory() {
        assert!(peak_memory_bytes(std::process::id()).unwrap() > 0);
    }
}
