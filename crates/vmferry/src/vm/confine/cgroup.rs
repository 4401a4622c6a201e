//! A cgroup (version 2) for each VM's QEMU: what it uses is counted, how many threads it may have is bounded, and all of it is
//! ended at once. Its memory is not bounded: what a QEMU takes beside its guest's depends on what that does, and a guest that
//! is killed for its QEMU's sake is lost.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::statfs;

/// Where it is mounted; the second where version 1 is, too.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
const MAGIC: i64 = 0x6367_7270;
/// Under it, beside one another, are the cgroups of QEMUs.
const NAME: &str = "vmferry";
/// The last part of the name of an agent's own cgroup whose parent was delegated to it (systemd's `DelegateSubgroup=agent`).
const DELEGATED: &str = "agent";
/// Threads of a QEMU beside its vCPUs. Its pools for slow system calls have up to 64 each.
const THREADS_MAX: u32 = 512;

/// Where the cgroups of QEMUs are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupParent {
    path: PathBuf,
}

/// One QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCgroup {
    path: PathBuf,
}

impl CgroupParent {
    /// Makes it if need be: beside the agent's own where systemd delegated that, else at the top.
    ///
    /// # Errors
    /// Why there can be none, for people.
    pub(super) fn find() -> Result<Self, String> {
        let mount = mount().ok_or("there is no cgroup file system of version 2")?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let own = place(&own).ok_or("the agent is in no cgroup of version 2")?;
        let path = match own.strip_suffix(DELEGATED).and_then(|parent| parent.strip_suffix('/')) {
            Some(parent) => mount.join(parent.trim_start_matches('/')),
            None => mount.join(NAME),
        };
        let made = match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).map_err(io::Error::from),
        };
        made.map_err(|error| format!("{}: {error}", path.display()))?;
        // What is not given on can't be counted; the rest goes on without.
        for parent in path.parent().into_iter().chain([path.as_path()]) {
            for controller in ["+memory", "+pids"] {
                if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), controller) {
                    tracing::debug!(parent = %parent.display(), controller, %error, "a cgroup controller is not to be had");
                }
            }
        }
        let parent = Self { path };
        parent.clear(None);
        Ok(parent)
    }

    /// Makes a cgroup for the QEMU of a VM, and opens what a process writes 0 to in order to enter it.
    ///
    /// # Errors
    /// The system's.
    pub fn make(&self, vm: &str, uid: u32, vcpus: u32) -> io::Result<File> {
        let path = self.path.join(format!("{vm}.{uid}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let threads = vcpus.saturating_add(THREADS_MAX).to_string();
        for (file, value) in [("pids.max", threads.as_str()), ("memory.oom.group", "1")] {
            match fs::write(path.join(file), value) {
                // The controller was not given on.
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        OpenOptions::new().write(true).open(path.join("cgroup.procs"))
    }

    /// Removes what QEMUs of a VM, or of all, have left that ended while no agent watched them. One in which there is a process
    /// stays.
    pub fn clear(&self, vm: Option<&str>) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if vm.is_none_or(|vm| is_of_vm(&entry.path(), vm)) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

impl VmCgroup {
    /// That of the process `pid`, if it is one that was made for the VM.
    pub fn of_process(pid: i32, vm: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = mount()?.join(place(&text)?.trim_start_matches('/'));
        is_of_vm(&path, vm).then_some(Self { path })
    }

    /// Kills all that is in it (Linux 5.14).
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Removes it, if nothing is in it any more.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(cgroup = %self.path.display(), %error, "a cgroup is left behind");
        }
    }
}

fn mount() -> Option<&'static Path> {
    let is_version_2 = |path: &&Path| statfs(*path).is_ok_and(|found| found.f_type == MAGIC);
    MOUNTS.iter().map(Path::new).find(is_version_2)
}

/// The path, under the mount, of the cgroup that a `/proc/PID/cgroup` names.
fn place(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A VM's name may be another one's with more behind it.
fn is_of_vm(path: &Path, vm: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let uid = name.and_then(|name| name.strip_prefix(vm)?.strip_prefix('.'));
    uid.is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_version_2_is_told_from_the_others() {
        assert_eq!(
            place("4:memory:/a\n0::/vmferry/web.300001\n"),
            Some("/vmferry/web.300001")
        );
        assert_eq!(place("4:memory:/a\n"), None);
    }

    #[test]
    fn a_cgroup_is_of_one_vm() {
        let is_of = |path: &str, vm| is_of_vm(Path::new(path), vm);
        assert!(is_of("/c/web.300001", "web") && is_of("/c/web.1.300001", "web.1"));
        assert!(!is_of("/c/web.300001", "we") && !is_of("/c/web.1.300001", "web") && !is_of("/c/web.", "web"));
        assert!(!is_of("/c/cgroup.procs", "cgroup"));
    }
}
