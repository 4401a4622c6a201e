//! Who says which host has a VM when its two hosts can't ask each other: nobody, or etcd.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | what stands in etcd of a VM, and what it means to a handover |
//! | `etcd` | reading and changing that, and this host's lease |
//! | `gateway` | etcd's JSON gateway: HTTP, and TLS where it is asked for |
//!
//! What may be asked during a handover, and why the answers are enough, is in `vmferry_core::handover::arbiter`.

pub mod entry;
mod etcd;
mod gateway;

use std::{io, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use vmferry_core::{
    handover::arbiter::{Claim, NoRuling, Ruling, Side},
    wire::message::{Epoch, Handover},
};

use crate::agent::{Agent, Config};
use etcd::Etcd;

/// How often this host's lease is renewed, and its VMs' entries are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(3);

/// Why an arbiter was asked for nothing.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
    /// It does not answer.
    #[error("the arbiter can't be asked: {0}")]
    Unreachable(String),
    /// It says that another host has the VM.
    #[error(
        "the arbiter says that host {host:?} has VM {vm:?}: stop it there; or if that host is gone for ever, decide with \
         `vmferry resolve {vm} --keep {here}`"
    )]
    OwnedElsewhere {
        /// The VM.
        vm: String,
        /// Who has it.
        host: String,
        /// This host.
        here: String,
    },
}

/// What two agents compare, to know that they ask the same arbiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterName {
    /// What tells etcd's clusters apart.
    pub cluster: String,
    /// Where the entries are in it.
    pub prefix: String,
    /// What this host is called there.
    pub host: String,
}

/// The arbiter of this host's handovers.
#[derive(Debug)]
pub enum Arbiter {
    /// None: the hosts decide among themselves, and each has to come back some day.
    None,
    /// etcd.
    Etcd(Box<Etcd>),
}

impl Arbiter {
    /// The arbiter that the settings name. It need not answer yet.
    ///
    /// # Errors
    /// [`ArbiterError::Settings`], and what is wrong about `host.id` in the state directory.
    pub fn new(config: &Config) -> Result<Arbiter, ArbiterError> {
        let Some(settings) = &config.arbiter else {
            return Ok(Arbiter::None);
        };
        let instance = instance(&config.state_dir.join("host.id"))
            .map_err(|error| ArbiterError::Settings(format!("cannot keep host.id in the state directory: {error}")))?;
        let gateway = gateway::Gateway::new(settings)?;
        let etcd = Etcd::new(gateway, settings.prefix.clone(), config.name.clone(), instance);
        Ok(Arbiter::Etcd(Box::new(etcd)))
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        matches!(self, Arbiter::Etcd(_))
    }

    /// How it is called, for the other agent to compare; `None` without one.
    ///
    /// # Errors
    /// [`ArbiterError::Unreachable`].
    pub async fn name(&self) -> Result<Option<ArbiterName>, ArbiterError> {
        match self {
            Arbiter::None => Ok(None),
            Arbiter::Etcd(etcd) => etcd.name().await.map(Some),
        }
    }

    /// Asks it about a handover, as one of its sides; `target` is what it calls the target's host, as far as that is needed.
    ///
    /// # Errors
    /// Whether nothing will come of it.
    pub async fn ask(
        &self,
        side: Side,
        handover: &Handover,
        claim: Claim,
        target: Option<&str>,
    ) -> Result<Ruling, NoRuling> {
        match self {
            Arbiter::None => Err(NoRuling::Unasked(
                "this handover waits for an arbiter, and this agent was started without one".to_owned(),
            )),
            Arbiter::Etcd(etcd) => etcd.ask(side, handover, claim, target).await,
        }
    }

    /// Enters that this host has a VM, unless another has it. Gives the epoch, which is a later one if more is known there than
    /// here.
    ///
    /// # Errors
    /// [`ArbiterError::OwnedElsewhere`], [`ArbiterError::Unreachable`].
    pub async fn own(&self, vm: &str, epoch: Epoch) -> Result<Epoch, ArbiterError> {
        match self {
            Arbiter::None => Ok(epoch),
            Arbiter::Etcd(etcd) => etcd.own(vm, epoch).await,
        }
    }

    /// Takes out a VM of this host that is nobody's any more.
    ///
    /// # Errors
    /// [`ArbiterError::Unreachable`].
    pub async fn forget(&self, vm: &str) -> Result<(), ArbiterError> {
        match self {
            Arbiter::None => Ok(()),
            Arbiter::Etcd(etcd) => etcd.forget(vm).await,
        }
    }

    /// Enters what an operator decided, whatever it said before: that this host has the VM of a handover, or does not.
    ///
    /// # Errors
    /// [`ArbiterError::Unreachable`].
    pub async fn decide(&self, handover: &Handover, has_it: bool) -> Result<(), ArbiterError> {
        match self {
            Arbiter::None => Ok(()),
            Arbiter::Etcd(etcd) => etcd.decide(handover, has_it).await,
        }
    }

    /// What it says about a VM, in words; `None` without one.
    pub async fn describe(&self, vm: &str) -> Option<String> {
        match self {
            Arbiter::None => None,
            Arbiter::Etcd(etcd) => Some(etcd.describe(vm).await),
        }
    }
}

/// Keeps this host's lease, and the entries of its VMs true, until the agent ends.
pub async fn look_after(agent: Arc<Agent>) {
    let Arbiter::Etcd(etcd) = &agent.arbiter else { return };
    let mut answers = true;
    let mut ending = std::pin::pin!(agent.ending());
    loop {
        let looked = look(&agent, etcd).await;
        match (&looked, answers) {
            (Err(error), true) => tracing::error!(%error, "VMs can't be started or moved until it answers"),
            (Ok(()), false) => tracing::info!("the arbiter answers again"),
            _ => {}
        }
        answers = looked.is_ok();
        tokio::select! {
            () = &mut ending => return,
            () = tokio::time::sleep(LOOK_AFTER) => {}
        }
    }
}

async fn look(agent: &Agent, etcd: &Etcd) -> Result<(), ArbiterError> {
    etcd.renew().await?;
    let settled: Vec<(String, Epoch)> = {
        let vms = agent.registry.lock();
        let settled = vms.iter().filter(|(_, vm)| vm.migration.is_none());
        settled.map(|(name, vm)| (name.clone(), vm.epoch)).collect()
    };
    for (vm, epoch) in settled {
        let is_still_so = || {
            let vms = agent.registry.lock();
            vms.get(&vm)
                .is_some_and(|vm| vm.migration.is_none() && vm.epoch == epoch)
        };
        match etcd.affirm(&vm, epoch, is_still_so).await {
            Err(error @ ArbiterError::OwnedElsewhere { .. }) => {
                tracing::error!(%error, "a VM of this host is another's");
            }
            other => other?,
        }
    }
    Ok(())
}

/// What tells this agent from another of the same name, over its restarts.
fn instance(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.is_empty() => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(path, &text)?;
    Ok(text)
}
