//! What the agent's journal holds, and what a replay of it says this host owns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmferry_core::{
    handover,
    wire::{
        hello::MigrationId,
        message::{Epoch, Handover},
    },
};

use crate::vm::VmDefinition;

/// A durable fact about this host's VMs. Each is written before what it says is acted upon; replaying one twice is harmless.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// The VM is this host's, and its QEMU may have been started.
    Started {
        /// The VM, completed.
        definition: Box<VmDefinition>,
        /// The epoch in which this host owns it.
        epoch: Epoch,
    },
    /// Its QEMU has ended; the VM is still this host's.
    Stopped {
        /// The VM's name.
        vm: String,
        /// How it ended.
        reason: String,
    },
    /// The VM is nobody's any more.
    Forgotten {
        /// The VM's name.
        vm: String,
    },
    /// The definition of a VM that a handover may bring here; precedes its `Prepared`.
    Incoming {
        /// The attempt.
        migration: MigrationId,
        /// The VM, as its source has it.
        definition: Box<VmDefinition>,
    },
    /// A fact of a handover.
    Handover {
        /// Which.
        fact: handover::Record,
    },
}

/// One VM of this host, as the journal has it.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedVm {
    /// What it is.
    pub definition: VmDefinition,
    /// The epoch in which this host owns it.
    pub epoch: Epoch,
    /// Why it doesn't run; `None` where its QEMU should be there.
    pub stopped: Option<String>,
}

/// The journal, replayed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    /// This host's VMs by name, those included that were released and whose handover has not ended.
    pub vms: BTreeMap<String, OwnedVm>,
    /// Definitions of VMs that handovers may still bring here.
    pub incoming: BTreeMap<MigrationId, VmDefinition>,
    /// The records of each handover, oldest first.
    pub handovers: BTreeMap<MigrationId, Vec<handover::Record>>,
}

impl Ledger {
    /// What the records, oldest first, come to.
    pub fn replay(records: impl IntoIterator<Item = Record>) -> Ledger {
        let mut ledger = Ledger::default();
        for record in records {
            ledger.apply(record);
        }
        ledger
    }

    /// The fewest records that come to this ledger, and answer every question that a peer may still ask: after `HandedOver`
    /// and `RolledBack` no peer depends on the earlier ones.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (migration, definition) in &self.incoming {
            let definition = Box::new(definition.clone());
            records.push(Record::Incoming {
                migration: *migration,
                definition,
            });
        }
        let is_over = |facts: &[handover::Record]| {
            matches!(
                facts.last(),
                None | Some(handover::Record::HandedOver { .. } | handover::Record::RolledBack { .. })
            )
        };
        let open = self.handovers.values().filter(|facts| !is_over(facts)).flatten();
        records.extend(open.map(|fact| Record::Handover { fact: fact.clone() }));
        // Last, so that nothing about a past handover takes away what is here now.
        for (name, vm) in &self.vms {
            records.push(Record::Started {
                definition: Box::new(vm.definition.clone()),
                epoch: vm.epoch,
            });
            let stopped = vm.stopped.as_ref();
            records.extend(stopped.map(|reason| Record::Stopped {
                vm: name.clone(),
                reason: reason.clone(),
            }));
        }
        records
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Started { definition, epoch } => {
                let vm = OwnedVm {
                    definition: *definition,
                    epoch,
                    stopped: None,
                };
                self.vms.insert(vm.definition.name.clone(), vm);
            }
            Record::Stopped { vm, reason } => {
                if let Some(vm) = self.vms.get_mut(&vm) {
                    vm.stopped = Some(reason);
                }
            }
            Record::Forgotten { vm } => {
                self.vms.remove(&vm);
            }
            Record::Incoming { migration, definition } => {
                self.incoming.insert(migration, *definition);
            }
            Record::Handover { fact } => self.apply_handover(fact),
        }
    }

    fn close_attempts(&mut self, next: &Handover) {
        for records in self.handovers.values_mut() {
            let open = records.last().filter(|last| {
                matches!(
                    last,
                    handover::Record::Offered { .. } | handover::Record::Reclaimed { .. }
                )
            });
            if let Some(handover) = open.map(|last| last.handover().clone())
                && handover.vm == next.vm
                && handover.migration != next.migration
            {
                records.push(handover::Record::RolledBack { handover });
            }
        }
    }

    fn apply_handover(&mut self, fact: handover::Record) {
        let handover = fact.handover().clone();
        match fact.plain() {
            handover::Record::Owned { .. } => {
                if let Some(definition) = self.incoming.remove(&handover.migration) {
                    let vm = OwnedVm {
                        definition,
                        epoch: handover.epoch,
                        stopped: None,
                    };
                    self.vms.insert(handover.vm.clone(), vm);
                }
            }
            handover::Record::Dropped { .. } => {
                self.incoming.remove(&handover.migration);
                // Its QEMU may have died between `Owned` and its start.
                if self.vms.get(&handover.vm).is_some_and(|vm| vm.epoch == handover.epoch) {
                    self.vms.remove(&handover.vm);
                }
            }
            handover::Record::HandedOver { .. } => {
                // A VM of a later epoch came back since, and the record was written twice.
                if self.vms.get(&handover.vm).is_some_and(|vm| vm.epoch < handover.epoch) {
                    self.vms.remove(&handover.vm);
                }
            }
            // The target was told this epoch; the next handover must not use it again.
            handover::Record::Reclaimed { .. } => {
                if let Some(vm) = self.vms.get_mut(&handover.vm) {
                    vm.epoch = vm.epoch.max(handover.epoch);
                }
            }
            // An attempt that left no word of its end has ended all the same when the next one begins.
            handover::Record::Offered { .. } => self.close_attempts(&handover),
            handover::Record::Released { .. }
            | handover::Record::RolledBack { .. }
            | handover::Record::Prepared { .. }
            | handover::Record::TakenOver { .. }
            | handover::Record::Resolved { .. } => {}
        }
        self.handovers.entry(handover.migration).or_default().push(fact);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str) -> Box<VmDefinition> {
        let text =
            format!("name = {name:?}\nmachine = \"pc-q35-10.0\"\ncpu = \"max\"\nvcpus = 1\nmemory = \"64MiB\"\n");
        Box::new(VmDefinition::from_toml(&text).unwrap())
    }

    fn started(name: &str, epoch: u64) -> Record {
        Record::Started {
            definition: definition(name),
            epoch: Epoch(epoch),
        }
    }

    fn attempt(migration: u128, vm: &str, epoch: u64) -> Handover {
        Handover {
            migration: MigrationId(migration),
            vm: vm.to_owned(),
            epoch: Epoch(epoch),
        }
    }

    fn fact(fact: handover::Record) -> Record {
        Record::Handover { fact }
    }

    #[test]
    fn a_vm_is_owned_from_its_start_until_it_is_forgotten() {
        let stopped = Record::Stopped {
            vm: "web".to_owned(),
            reason: "the guest shut down".to_owned(),
        };
        let mut records = vec![started("web", 1), stopped];
        let ledger = Ledger::replay(records.clone());
        assert_eq!(ledger.vms["web"].stopped.as_deref(), Some("the guest shut down"));
        records.push(started("web", 1));
        assert_eq!(Ledger::replay(records.clone()).vms["web"].stopped, None);
        records.push(Record::Forgotten { vm: "web".to_owned() });
        assert_eq!(Ledger::replay(records).vms, BTreeMap::new());
    }

    #[test]
    fn a_handed_over_vm_is_the_targets_and_not_the_sources() {
        let handover = attempt(7, "web", 2);
        let source = Ledger::replay([
            started("web", 1),
            fact(handover::Record::Offered {
                handover: handover.clone(),
                peer: "b:7464".to_owned(),
            }),
            fact(handover::Record::Released {
                handover: handover.clone(),
                arbiter: None,
            }),
        ]);
        assert!(
            source.vms.contains_key("web"),
            "a released copy is kept until the target runs it"
        );

        let ended = fact(handover::Record::HandedOver {
            handover: handover.clone(),
        });
        let source = Ledger::replay([started("web", 1), ended.clone()]);
        assert!(source.vms.is_empty());

        let target = Ledger::replay([
            Record::Incoming {
                migration: handover.migration,
                definition: definition("web"),
            },
            fact(handover::Record::Owned { handover }),
        ]);
        assert_eq!(target.vms["web"].epoch, Epoch(2));
        assert!(target.incoming.is_empty());

        let came_back = Ledger::replay([started("web", 3), ended]);
        assert_eq!(came_back.vms["web"].epoch, Epoch(3), "an old record takes nothing away");
    }

    #[test]
    fn a_dropped_copy_leaves_nothing_and_a_reclaimed_one_uses_up_its_epoch() {
        let handover = attempt(7, "web", 2);
        let target = Ledger::replay([
            Record::Incoming {
                migration: handover.migration,
                definition: definition("web"),
            },
            fact(handover::Record::Dropped {
                handover: handover.clone(),
            }),
        ]);
        assert!(target.vms.is_empty() && target.incoming.is_empty());

        let source = Ledger::replay([started("web", 1), fact(handover::Record::Reclaimed { handover })]);
        assert_eq!(source.vms["web"].epoch, Epoch(2));
    }

    #[test]
    fn replaying_a_record_twice_changes_nothing() {
        let records = [
            started("web", 1),
            Record::Stopped {
                vm: "web".to_owned(),
                reason: "gone".to_owned(),
            },
            started("db", 4),
            fact(handover::Record::HandedOver {
                handover: attempt(1, "db", 5),
            }),
        ];
        let twice = records.iter().flat_map(|record| [record.clone(), record.clone()]);
        assert_eq!(Ledger::replay(twice).vms, Ledger::replay(records.clone()).vms);
    }

    #[test]
    fn fewer_records_come_to_the_same() {
        let (left, here, open) = (attempt(1, "db", 2), attempt(2, "web", 4), attempt(3, "mail", 2));
        let ledger = Ledger::replay([
            started("db", 1),
            fact(handover::Record::HandedOver { handover: left }),
            Record::Incoming {
                migration: here.migration,
                definition: definition("web"),
            },
            fact(handover::Record::Owned { handover: here }),
            Record::Stopped {
                vm: "web".to_owned(),
                reason: "the guest shut down".to_owned(),
            },
            Record::Incoming {
                migration: open.migration,
                definition: definition("mail"),
            },
            fact(handover::Record::Prepared {
                handover: open,
                peer: "a:7464".to_owned(),
                arbiter: false,
            }),
        ]);
        let compacted = Ledger::replay(ledger.records());
        assert_eq!((&compacted.vms, &compacted.incoming), (&ledger.vms, &ledger.incoming));
        let kept: Vec<_> = compacted.handovers.keys().copied().collect();
        assert_eq!(
            kept,
            [MigrationId(2), MigrationId(3)],
            "what a peer may still ask about"
        );
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        let record = fact(handover::Record::Owned {
            handover: attempt(1, "web", 2),
        });
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
