//! The two that move a guest from host to host: vmferry's agents, and QEMU by itself.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vmferry_e2e::baseline;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Qemu, Spec};

use super::agents::Agents;
use super::mode::Means;

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
    /// With vmferry's agents.
    Vmferry(Box<Agents<'lab>>),
    /// A QEMU that is now here, now there.
    Qemu {
        lab: &'lab Lab,
        spec: Box<Spec>,
        source: Box<Qemu>,
    },
}

impl<'lab> Mover<'lab> {
    /// Starts agents of the program `binary` and boots the guest on host A.
    pub(crate) fn vmferry(lab: &'lab Lab, binary: &Path, agent_options: &[&str], spec: &Spec) -> Result<Self> {
        let agents = Agents::start(lab, binary, agent_options, spec)?;
        Ok(Self::Vmferry(Box::new(agents)))
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

    /// Makes both hosts ready for a move, as [`Agents::prepare`] does; QEMU keeps nothing between its migrations.
    pub(crate) fn prepare(&mut self, from: Host, to: Host, forget: bool) -> Result<()> {
        match self {
            Self::Vmferry(agents) => agents.prepare(from, to, forget),
            Self::Qemu { .. } => Ok(()),
        }
    }

    /// Processes of the agents on `from` and `to`, where it is agents who move the guest.
    pub(crate) fn agents(&self, from: Host, to: Host) -> Result<Option<(u32, u32)>> {
        match self {
            Self::Vmferry(agents) => agents.pids(from, to).map(Some),
            Self::Qemu { .. } => Ok(None),
        }
    }

    /// Whether the guest can be moved so.
    pub(crate) fn can(&self, means: Means) -> Result<bool> {
        match (self, means) {
            (Self::Vmferry(agents), Means::Vmferry { codec: Some(codec) }) => agents.can(codec),
            _ => Ok(true),
        }
    }

    /// Moves the guest, which runs on `from`, to `to`.
    pub(crate) fn migrate(&mut self, from: Host, to: Host, means: Means, time_max: Duration) -> Result<Moved> {
        match (self, means) {
            (Self::Vmferry(agents), Means::Vmferry { codec }) => agents.migrate(from, to, codec, time_max),
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
