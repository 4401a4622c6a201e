//! Where a VM's files are on this host.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A VM's folder, `<state>/vms/<name>`. It says nothing about who owns the VM; the journal does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFolder {
    root: PathBuf,
}

impl VmFolder {
    /// The folder of the VM `name`, whether it exists or not. `name` must come from a validated definition.
    pub fn new(state_dir: &Path, name: &str) -> Self {
        Self {
            root: state_dir.join("vms").join(name),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The completed definition that its QEMU was started with, JSON.
    pub fn definition(&self) -> PathBuf {
        self.root.join("definition.json")
    }

    /// QEMU's process id.
    pub fn pid(&self) -> PathBuf {
        self.root.join("qemu.pid")
    }

    /// The agent's monitor.
    pub fn qmp(&self) -> PathBuf {
        self.root.join("qmp.sock")
    }

    /// A second monitor for out-of-band commands, usable while the first one waits for an answer.
    pub fn qmp_out_of_band(&self) -> PathBuf {
        self.root.join("qmp-oob.sock")
    }

    /// The folder that QEMU is started in. It can find nothing else of the VM's, and make nothing in it itself.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// A folder in that one which belongs to QEMU's user, until it has been filled.
    pub fn run_incoming(&self) -> PathBuf {
        self.run().join("in")
    }

    /// Takes that folder away from a QEMU that needs it no more: there is no other in which it could make a file.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_incoming(&self) -> io::Result<()> {
        remove_if_there(fs::remove_dir_all(self.run_incoming()))
    }

    /// Where the agent listens for a QEMU that sends its guest away.
    pub fn outgoing(&self) -> PathBuf {
        self.run().join(Self::OUTGOING)
    }

    /// Where a QEMU listens that is to be filled.
    pub fn incoming(&self) -> PathBuf {
        self.run().join(Self::INCOMING)
    }

    /// [`VmFolder::outgoing`] as QEMU finds it: relative, for it can't come by any path that begins at the root.
    pub const OUTGOING: &str = "stream";

    /// [`VmFolder::incoming`] as QEMU finds it.
    pub const INCOMING: &str = "in/stream";

    /// What QEMU printed since it was started.
    pub fn log(&self) -> PathBuf {
        self.root.join("qemu.log")
    }

    /// Says, until this host is rebooted, that the guest which was moved here was never told to run.
    fn unstarted(&self) -> PathBuf {
        self.root.join("unstarted")
    }

    /// Marks a QEMU whose guest was not told to run. What is meant is lost with the host's page cache, which its QEMU is, too:
    /// the mark names the boot that it counts for, and need not be synced.
    ///
    /// # Errors
    /// The system's.
    pub fn mark_unstarted(&self) -> io::Result<()> {
        fs::write(self.unstarted(), boot_id()?)
    }

    /// Takes the mark away, before the guest is told to run.
    ///
    /// # Errors
    /// The system's.
    pub fn unmark_unstarted(&self) -> io::Result<()> {
        remove_if_there(fs::remove_file(self.unstarted()))
    }

    /// Whether the guest certainly was never told to run.
    pub fn is_unstarted(&self) -> bool {
        let (marked, now) = (fs::read(self.unstarted()), boot_id());
        matches!((marked, now), (Ok(marked), Ok(now)) if marked == now)
    }

    /// Creates the folder, for its owner only: who can write to the monitor owns the VM.
    ///
    /// # Errors
    /// The system's.
    pub fn create(&self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
    }

    /// Removes what only a living QEMU needs, and leaves the definition and the log.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_runtime_files(&self) -> io::Result<()> {
        for path in [self.pid(), self.qmp(), self.qmp_out_of_band()] {
            remove_if_there(fs::remove_file(path))?;
        }
        remove_if_there(fs::remove_dir_all(self.run()))
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<()> {
        remove_if_there(fs::remove_dir_all(&self.root))
    }
}

/// What tells one boot of this host from the next.
fn boot_id() -> io::Result<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id")
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
