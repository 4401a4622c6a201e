//! What an operator may decide when a handover waits for a host that is gone for ever: which of both copies is the VM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use vmferry_core::handover::arbiter::Side;
use vmferry_core::wire::message::Handover;

use crate::agent::{Agent, AgentError};
use crate::api::types::{ResolveRequest, ResolveView};

/// The handovers that drivers carry out here, by their VMs' names.
#[derive(Debug, Default)]
pub struct OpenHandovers {
    open: Mutex<BTreeMap<String, Open>>,
}

#[derive(Debug, Clone)]
struct Open {
    handover: Handover,
    side: Side,
    peer: String,
    /// Whether the driver waits for somebody who may be gone.
    waits: watch::Receiver<bool>,
    decide: mpsc::Sender<Side>,
}

/// A driver's end: what was decided, and whether anything may be.
#[derive(Debug)]
pub(super) struct Decisions {
    decided: mpsc::Receiver<Side>,
    waits: watch::Sender<bool>,
}

impl Decisions {
    /// Says whether the handover waits for somebody who may be gone.
    pub(super) fn waits(&self, waits: bool) {
        self.waits
            .send_if_modified(|before| std::mem::replace(before, waits) != waits);
    }

    /// What an operator decided; waits for ever if nobody does.
    pub(super) async fn next(&mut self) -> Side {
        match self.decided.recv().await {
            Some(keep) => keep,
            None => std::future::pending().await,
        }
    }
}

impl OpenHandovers {
    /// Enters a handover for as long as what is returned lives. `peer` is where the other side's agent listens.
    pub(super) fn enter(&self, handover: &Handover, side: Side, peer: &str) -> Decisions {
        let (decide, decided) = mpsc::channel(1);
        let (waits, waiting) = watch::channel(false);
        let open = Open {
            handover: handover.clone(),
            side,
            peer: peer.to_owned(),
            waits: waiting,
            decide,
        };
        self.lock().insert(handover.vm.clone(), open);
        Decisions { decided, waits }
    }

    fn of(&self, vm: &str) -> Result<Open, AgentError> {
        let nothing = |why: &str| AgentError::NothingToResolve {
            vm: vm.to_owned(),
            why: why.to_owned(),
        };
        let open = self.lock().get(vm).cloned();
        let open = open.filter(|open| open.waits.has_changed().is_ok());
        let open = open.ok_or_else(|| nothing("none is under way"))?;
        let waits = *open.waits.borrow();
        waits
            .then_some(open)
            .ok_or_else(|| nothing("the one under way does not wait for the other host"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a handover that waits, and what has to be true before it may be decided.
///
/// # Errors
/// [`AgentError::NothingToResolve`].
pub async fn view(agent: &Agent, vm: &str) -> Result<ResolveView, AgentError> {
    let open = agent.handovers.of(vm)?;
    let facts = agent.journal.handover_records(open.handover.migration);
    let records = facts.iter().map(|fact| {
        let text = format!("{fact:?}");
        text.split([' ', '{']).next().unwrap_or_default().to_owned()
    });
    let (here, other) = (&agent.config.name, &open.peer);
    let (is_target, keep_here, keep_other) = match open.side {
        Side::Source => (false, source_keeps(vm, here, other), source_gives(vm, here, other)),
        Side::Target => (true, target_keeps(vm, here, other), target_gives(vm, here, other)),
    };
    Ok(ResolveView {
        vm: vm.to_owned(),
        migration: open.handover.migration,
        epoch: open.handover.epoch.0,
        here: here.clone(),
        is_target,
        other: other.clone(),
        records: records.collect(),
        arbiter: agent.arbiter.describe(vm).await,
        keep_here,
        keep_other,
    })
}

/// Carries an operator's decision out.
///
/// # Errors
/// [`AgentError::NothingToResolve`], [`AgentError::NoSuchHost`]; [`AgentError::Arbiter`] where there is one and it can't be told.
pub async fn decide(agent: &Arc<Agent>, vm: &str, request: &ResolveRequest) -> Result<ResolveView, AgentError> {
    let view = view(agent, vm).await?;
    let open = agent.handovers.of(vm)?;
    if open.handover.migration != request.migration {
        return Err(AgentError::NothingToResolve {
            vm: vm.to_owned(),
            why: format!("what waits is migration {}", open.handover.migration),
        });
    }
    let other_address = view
        .other
        .rsplit_once(':')
        .map_or(view.other.as_str(), |(address, _)| address);
    let keeps_here = request.keep == view.here;
    if !keeps_here && request.keep != view.other && request.keep != other_address {
        return Err(AgentError::NoSuchHost {
            vm: vm.to_owned(),
            here: view.here,
            other: view.other,
            keep: request.keep.clone(),
        });
    }
    // First, so that it can't say anything else to the other side from then on.
    agent.arbiter.decide(&open.handover, keeps_here).await?;
    let keep = match (open.side, keeps_here) {
        (side, true) => side,
        (Side::Source, false) => Side::Target,
        (Side::Target, false) => Side::Source,
    };
    tracing::warn!(vm, ?keep, "an operator decided which copy is the VM");
    // A driver that has ended meanwhile needs no decision.
    let _ = open.decide.send(keep).await;
    Ok(view)
}

fn source_keeps(vm: &str, here: &str, other: &str) -> String {
    format!(
        "To keep the copy of {vm} on {here}, all of this must be true:\n\
         - {other} is powered off, or no QEMU of {vm} is left there, and it does not come back running {vm} by itself.\n\
         - {vm} has not run on {other}. This host released it, so it may have: if it ran, it wrote to its disks, and this \
         copy, which knows nothing of that, would damage them.\n\
         If {other} comes back, its agent asks this one and drops its copy."
    )
}

fn source_gives(vm: &str, here: &str, other: &str) -> String {
    format!(
        "To keep the copy of {vm} on {other}: this must be the one that runs, or that you will have run there. The copy on \
         {here} is ended, and what is only in its memory is lost."
    )
}

fn target_keeps(vm: &str, here: &str, other: &str) -> String {
    format!(
        "To keep the copy of {vm} on {here}, all of this must be true:\n\
         - {other} is powered off, or no QEMU of {vm} is left there, and it does not come back running {vm} by itself.\n\
         - {vm} did not go on on {other} after this migration had stopped it. If it did, it wrote to its disks, and this \
         copy, which knows nothing of that, would damage them.\n\
         If {other} comes back, its agent asks this one before it lets its copy go on, and ends it. If it can't reach this \
         host then, it lets its copy go on: keep {other} off until it can."
    )
}

fn target_gives(vm: &str, here: &str, other: &str) -> String {
    format!(
        "To keep the copy of {vm} on {other}: the paused copy on {here} is dropped. {vm} runs on {other} if that still has \
         it; if it has not, {vm} is lost."
    )
}
