//! The migrations away from this host: those that run, and the last ones that ended.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use vmferry_core::wire::hello::MigrationId;

use crate::api::migration::{MigrateRequest, MigrationView, Progress, Report, Stage};

/// Reports kept of migrations that ended.
const ENDED_KEPT: usize = 256;

/// The migrations, each behind a channel that always holds its latest view.
#[derive(Debug, Default)]
pub struct Migrations {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Numbers entries in the order in which they began.
    next: u64,
}

#[derive(Debug)]
struct Entry {
    view: watch::Sender<MigrationView>,
    cancel: watch::Sender<bool>,
}

/// What carries a migration out holds this: it says through it how far the migration is, and hears when to cancel.
#[derive(Debug)]
pub struct MigrationHandle {
    /// The migration's id.
    pub id: MigrationId,
    /// The VM's name.
    pub vm: String,
    /// What was asked.
    pub request: MigrateRequest,
    view: watch::Sender<MigrationView>,
    cancel: watch::Receiver<bool>,
}

impl MigrationHandle {
    /// Publishes how far the migration is.
    pub fn progress(&self, progress: Progress) {
        self.view.send_modify(|view| view.progress = progress);
    }

    /// Hears whether an operator asks to cancel.
    pub fn cancel(&self) -> Cancel {
        Cancel(self.cancel.clone())
    }
}

/// Hears whether an operator asks to cancel a migration.
#[derive(Debug)]
pub struct Cancel(watch::Receiver<bool>);

impl Cancel {
    /// Waits until one does; at once if that was before. Dropping the future loses nothing.
    pub async fn wait(&mut self) {
        if self.0.wait_for(|cancel| *cancel).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending().await
        }
    }
}

impl Migrations {
    /// Enters a migration that begins now.
    pub fn begin(&self, id: MigrationId, vm: &str, request: MigrateRequest) -> MigrationHandle {
        let view = watch::Sender::new(MigrationView {
            id,
            vm: vm.to_owned(),
            to: request.address(),
            cancelling: false,
            progress: Progress::default(),
            report: None,
        });
        let (cancel, cancelled) = watch::channel(false);
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.entries.insert(
            number,
            Entry {
                view: view.clone(),
                cancel,
            },
        );
        table.drop_oldest_ended();
        MigrationHandle {
            id,
            vm: vm.to_owned(),
            request,
            view,
            cancel: cancelled,
        }
    }

    /// Enters the report of a migration, which ends it: its watchers see the report last.
    pub fn finish(&self, report: Report) {
        if let Some(entry) = self.lock().find(report.migration) {
            entry.view.send_modify(|view| {
                view.progress.stage = Stage::Done;
                view.progress.elapsed_ms = report.total_ms as u64;
                view.report = Some(report);
            });
        }
    }

    /// Asks a migration to cancel; `None` if there is no such migration or it has ended.
    pub fn cancel(&self, id: MigrationId) -> Option<MigrationView> {
        let table = self.lock();
        let entry = table.find(id).filter(|entry| entry.view.borrow().report.is_none())?;
        entry.view.send_modify(|view| view.cancelling = true);
        entry.cancel.send_replace(true);
        Some(entry.view.borrow().clone())
    }

    /// The latest view of a migration, and those to come.
    pub fn get(&self, id: MigrationId) -> Option<watch::Receiver<MigrationView>> {
        self.lock().find(id).map(|entry| entry.view.subscribe())
    }

    /// The latest view of each migration, the earliest first.
    pub fn list(&self) -> Vec<MigrationView> {
        self.lock()
            .entries
            .values()
            .map(|entry| entry.view.borrow().clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn find(&self, id: MigrationId) -> Option<&Entry> {
        self.entries.values().rev().find(|entry| entry.view.borrow().id == id)
    }

    fn drop_oldest_ended(&mut self) {
        let ended = |entry: &Entry| entry.view.borrow().report.is_some();
        let surplus = self
            .entries
            .values()
            .filter(|entry| ended(entry))
            .count()
            .saturating_sub(ENDED_KEPT);
        let oldest: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, e)| ended(e))
            .map(|(n, _)| *n)
            .take(surplus)
            .collect();
        for number in oldest {
            self.entries.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::migration::Outcome;

    fn report(id: MigrationId) -> Report {
        Report::without_transfer(id, "web", "a", "b:7464", Outcome::Cancelled, vec![], 5.0)
    }

    #[tokio::test]
    async fn a_watcher_sees_progress_and_then_the_report() {
        let migrations = Migrations::default();
        let id = MigrationId(1);
        let handle = migrations.begin(id, "web", MigrateRequest::to("b"));
        let mut watcher = migrations.get(id).unwrap();
        assert_eq!(watcher.borrow_and_update().to, "b:7464");
        handle.progress(Progress {
            round: 2,
            ..Progress::default()
        });
        watcher.changed().await.unwrap();
        assert_eq!(watcher.borrow_and_update().progress.round, 2);
        migrations.finish(report(id));
        watcher.changed().await.unwrap();
        let last = watcher.borrow_and_update().clone();
        assert_eq!((last.progress.stage, last.report), (Stage::Done, Some(report(id))));
    }

    #[tokio::test]
    async fn a_cancel_reaches_the_driver_and_an_ended_migration_takes_none() {
        let migrations = Migrations::default();
        let id = MigrationId(1);
        let handle = migrations.begin(id, "web", MigrateRequest::to("b"));
        let mut cancel = handle.cancel();
        let now = tokio::time::timeout(Duration::ZERO, cancel.wait());
        assert!(now.await.is_err(), "nobody asked yet");
        assert!(migrations.cancel(id).unwrap().cancelling);
        cancel.wait().await;
        migrations.finish(report(id));
        assert_eq!(migrations.cancel(id), None);
        assert_eq!(migrations.cancel(MigrationId(2)), None);
    }

    #[test]
    fn only_so_many_reports_are_kept_and_what_runs_always_is() {
        let migrations = Migrations::default();
        let running = MigrationId(u128::MAX);
        let _handle = migrations.begin(running, "db", MigrateRequest::to("b"));
        for id in (0..ENDED_KEPT as u128 + 10).map(MigrationId) {
            migrations.begin(id, "web", MigrateRequest::to("b"));
            migrations.finish(report(id));
        }
        assert!(migrations.list().len() <= ENDED_KEPT + 2);
        assert!(migrations.get(running).is_some());
        assert!(migrations.get(MigrationId(0)).is_none());
    }
}
