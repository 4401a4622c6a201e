//! The users that QEMUs run as: numbers that nobody else has, one for each VM.

use std::{collections::BTreeSet, fmt, fs, io, os::unix::fs::MetadataExt, path::Path, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// Capabilities (`linux/capability.h`) that it takes to start a process as somebody else and to give it a folder.
const CAPABILITIES: [(u32, &str); 3] = [(0, "CAP_CHOWN"), (6, "CAP_SETGID"), (7, "CAP_SETUID")];

/// Numbers of users, and groups, from one to the other, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    first: u32,
    last: u32,
}

/// Who a QEMU runs as. It is in no other group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmUser {
    /// Its number.
    pub uid: u32,
    /// Its group: the same number, or where only a group may use KVM, that one.
    pub gid: u32,
}

impl Default for UserRange {
    /// Behind the numbers that systems give to people and services, before those that container runtimes take for themselves.
    fn default() -> Self {
        Self {
            first: 300_000,
            last: 365_535,
        }
    }
}

impl FromStr for UserRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match range {
            // The last number of all means "leave it as it is" to the kernel.
            Some((first, last)) if 0 < first && first <= last && last < u32::MAX => Ok(Self { first, last }),
            _ => Err(format!(
                "{text:?} is no range of users; write FIRST-LAST, such as 300000-365535"
            )),
        }
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl<'de> Deserialize<'de> for UserRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl UserRange {
    /// Whether some of `count` numbers from `first` on are in it.
    pub fn overlaps(self, first: u64, count: u64) -> bool {
        count > 0 && first <= u64::from(self.last) && u64::from(self.first) < first.saturating_add(count)
    }

    /// The user for a VM: the same on every host with this range, unless one that is `taken` has it, and then the next.
    pub(super) fn for_vm(self, name: &str, taken: &BTreeSet<u32>) -> Option<u32> {
        let count = u64::from(self.last - self.first) + 1;
        let mut hash = [0; 8];
        blake3::Hasher::new()
            .update(name.as_bytes())
            .finalize_xof()
            .fill(&mut hash);
        let start = u64::from_le_bytes(hash) % count;
        let mut numbers = (0..count).map(|step| self.first + ((start + step) % count) as u32);
        numbers.find(|uid| !taken.contains(uid))
    }
}

/// Whether this process can start others as these users.
///
/// # Errors
/// Why not, for people.
pub(super) fn can_use(range: UserRange) -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let status = read("/proc/self/status")?;
    if !rustix::process::geteuid().is_root() {
        return Err("the agent is not root".to_owned());
    }
    let capabilities = field(&status, "CapEff:").and_then(|word| u64::from_str_radix(word, 16).ok());
    let capabilities = capabilities.unwrap_or(0);
    let lacking = CAPABILITIES.iter().find(|(bit, _)| capabilities >> bit & 1 == 0);
    if let Some((_, name)) = lacking {
        return Err(format!("the agent has no {name}"));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        if !is_mapped(&read(map)?, range) {
            return Err(format!(
                "{range} is not in this user namespace ({map}); give the agent other --qemu-users"
            ));
        }
    }
    Ok(())
}

/// Whether one line of a user namespace's map has all of a range.
fn is_mapped(map: &str, range: UserRange) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count]
            if inside <= u64::from(range.first) && u64::from(range.last) < inside + count)
    })
}

/// The users, in all four meanings, of all processes that this one can see.
pub(super) fn users_of_processes() -> io::Result<BTreeSet<u32>> {
    let mut users = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        // One that has ended meanwhile has no user.
        if is_process && let Ok(status) = fs::read_to_string(path.join("status")) {
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            users.extend(
                line.into_iter()
                    .flat_map(str::split_whitespace)
                    .filter_map(|word| word.parse::<u32>().ok()),
            );
        }
    }
    Ok(users)
}

/// The group that may use KVM where not everybody may.
///
/// # Errors
/// Only root may.
pub(crate) fn group_for_kvm(device: &Path) -> io::Result<Option<u32>> {
    let found = fs::metadata(device)?;
    match (found.mode() & 0o060, found.mode() & 0o006) {
        (_, 0o006) => Ok(None),
        (0o060, _) if found.gid() != 0 => Ok(Some(found.gid())),
        _ => Err(io::Error::other(format!(
            "only root may use {0}; let a group use it (chgrp kvm {0}; chmod 660 {0})",
            device.display()
        ))),
    }
}

/// The value of a field of `/proc/PID/status`, by its name with the colon.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_vm_has_the_same_user_everywhere_and_the_next_where_it_is_taken() {
        let range = UserRange::default();
        let none = BTreeSet::new();
        let web = range.for_vm("web", &none).unwrap();
        assert_eq!(range.for_vm("web", &none), Some(web));
        assert!((300_000..=365_535).contains(&web));
        assert_eq!(
            range.for_vm("web", &[web].into()),
            Some(if web == 365_535 { 300_000 } else { web + 1 })
        );
        let three: UserRange = "7-9".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Some(uid) = three.for_vm("web", &taken) {
            assert!((7..=9).contains(&uid) && taken.insert(uid));
        }
        assert_eq!(taken.len(), 3, "all are used before there is none");
    }

    #[test]
    fn root_is_in_no_range() {
        for text in ["0-9", "9-8", "1-4294967295", "5", "a-b", "-1-5", ""] {
            assert!(text.parse::<UserRange>().is_err(), "{text}");
        }
        assert_eq!("5-5".parse::<UserRange>().unwrap().to_string(), "5-5");
    }

    #[test]
    fn ranges_overlap_by_a_single_number() {
        let range: UserRange = "10-19".parse().unwrap();
        assert!(range.overlaps(19, 1) && range.overlaps(0, 11) && range.overlaps(12, u64::MAX));
        assert!(!range.overlaps(20, 5) && !range.overlaps(0, 10) && !range.overlaps(15, 0));
    }

    #[test]
    fn a_range_has_to_be_in_the_namespace() {
        let range = UserRange::default();
        assert!(is_mapped("         0          0 4294967295\n", range));
        assert!(is_mapped("0 1000 1\n1 100000 365535\n", range));
        assert!(!is_mapped("0 100000 65536\n", range));
        assert!(!is_mapped("300000 5 65535\n", range));
    }

    #[test]
    fn kvm_is_for_everybody_or_for_a_group_or_not_for_qemu() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let group_for = |mode| {
            fs::set_permissions(device.path(), fs::Permissions::from_mode(mode)).unwrap();
            group_for_kvm(device.path())
        };
        let gid = device.path().metadata().unwrap().gid();
        assert_eq!(group_for(0o666).unwrap(), None);
        // QEMU is not put into root's group.
        assert_eq!(group_for(0o660).ok().flatten(), Some(gid).filter(|gid| *gid != 0));
        assert!(group_for(0o600).unwrap_err().to_string().contains("chmod 660"));
    }

    #[test]
    fn this_process_has_its_user() {
        let own = rustix::process::geteuid().as_raw();
        assert!(users_of_processes().unwrap().contains(&own));
    }
}
