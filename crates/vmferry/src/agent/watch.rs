//! Following one guest through its QEMU's events and end, so that what the API says about it is true.

use std::{sync::Arc, time::Duration};

use vmferry_qmp::{Event, EventKind as QmpEvent, RunState};

use super::{Agent, record::Record};
use crate::{
    api::types::{EventKind, VmState},
    vm::{RunningVm, find_again},
};

/// Pause before a monitor that broke is connected to anew, and how long it may take to greet.
const REACH_AGAIN: Duration = Duration::from_secs(2);

/// Follows the guest until its QEMU has ended.
pub(super) async fn watch(agent: Arc<Agent>, running: Arc<RunningVm>) {
    let mut events = running.qmp.events();
    // Whatever happened before the events were listened to.
    query(&agent, &running).await;
    let mut last_word = None;
    let mut monitored = true;
    loop {
        // Its process and another monitor of it are followed by another watch then.
        let again = reach_again(&agent, &running);
        tokio::select! {
            // Events first: they say why the process ended.
            biased;
            event = events.next(), if monitored => match event {
                Ok(event) => {
                    if let Some(word) = shutdown_reason(&event) {
                        last_word = Some(word);
                    }
                    follow(&agent, &running, &event);
                }
                Err(vmferry_qmp::Error::EventsLost { .. }) => query(&agent, &running).await,
                Err(error) => {
                    tracing::debug!(vm = running.definition.name, %error, "no more QMP events");
                    monitored = false;
                }
            },
            () = again, if !monitored => return,
            ended = running.process.ended() => {
                if let Err(error) = ended {
                    tracing::error!(vm = running.definition.name, %error, "cannot watch its QEMU");
                    return;
                }
                break;
            }
        }
    }
    let reason = last_word.unwrap_or_else(|| match running.last_words() {
        words if words.is_empty() => "its QEMU ended unexpectedly".to_owned(),
        words => format!("its QEMU ended: {words}"),
    });
    agent.guest_ended(&running, reason).await;
}

/// Connects anew to a QEMU whose monitor broke, and has that watched. While a handover is under way its driver does so, if it
/// has to; QEMU serves one client at a time.
async fn reach_again(agent: &Arc<Agent>, running: &Arc<RunningVm>) {
    loop {
        tokio::time::sleep(REACH_AGAIN).await;
        let name = &running.definition.name;
        let is_idle = |agent: &Agent| {
            let vms = agent.registry.lock();
            let vm = vms
                .get(name)
                .filter(|vm| is_same(&vm.running, running) && vm.migration.is_none());
            vm.map(|vm| vm.epoch)
        };
        if is_idle(agent).is_none() {
            continue;
        }
        let found = tokio::time::timeout(REACH_AGAIN, find_again(running.folder.clone())).await;
        let (Ok(Ok(Some(found))), Some(epoch)) = (found, is_idle(agent)) else {
            continue;
        };
        if let Ok(state) = state_of(&found).await {
            tracing::info!(vm = name, "its QEMU's monitor answers again");
            agent.enter_running(Arc::new(found), epoch, state, None);
            return;
        }
    }
}

/// What the guest does, as its QEMU says.
///
/// # Errors
/// Those of the monitor.
pub(super) async fn state_of(running: &RunningVm) -> vmferry_qmp::Result<VmState> {
    let is_running = running.qmp.query_status().await?.status == RunState::Running;
    Ok(if is_running { VmState::Running } else { VmState::Paused })
}

async fn query(agent: &Agent, running: &Arc<RunningVm>) {
    match state_of(running).await {
        Ok(state) => agent.set_state(running, state),
        // The end of the process is noticed by itself.
        Err(error) => tracing::debug!(vm = running.definition.name, %error, "query-status"),
    }
}

fn follow(agent: &Agent, running: &Arc<RunningVm>, event: &Event) {
    match event.kind {
        QmpEvent::Stop => agent.set_state(running, VmState::Paused),
        QmpEvent::Resume => agent.set_state(running, VmState::Running),
        _ => {}
    }
}

/// What a SHUTDOWN event says about why QEMU is about to end.
fn shutdown_reason(event: &Event) -> Option<String> {
    let QmpEvent::Shutdown = event.kind else {
        return None;
    };
    let reason = event
        .data
        .get("reason")
        .and_then(|reason| reason.as_str())
        .unwrap_or("unknown");
    Some(match reason {
        "guest-shutdown" => "the guest shut down".to_owned(),
        "guest-reset" => "the guest restarted, and its QEMU is set to end then".to_owned(),
        "guest-panic" => "the guest's kernel panicked".to_owned(),
        "host-signal" => "its QEMU was ended by a signal".to_owned(),
        "host-qmp-quit" => "its QEMU was told to quit".to_owned(),
        other => format!("its QEMU shut down ({other})"),
    })
}

impl Agent {
    fn set_state(&self, running: &Arc<RunningVm>, state: VmState) {
        let name = &running.definition.name;
        let mut vms = self.registry.lock();
        let changed = vms
            .get_mut(name)
            .filter(|vm| is_same(&vm.running, running) && vm.state != state);
        if let Some(vm) = changed {
            vm.state = state;
            drop(vms);
            self.events.publish(EventKind::VmState {
                vm: name.clone(),
                state,
                reason: None,
            });
        }
    }

    async fn guest_ended(&self, running: &Arc<RunningVm>, reason: String) {
        let name = running.definition.name.clone();
        {
            let mut vms = self.registry.lock();
            let Some(vm) = vms.get_mut(&name).filter(|vm| is_same(&vm.running, running)) else {
                // It was stopped or handed over, and the name may be another VM's by now.
                return;
            };
            vm.state = VmState::Stopped;
            vm.reason = Some(reason.clone());
            vm.running = None;
        }
        self.events.publish(EventKind::VmState {
            vm: name.clone(),
            state: VmState::Stopped,
            reason: Some(reason.clone()),
        });
        if let Err(error) = self.journal.append(Record::Stopped { vm: name, reason }).await {
            // A restarted agent sees for itself that the process is gone.
            tracing::error!(%error, "the end of a guest is not in the journal");
        }
    }
}

fn is_same(one: &Option<Arc<RunningVm>>, other: &Arc<RunningVm>) -> bool {
    one.as_ref().is_some_and(|one| Arc::ptr_eq(one, other))
}
