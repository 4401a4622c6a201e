//! The VMs of this host, in memory. What must survive the agent is in its journal.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmferry_core::wire::{hello::MigrationId, message::Epoch};

use super::AgentError;
use crate::{
    api::types::{VmState, VmView},
    vm::{RunningVm, VmDefinition},
};

/// One VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// What it is.
    pub definition: VmDefinition,
    /// The epoch in which this host owns it.
    pub epoch: Epoch,
    /// What it does.
    pub state: VmState,
    /// Why, where that isn't plain.
    pub reason: Option<String>,
    /// Its QEMU, unless it is starting or stopped.
    pub running: Option<Arc<RunningVm>>,
    /// The handover that is moving it away, or whose end is not known since the agent was restarted.
    pub migration: Option<MigrationId>,
}

impl Vm {
    /// What the API says about it.
    pub fn view(&self) -> VmView {
        VmView {
            name: self.definition.name.clone(),
            uuid: self.definition.uuid.clone(),
            state: self.state,
            reason: self.reason.clone(),
            epoch: self.epoch.0,
            pid: self
                .running
                .as_ref()
                .and_then(|running| u32::try_from(running.process.pid()).ok()),
            memory_bytes: self.definition.memory.size.0,
            vcpus: self.definition.vcpus,
            machine: self.definition.machine.clone(),
            migration: self.migration,
        }
    }

    /// Its QEMU, if it runs and nothing is moving it.
    ///
    /// # Errors
    /// Which of both it is; `wanted` says in a participle what was to be done.
    pub fn idle(&self, wanted: &'static str) -> Result<Arc<RunningVm>, AgentError> {
        let vm = || self.definition.name.clone();
        match (&self.running, self.migration) {
            (_, Some(migration)) => Err(AgentError::Migrating { vm: vm(), migration }),
            (Some(running), None) if self.state == VmState::Running => Ok(running.clone()),
            (_, None) => Err(AgentError::WrongState {
                vm: vm(),
                state: self.state,
                wanted,
            }),
        }
    }
}

/// The VMs by name.
#[derive(Debug, Default)]
pub struct Registry {
    vms: Mutex<BTreeMap<String, Vm>>,
}

impl Registry {
    /// The whole table, locked. Hold it for a moment only, and never over an `await`.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one VM, if it is there.
    ///
    /// # Errors
    /// [`AgentError::UnknownVm`], or the closure's.
    pub fn with<T>(&self, name: &str, change: impl FnOnce(&mut Vm) -> Result<T, AgentError>) -> Result<T, AgentError> {
        let mut vms = self.lock();
        let vm = vms
            .get_mut(name)
            .ok_or_else(|| AgentError::UnknownVm(name.to_owned()))?;
        change(vm)
    }

    /// Sets the name aside for a VM that is being started, unless a VM with a QEMU has it. A VM that was stopped is
    /// replaced and its epoch kept, so that records of its handovers stay older than what follows.
    ///
    /// # Errors
    /// [`AgentError::NameTaken`], [`AgentError::Migrating`].
    pub fn enter_starting(&self, definition: VmDefinition) -> Result<Epoch, AgentError> {
        let mut vms = self.lock();
        let name = definition.name.clone();
        let epoch = match vms.get(&name) {
            None => Epoch(1),
            Some(Vm {
                migration: Some(migration),
                ..
            }) => {
                return Err(AgentError::Migrating {
                    vm: name,
                    migration: *migration,
                });
            }
            Some(vm) if vm.state == VmState::Stopped => vm.epoch,
            Some(_) => return Err(AgentError::NameTaken(name)),
        };
        let vm = Vm {
            definition,
            epoch,
            state: VmState::Starting,
            reason: None,
            running: None,
            migration: None,
        };
        vms.insert(name, vm);
        Ok(epoch)
    }

    /// What the API says about each.
    pub fn views(&self) -> Vec<VmView> {
        self.lock().values().map(Vm::view).collect()
    }

    /// What the API says about one.
    ///
    /// # Errors
    /// [`AgentError::UnknownVm`].
    pub fn view(&self, name: &str) -> Result<VmView, AgentError> {
        self.with(name, |vm| Ok(vm.view()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> VmDefinition {
        let text = "name = \"web\"\nmachine = \"pc-q35-10.0\"\ncpu = \"max\"\nvcpus = 1\nmemory = \"64MiB\"\n";
        VmDefinition::from_toml(text).unwrap()
    }

    #[test]
    fn a_name_is_taken_until_its_vm_has_stopped() {
        let registry = Registry::default();
        assert_eq!(registry.enter_starting(definition()).unwrap(), Epoch(1));
        assert!(matches!(
            registry.enter_starting(definition()),
            Err(AgentError::NameTaken(_))
        ));
        let stop = |vm: &mut Vm| {
            vm.state = VmState::Stopped;
            vm.epoch = Epoch(4);
            Ok(())
        };
        registry.with("web", stop).unwrap();
        assert_eq!(registry.enter_starting(definition()).unwrap(), Epoch(4));
    }

    #[test]
    fn a_vm_with_an_open_handover_is_left_alone() {
        let registry = Registry::default();
        registry.enter_starting(definition()).unwrap();
        let open = |vm: &mut Vm| {
            vm.state = VmState::Stopped;
            vm.migration = Some(MigrationId(1));
            Ok(())
        };
        registry.with("web", open).unwrap();
        assert!(matches!(
            registry.enter_starting(definition()),
            Err(AgentError::Migrating { .. })
        ));
        let idle = registry.with("web", |vm| vm.idle("migrated"));
        assert!(matches!(idle, Err(AgentError::Migrating { .. })));
    }
}
