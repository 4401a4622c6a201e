//! What a target finds when it looks at itself with an offer in hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::{
    capability::{self, MemoryFacts, QemuFacts},
    disk::{self, DiskProblem, Proof},
    offer::{Offer, boot_paths, hash_file},
    probes::Probes,
};
use crate::{
    policy::Objection,
    vm::{
        definition::Accel,
        network::{self, NetworkError},
    },
};

/// A host, as far as one offer is concerned. What could not be found out carries the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Its memory.
    pub memory: MemoryFacts,
    /// Its QEMU.
    pub qemu: Result<QemuFacts, String>,
    /// Whether KVM runs guests.
    pub kvm: bool,
    /// The features that the offered CPU model has here; `None` where the machine type or accelerator is not to be had, so
    /// that nothing was asked.
    pub cpu_features: Option<Result<BTreeSet<String>, String>>,
    /// The offered disks by id.
    pub disks: BTreeMap<String, Result<Proof, DiskProblem>>,
    /// The hash of each file that the VM boots from.
    pub boot_files: BTreeMap<PathBuf, Result<String, String>>,
    /// The network interfaces; `true` for bridges.
    pub interfaces: BTreeMap<String, bool>,
    /// What the policy is against. None of the disks and files in it was looked at.
    pub objections: Vec<Objection>,
}

/// Why a host cannot even look at itself.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// Its memory cannot be read.
    #[error("cannot read this host's memory: {0}")]
    Memory(#[from] io::Error),
    /// Its interfaces cannot be listed.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Looks at this host, whose QEMU `probes` asks, except for what its policy is against. It changes nothing, and takes up to some
/// seconds.
///
/// # Errors
/// [`ExamineError`].
pub async fn examine(probes: &Probes, offer: &Offer, objections: Vec<Objection>) -> Result<TargetFacts, ExamineError> {
    let definition = &offer.definition;
    let kvm = capability::kvm_is_usable();
    let qemu = probes.qemu().await.map_err(|error| error.to_string());
    let has_machine = qemu
        .as_ref()
        .is_ok_and(|qemu| qemu.machines.contains(&definition.machine));
    let has_accel = definition.accel != Some(Accel::Kvm) || kvm;
    let cpu_features = if has_machine && has_accel {
        let probed = probes.cpu(definition).await;
        Some(probed.map_err(|error| error.to_string()))
    } else {
        None
    };
    let (disks, boot_files) = {
        let (offer, objections) = (offer.clone(), objections.clone());
        super::blocking(move || {
            (
                compare_disks(&offer, &objections),
                examine_boot_files(&offer, &objections),
            )
        })
        .await
    };
    Ok(TargetFacts {
        memory: capability::memory()?,
        qemu,
        kvm,
        cpu_features,
        disks,
        boot_files,
        interfaces: network::interfaces().await?,
        objections,
    })
}

impl TargetFacts {
    /// Whether a disk's content alone is against it, which a guest that writes changes: then it is worth another look.
    pub fn content_differs(&self) -> bool {
        let mut problems = self.disks.values().filter_map(|disk| disk.as_ref().err());
        problems.any(|problem| matches!(problem, DiskProblem::OtherContent { .. }))
    }

    /// Looks at the disks again, which the offer describes anew.
    pub async fn look_again(&mut self, offer: &Offer) {
        let (offer, objections) = (offer.clone(), self.objections.clone());
        self.disks = super::blocking(move || compare_disks(&offer, &objections)).await;
    }

    /// Whether the policy is against a disk.
    pub fn objects_to_disk(&self, disk: &str) -> bool {
        objects_to_disk(&self.objections, disk)
    }
}

fn objects_to_disk(objections: &[Objection], disk: &str) -> bool {
    let mut objections = objections.iter();
    objections.any(|objection| matches!(objection, Objection::Disk { id, .. } if id == disk))
}

fn compare_disks(offer: &Offer, objections: &[Objection]) -> BTreeMap<String, Result<Proof, DiskProblem>> {
    let disks = offer.definition.disk.iter();
    let pairs = disks
        .filter(|disk| !objects_to_disk(objections, &disk.id))
        .filter_map(|disk| {
            let facts = offer.disks.iter().find(|facts| facts.id == disk.id)?;
            Some((disk.id.clone(), disk::compare(disk, facts)))
        });
    pairs.collect()
}

fn examine_boot_files(offer: &Offer, objections: &[Objection]) -> BTreeMap<PathBuf, Result<String, String>> {
    let hash = |path: &Path| hash_file(path).map_err(|error| error.to_string());
    let is_against = |objection: &Objection, file: &Path| match objection {
        Objection::BootFile { path } => *path == file.display().to_string(),
        _ => false,
    };
    boot_paths(&offer.definition)
        .filter(|path| !objections.iter().any(|objection| is_against(objection, path)))
        .map(|path| (path.to_owned(), hash(path)))
        .collect()
}

#[cfg(test)]
mod tests;
