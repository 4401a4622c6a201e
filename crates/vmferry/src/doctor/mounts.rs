//! Which file system a path is on, as `/proc/self/mountinfo` has it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// File systems that keep the caches of all their hosts true, and carry locks between them.
const OF_A_CLUSTER: [&str; 5] = ["ceph", "fuse.ceph-fuse", "gfs2", "ocfs2", "gpfs"];
/// Those on a server, whose hosts see each other's writes late.
const OF_A_SERVER: [&str; 6] = ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"];
/// Those that are gone with the power.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// A file system, where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where.
    pub(super) point: PathBuf,
    /// By the kernel's name: `ext4`, `nfs4`.
    pub(super) kind: String,
    /// The file system's options, as they are written in `mount`.
    options: String,
}

/// What a file system is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It is gone with the power.
    Memory,
    /// Only this host sees it.
    Host,
    /// Other hosts see what is written there, some time later.
    Server,
    /// Other hosts see what is written there at once.
    Cluster,
}

impl Mount {
    /// What the path is on, links followed.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        find(&text, &path).ok_or_else(|| io::Error::other("it is on no mounted file system"))
    }

    /// A line: `36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue` (proc_pid_mountinfo(5)).
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        Some(Self {
            point: mount.split(' ').nth(4)?.replace("\\040", " ").into(),
            kind: system.next()?.to_owned(),
            options: system.nth(1)?.to_owned(),
        })
    }

    pub(super) fn reach(&self) -> Reach {
        let is = |kinds: &[&str]| kinds.contains(&self.kind.as_str());
        match () {
            () if is(&IN_MEMORY) => Reach::Memory,
            () if is(&OF_A_CLUSTER) => Reach::Cluster,
            () if is(&OF_A_SERVER) => Reach::Server,
            () => Reach::Host,
        }
    }

    /// Whether a sync leaves what it is for in the disk's own cache.
    pub(super) fn ignores_syncs(&self) -> bool {
        let mut options = self.options.split(',');
        options.any(|option| ["nobarrier", "barrier=0"].contains(&option))
    }
}

/// Of several mounts at one point the last one counts.
fn find(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(Mount::parse);
    mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:5 / /srv/vms rw shared:4 - nfs4 storage:/vms rw,vers=4.2
24 22 8:1 / /my\\040disk rw - xfs /dev/sda1 rw,nobarrier
25 22 0:9 / /srv/vms rw - tmpfs none rw
";

    #[test]
    fn the_deepest_and_last_mount_is_that_of_a_path() {
        let kind = |path: &str| find(TEXT, Path::new(path)).unwrap().kind;
        assert_eq!(kind("/srv/vms/web.qcow2"), "tmpfs");
        assert_eq!(kind("/srv/vms2"), "ext4");
        assert_eq!(kind("/my disk/a"), "xfs");
        assert!(find(TEXT, Path::new("/my disk")).unwrap().ignores_syncs());
        assert!(!find(TEXT, Path::new("/")).unwrap().ignores_syncs());
        assert_eq!(Mount::of(Path::new("/proc/self")).unwrap().kind, "proc");
    }

    #[test]
    fn file_systems_reach_differently_far() {
        let reach = |kind: &str| {
            Mount::parse(&format!("1 1 0:1 / / rw - {kind} none rw"))
                .unwrap()
                .reach()
        };
        assert_eq!(reach("tmpfs"), Reach::Memory);
        assert_eq!(reach("ext4"), Reach::Host);
        assert_eq!(reach("nfs4"), Reach::Server);
        assert_eq!(reach("ceph"), Reach::Cluster);
    }
}
