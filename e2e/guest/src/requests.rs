//! Every request the server understands, and what it does.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::system::{RebootCommand, reboot};
use serde_json::{Value, json};

use crate::counter::Counter;
use crate::disk;
use crate::memory::Memory;
use crate::python::Python;
use crate::redis::Redis;
use crate::ticks::Ticks;

/// All that runs in the guest on behalf of its clients.
pub(crate) struct Workloads {
    counter: Counter,
    memory: Memory,
    ticks: Ticks,
    redis: Redis,
    python: Python,
}

impl Workloads {
    /// Starts the counter; everything else waits for a request.
    pub(crate) fn start() -> Self {
        Self {
            counter: Counter::start(),
            memory: Memory::default(),
            ticks: Ticks::default(),
            redis: Redis::default(),
            python: Python::default(),
        }
    }

    /// Carries out one request. An answer is always a JSON object.
    pub(crate) fn answer(&self, words: &[&str]) -> Result<Value> {
        match *words {
            ["ping"] => Ok(json!({})),
            ["counter"] => Ok(self.counter.answer()),
            ["tick", host, port, interval_us] => {
                let interval = Duration::from_micros(number(interval_us)?);
                self.ticks.start(host, u16::try_from(number(port)?)?, interval)
            }
            ["stop-tick"] => Ok(self.ticks.stop()),
            ["fill", kind, bytes] => self.memory.fill(kind.parse()?, number(bytes)?),
            ["dirty", kind, bytes, rate] => self.memory.dirty(kind.parse()?, number(bytes)?, number(rate)?),
            ["dirty-rate"] => self.memory.dirty_rate(),
            ["stop-dirty"] => self.memory.stop_dirty(),
            ["sum"] => Ok(self.memory.sum()),
            ["disk-write", file, records] => disk::write(Path::new(file), number(records)?),
            ["disk-check", file] => disk::check(Path::new(file)),
            ["readall", folder] => disk::read_all(Path::new(folder)),
            ["redis", ref arguments @ ..] => self.redis.start(arguments),
            ["python", root, bytes] => self.python.start(root, number(bytes)?),
            ["python-change", records] => self.python.change(number(records)?),
            ["python-sum"] => self.python.sum(),
            ["mem"] => meminfo(),
            ["unmount", folder] => {
                unmount(folder, UnmountFlags::empty()).with_context(|| format!("unmounting {folder}"))?;
                Ok(json!({}))
            }
            ["poweroff"] => power_off(),
            _ => bail!("unknown request {:?}", words.join(" ")),
        }
    }
}

fn number(word: &str) -> Result<u64> {
    word.parse().with_context(|| format!("{word:?} is not a whole number"))
}

/// `/proc/meminfo` as an object of kB figures.
fn meminfo() -> Result<Value> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let figures: serde_json::Map<String, Value> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((name.to_owned(), json!(kib)))
        })
        .collect();
    Ok(json!({ "kib": figures }))
}

/// Memory that a new workload may take, bytes: what the kernel thinks is available less a reserve
/// that keeps the guest itself alive.
pub(crate) fn memory_available() -> Result<u64> {
    const RESERVE_KIB: u64 = 16 * 1024;
    meminfo()?["kib"]["MemAvailable"]
        .as_u64()
        .map(|kib| kib.saturating_sub(RESERVE_KIB) * 1024)
        .ok_or_else(|| anyhow!("/proc/meminfo has no MemAvailable"))
}

fn power_off() -> Result<Value> {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/mounts")?;
    for line in mounts.lines() {
        if let [_, folder, "ext4", ..] = line.split(' ').collect::<Vec<_>>()[..] {
            // A folder still in use stays mounted; its journal is then replayed at the next mount.
            let _ = unmount(folder, UnmountFlags::empty());
        }
    }
    reboot(RebootCommand::PowerOff)?;
    Ok(json!({}))
}
