//! Processor time and memory of everything that runs on the two hosts, whoever started it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::usage::Cpu;

/// A process that ends takes the figures since the last sample with it; a sample takes about 1 ms.
const INTERVAL: Duration = Duration::from_millis(40);

/// Who looks closer at a move while the benchmark measures it.
pub(crate) trait Observer {
    /// The guest is about to be moved away from `from`.
    fn begins(&mut self, from: Host) -> Result<()>;
    /// It was moved, and `usage` has what ran meanwhile.
    fn ends(&mut self, usage: &Usage) -> Result<()>;
}

/// Nobody.
impl Observer for () {
    fn begins(&mut self, _from: Host) -> Result<()> {
        Ok(())
    }

    fn ends(&mut self, _usage: &Usage) -> Result<()> {
        Ok(())
    }
}

/// A process that ran on one of the hosts.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) pid: u32,
    pub(crate) host: Host,
    /// Its program, cut as the kernel does.
    pub(crate) name: String,
}

/// What all processes on both hosts used meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Processor time without QEMU's vCPU threads: those are the guest's own work.
    pub(crate) cpu: Duration,
    /// The largest sum of resident memory, both copies of the guest included, bytes.
    pub(crate) memory_bytes: u64,
    /// The largest resident memory of the source's agent, bytes; 0 where there is none.
    pub(crate) source_agent_bytes: u64,
    /// The same of the target's.
    pub(crate) target_agent_bytes: u64,
    /// All whose time is counted.
    pub(crate) processes: Vec<Seen>,
}

/// Watches the two hosts until told to finish.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Watch {
    /// Begins: what was used before does not count. `agents` are those of source and target, where there are any.
    pub(crate) fn start(lab: &Lab, agents: Option<(u32, u32)>) -> Result<Self> {
        let mut hosts = Vec::new();
        for host in [Host::A, Host::B] {
            let namespace = Path::new("/run/netns").join(lab.namespace(host));
            let metadata = fs::metadata(&namespace).with_context(|| format!("reading {}", namespace.display()))?;
            hosts.push((host, format!("net:[{}]", metadata.ino())));
        }
        let mut tally = Tally {
            agents,
            ..Tally::default()
        };
        tally.sample(&hosts);
        // What ran already has used nothing yet.
        for process in tally.processes.values_mut() {
            process.before = process.now;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                thread::park_timeout(INTERVAL);
                tally.sample(&hosts);
            }
            tally.usage()
        });
        Ok(Self { stop, thread })
    }

    /// Takes the last sample and adds up.
    pub(crate) fn finish(self) -> Result<Usage> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().map_err(|_| anyhow!("the watch panicked"))
    }
}

/// One process and its processor time.
struct Process {
    seen: Seen,
    before: Duration,
    now: Duration,
}

#[derive(Default)]
struct Tally {
    processes: HashMap<u32, Process>,
    memory_bytes_max: u64,
    agents: Option<(u32, u32)>,
    source_agent_bytes_max: u64,
    target_agent_bytes_max: u64,
}

impl Tally {
    /// Processes may end at any moment of this: they are then left out.
    fn sample(&mut self, hosts: &[(Host, String)]) {
        let mut memory = 0;
        let Ok(listed) = fs::read_dir("/proc") else { return };
        for entry in listed.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let folder = entry.path();
            let Ok(namespace) = fs::read_link(folder.join("ns/net")) else {
                continue;
            };
            let Some((host, _)) = hosts.iter().find(|(_, name)| namespace == Path::new(name)) else {
                continue;
            };
            if let (Ok(cpu), Ok(name)) = (Cpu::of(pid), fs::read_to_string(folder.join("comm"))) {
                let process = self.processes.entry(pid).or_insert_with(|| Process {
                    seen: Seen {
                        pid,
                        host: *host,
                        name: String::new(),
                    },
                    before: Duration::ZERO,
                    now: Duration::ZERO,
                });
                process.now = cpu.host();
                // A child has its parent's name until it runs its own program.
                name.trim_end().clone_into(&mut process.seen.name);
            }
            let resident = resident_bytes(&folder).unwrap_or(0);
            memory += resident;
            if let Some((source, target)) = self.agents {
                if pid == source {
                    self.source_agent_bytes_max = self.source_agent_bytes_max.max(resident);
                }
                if pid == target {
                    self.target_agent_bytes_max = self.target_agent_bytes_max.max(resident);
                }
            }
        }
        self.memory_bytes_max = self.memory_bytes_max.max(memory);
    }

    fn usage(&self) -> Usage {
        Usage {
            cpu: self
                .processes
                .values()
                .map(|process| process.now.saturating_sub(process.before))
                .sum(),
            memory_bytes: self.memory_bytes_max,
            source_agent_bytes: self.source_agent_bytes_max,
            target_agent_bytes: self.target_agent_bytes_max,
            processes: self.processes.values().map(|process| process.seen.clone()).collect(),
        }
    }
}

/// The second field of `statm`, in pages.
fn resident_bytes(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
