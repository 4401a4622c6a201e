//! Carrying a fault out, and making good again what an administrator would.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use vmferry_e2e::agent::{Agent, PORT};
use vmferry_e2e::etcd::Etcd;
use vmferry_e2e::net::Host;

use super::plan::{Fault, Plan, Side};
use super::world::{VM, World, clock};

/// How far a clock may jump, seconds: less than TLS, a lease or a reader of a log would notice, and a day.
const JUMPS_S: [i64; 6] = [-86_400, -3_600, -5, 5, 3_600, 86_400];
/// How long a target may take to start its QEMU.
const QEMU_STARTS_MAX: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const BALLAST_CHUNK: usize = 1 << 20;

/// What an injection did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Whether there was anything to fail.
    pub(crate) out: bool,
    /// Whether the source's agent is another process now.
    pub(crate) source_restarted: bool,
}

/// Carries the fault of `plan` out, lets it last, and ends it.
pub(crate) fn carry_out(world: &mut World, plan: &Plan) -> Result<Carried> {
    let [source, target] = [Side::Source, Side::Target].map(|side| world.host(side));
    let other = |host: Host| if host == source { target } else { source };
    let hold = || thread::sleep(plan.lasts);
    let mut out = true;
    thread::sleep(plan.delay);
    let mut restarted = None;
    match plan.fault {
        Fault::None => {}
        Fault::KillAgent(side) => {
            let host = world.host(side);
            world.agent_mut(host).kill()?;
            hold();
            restarted = Some(host);
        }
        Fault::KillQemu(Side::Source) => out = kill_qemu(world.agent(source))?,
        Fault::KillQemu(Side::Target) => {
            // It may be only coming.
            let started = Instant::now();
            out = kill_qemu(world.agent(target))?;
            while !out && started.elapsed() < QEMU_STARTS_MAX {
                thread::sleep(LOOK_AGAIN);
                out = kill_qemu(world.agent(target))?;
            }
        }
        Fault::CutLink(side) => {
            let host = world.host(side);
            world.lab.link_down(host)?;
            hold();
            world.lab.link_up(host)?;
        }
        Fault::CutDirection(side) => {
            let host = world.host(side);
            world.lab.lose_packets(host, other(host))?;
            hold();
            world.lab.deliver_packets(host, other(host))?;
        }
        Fault::SilenceLane => {
            out = world
                .lab
                .silence_connection(source, target, PORT, plan.choice as usize)?;
            if out {
                hold();
                world.lab.hear_connections(source)?;
            }
        }
        Fault::KillNode | Fault::KillNodes => {
            let chosen = plan.choice as usize % Etcd::NODES;
            // That one, or all but that one.
            let dies = |node: &usize| (*node == chosen) == (plan.fault == Fault::KillNode);
            for node in (0..Etcd::NODES).filter(dies) {
                world.etcd()?.kill(node)?;
            }
            hold();
            world.etcd()?.start_all()?;
        }
        Fault::BreakLane => out = world.lab.break_connection(source, target, PORT, plan.choice as usize)?,
        Fault::FillDisk(side) => {
            let host = world.host(side);
            let ballast = fill(world.agent(host).folder())?;
            hold();
            drop(ballast);
            restarted = Some(host);
        }
        Fault::FailWrites(side) => {
            let host = world.host(side);
            limit_files(world.agent(host), Some(0))?;
            hold();
            limit_files(world.agent(host), None)?;
            restarted = Some(host);
        }
        Fault::JumpClock(side) => {
            let clock = clock(world.lab, world.host(side));
            let jump = JUMPS_S[plan.choice as usize % JUMPS_S.len()];
            fs::write(&clock, format!("{jump:+}"))?;
            hold();
            fs::write(&clock, "+0")?;
        }
        Fault::PauseAgent(side) => {
            let agent = world.agent(world.host(side));
            signal(agent, Signal::STOP)?;
            hold();
            signal(agent, Signal::CONT)?;
        }
    }
    if let Some(host) = restarted {
        // An agent whose journal failed is to be restarted when the disk is well again. It may be in the middle of something.
        let agent = world.agent_mut(host);
        agent.kill()?;
        agent.restart()?;
    }
    Ok(Carried {
        out,
        source_restarted: restarted == Some(source),
    })
}

/// `false` where there is none.
fn kill_qemu(agent: &Agent) -> Result<bool> {
    let path = agent.folder().join("vms").join(VM).join("qemu.pid");
    let pid = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().ok().and_then(Pid::from_raw),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    // Fails only for a process that has ended already.
    Ok(pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()))
}

/// A file that takes all room there is, until it is dropped.
fn fill(folder: &Path) -> Result<File> {
    let path = folder.join("ballast");
    let mut ballast = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
    // Without a name it goes whenever this process does.
    fs::remove_file(&path)?;
    let mut chunk = vec![0x5a; BALLAST_CHUNK];
    while !chunk.is_empty() {
        match ballast.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => chunk.truncate(chunk.len() / 2),
            Err(error) => return Err(error).context("filling the disk"),
        }
    }
    Ok(ballast)
}

/// Bounds how long files are that the agent writes to from now on.
fn limit_files(agent: &Agent, bytes: Option<u64>) -> Result<()> {
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Some(pid(agent)?), Resource::Fsize, limit)?;
    Ok(())
}

fn signal(agent: &Agent, signal: Signal) -> Result<()> {
    Ok(kill_process(pid(agent)?, signal)?)
}

fn pid(agent: &Agent) -> Result<Pid> {
    let pid = agent.pid().context("the agent does not run")?;
    Pid::from_raw(i32::try_from(pid)?).context("no process")
}
