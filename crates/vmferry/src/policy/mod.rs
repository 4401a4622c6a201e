//! What this host's operator lets other hosts do: who may send VMs here, and what of the host these may use.
//!
//! A definition that comes from a peer is not trusted. All in it that names something of this host is weighed here, before
//! anything that it names is opened. What the host lacks is another matter ([`crate::host`]).
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | the `[policy]` table of the agent's configuration file |
//! | [`places`] | directories and exports that disks may be on |

pub mod places;
pub mod settings;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{StatFs, statfs};
use serde::{Deserialize, Serialize};

pub use places::Places;
pub use settings::PolicySettings;

use crate::vm::{
    ByteSize, VmDefinition,
    definition::{Disk, MemoryBackend, Serial},
    storage,
};

/// The rules of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Hosts that may send; none for every host that proved who it is.
    pub senders: Option<BTreeSet<String>>,
    /// What disks, and what VMs boot from, may be on.
    pub disks: Places,
    /// Where the files and sockets of serial ports may be.
    pub serials: Places,
    /// Bridges that NICs may be on; none for every bridge.
    pub bridges: Option<BTreeSet<String>>,
    /// Taps that NICs may use; none for every tap.
    pub taps: Option<BTreeSet<String>>,
    /// Most memory of one VM, bytes.
    pub memory_max: Option<u64>,
    /// Most VMs on this host, those that come included.
    pub vms_max: Option<usize>,
    /// Sequences of QEMU arguments that a definition may have.
    pub qemu_arguments: Vec<Vec<String>>,
}

/// What the policy has against an offer. Each displays a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "objection", rename_all = "kebab-case")]
pub enum Objection {
    /// The sender is not on the list.
    #[error("{host} may not send VMs to this host; name it in `senders` of this host's [policy]")]
    Sender {
        /// Who it is.
        host: String,
    },
    /// A disk, or something under it, is out of bounds.
    #[error("disk {id:?}: {problem}")]
    Disk {
        /// The disk.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// A file to boot from is out of bounds.
    #[error("it boots from {path}, which is neither in `disk-directories` of this host's [policy] nor in /boot")]
    BootFile {
        /// The file.
        path: String,
    },
    /// The serial port goes where it may not.
    #[error(
        "its serial port goes to {path}, which is not in `serial-directories` of this host's [policy]; \
         use serial = \"pty\", or have that directory listed"
    )]
    Serial {
        /// The file or socket.
        path: String,
    },
    /// Guest memory would be in a file of the host's.
    #[error("its memory is to be in {path}, which is no directory on hugetlbfs or tmpfs here; use another backend")]
    MemoryPath {
        /// The file or directory.
        path: String,
    },
    /// A bridge is not on the list.
    #[error("NIC {nic:?} may not be on bridge {bridge}; name it in `bridges` of this host's [policy]")]
    Bridge {
        /// The NIC.
        nic: String,
        /// The bridge.
        bridge: String,
    },
    /// A tap is not on the list.
    #[error("NIC {nic:?} may not use tap {tap}; name it in `taps` of this host's [policy]")]
    Tap {
        /// The NIC.
        nic: String,
        /// The tap.
        tap: String,
    },
    /// It is larger than a VM may be.
    #[error("the VM has {} of memory and may have {} (`memory-max` of this host's [policy])", ByteSize(*wanted), ByteSize(*most))]
    Memory {
        /// Bytes of the guest.
        wanted: u64,
        /// Bytes that it may have.
        most: u64,
    },
    /// There are enough VMs.
    #[error(
        "{here} VMs are here or on their way, and {most} may be (`vms-max` of this host's [policy]); move one away"
    )]
    Vms {
        /// How many there are.
        here: usize,
        /// How many may be.
        most: usize,
    },
    /// QEMU arguments that the policy does not list.
    #[error(
        "free QEMU arguments are not taken from other hosts: {arguments:?}; \
         list them in `qemu-arguments` of this host's [policy]"
    )]
    QemuArguments {
        /// The first that is not covered, and those behind it.
        arguments: Vec<String>,
    },
}

/// Magic numbers of file systems whose files are memory (`linux/magic.h`).
const IN_MEMORY: [i64; 2] = [0x9584_58f6, 0x0102_1994];
/// Where kernels stand on a host whose policy does not say more. Only root writes there, and a source has to have the same file.
const BOOT: &str = "/boot";

impl Policy {
    /// Whether that host may send VMs here. Who it is must be proven by then.
    ///
    /// # Errors
    /// [`Objection::Sender`].
    pub fn check_sender(&self, host: &str) -> Result<(), Objection> {
        match &self.senders {
            Some(senders) if !senders.contains(host) => Err(Objection::Sender { host: host.to_owned() }),
            _ => Ok(()),
        }
    }

    /// All that is against a valid definition from a peer, whatever else is here. It looks up paths and reads headers of
    /// images that may be used, and blocks its thread.
    pub fn objections(&self, definition: &VmDefinition) -> Vec<Objection> {
        let mut objections = Vec::new();
        objections.extend(definition.disk.iter().filter_map(|disk| self.check_disk(disk)));
        for path in [&definition.kernel, &definition.initrd].into_iter().flatten() {
            if self.find_boot_file(path).is_none() {
                objections.push(Objection::BootFile {
                    path: path.display().to_string(),
                });
            }
        }
        if let Some(Serial::File(path) | Serial::Socket(path)) = &definition.serial
            && !self.serials.has_room_for(path)
        {
            objections.push(Objection::Serial {
                path: path.display().to_string(),
            });
        }
        if let (MemoryBackend::File, Some(path)) = (definition.memory.backend, &definition.memory.path)
            && !is_in_memory(path)
        {
            objections.push(Objection::MemoryPath {
                path: path.display().to_string(),
            });
        }
        self.check_network(definition, &mut objections);
        if let Some(most) = self.memory_max.filter(|most| definition.memory.size.0 > *most) {
            objections.push(Objection::Memory {
                wanted: definition.memory.size.0,
                most,
            });
        }
        let rest = self.uncovered(&definition.extra_args);
        if !rest.is_empty() {
            objections.push(Objection::QemuArguments {
                arguments: rest.to_vec(),
            });
        }
        objections
    }

    /// Whether one more VM may come, where so many are here or on their way.
    pub fn check_count(&self, here: usize) -> Option<Objection> {
        let most = self.vms_max.filter(|most| here >= *most)?;
        Some(Objection::Vms { here, most })
    }

    /// The path without links of a file that VMs may boot from; see [`Places::find`].
    pub fn find_boot_file(&self, path: &Path) -> Option<PathBuf> {
        self.disks.find(path).or_else(|| Places::of_directory(BOOT).find(path))
    }

    /// What a disk names, and what stands under it.
    fn check_disk(&self, disk: &Disk) -> Option<Objection> {
        let problem = match storage::open_chain(disk, Some(&self.disks), storage::Access::Look) {
            Ok(_) => return None,
            // Whether it is there at all is looked at when it is compared with the source's.
            Err(storage::StorageError::Open { depth: 0, .. }) => return None,
            Err(error) => error.to_string(),
        };
        Some(Objection::Disk {
            id: disk.id.clone(),
            problem,
        })
    }

    fn check_network(&self, definition: &VmDefinition, objections: &mut Vec<Objection>) {
        let may = |names: &Option<BTreeSet<String>>, name: &String| names.as_ref().is_none_or(|all| all.contains(name));
        for nic in &definition.nic {
            if let Some(bridge) = nic.bridge.as_ref().filter(|bridge| !may(&self.bridges, bridge)) {
                objections.push(Objection::Bridge {
                    nic: nic.id.clone(),
                    bridge: bridge.clone(),
                });
            }
            if let Some(tap) = nic.tap.as_ref().filter(|tap| !may(&self.taps, tap)) {
                objections.push(Objection::Tap {
                    nic: nic.id.clone(),
                    tap: tap.clone(),
                });
            }
        }
    }

    /// What is left of `arguments` when all listed sequences are taken away from its front. Of several that fit the longest
    /// is taken.
    fn uncovered<'a>(&self, arguments: &'a [String]) -> &'a [String] {
        let mut rest = arguments;
        loop {
            let fitting = self
                .qemu_arguments
                .iter()
                .filter(|listed| !listed.is_empty() && rest.starts_with(listed));
            match fitting.map(Vec::len).max() {
                Some(length) => rest = &rest[length..],
                None => return rest,
            }
        }
    }
}

/// Whether `path` is a directory whose files take memory and no disk.
fn is_in_memory(path: &Path) -> bool {
    let kind = |path: &Path| -> io::Result<StatFs> { Ok(statfs(path)?) };
    fs::canonicalize(path).is_ok_and(|path| path.is_dir() && kind(&path).is_ok_and(|it| IN_MEMORY.contains(&it.f_type)))
}

#[cfg(test)]
mod tests;
