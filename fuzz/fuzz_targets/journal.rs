//! Any file is a journal, or is refused with the place where it is damaged; what its records come to is never a panic, and no more
//! than they say. Records as agents write them come to the same after they were compacted: the same VMs, the same debts to
//! handovers, the same answers to peers.
//!
//! Either a file's bytes, or frames that each are a byte for what is wrong with it and a payload behind its length, or steps of
//! handovers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use vmferry::agent::record::{Ledger, Record};
use vmferry::vm::VmDefinition;
use vmferry_core::handover::{self, AfterRestart, after_restart, answer};
use vmferry_core::wire::hello::MigrationId;
use vmferry_core::wire::message::{Epoch, Handover, Message};
use vmferry_fuzz::within;
use vmferry_store::{Error, replay};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8] = b"VMFERRY JOURNAL 1\n";
const VMS: [&str; 2] = ["web", "db"];

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    match way % 4 {
        0 => file(bytes, false),
        1 => file(&[MAGIC, bytes].concat(), false),
        2 => file(&[MAGIC, &frames(bytes)].concat(), false),
        _ => file(&written(&steps(bytes)), true),
    }
});

fn file(bytes: &[u8], is_honest: bool) {
    within((256 << 10) + 512 * bytes.len(), || {
        let (records, end) = match replay::<Record>(Path::new("journal"), bytes) {
            Ok(replayed) => replayed,
            Err(Error::Damaged { offset, .. } | Error::Unknown { offset, .. }) => {
                return assert!(!is_honest && offset < bytes.len() as u64);
            }
            Err(error) => return assert!(!is_honest && !error.to_string().is_empty()),
        };
        assert!(end <= bytes.len() as u64 && (!is_honest || end == bytes.len() as u64));
        let count = records.len();
        let ledger = Ledger::replay(records);
        assert!(ledger.vms.len() <= count && ledger.incoming.len() <= count);
        let compacted = Ledger::replay(ledger.records());
        if is_honest {
            same(&ledger, &compacted);
        }
    });
}

fn same(ledger: &Ledger, compacted: &Ledger) {
    assert_eq!(compacted.vms, ledger.vms);
    assert_eq!(compacted.incoming, ledger.incoming);
    for (migration, facts) in &ledger.handovers {
        let kept = compacted.handovers.get(migration).map_or(&[][..], Vec::as_slice);
        assert_eq!(after_restart(kept), after_restart(facts));
        let Some(handover) = facts.last().map(|fact| fact.handover().clone()) else {
            continue;
        };
        // Of one that the source ended, its target asks nothing any more.
        if after_restart(facts) != AfterRestart::Nothing || !kept.is_empty() {
            for message in [
                Message::Inquire {
                    handover: handover.clone(),
                },
                Message::Commit {
                    handover: handover.clone(),
                },
                Message::Abort {
                    handover: handover.clone(),
                    reason: String::new(),
                },
            ] {
                assert_eq!(answer(kept, None, &message), answer(facts, None, &message));
            }
        }
    }
}

/// Frames as they should be, but for what the fuzzer has wrong with them.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let Some(([wrong, l0, l1], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*l0, *l1])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        bytes = rest;
        let mut frame = frame(payload);
        match wrong % 8 {
            0 => frame.truncate(frame.len() - usize::from(wrong / 8).min(frame.len())),
            1 => frame[usize::from(wrong / 8) % 16] ^= 1,
            2 => frame.fill(0),
            _ => {}
        }
        frames.extend(frame);
    }
    frames
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    let check = xxh3_64(&length).to_le_bytes();
    [&length, &check[..4], &xxh3_64(payload).to_le_bytes(), payload].concat()
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    for record in records {
        file.extend(frame(&serde_json::to_vec(record).expect("it has a JSON form")));
    }
    file
}

/// Of each VM, read once: reading takes longer than all else.
static DEFINITIONS: LazyLock<BTreeMap<&str, VmDefinition>> = LazyLock::new(|| {
    let definition = |vm| {
        let text = format!("name = {vm:?}\nmachine = \"pc-q35-10.0\"\ncpu = \"max\"\nvcpus = 1\nmemory = \"64MiB\"\n");
        (vm, VmDefinition::from_toml(&text).expect("it is one"))
    };
    VMS.map(definition).into()
});

fn definition(vm: &str) -> Box<VmDefinition> {
    Box::new(DEFINITIONS[vm].clone())
}

/// A host that begins, goes on with and ends handovers, of which each step but the last leaves others to choose from.
#[derive(Default)]
struct Host {
    records: Vec<Record>,
    /// The VMs here, with their epochs.
    here: BTreeMap<&'static str, Epoch>,
    /// The handover of each VM that is under way, with its last record.
    open: BTreeMap<&'static str, (Handover, Step)>,
    handovers: u128,
}

#[derive(Clone, Copy)]
enum Step {
    Offered,
    Released,
    Reclaimed,
    Incoming,
    Prepared,
    Owned,
}

fn steps(bytes: &[u8]) -> Vec<Record> {
    let mut host = Host::default();
    for byte in bytes.iter().take(64) {
        let vm = VMS[usize::from(byte & 1)];
        let choice = byte >> 1;
        match host.open.remove(vm) {
            None => host.begin(vm, choice),
            Some((handover, step)) => host.go_on(vm, handover, step, choice),
        }
    }
    host.records
}

impl Host {
    fn begin(&mut self, vm: &'static str, choice: u8) {
        let epoch = self.here.get(vm).copied();
        // Numbers of migrations are drawn, so they are in no order.
        self.handovers += 1;
        let migration = MigrationId((self.handovers * 5 + u128::from(choice)) % 16 << 64 | self.handovers);
        match (epoch, choice % 4) {
            (None, 0) => {
                self.here.insert(vm, Epoch(1));
                self.records.push(Record::Started {
                    definition: definition(vm),
                    epoch: Epoch(1),
                });
            }
            (None, _) => {
                let handover = Handover {
                    migration,
                    vm: vm.to_owned(),
                    epoch: Epoch(u64::from(choice) + 2),
                };
                self.records.push(Record::Incoming {
                    migration,
                    definition: definition(vm),
                });
                self.open.insert(vm, (handover, Step::Incoming));
            }
            (Some(_), 0) => self.records.push(Record::Stopped {
                vm: vm.to_owned(),
                reason: String::new(),
            }),
            (Some(epoch), 1) => self.records.push(Record::Started {
                definition: definition(vm),
                epoch,
            }),
            (Some(_), 2) => {
                self.here.remove(vm);
                self.records.push(Record::Forgotten { vm: vm.to_owned() });
            }
            (Some(epoch), _) => {
                let handover = Handover {
                    migration,
                    vm: vm.to_owned(),
                    epoch: epoch.next(),
                };
                let peer = "b:1".to_owned();
                self.fact(handover::Record::Offered {
                    handover: handover.clone(),
                    peer,
                });
                self.open.insert(vm, (handover, Step::Offered));
            }
        }
    }

    fn go_on(&mut self, vm: &'static str, handover: Handover, step: Step, choice: u8) {
        let is_first = choice % 2 == 0;
        let next = match (step, is_first) {
            (Step::Offered, true) => Some((
                handover::Record::Released {
                    handover: handover.clone(),
                    arbiter: None,
                },
                Step::Released,
            )),
            (Step::Offered, false) | (Step::Reclaimed, _) => {
                return self.fact(handover::Record::RolledBack { handover });
            }
            (Step::Released, true) => {
                self.here.remove(vm);
                return self.fact(handover::Record::HandedOver { handover });
            }
            (Step::Released, false) => {
                self.here.insert(vm, handover.epoch);
                Some((
                    handover::Record::Reclaimed {
                        handover: handover.clone(),
                    },
                    Step::Reclaimed,
                ))
            }
            (Step::Incoming, true) => {
                let peer = "a:1".to_owned();
                Some((
                    handover::Record::Prepared {
                        handover: handover.clone(),
                        peer,
                        arbiter: false,
                    },
                    Step::Prepared,
                ))
            }
            // What was not promised is dropped without a word.
            (Step::Incoming, false) => None,
            (Step::Prepared, true) => {
                self.here.insert(vm, handover.epoch);
                Some((
                    handover::Record::Owned {
                        handover: handover.clone(),
                    },
                    Step::Owned,
                ))
            }
            (Step::Prepared, false) => return self.fact(handover::Record::Dropped { handover }),
            (Step::Owned, true) => return self.fact(handover::Record::TakenOver { handover }),
            (Step::Owned, false) => {
                self.here.remove(vm);
                return self.fact(handover::Record::Dropped { handover });
            }
        };
        if let Some((fact, step)) = next {
            self.fact(fact);
            self.open.insert(vm, (handover, step));
        }
    }

    fn fact(&mut self, fact: handover::Record) {
        self.records.push(Record::Handover { fact });
    }
}
