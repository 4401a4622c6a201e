//! The agent's journal, behind the tasks that write to it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use vmferry_core::{handover, wire::hello::MigrationId};
use vmferry_store as store;

use super::record::{Ledger, Record};

/// A journal longer than this is rewritten at the next start: some thousand starts and stops of VMs.
const COMPACT_ABOVE_BYTES: u64 = 1 << 20;

/// The journal's file, and the handover records in memory to answer peers from.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    file: store::Journal<Record>,
    handovers: BTreeMap<MigrationId, Vec<handover::Record>>,
}

impl Journal {
    /// Opens the journal in the state directory, and says what this host owns by it.
    ///
    /// # Errors
    /// The journal's: it is another agent's, or damaged.
    pub fn open(state_dir: &Path) -> Result<(Journal, Ledger), store::Error> {
        let store::Opened {
            mut journal,
            records,
            torn_bytes,
        } = store::Journal::open(state_dir.join("journal"))?;
        if torn_bytes > 0 {
            tracing::warn!(torn_bytes, "dropped a record whose write was interrupted");
        }
        let ledger = Ledger::replay(records);
        if journal.file_bytes() > COMPACT_ABOVE_BYTES {
            journal.compact(&ledger.records())?;
        }
        let shared = Shared {
            file: journal,
            handovers: ledger.handovers.clone(),
        };
        Ok((
            Journal {
                shared: Arc::new(Mutex::new(shared)),
            },
            ledger,
        ))
    }

    /// Makes a record durable. What it says may be acted upon only after this returned.
    ///
    /// # Errors
    /// The journal's: the record is not there, and nothing more can be written.
    pub async fn append(&self, record: Record) -> Result<(), store::Error> {
        let shared = self.shared.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.file.append(&record)?;
            if let Record::Handover { fact } = record {
                shared
                    .handovers
                    .entry(fact.handover().migration)
                    .or_default()
                    .push(fact);
            }
            Ok(())
        });
        match written.await {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The durable records of one handover, oldest first.
    pub fn handover_records(&self, migration: MigrationId) -> Vec<handover::Record> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.handovers.get(&migration).cloned().unwrap_or_default()
    }
}
