//! What a restarted agent owes the handovers that its journal knows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vmferry_core::handover::arbiter::Side;
use vmferry_core::handover::{AfterRestart, FoundQemu, Record as Fact, Source, SourceEffect, SourceEvent};
use vmferry_core::wire::message::{Handover, Message, Verdict};
use vmferry_qmp::RunState;

use super::source::until;
use super::{monitor, target};
use crate::agent::Agent;
use crate::agent::record::Record;
use crate::agent::registry::Vm;
use crate::api::types::VmState;
use crate::vm::{RunningVm, find_again};

/// Pause before what can't be done yet is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// How long a QEMU may take to say how its guest is.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a target may take to say that an operator decided for its copy.
const RESOLVED_LIMIT: Duration = Duration::from_secs(3);

/// Finishes or rolls back a handover that was under way when the agent ended. Its VM is left alone by everybody else
/// until this has ended.
///
/// To be called before the first peer is served: from then on a target that asks about a released handover is answered by
/// what is found here, and not from the journal.
pub fn resume(agent: Arc<Agent>, after: AfterRestart) -> impl Future<Output = ()> {
    let verdict = match &after {
        AfterRestart::Commit(handover, ..) => Some(agent.peers.enter_source(handover.migration)),
        _ => None,
    };
    go_on(agent, after, verdict)
}

async fn go_on(agent: Arc<Agent>, after: AfterRestart, verdict: Option<watch::Sender<Verdict>>) {
    match (after, verdict) {
        (AfterRestart::RollBack(handover), _) => {
            let peer = peer_of(&agent, &handover);
            if is_the_targets(&agent, &handover, &peer).await {
                give_away(&agent, handover, &peer).await;
            } else {
                roll_back(&agent, handover).await;
            }
        }
        (AfterRestart::Commit(handover, peer, arbiter), Some(verdict)) => {
            commit(&agent, handover, (&peer, arbiter), verdict).await;
        }
        (AfterRestart::GiveBack(handover, peer), _) => target::resume_unstarted(agent, handover, peer).await,
        (AfterRestart::Nothing | AfterRestart::Commit(..), _) => {}
        (AfterRestart::Ask(handover, peer, arbiter), _) => {
            let vm = reach_again(&agent, &handover.vm).await;
            if let Some(vm) = &vm {
                super::offer::hold(&agent, &handover, &vm.definition);
            }
            target::resume_prepared(agent, handover, peer, arbiter, vm.map(Arc::new)).await;
        }
        (AfterRestart::Run(handover, peer), _) => {
            // The registry has it already: the journal says that it is this host's. Unless it was moved on since.
            let of_this_epoch = |vm: &mut Vm| Ok(vm.epoch == handover.epoch);
            let of_this_epoch = agent.registry.with(&handover.vm, of_this_epoch);
            let (name, migration) = (handover.vm.clone(), handover.migration);
            if matches!(of_this_epoch, Ok(true)) {
                let vm = qemu_of(&agent, &name).await;
                let found = match &vm {
                    Some(_) => FoundQemu::Other,
                    None if agent.folder(&name).is_unstarted() => FoundQemu::GoneUnstarted,
                    None => FoundQemu::Gone,
                };
                match (AfterRestart::Run(handover, peer).given(found), vm) {
                    (AfterRestart::Run(handover, peer), Some(vm)) => {
                        target::resume_owned(agent.clone(), handover, peer, vm).await;
                    }
                    (AfterRestart::GiveBack(handover, peer), _) => {
                        agent.give_back(&name, "its QEMU ended before it ran; its source has it again");
                        if let Err(error) = agent.folder(&name).remove() {
                            tracing::warn!(vm = name, %error, "its folder is left behind");
                        }
                        target::resume_unstarted(agent.clone(), handover, peer).await;
                    }
                    _ => {}
                }
            }
            agent.release_migration(&name, migration);
        }
    }
}

/// The VM's QEMU, as soon as it can be spoken to; `None` if it has ended. Nothing can be decided before one of both is
/// known: a QEMU that lives may have the only copy of the guest.
async fn reach_again(agent: &Agent, vm: &str) -> Option<RunningVm> {
    loop {
        match find_again(agent.folder(vm)).await {
            Ok(found) => return found,
            Err(error) => tracing::error!(vm, %error, "its QEMU can't be spoken to; trying again"),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// The QEMU of a VM that the registry has; one that could not be spoken to when the agent started, or whose connection has
/// broken since, is entered once it can.
async fn qemu_of(agent: &Arc<Agent>, vm: &str) -> Option<Arc<RunningVm>> {
    let (running, epoch) = agent.registry.with(vm, |vm| Ok((vm.running.clone(), vm.epoch))).ok()?;
    if let Some(running) = running.filter(|running| !running.qmp.is_closed()) {
        return Some(running);
    }
    let reached = Arc::new(reach_again(agent, vm).await?);
    let migration = agent.registry.with(vm, |vm| Ok(vm.migration)).ok()?;
    agent.enter_running(reached.clone(), epoch, VmState::Paused, migration);
    Some(reached)
}

/// As [`qemu_of`], with how it stands, as soon as it says so.
async fn state_of(agent: &Arc<Agent>, vm: &str) -> (Option<Arc<RunningVm>>, FoundQemu) {
    while let Some(running) = qemu_of(agent, vm).await {
        // A monitor that is only slow stays connected, as it serves one client at a time.
        let status = tokio::time::timeout(ANSWER_LIMIT, running.qmp.query_status()).await;
        if let Ok(Ok(status)) = status {
            let found = match status.status {
                RunState::PostMigrate => FoundQemu::PostMigrate,
                _ => FoundQemu::Other,
            };
            return (Some(running), found);
        }
        tracing::error!(vm, "its QEMU does not say whether the guest runs; trying again");
        tokio::time::sleep(TRY_AGAIN).await;
    }
    (None, FoundQemu::Gone)
}

/// Where the target's agent of a handover listens.
fn peer_of(agent: &Agent, handover: &Handover) -> String {
    let records = agent.journal.handover_records(handover.migration);
    let offered = records.into_iter().find_map(|record| match record {
        Fact::Offered { peer, .. } => Some(peer),
        _ => None,
    });
    offered.unwrap_or_default()
}

/// Whether an operator decided, while this host was gone, that the target's copy is the VM. A target that can't be asked was
/// to be able to be: what can't be known is not waited for, with a guest that may stand still.
async fn is_the_targets(agent: &Agent, handover: &Handover, peer: &str) -> bool {
    let abort = Message::Abort {
        handover: handover.clone(),
        reason: "its agent was restarted, and had not released it".to_owned(),
    };
    let answer = tokio::time::timeout(RESOLVED_LIMIT, super::peers::ask(agent, peer, abort)).await;
    matches!(answer, Ok(Ok(Message::Running { handover: of })) if of == *handover)
}

/// An operator decided that the target's copy is the VM.
async fn give_away(agent: &Arc<Agent>, handover: Handover, peer: &str) {
    tracing::warn!(
        vm = handover.vm,
        "an operator decided that {peer} has it: the copy here is ended"
    );
    let running = qemu_of(agent, &handover.vm).await;
    agent.give_away(&handover.vm, peer);
    if let Err(error) = end(agent, &handover.vm, &running).await {
        tracing::error!(vm = handover.vm, %error, "the copy that another host has can't be ended");
    }
    let fact = Fact::HandedOver { handover };
    while super::journal(agent, fact.clone()).await.is_err() {
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// The attempt was not released, so the guest is this host's, and nobody else will run it.
async fn roll_back(agent: &Arc<Agent>, handover: Handover) {
    // Over when it goes on, or its QEMU has ended.
    while let Some(vm) = qemu_of(agent, &handover.vm).await {
        match monitor::resume(&vm).await {
            Ok(()) => {
                monitor::announce(&vm.qmp).await;
                break;
            }
            Err(why) => tracing::error!(vm = handover.vm, why, "the guest can't be made to go on; trying again"),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    let fact = Fact::RolledBack {
        handover: handover.clone(),
    };
    while let Err(error) = agent.journal.append(Record::Handover { fact: fact.clone() }).await {
        // What the journal says until then may be that it was released, so nobody may be answered from it.
        tracing::error!(vm = handover.vm, %error, "writing that a handover was rolled back; trying again");
        tokio::time::sleep(TRY_AGAIN).await;
    }
    tracing::info!(vm = handover.vm, "rolled back a handover that was cut short");
    agent.release_migration(&handover.vm, handover.migration);
}

/// The attempt was released: the target is told so until it answers, and then the copy here is ended, or taken back if the
/// target's is durably gone.
async fn commit(
    agent: &Arc<Agent>,
    handover: Handover,
    (peer, arbiter): (&str, Option<String>),
    verdict: watch::Sender<Verdict>,
) {
    let (running, found) = state_of(agent, &handover.vm).await;
    let after = AfterRestart::Commit(handover.clone(), peer.to_owned(), arbiter.clone()).given(found);
    if let AfterRestart::RollBack(handover) = after {
        verdict.send_replace(Verdict::Aborted);
        return roll_back(agent, handover).await;
    }
    let began = Instant::now();
    let gone = found == FoundQemu::Gone;
    let (mut source, effects) = Source::released(handover.clone(), arbiter, gone, began.elapsed());
    let mut effects = VecDeque::from(effects);
    let mut decisions = agent.handovers.enter(&handover, Side::Source, peer);
    loop {
        verdict.send_replace(source.verdict());
        decisions.waits(source.can_be_resolved());
        let Some(effect) = effects.pop_front() else {
            // The last question was not answered: it is repeated when the state machine says so.
            let event = tokio::select! {
                keep = decisions.next() => SourceEvent::Resolved(keep),
                () = until(source.deadline().map(|at| began + at)) => SourceEvent::Tick,
            };
            effects.extend(source.handle(event, began.elapsed()));
            continue;
        };
        let event = match effect {
            SourceEffect::Send(message) => match super::peers::ask(agent, peer, message).await {
                Ok(answer) => Some(SourceEvent::Peer(answer)),
                Err(why) => {
                    tracing::info!(vm = handover.vm, why, "the target of a released VM can't be asked");
                    None
                }
            },
            SourceEffect::Arbitrate(claim) => {
                let ruling = agent
                    .arbiter
                    .ask(Side::Source, &handover, claim, source.target_host())
                    .await;
                if let Err(why) = &ruling {
                    tracing::info!(vm = handover.vm, ?claim, %why, "the arbiter does not answer");
                }
                Some(SourceEvent::Ruled(claim, ruling))
            }
            SourceEffect::Journal(fact) => Some(SourceEvent::Journaled(super::journal(agent, fact).await)),
            SourceEffect::EndQemu => {
                agent.give_away(&handover.vm, peer);
                if let Err(error) = end(agent, &handover.vm, &running).await {
                    tracing::error!(vm = handover.vm, %error, "the copy that was given away can't be ended");
                }
                None
            }
            SourceEffect::ResumeGuest => Some(SourceEvent::Resumed(match &running {
                Some(vm) => monitor::resume(vm).await,
                None => Err("its QEMU is gone".to_owned()),
            })),
            SourceEffect::Finish(outcome) => {
                tracing::info!(vm = handover.vm, ?outcome, "a handover that was cut short has ended");
                return agent.release_migration(&handover.vm, handover.migration);
            }
            // A released handover has no stream any more.
            SourceEffect::OpenStream { .. }
            | SourceEffect::LetStop
            | SourceEffect::CompareImage(_)
            | SourceEffect::DeliverShut => None,
        };
        if let Some(event) = event {
            effects.extend(source.handle(event, began.elapsed()));
        }
    }
}

/// Ends the copy of that name here: its QEMU, if that still lives, and its files.
async fn end(agent: &Agent, name: &str, vm: &Option<Arc<RunningVm>>) -> std::io::Result<()> {
    if let Some(vm) = vm {
        vm.end().await?;
    }
    agent.folder(name).remove()
}
