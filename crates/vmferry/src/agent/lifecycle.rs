//! Starting, stopping, taking in and giving away VMs.

use std::{collections::btree_map::Entry, io, sync::Arc};

use vmferry_core::wire::{hello::MigrationId, message::Epoch};

use super::{Agent, AgentError, record::Record, registry::Vm, watch};
use crate::{
    api::{
        migration::{MigrateRequest, MigrationView, Outcome, Report},
        types::{EventKind, VmState, VmView},
    },
    host::capability::kvm_is_usable,
    vm::{LaunchError, Process, Role, RunningVm, VmDefinition, VmFolder, definition::Accel},
};

impl Agent {
    /// Starts a VM. It goes on when the caller stops waiting.
    ///
    /// # Errors
    /// [`AgentError`]; then there is no such VM, not even a stopped one that it was to replace.
    pub async fn run(self: &Arc<Self>, definition: VmDefinition) -> Result<VmView, AgentError> {
        let mut definition = definition
            .validated()
            .map_err(|e| AgentError::BadDefinition(e.problems()))?;
        let accel = if kvm_is_usable() { Accel::Kvm } else { Accel::Tcg };
        definition.complete(accel, random()?);
        detached({
            let agent = self.clone();
            async move {
                let before = agent.registry.with(&definition.name, |vm| Ok(vm.clone())).ok();
                let epoch = agent.registry.enter_starting(definition.clone())?;
                let name = definition.name.clone();
                let epoch = match agent.arbiter.own(&name, epoch).await {
                    Ok(epoch) => epoch,
                    Err(error) => {
                        agent.leave_stopped(&name, before);
                        return Err(error.into());
                    }
                };
                match agent.start(definition, epoch).await {
                    Ok(running) => Ok(agent.enter_running(Arc::new(running), epoch, VmState::Running, None)),
                    Err(error) => {
                        agent.forget(&name, &format!("it did not start: {error}")).await?;
                        Err(error)
                    }
                }
            }
        })
        .await
    }

    /// Nothing was done about a VM that was to be started.
    fn leave_stopped(&self, name: &str, before: Option<Vm>) {
        let mut vms = self.registry.lock();
        match before {
            Some(vm) => vms.insert(name.to_owned(), vm),
            None => vms.remove(name),
        };
    }

    async fn start(&self, definition: VmDefinition, epoch: Epoch) -> Result<RunningVm, AgentError> {
        let folder = self.folder(&definition.name);
        let record = Record::Started {
            definition: Box::new(definition.clone()),
            epoch,
        };
        self.journal.append(record).await?;
        let running = self.launcher.launch(definition, folder, Role::Boot, None).await?;
        match running.qmp.cont().await {
            Ok(()) => Ok(running),
            Err(error) => {
                self.end(&running).await?;
                Err(LaunchError::from(error).into())
            }
        }
    }

    /// Ends a VM and forgets it. It goes on when the caller stops waiting.
    ///
    /// # Errors
    /// [`AgentError::Migrating`] while a migration moves it, unless `force`: that cancels the migration first. If the
    /// migration completes all the same, the VM is another host's and so unknown here.
    pub async fn stop(self: &Arc<Self>, name: &str, force: bool) -> Result<VmView, AgentError> {
        if let (
            true,
            Ok(VmView {
                migration: Some(migration),
                ..
            }),
        ) = (force, self.registry.view(name))
            && self.migrations.cancel(migration).is_some()
            && let Some(mut view) = self.migrations.get(migration)
        {
            // Fails only where the migration is no longer known, and so has ended.
            let _ = view.wait_for(|view| view.report.is_some()).await;
        }
        let (agent, name) = (self.clone(), name.to_owned());
        detached(async move {
            let running = agent.registry.with(&name, |vm| match (vm.migration, vm.state) {
                (Some(migration), _) => Err(AgentError::Migrating {
                    vm: name.clone(),
                    migration,
                }),
                (None, VmState::Starting) => Err(AgentError::WrongState {
                    vm: name.clone(),
                    state: vm.state,
                    wanted: "stopped",
                }),
                (None, _) => Ok(vm.running.clone()),
            })?;
            match running {
                Some(running) => agent.end(&running).await?,
                None => agent.end_unreachable(&name).await?,
            }
            let stopped = agent.registry.view(&name)?;
            agent.forget(&name, "it was stopped").await?;
            Ok(VmView {
                state: VmState::Stopped,
                pid: None,
                reason: None,
                ..stopped
            })
        })
        .await
    }

    /// Begins to move a VM to another host.
    ///
    /// # Errors
    /// [`AgentError`]; where none is given, the migration's report says how it ended.
    pub fn migrate(self: &Arc<Self>, name: &str, request: MigrateRequest) -> Result<MigrationView, AgentError> {
        let problems = request.problems();
        if !problems.is_empty() {
            return Err(AgentError::BadMigrateRequest(problems));
        }
        let id = MigrationId(u128::from_ne_bytes(random()?));
        self.registry.with(name, |vm| {
            vm.idle("migrated")?;
            vm.migration = Some(id);
            Ok(())
        })?;
        let to = request.address();
        let handle = self.migrations.begin(id, name, request);
        self.events.publish(EventKind::MigrationStarted {
            migration: id,
            vm: name.to_owned(),
            to: to.clone(),
        });

        let (agent, vm) = (self.clone(), name.to_owned());
        let driver = tokio::spawn(crate::migrate::departure::run(self.clone(), handle));
        tokio::spawn(async move {
            let report = driver.await.unwrap_or_else(|panic| {
                let reason = format!("the agent failed ({panic}); see its log, and where the guest runs");
                Report::without_transfer(id, &vm, &agent.config.name, &to, Outcome::RolledBack, vec![reason], 0.0)
            });
            agent.finish_migration(report);
        });
        self.migrations
            .get(id)
            .map(|view| view.borrow().clone())
            .ok_or_else(|| AgentError::UnknownMigration(id.to_string()))
    }

    /// A handover of this VM has ended: others may begin.
    pub(crate) fn release_migration(&self, vm: &str, migration: MigrationId) {
        if let Some(vm) = self.registry.lock().get_mut(vm)
            && vm.migration == Some(migration)
        {
            vm.migration = None;
        }
    }

    fn finish_migration(&self, report: Report) {
        let (id, vm, outcome) = (report.migration, report.vm.clone(), report.outcome);
        self.release_migration(&vm, id);
        self.migrations.finish(report);
        self.events.publish(EventKind::MigrationFinished {
            migration: id,
            vm,
            outcome,
        });
    }

    /// Asks the migration that moves this VM to cancel.
    ///
    /// # Errors
    /// [`AgentError::UnknownVm`], [`AgentError::NotMigrating`].
    pub fn cancel(&self, name: &str) -> Result<MigrationView, AgentError> {
        let migration = self.registry.view(name)?.migration;
        migration
            .and_then(|id| self.migrations.cancel(id))
            .ok_or_else(|| AgentError::NotMigrating(name.to_owned()))
    }

    /// Enters a VM that a handover may bring here, so that its name is taken and it can be seen.
    ///
    /// # Errors
    /// [`AgentError::NameTaken`], also by a VM that has stopped: it is this host's, and not to be replaced by another.
    pub fn enter_incoming(
        &self,
        definition: VmDefinition,
        epoch: Epoch,
        migration: MigrationId,
    ) -> Result<(), AgentError> {
        let name = definition.name.clone();
        match self.registry.lock().entry(name.clone()) {
            Entry::Occupied(_) => return Err(AgentError::NameTaken(name)),
            Entry::Vacant(place) => place.insert(Vm {
                definition,
                epoch,
                state: VmState::Incoming,
                reason: None,
                running: None,
                migration: Some(migration),
            }),
        };
        self.events.publish(EventKind::VmState {
            vm: name,
            state: VmState::Incoming,
            reason: None,
        });
        Ok(())
    }

    /// Takes out a VM that a handover was to bring here and did not.
    pub fn drop_incoming(&self, name: &str, migration: MigrationId, reason: &str) {
        let mut vms = self.registry.lock();
        if vms
            .get(name)
            .is_some_and(|vm| vm.state == VmState::Incoming && vm.migration == Some(migration))
        {
            vms.remove(name);
            drop(vms);
            self.events.publish(EventKind::VmGone {
                vm: name.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }

    /// Takes a VM out that a handover brought here, and that its source is to have again.
    pub fn give_back(&self, name: &str, reason: &str) {
        self.registry.lock().remove(name);
        self.events.publish(EventKind::VmGone {
            vm: name.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Enters a VM that is durably this host's by a handover, and watches its QEMU.
    pub fn take_in(self: &Arc<Self>, running: Arc<RunningVm>, epoch: Epoch) -> VmView {
        self.enter_running(running, epoch, VmState::Running, None)
    }

    /// Takes a VM out that is durably another host's by a handover. Called before its QEMU is ended here, it keeps that end
    /// from being told as the guest's.
    pub fn give_away(&self, name: &str, to: &str) {
        self.give_back(name, &format!("it runs on {to}"));
    }

    /// Where the files of a VM are.
    pub fn folder(&self, name: &str) -> VmFolder {
        VmFolder::new(&self.config.state_dir, name)
    }

    /// Enters a VM of this host whose QEMU was found, and watches that.
    pub(crate) fn enter_running(
        self: &Arc<Self>,
        running: Arc<RunningVm>,
        epoch: Epoch,
        state: VmState,
        migration: Option<MigrationId>,
    ) -> VmView {
        let name = running.definition.name.clone();
        let definition = running.definition.clone();
        let vm = Vm {
            definition,
            epoch,
            state,
            reason: None,
            running: Some(running.clone()),
            migration,
        };
        let view = vm.view();
        // Before the watcher, which would not find its VM otherwise.
        self.registry.lock().insert(name.clone(), vm);
        self.events.publish(EventKind::VmState {
            vm: name,
            state,
            reason: None,
        });
        tokio::spawn(watch::watch(self.clone(), running));
        view
    }

    async fn end(&self, running: &RunningVm) -> Result<(), AgentError> {
        let vm = running.definition.name.clone();
        running.end().await.map_err(|source| AgentError::Stop { vm, source })
    }

    async fn end_unreachable(&self, name: &str) -> Result<(), AgentError> {
        let stop = |source| AgentError::Stop {
            vm: name.to_owned(),
            source,
        };
        match Process::find(&self.folder(name).pid()).map_err(stop)? {
            Some(process) => process.end().await.map_err(stop),
            None => Ok(()),
        }
    }

    async fn forget(&self, name: &str, reason: &str) -> Result<(), AgentError> {
        self.journal.append(Record::Forgotten { vm: name.to_owned() }).await?;
        if let Err(error) = self.arbiter.forget(name).await {
            tracing::warn!(vm = name, %error, "the arbiter still has it as this host's");
        }
        if let Err(error) = self.folder(name).remove() {
            tracing::warn!(vm = name, %error, "its folder is left behind");
        }
        self.registry.lock().remove(name);
        self.events.publish(EventKind::VmGone {
            vm: name.to_owned(),
            reason: reason.to_owned(),
        });
        Ok(())
    }
}

/// Runs to the end whether or not the caller waits: an HTTP client that goes away must not leave half a VM.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn random() -> Result<[u8; 16], AgentError> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| AgentError::Random(io::Error::from(errno)))?;
    Ok(bytes)
}
