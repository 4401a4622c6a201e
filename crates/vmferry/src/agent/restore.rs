//! Finding this host's guests again after the agent was restarted.

use std::{collections::BTreeMap, sync::Arc};

use vmferry_core::{
    handover::{self, AfterRestart, after_restart},
    wire::hello::MigrationId,
};

use super::{
    Agent, AgentError,
    record::{Ledger, OwnedVm, Record},
    registry::Vm,
    watch,
};
use crate::{
    api::types::VmState,
    migrate::leftover,
    vm::{Process, find_again},
};

impl Agent {
    /// Enters what the journal says this host owns, each as it is found, and gives the handovers whose end is open. The VMs
    /// of those are left alone until whoever carries a handover to its end says what became of them.
    ///
    /// # Errors
    /// The journal's.
    pub(super) async fn restore(self: &Arc<Self>, ledger: Ledger) -> Result<Vec<AfterRestart>, AgentError> {
        let open = open_handovers(&ledger.handovers);
        for (migration, definition) in &ledger.incoming {
            let name = &definition.name;
            if !ledger.vms.contains_key(name) && !open.iter().any(|(id, ..)| id == migration) {
                leftover::keep(self, name).await;
                self.end_leftover(name).await;
            }
        }
        for (name, owned) in ledger.vms {
            let migration = open.iter().find(|(_, vm, _)| *vm == name).map(|(id, ..)| *id);
            self.restore_vm(owned, migration).await?;
        }
        Ok(open.into_iter().map(|(_, _, after)| after).collect())
    }

    /// Ends the QEMU that waited for a stream when the agent ended. Nothing was promised for it.
    async fn end_leftover(&self, name: &str) {
        let folder = self.folder(name);
        let ended = match Process::find(&folder.pid()) {
            Ok(Some(process)) => process.kill().await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended.and_then(|()| folder.remove()) {
            tracing::error!(vm = name, %error, "the QEMU of a VM that never came can't be ended");
        }
    }

    async fn restore_vm(self: &Arc<Self>, owned: OwnedVm, migration: Option<MigrationId>) -> Result<(), AgentError> {
        let OwnedVm {
            definition,
            epoch,
            stopped,
        } = owned;
        let name = definition.name.clone();
        let found = find_again(self.folder(&name)).await;
        let (state, reason) = match (found, stopped) {
            (Ok(Some(running)), _) => {
                tracing::info!(vm = name, pid = running.process.pid(), "found the guest again");
                let state = watch::state_of(&running).await.unwrap_or(VmState::Paused);
                self.enter_running(Arc::new(running), epoch, state, migration);
                return Ok(());
            }
            (Ok(None), Some(reason)) => (VmState::Stopped, reason),
            (Ok(None), None) => {
                let reason = "its QEMU ended while no agent watched it".to_owned();
                tracing::warn!(vm = name, reason);
                self.journal
                    .append(Record::Stopped {
                        vm: name.clone(),
                        reason: reason.clone(),
                    })
                    .await?;
                (VmState::Stopped, reason)
            }
            (Err(error), _) => {
                tracing::error!(vm = name, %error, "the guest's QEMU is there but cannot be spoken to");
                (VmState::Unreachable, error.to_string())
            }
        };
        let vm = Vm {
            definition,
            epoch,
            state,
            reason: Some(reason),
            running: None,
            migration,
        };
        self.registry.lock().insert(name, vm);
        Ok(())
    }
}

/// The handovers that still owe something, with the VM that each is about.
fn open_handovers(
    handovers: &BTreeMap<MigrationId, Vec<handover::Record>>,
) -> Vec<(MigrationId, String, AfterRestart)> {
    let open = |(id, records): (&MigrationId, &Vec<handover::Record>)| match after_restart(records) {
        AfterRestart::Nothing => None,
        after => records.last().map(|record| (*id, record.handover().vm.clone(), after)),
    };
    handovers.iter().filter_map(open).collect()
}
