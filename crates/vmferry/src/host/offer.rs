//! What the source tells a target about its VM, before anything on the source has changed.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    capability::{self, QemuVersion},
    disk::{self, DiskFacts},
};
use crate::{
    arbiter::ArbiterName,
    content::name::ContentName,
    vm::{RunningVm, VmDefinition},
};

/// A VM, and what the target must match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The completed definition.
    pub definition: VmDefinition,
    /// The QEMU that runs it.
    pub qemu: QemuVersion,
    /// The CPU features that its guest has.
    pub cpu_features: BTreeSet<String>,
    /// Its disks, in the definition's order.
    pub disks: Vec<DiskFacts>,
    /// Its kernel and initial RAM disk, if it boots from them.
    pub boot_files: Vec<BootFile>,
    /// Content that the source has indexes of; pages may be referred to those that the target can read.
    #[serde(default)]
    pub contents: Vec<ContentName>,
    /// The arbiter that is to decide, if there is one.
    #[serde(default)]
    pub arbiter: Option<ArbiterName>,
}

/// A file that QEMU reads when the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Where it is, on every host.
    pub path: PathBuf,
    /// BLAKE3-256 of it, hexadecimal.
    pub hash: String,
}

/// Why a VM cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// Its QEMU does not answer.
    #[error(transparent)]
    Qmp(#[from] vmferry_qmp::Error),
    /// A disk cannot be read by the agent.
    #[error("cannot read disk {id:?}: {source}; the agent must be able to read the VM's disks")]
    Disk {
        /// The disk.
        id: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that it booted from cannot be read.
    #[error("cannot read {}: {source}; the VM boots from it", path.display())]
    BootFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Describes a VM that runs here.
///
/// # Errors
/// [`DescribeError`].
pub async fn describe(vm: &RunningVm) -> Result<Offer, DescribeError> {
    let cpu_features = capability::cpu_features(&vm.qmp, &vm.definition.cpu).await?;
    let qemu = vm.qmp.version().into();
    let definition = vm.definition.clone();
    super::blocking(move || {
        let boot_files = boot_paths(&definition).map(|path| {
            let hash = hash_file(path).map_err(|source| DescribeError::BootFile {
                path: path.to_owned(),
                source,
            })?;
            Ok(BootFile {
                path: path.to_owned(),
                hash,
            })
        });
        Ok(Offer {
            disks: disks_of(&definition)?,
            boot_files: boot_files.collect::<Result<_, DescribeError>>()?,
            qemu,
            cpu_features,
            definition,
            contents: Vec::new(),
            arbiter: None,
        })
    })
    .await
}

/// Describes only its disks, as they are by now.
///
/// # Errors
/// [`DescribeError::Disk`].
pub async fn describe_disks(vm: &RunningVm) -> Result<Vec<DiskFacts>, DescribeError> {
    let definition = vm.definition.clone();
    super::blocking(move || disks_of(&definition)).await
}

fn disks_of(definition: &VmDefinition) -> Result<Vec<DiskFacts>, DescribeError> {
    let disks = definition.disk.iter().map(|disk| {
        disk::describe(disk).map_err(|source| DescribeError::Disk {
            id: disk.id.clone(),
            source,
        })
    });
    disks.collect()
}

/// The files that `definition` boots from.
pub(super) fn boot_paths(definition: &VmDefinition) -> impl Iterator<Item = &Path> {
    [&definition.kernel, &definition.initrd]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
}

/// BLAKE3-256 of a regular file (a device or pipe might never end), hexadecimal. It blocks its thread.
pub(super) fn hash_file(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_not_read() {
        assert!(hash_file(Path::new("/dev/zero")).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(hash_file(file.path()).unwrap(), blake3::hash(b"").to_hex().as_str());
    }
}
