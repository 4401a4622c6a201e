//! A process that is never mistaken for another one.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use super::confine::VmCgroup;

/// How long a process may take to end after SIGTERM before SIGKILL follows.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// A QEMU process, held by a pidfd: whatever else later gets its number, signals reach this process or nobody.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    cgroup: Option<VmCgroup>,
    opens_paths: bool,
}

impl Process {
    /// The living QEMU whose number is in `pid_file`, if there is one.
    ///
    /// The file may be left over and its number be another process's by now. So the process is first held, then asked
    /// for its command line, which must name this very file: only this VM's QEMU does (`marker`). To be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The system's, other than that there is no such file or process.
    pub fn find(pid_file: &Path) -> io::Result<Option<Self>> {
        let Some(pid) = read_pid(pid_file)? else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (named, opens_paths) = match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(command_line) => {
                let marker = marker(pid_file);
                let mut arguments = command_line.split(|&byte| byte == 0);
                let opens_paths = arguments
                    .clone()
                    .any(|argument| argument == pid_file.as_os_str().as_bytes());
                let marked = arguments.any(|argument| argument.ends_with(marker.as_bytes()));
                (marked || opens_paths, opens_paths)
            }
            Err(error) if is_gone(&error) => (false, false),
            Err(error) => return Err(error),
        };
        // Had it ended before its command line was read, the number could have been another process's then.
        let alive = !is_readable(&pidfd)?;
        if !named || !alive {
            return Ok(None);
        }
        // Deprecated for owners whose descriptor may change or close under it, which an `OwnedFd`'s cannot; what replaces
        // it is an unsafe function.
        #[expect(deprecated)]
        let pidfd = AsyncFd::new(pidfd)?;
        let vm = pid_file
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let cgroup = vm.and_then(|vm| VmCgroup::of_process(pid.as_raw_nonzero().get(), vm));
        Ok(Some(Self {
            pid,
            pidfd,
            cgroup,
            opens_paths,
        }))
    }

    /// Whether it was started by an agent that let its QEMUs open paths by themselves, as earlier versions did.
    pub fn opens_paths(&self) -> bool {
        self.opens_paths
    }

    /// Its number, for people and for `/proc`.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The system's.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await?.retain_ready();
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        Ok(())
    }

    /// Ends it and waits until it has ended: SIGTERM, on which QEMU closes its disks, then SIGKILL.
    ///
    /// # Errors
    /// The system's.
    pub async fn end(&self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if let Ok(ended) = tokio::time::timeout(TERM_GRACE, self.ended()).await {
            return ended;
        }
        self.kill().await
    }

    /// Kills it and waits until it has ended.
    ///
    /// # Errors
    /// The system's.
    pub async fn kill(&self) -> io::Result<()> {
        if let Some(Err(error)) = self.cgroup.as_ref().map(VmCgroup::kill) {
            tracing::debug!(pid = self.pid(), %error, "killing a cgroup");
        }
        self.signal(Signal::KILL)?;
        self.ended().await
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How a QEMU's command line shows whose it is: the end of an argument.
pub(super) fn marker(pid_file: &Path) -> String {
    // Among QEMU's options a comma is written twice.
    format!(",opaque={}", pid_file.to_string_lossy().replace(',', ",,"))
}

fn read_pid(pid_file: &Path) -> io::Result<Option<Pid>> {
    match fs::read_to_string(pid_file) {
        Ok(text) => Ok(text
            .trim()
            .parse()
            .ok()
            .filter(|&pid: &i32| pid > 0)
            .and_then(Pid::from_raw)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `ESRCH` is what `/proc` answers for a process that ended while its file was read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// A pidfd becomes readable when its process ends, and stays so.
fn is_readable(pidfd: &OwnedFd) -> io::Result<bool> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&at_once))?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        process::{Child, Command, Stdio},
    };

    /// A shell that waits for its standard input, with `arguments` on its command line.
    fn waiting_process(arguments: &[&str]) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read line", "sh"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Between a process's exec and its first words its command line is not there yet.
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        child
    }

    #[tokio::test]
    async fn a_process_that_names_the_pid_file_is_found_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("qemu.pid");
        let mut child = waiting_process(&["-add-fd", &format!("fd=7,set=7{}", marker(&pid_file))]);
        fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        let process = Process::find(&pid_file).unwrap().unwrap();
        assert!(!process.opens_paths());
        assert_eq!(process.pid() as u32, child.id());
        process.kill().await.unwrap();
        // It is a zombie until its parent asks; a zombie has ended.
        assert!(Process::find(&pid_file).unwrap().is_none());
        assert!(!child.wait().unwrap().success());
        process.kill().await.unwrap();
        assert!(Process::find(&pid_file).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_qemu_of_an_earlier_version_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("qemu.pid");
        let mut child = waiting_process(&["-pidfile", pid_file.to_str().unwrap()]);
        fs::write(&pid_file, child.id().to_string()).unwrap();
        let process = Process::find(&pid_file).unwrap().unwrap();
        assert!(process.opens_paths());
        process.kill().await.unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_recycled_number_is_not_mistaken_for_the_vm() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("qemu.pid");
        let mut stranger = waiting_process(&["-pidfile", "/somewhere/else/qemu.pid"]);
        fs::write(&pid_file, stranger.id().to_string()).unwrap();
        assert!(Process::find(&pid_file).unwrap().is_none());
        assert!(stranger.try_wait().unwrap().is_none());
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
    }

    #[tokio::test]
    async fn a_pid_file_that_is_missing_or_holds_no_number_is_no_process() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("qemu.pid");
        assert!(Process::find(&pid_file).unwrap().is_none());
        for text in ["", "-1", "0", "x", "99999999999"] {
            fs::write(&pid_file, text).unwrap();
            assert!(Process::find(&pid_file).unwrap().is_none(), "{text:?}");
        }
    }
}
