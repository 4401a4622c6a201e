//! The two that move a guest from host to host: vmferry's agents, and QEMU by itself.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmferry_e2e::agent::{Agent, PORT};
use vmferry_e2e::baseline;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Qemu, Spec};

use super::plan::{DOWNTIME_MAX, Means};

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
    /// Starts both agents and boots the guest on host A.
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

fn vmferry(agent: &Agent<'_>, to: Host, codec: &str, time_max: Duration) -> Result<Moved> {
    let answer = agent.cli([
        "migrate",
        VM,
        "--to",
        &format!("{}:{PORT}", to.address()),
        "--codec",
        codec,
        "--max-downtime",
        &format!("{}ms", DOWNTIME_MAX.as_millis()),
        "--timeout",
        &format!("{}s", time_max.as_secs()),
    ])?;
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
