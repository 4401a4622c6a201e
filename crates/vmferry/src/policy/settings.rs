//! The `[policy]` table of the agent's configuration file.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Deserializer, de::Error};
use vmferry_content::NbdUri;

use super::{Places, Policy};
use crate::vm::ByteSize;

/// The version of this table that is understood.
const VERSION: u32 = 1;
/// Where disks may be where nothing else is said.
const DISK_DIRECTORIES_DEFAULT: [&str; 2] = ["/var/lib/vmferry/images", "/var/lib/libvirt/images"];

/// What the operator wrote. What is left out has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PolicySettings {
    /// Version of the table, 1: one that this agent does not know is refused and not read in part.
    #[serde(deserialize_with = "known_version")]
    pub version: Option<u32>,
    /// Names of hosts that may send VMs here; every host that proves who it is by default.
    pub senders: Option<BTreeSet<String>>,
    /// Directories that disks, their backing files and kernels may be in, links followed.
    #[serde(deserialize_with = "absolute")]
    pub disk_directories: Option<Vec<PathBuf>>,
    /// NBD exports that disks may be on, none by default: `nbd://HOST` for all of a server, `nbd://HOST/PREFIX/` for some, or one.
    pub disk_uris: Option<Vec<NbdUri>>,
    /// Directories that serial ports may be logged to, or have their sockets in; none by default.
    #[serde(deserialize_with = "absolute")]
    pub serial_directories: Option<Vec<PathBuf>>,
    /// Bridges that NICs may be on; all by default.
    pub bridges: Option<BTreeSet<String>>,
    /// Taps made by the operator that NICs may use; all by default.
    pub taps: Option<BTreeSet<String>>,
    /// Most memory of one VM from another host; no bound by default. All VMs together are bounded by `memory-limit`.
    pub memory_max: Option<ByteSize>,
    /// Most VMs on this host, so that one more may come; no bound by default.
    pub vms_max: Option<usize>,
    /// Sequences of QEMU arguments that a definition from another host may have; none by default.
    pub qemu_arguments: Option<Vec<Vec<String>>>,
}

impl PolicySettings {
    /// With the defaults.
    pub fn resolve(self) -> Policy {
        let default_directories = || DISK_DIRECTORIES_DEFAULT.map(PathBuf::from).into();
        Policy {
            senders: self.senders,
            disks: Places {
                directories: self.disk_directories.unwrap_or_else(default_directories),
                uris: self.disk_uris.unwrap_or_default(),
            },
            serials: Places {
                directories: self.serial_directories.unwrap_or_default(),
                uris: Vec::new(),
            },
            bridges: self.bridges,
            taps: self.taps,
            memory_max: self.memory_max.map(|size| size.0),
            vms_max: self.vms_max,
            qemu_arguments: self.qemu_arguments.unwrap_or_default(),
        }
    }
}

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(Some(VERSION)),
        other => Err(D::Error::custom(format!(
            "this agent knows version {VERSION} of [policy] and not {other}; upgrade it"
        ))),
    }
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<PathBuf>>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(deserializer)?;
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(path) => Err(D::Error::custom(format!(
            "{} is relative; write it from / on",
            path.display()
        ))),
        None => Ok(Some(paths)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_policy_disks_are_where_images_are_kept_and_arguments_are_refused() {
        let policy = PolicySettings::default().resolve();
        assert_eq!(policy.senders, None);
        assert!(
            policy
                .disks
                .directories
                .contains(&PathBuf::from("/var/lib/vmferry/images"))
        );
        assert!(policy.disks.uris.is_empty() && policy.qemu_arguments.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (line, words) in [
            ("version = 2", "upgrade it"),
            ("disk-directories = [\"/a\", \"images\"]", "images is relative"),
            ("disk-uris = [\"http://host\"]", "not an NBD URI"),
            ("memory-max = \"much\"", "not a size"),
            ("disk-folders = []", "unknown field"),
            ("qemu-arguments = [\"-device x\"]", "invalid type"),
        ] {
            let text = format!("# a comment\n{line}\n");
            let error = toml::from_str::<PolicySettings>(&text).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(words), "{line}: {error}");
        }
    }
}
