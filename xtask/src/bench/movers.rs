//! The two that move a guest from host to host: vmferry's agents, and QEMU by itself.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmferry_e2e::agent::{Agent, PORT};
use vmferry_e2e::baseline;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Qemu, Spec};

use super::mode::Means;
use super::plan::DOWNTIME_MAX;

const VM: &str = "bench";
/// The exit code of `vmferry migrate` when the guest did not converge.
const NOT_CONVERGED: i32 = 5;

/// A migration's figures by the account of who did it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    /// Whether the guest runs on the other host now; else its time was up and it runs where it ran.
    pub(crate) completed: bool,
    /// From nothing on the target to the guest running there.
    pub(crate) total: Duration,
    /// Of that, until the target's QEMU awaited the guest.
    pub(crate) reserve: Duration,
    /// Passes over memory.
    pub(crate) rounds: u64,
}

/// Where a guest lives.
pub(crate) enum Mover<'lab> {
    /// An agent on host A and one on host B.
    Vmferry(Vec<Agent<'lab>>),
    /// A QEMU that is now here, now there.
    Qemu {
        lab: &'lab Lab,
        spec: Box<Spec>,
        source: Box<Qemu>,
    },
}

impl<'lab> Mover<'lab> {
    /// Starts both agents of the program `binary` and boots the guest on host A.
    pub(crate) fn vmferry(lab: &'lab Lab, binary: &Path, spec: &Spec) -> Result<Self> {
        let agents = vec![Agent::start(lab, Host::A, binary)?, Agent::start(lab, Host::B, binary)?];
        let file = spec.write_definition(lab.folder(), VM)?;
        agents[0].cli(["run".as_ref(), file.as_os_str()])?.success()?;
        Ok(Self::Vmferry(agents))
    }

    /// Boots the guest on host A.
    pub(crate) fn qemu(lab: &'lab Lab, spec: &Spec) -> Result<Self> {
        let source = Box::new(Qemu::boot(lab, Host::A, spec)?);
        Ok(Self::Qemu {
            lab,
            spec: Box::new(spec.clone()),
            source,
        })
    }

    /// Makes both hosts ready for a move to `to`; nothing of that is counted. With `forget`, the agent there is a new one: it
    /// may not know what it held when the guest was there before, which is a case of its own. Agents that look through disks
    /// in the background have done so then.
    pub(crate) fn prepare(&mut self, to: Host, forget: bool) -> Result<()> {
        let Self::Vmferry(agents) = self else { return Ok(()) };
        for agent in agents.iter_mut().filter(|agent| forget && agent.host() == to) {
            agent.renew()?;
        }
        for agent in agents {
            if help(agent, &[])?
                .lines()
                .any(|line| line.split_whitespace().next() == Some("index"))
            {
                agent
                    .cli(["index", "--wait"])?
                    .success()
                    .context("waiting for the index")?;
            }
        }
        Ok(())
    }

    /// Processes of the agents on `from` and `to`, where it is agents who move the guest.
    pub(crate) fn agents(&self, from: Host, to: Host) -> Option<(u32, u32)> {
        let Self::Vmferry(agents) = self else { return None };
        let on = |host| agents.iter().find(|agent| agent.host() == host)?.pid();
        Some((on(from)?, on(to)?))
    }

    /// Whether this vmferry, or QEMU, can do it so.
    pub(crate) fn can(&self, means: Means) -> Result<bool> {
        match (self, means) {
            (Self::Vmferry(agents), Means::Vmferry { codec: Some(codec) }) => {
                let agent = agents.first().context("no agent")?;
                let help = help(agent, &["migrate"])?;
                Ok(help.split(|c: char| !c.is_alphanumeric()).any(|word| word == codec))
            }
            _ => Ok(true),
        }
    }

    /// Moves the guest, which runs on `from`, to `to`.
    pub(crate) fn migrate(&mut self, from: Host, to: Host, means: Means, time_max: Duration) -> Result<Moved> {
        match (self, means) {
            (Self::Vmferry(agents), Means::Vmferry { codec }) => {
                let agent = agents
                    .iter()
                    .find(|agent| agent.host() == from)
                    .context("no agent there")?;
                vmferry(agent, to, codec, time_max)
            }
            (Self::Qemu { lab, spec, source }, Means::Qemu(mode)) => {
                let started = Instant::now();
                let target = Qemu::await_guest(lab, to, spec)?;
                let reserve = started.elapsed();
                let figures = baseline::migrate(lab, from, source, &target, mode, time_max)?;
                if figures.completed {
                    **source = target;
                }
                Ok(Moved {
                    completed: figures.completed,
                    total: reserve + figures.total,
                    reserve,
                    rounds: figures.rounds,
                })
            }
            (Self::Vmferry(_), Means::Qemu(_)) | (Self::Qemu { .. }, Means::Vmferry { .. }) => {
                bail!("this guest is moved by the other")
            }
        }
    }
}

/// What `vmferry help` says, of all or of one command.
fn help(agent: &Agent<'_>, command: &[&str]) -> Result<String> {
    let output = agent.command([&["help"], command].concat()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn vmferry(agent: &Agent<'_>, to: Host, codec: Option<&str>, time_max: Duration) -> Result<Moved> {
    let target = format!("{}:{PORT}", to.address());
    let (downtime, timeout) = (
        format!("{}ms", DOWNTIME_MAX.as_millis()),
        format!("{}s", time_max.as_secs()),
    );
    let mut arguments = vec![
        "migrate",
        VM,
        "--to",
        &target,
        "--max-downtime",
        &downtime,
        "--timeout",
        &timeout,
    ];
    if let Some(codec) = codec {
        arguments.extend(["--codec", codec]);
    }
    let answer = agent.cli(arguments)?;
    let report = answer.values.last().cloned().unwrap_or_default();
    ensure!(
        matches!(answer.code, Some(0 | NOT_CONVERGED)),
        "vmferry ended with {:?}: {}\n{report}",
        answer.code,
        answer.said
    );
    let milliseconds = |value: &serde_json::Value| value.as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
    let stages = report["stages"].as_array().context("a report without stages")?;
    let reserve = stages.iter().find(|stage| stage["stage"] == "reserve");
    Ok(Moved {
        completed: answer.code == Some(0),
        total: milliseconds(&report["total_ms"]).context("a report without a total")?,
        reserve: reserve.and_then(|stage| milliseconds(&stage["ms"])).unwrap_or_default(),
        rounds: report["rounds"].as_array().map_or(0, |rounds| rounds.len() as u64),
    })
}
