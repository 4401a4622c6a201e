//! The reasons against a VM, all at once. A pure function: what it weighs was found out before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    capability::QemuVersion,
    disk::DiskProblem,
    examine::TargetFacts,
    offer::Offer,
    reservations::{Reservation, Reservations},
};
use crate::{
    policy::Objection,
    vm::{ByteSize, VmDefinition, definition::Accel},
};

/// Memory that a QEMU takes besides its guest's, bytes: its own code and heap, and device emulation.
const QEMU_BYTES: u64 = 64 << 20;
/// Of each so many bytes of guest memory, one goes into page tables and dirty bitmaps.
const GUEST_BYTES_PER_TABLE_BYTE: u64 = 400;

/// A reason against taking a VM. Each displays a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    /// Too little memory.
    #[error(
        "not enough memory: the VM needs {} and {} are free, after what other VMs and reservations hold; \
         stop or move a VM, or raise the agent's limit", in_mib(*needed), in_mib(*free)
    )]
    Memory {
        /// Bytes that the VM and its QEMU need.
        needed: u64,
        /// Bytes that are left.
        free: u64,
    },
    /// Too few huge pages.
    #[error("the VM needs {} of huge pages and {} are free; set aside more (vm.nr_hugepages)", in_mib(*needed), in_mib(*free))]
    HugePages {
        /// Bytes that the guest needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// No working QEMU.
    #[error("no usable QEMU: {reason}")]
    NoQemu {
        /// Why not.
        reason: String,
    },
    /// A QEMU older than the source's: it may lack what the stream describes.
    #[error("QEMU {target} here is older than the source's {source_version}; upgrade it")]
    OldQemu {
        /// The source's.
        source_version: QemuVersion,
        /// This host's.
        target: QemuVersion,
    },
    /// No such machine type.
    #[error("QEMU {qemu} here has no machine type {machine}; install a version that has it")]
    Machine {
        /// The type.
        machine: String,
        /// This host's QEMU.
        qemu: QemuVersion,
    },
    /// No KVM.
    #[error(
        "the VM runs under KVM and this host has none; enable virtualization in its firmware and load kvm_intel or kvm_amd"
    )]
    NoKvm,
    /// CPU features are missing.
    #[error("this host's CPU lacks {}; choose a CPU model that both hosts have", features.join(", "))]
    CpuFeatures {
        /// Which.
        features: Vec<String>,
    },
    /// The CPU model cannot be had.
    #[error("CPU model {model} cannot be had here: {reason}")]
    CpuModel {
        /// The model.
        model: String,
        /// QEMU's reason.
        reason: String,
    },
    /// A disk will not do.
    #[error("disk {id:?} {problem}")]
    Disk {
        /// The disk.
        id: String,
        /// Why.
        #[serde(flatten)]
        problem: DiskProblem,
    },
    /// The offer lacks a disk of its own definition.
    #[error("the offer does not describe disk {id:?}; the agents' versions do not fit, upgrade both")]
    DiskNotDescribed {
        /// The disk.
        id: String,
    },
    /// No such bridge.
    #[error("there is no bridge {bridge} for NIC {nic:?}; create it and connect it to the VM's network")]
    NoBridge {
        /// The NIC.
        nic: String,
        /// The bridge.
        bridge: String,
    },
    /// No such tap.
    #[error("there is no tap {tap} for NIC {nic:?}; create it")]
    NoTap {
        /// The NIC.
        nic: String,
        /// The tap.
        tap: String,
    },
    /// Another VM has its name.
    #[error("the name {name} is taken by another VM here; rename or remove that one")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another VM has its UUID.
    #[error("the UUID {uuid} is taken by VM {other} here; was this VM copied? give one of them a new UUID")]
    UuidTaken {
        /// The UUID.
        uuid: String,
        /// Who has it.
        other: String,
    },
    /// A file that it boots from is missing.
    #[error("cannot read {path} here ({reason}); the VM boots from it, so put the source's file there")]
    NoBootFile {
        /// The file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// A file that it boots from is another one.
    #[error("{path} here differs from the source's; the VM boots from it, so put the source's file there")]
    OtherBootFile {
        /// The file.
        path: String,
    },
    /// The policy is against it.
    #[error(transparent)]
    Policy(Objection),
    /// The definition does not hold together by this version's rules.
    #[error("the definition is not valid here: {problem}")]
    Definition {
        /// What is wrong.
        problem: String,
    },
}

/// What this host's VMs and reservations hold, other than for the offered attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// By the VM's name.
    vms: BTreeMap<String, Reservation>,
    /// Memory of VMs that is promised, and not yet taken out of what is available.
    pending_bytes: u64,
}

impl Occupancy {
    /// Of the VMs that are here, and of the promises to VMs that are not. A VM that has both counts once.
    pub fn new<'a>(vms: impl IntoIterator<Item = &'a VmDefinition>, reservations: &Reservations) -> Self {
        let reservations: BTreeMap<String, Reservation> = reservations
            .iter()
            .map(|(name, reservation)| (name.to_owned(), reservation.clone()))
            .collect();
        let pending_bytes = reservations
            .values()
            .fold(0, |sum: u64, one| sum.saturating_add(one.memory_bytes));
        let here = vms
            .into_iter()
            .map(|definition| (definition.name.clone(), reservation_for(definition)));
        Self {
            vms: here.chain(reservations).collect(),
            pending_bytes,
        }
    }

    /// How many VMs are here or on their way.
    pub fn vms(&self) -> usize {
        self.vms.len()
    }

    fn committed_bytes(&self) -> u64 {
        self.vms
            .values()
            .fold(0, |sum: u64, one| sum.saturating_add(one.memory_bytes))
    }
}

/// How much memory guests may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// All guests together, bytes; none for what the host has.
    pub limit: Option<u64>,
    /// Left free for the host, bytes.
    pub headroom: u64,
}

/// What a VM needs set aside: its memory, and its QEMU's.
pub fn reservation_for(definition: &VmDefinition) -> Reservation {
    let guest = definition.memory.size.0;
    let overhead = QEMU_BYTES.saturating_add(guest / GUEST_BYTES_PER_TABLE_BYTE);
    Reservation {
        uuid: definition.uuid.clone(),
        memory_bytes: guest.saturating_add(overhead),
    }
}

/// For people, who don't count in bytes.
fn in_mib(bytes: u64) -> ByteSize {
    ByteSize(bytes - bytes % (1 << 20))
}

/// Every reason against taking the offered VM; none: it can be taken.
pub fn check(offer: &Offer, facts: &TargetFacts, occupancy: &Occupancy, policy: MemoryPolicy) -> Vec<Refusal> {
    let definition = &offer.definition;
    let mut refusals = Vec::new();
    if let Err(error) = definition.clone().validated() {
        refusals.extend(
            error
                .problems()
                .into_iter()
                .map(|problem| Refusal::Definition { problem }),
        );
    }
    refusals.extend(facts.objections.iter().cloned().map(Refusal::Policy));
    check_identity(definition, occupancy, &mut refusals);
    check_memory(definition, facts, occupancy, policy, &mut refusals);
    check_machine(offer, facts, &mut refusals);
    check_disks(definition, facts, &mut refusals);
    check_network(definition, facts, &mut refusals);
    check_boot_files(offer, facts, &mut refusals);
    refusals
}

fn check_identity(definition: &VmDefinition, occupancy: &Occupancy, refusals: &mut Vec<Refusal>) {
    if occupancy.vms.contains_key(&definition.name) {
        refusals.push(Refusal::NameTaken {
            name: definition.name.clone(),
        });
    }
    let Some(uuid) = &definition.uuid else {
        return;
    };
    let same_uuid = |reservation: &Reservation| {
        reservation
            .uuid
            .as_ref()
            .is_some_and(|other| other.eq_ignore_ascii_case(uuid))
    };
    for (other, _) in occupancy.vms.iter().filter(|(_, reservation)| same_uuid(reservation)) {
        refusals.push(Refusal::UuidTaken {
            uuid: uuid.clone(),
            other: other.clone(),
        });
    }
}

/// Both must hold: guests that have not touched their memory yet will, so all that was promised must fit into the host;
/// and it must be available now, as others than guests use memory too. Huge pages are a stock of their own.
fn check_memory(
    definition: &VmDefinition,
    facts: &TargetFacts,
    occupancy: &Occupancy,
    policy: MemoryPolicy,
    refusals: &mut Vec<Refusal>,
) {
    let guest = definition.memory.size.0;
    let mut needed = reservation_for(definition).memory_bytes;
    if definition.memory.hugepages {
        needed = needed.saturating_sub(guest);
        if guest > facts.memory.huge_free {
            refusals.push(Refusal::HugePages {
                needed: guest,
                free: facts.memory.huge_free,
            });
        }
    }
    let total = facts.memory.total.saturating_sub(policy.headroom);
    let limit = policy.limit.unwrap_or(u64::MAX);
    let uncommitted = total.min(limit).saturating_sub(occupancy.committed_bytes());
    let available = facts.memory.available.saturating_sub(policy.headroom);
    let free = uncommitted.min(available.saturating_sub(occupancy.pending_bytes));
    if needed > free {
        refusals.push(Refusal::Memory { needed, free });
    }
}

fn check_machine(offer: &Offer, facts: &TargetFacts, refusals: &mut Vec<Refusal>) {
    let definition = &offer.definition;
    if definition.accel == Some(Accel::Kvm) && !facts.kvm {
        refusals.push(Refusal::NoKvm);
    }
    match &facts.qemu {
        Err(reason) => refusals.push(Refusal::NoQemu { reason: reason.clone() }),
        Ok(qemu) => {
            if qemu.version < offer.qemu {
                refusals.push(Refusal::OldQemu {
                    source_version: offer.qemu,
                    target: qemu.version,
                });
            }
            if !qemu.machines.contains(&definition.machine) {
                refusals.push(Refusal::Machine {
                    machine: definition.machine.clone(),
                    qemu: qemu.version,
                });
            }
        }
    }
    match &facts.cpu_features {
        None => {}
        Some(Err(reason)) => refusals.push(Refusal::CpuModel {
            model: definition.cpu.clone(),
            reason: reason.clone(),
        }),
        Some(Ok(features)) => {
            let missing: Vec<String> = offer.cpu_features.difference(features).cloned().collect();
            if !missing.is_empty() {
                refusals.push(Refusal::CpuFeatures { features: missing });
            }
        }
    }
}

fn check_disks(definition: &VmDefinition, facts: &TargetFacts, refusals: &mut Vec<Refusal>) {
    for disk in &definition.disk {
        let id = disk.id.clone();
        if facts.objects_to_disk(&id) {
            continue;
        }
        match facts.disks.get(&disk.id) {
            Some(Ok(_)) => {}
            Some(Err(problem)) => refusals.push(Refusal::Disk {
                id,
                problem: problem.clone(),
            }),
            None => refusals.push(Refusal::DiskNotDescribed { id }),
        }
    }
}

fn check_network(definition: &VmDefinition, facts: &TargetFacts, refusals: &mut Vec<Refusal>) {
    for nic in &definition.nic {
        if let Some(bridge) = &nic.bridge
            && facts.interfaces.get(bridge) != Some(&true)
        {
            refusals.push(Refusal::NoBridge {
                nic: nic.id.clone(),
                bridge: bridge.clone(),
            });
        }
        if let Some(tap) = &nic.tap
            && !facts.interfaces.contains_key(tap)
        {
            refusals.push(Refusal::NoTap {
                nic: nic.id.clone(),
                tap: tap.clone(),
            });
        }
    }
}

fn check_boot_files(offer: &Offer, facts: &TargetFacts, refusals: &mut Vec<Refusal>) {
    for (path, found) in &facts.boot_files {
        let path_text = path.display().to_string();
        match found {
            Err(reason) => refusals.push(Refusal::NoBootFile {
                path: path_text,
                reason: reason.clone(),
            }),
            Ok(hash) => {
                if !offer
                    .boot_files
                    .iter()
                    .any(|file| file.path == *path && file.hash == *hash)
                {
                    refusals.push(Refusal::OtherBootFile { path: path_text });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
