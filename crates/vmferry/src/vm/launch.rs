//! Starting a QEMU that outlives the agent, finding it again, ending it.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use command_fds::CommandFdExt;
use tokio::process::{Child, Command};
use vmferry_qmp::Qmp;

use super::{
    command_line,
    confine::{Confinement, StartingUser},
    definition::{Accel, VmDefinition},
    folder::VmFolder,
    given::{GivenError, Opened},
    network,
    process::Process,
};
use crate::policy::Policy;

pub use super::command_line::Role;

/// How long QEMU may take to set a machine up. Preallocating memory is what takes long, about 1 s per 4 GiB.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a QEMU that was told to quit may take before it is killed. It flushes its disks meanwhile.
const QUIT_GRACE: Duration = Duration::from_secs(10);

/// What a process does before it becomes a QEMU, as QEMU's user: its number is written down before there is one, so that it is
/// found again whenever the agent ends. What it makes is for its user and the agent. Standard output is the file for the
/// number; standard input, where there is a cgroup, is that one's list of processes.
const BECOME_QEMU: &str = "umask 007; echo $$; exec \"$@\" </dev/null >/dev/null";
const ENTER_CGROUP: &str = "echo 0 >&0 || :; ";

/// How this host starts QEMUs.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The QEMU.
    pub qemu: PathBuf,
    /// How they are confined.
    pub confinement: Confinement,
}

/// Why a VM's QEMU does not run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is one already.
    #[error("VM {name} already has a QEMU here, process {pid}; stop it first")]
    AlreadyRuns {
        /// The VM.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// Its files cannot be written or its process not be watched.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// QEMU ended at once.
    #[error("QEMU does not start VM {name}: {reason}")]
    Refused {
        /// The VM.
        name: String,
        /// What QEMU printed.
        reason: String,
    },
    /// QEMU came up, and ended or vanished before it could be held.
    #[error("the QEMU of VM {name} ended while it started: {reason}")]
    Ended {
        /// The VM.
        name: String,
        /// What its log says.
        reason: String,
    },
    /// Its monitor does not work.
    #[error(transparent)]
    Qmp(#[from] vmferry_qmp::Error),
    /// A NIC is not on the network.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    /// What it is to be given cannot be had.
    #[error("cannot start VM {name}: {source}")]
    Given {
        /// The VM.
        name: String,
        /// What.
        source: GivenError,
    },
}

/// A VM whose QEMU lives on this host. Dropping it changes nothing for the guest.
#[derive(Debug)]
pub struct RunningVm {
    /// The completed definition it was started with.
    pub definition: VmDefinition,
    /// Its files.
    pub folder: VmFolder,
    /// Its QEMU.
    pub process: Process,
    /// The agent's monitor of it.
    pub qmp: Qmp,
}

impl Launcher {
    /// Starts a QEMU for a completed `definition` and puts its NICs on the network. Its CPUs do not run yet: `cont` boots it,
    /// or, with [`Role::Incoming`], `migrate-incoming` lets it be filled first. Of a definition that came from a peer only what
    /// `policy` covers is opened.
    ///
    /// # Errors
    /// [`LaunchError`]; then no QEMU of this start is left.
    pub async fn launch(
        &self,
        definition: VmDefinition,
        folder: VmFolder,
        role: Role,
        policy: Option<&Policy>,
    ) -> Result<RunningVm, LaunchError> {
        if let Some(process) = find_process(&folder)? {
            return Err(LaunchError::AlreadyRuns {
                name: definition.name,
                pid: process.pid(),
            });
        }
        prepare_folder(&folder, &definition)?;
        let name = definition.name.clone();
        let started = self.start(&definition, &folder, role, policy).await;
        match started {
            Ok((process, qmp)) => Ok(RunningVm {
                definition,
                folder,
                process,
                qmp,
            }),
            Err(error) => {
                if let Some(process) = find_process(&folder)? {
                    process.kill().await.map_err(io_error("end a QEMU that is of no use"))?;
                }
                folder.remove_runtime_files().map_err(io_error("clean up"))?;
                if let Some(cgroups) = &self.confinement.cgroups {
                    cgroups.clear(Some(&name));
                }
                Err(error)
            }
        }
    }

    async fn start(
        &self,
        definition: &VmDefinition,
        folder: &VmFolder,
        role: Role,
        policy: Option<&Policy>,
    ) -> Result<(Process, Qmp), LaunchError> {
        let is_kvm = definition.accel == Some(Accel::Kvm);
        let user = self
            .confinement
            .choose_user(&definition.name, is_kvm)
            .map_err(io_error("choose a user for QEMU"))?;
        let taps = network::tap_names(definition, random_number()?);
        let opened = self.open(definition, folder, &taps, (role, policy), &user).await?;
        network::connect_taps(definition, &taps).await?;
        let arguments = command_line::arguments(definition, folder, &opened.given, self.confinement.sandbox, role);
        tracing::debug!(binary = %self.qemu.display(), ?arguments, ?user, "starting QEMU");
        let child = self.spawn(definition, folder, &arguments, opened, &user)?;
        // From here on there is a process of this user.
        drop(user);
        let qmp = await_monitor(child, definition, folder).await?;
        match find_process(folder)? {
            Some(process) => Ok((process, qmp)),
            None => Err(LaunchError::Ended {
                name: definition.name.clone(),
                reason: last_words(folder),
            }),
        }
    }

    /// Opens what it needs, on a thread of its own: an NBD server may be slow.
    async fn open(
        &self,
        definition: &VmDefinition,
        folder: &VmFolder,
        taps: &[String],
        (role, policy): (Role, Option<&Policy>),
        user: &Option<StartingUser>,
    ) -> Result<Opened, LaunchError> {
        let owner = user.as_ref().map(|user| user.user().uid);
        let waits = role == Role::Incoming;
        let name = definition.name.clone();
        let (definition, folder, taps, policy) = (definition.clone(), folder.clone(), taps.to_owned(), policy.cloned());
        let open = move || Opened::open(&definition, &folder, &taps, policy.as_ref(), owner, waits);
        match tokio::task::spawn_blocking(open).await {
            Ok(opened) => opened.map_err(|source| LaunchError::Given { name, source }),
            // It cannot have been cancelled, as nobody holds its handle but us.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Starts the process, which has exactly what was opened.
    fn spawn(
        &self,
        definition: &VmDefinition,
        folder: &VmFolder,
        arguments: &[String],
        opened: Opened,
        user: &Option<StartingUser>,
    ) -> Result<Child, LaunchError> {
        let run = format!("run {}", self.qemu.display());
        let log = File::options()
            .append(true)
            .open(folder.log())
            .map_err(io_error("open QEMU's log"))?;
        let pid_file = File::create(folder.pid()).map_err(io_error("write down QEMU's process"))?;
        let cgroup = self.enter_cgroup(definition, user);
        let script = match &cgroup {
            Some(_) => format!("{ENTER_CGROUP}{BECOME_QEMU}"),
            None => BECOME_QEMU.to_owned(),
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-ec", &script, "qemu"])
            .arg(&self.qemu)
            .args(arguments)
            // Whatever the agent was told by its environment is not for a guest that breaks out.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            // By its path it could not be reached: all above it is the agent's only.
            .current_dir(format!("/proc/self/fd/{}", opened.given.run_folder))
            .stdin(cgroup.map_or_else(Stdio::null, Stdio::from))
            .stdout(pid_file)
            // Not a pipe: the agent may end.
            .stderr(log)
            // An interrupt from the terminal is for the agent.
            .process_group(0);
        if let Some(user) = user.as_ref().map(StartingUser::user) {
            // All other groups of the agent are dropped with its user.
            command.gid(user.gid).uid(user.uid);
        }
        command.as_std_mut().preserved_fds(opened.fds);
        command.spawn().map_err(io_error(&run))
    }

    /// A cgroup for the VM. A QEMU without one is as safe, so that it is not worth a guest.
    fn enter_cgroup(&self, definition: &VmDefinition, user: &Option<StartingUser>) -> Option<File> {
        let own = rustix::process::geteuid().as_raw();
        let uid = user.as_ref().map_or(own, |user| user.user().uid);
        let made = self
            .confinement
            .cgroups
            .as_ref()?
            .make(&definition.name, uid, definition.vcpus);
        made.inspect_err(|error| tracing::warn!(vm = definition.name, %error, "its QEMU has no cgroup of its own"))
            .ok()
    }
}

/// The VM whose files are in `folder`, if its QEMU still lives: for an agent that was restarted.
///
/// # Errors
/// [`LaunchError`] where there is a living QEMU that cannot be spoken to; it is left alone.
pub async fn find_again(folder: VmFolder) -> Result<Option<RunningVm>, LaunchError> {
    let Some(process) = find_process(&folder)? else {
        return Ok(None);
    };
    let text = fs::read(folder.definition()).map_err(io_error("read the definition of a running VM"))?;
    let definition = VmDefinition::from_json(&text)
        .map_err(io::Error::other)
        .map_err(io_error("read the definition of a running VM"))?;
    let qmp = Qmp::connect(folder.qmp()).await?;
    Ok(Some(RunningVm {
        definition,
        folder,
        process,
        qmp,
    }))
}

impl RunningVm {
    /// Ends its QEMU without asking the guest, and waits until it has ended. The disks are flushed if QEMU still can.
    ///
    /// # Errors
    /// The system's.
    pub async fn end(&self) -> io::Result<()> {
        let quit = async {
            // The socket may close before the answer; what counts is that the process ends.
            if let Err(error) = self.qmp.quit().await {
                tracing::debug!(%error, "QMP quit");
            }
            self.process.ended().await
        };
        match tokio::time::timeout(QUIT_GRACE, quit).await {
            Ok(ended) => ended?,
            Err(_) => self.process.end().await?,
        }
        self.folder.remove_runtime_files()
    }

    /// The last lines QEMU printed, for a message about a QEMU that ended by itself.
    pub fn last_words(&self) -> String {
        last_words(&self.folder)
    }

    /// Where the agent listens for its stream when it is moved away, and what QEMU calls that.
    pub fn outgoing(&self) -> (PathBuf, PathBuf) {
        if self.process.opens_paths() {
            let path = self.folder.path().join("migration.sock");
            return (path.clone(), path);
        }
        (self.folder.outgoing(), VmFolder::OUTGOING.into())
    }
}

fn prepare_folder(folder: &VmFolder, definition: &VmDefinition) -> Result<(), LaunchError> {
    let json = serde_json::to_vec_pretty(definition).map_err(io::Error::other);
    folder
        .create()
        .and_then(|()| folder.remove_runtime_files())
        .and_then(|()| fs::write(folder.definition(), json?))
        .and_then(|()| fs::write(folder.log(), ""))
        .map_err(io_error(&format!("prepare {}", folder.path().display())))
}

/// Waits until the machine is set up: only then does its monitor greet.
async fn await_monitor(mut child: Child, definition: &VmDefinition, folder: &VmFolder) -> Result<Qmp, LaunchError> {
    let greeted = async {
        loop {
            match Qmp::connect(folder.qmp()).await {
                Err(vmferry_qmp::Error::Greeting { .. }) => {}
                other => return other,
            }
        }
    };
    let reason = tokio::select! {
        // What it says as it ends is the reason, and not that its monitor closed.
        biased;
        status = child.wait() => match (status, last_words(folder)) {
            (Ok(status), words) if words.is_empty() => format!("it ended with {status} and said nothing"),
            (Ok(_), words) => words,
            (Err(source), _) => return Err(io_error("wait for QEMU")(source)),
        },
        greeted = greeted => match greeted {
            Ok(qmp) => return Ok(qmp),
            Err(error) => match tokio::time::timeout(QUIT_GRACE, child.wait()).await {
                Ok(_) => last_words(folder),
                Err(_) => return Err(error.into()),
            }
        },
        () = tokio::time::sleep(START_TIMEOUT) => format!("it was not ready within {} s", START_TIMEOUT.as_secs()),
    };
    // Fails only for a process that has ended.
    let _ = child.start_kill();
    Err(LaunchError::Refused {
        name: definition.name.clone(),
        reason,
    })
}

fn find_process(folder: &VmFolder) -> Result<Option<Process>, LaunchError> {
    Process::find(&folder.pid()).map_err(io_error("look for the VM's process"))
}

/// The end of QEMU's log, at most 2 KiB.
fn last_words(folder: &VmFolder) -> String {
    const BYTES_MAX: usize = 2048;
    let log = fs::read(folder.log()).unwrap_or_default();
    let tail = log.get(log.len().saturating_sub(BYTES_MAX)..).unwrap_or_default();
    String::from_utf8_lossy(tail).trim().to_owned()
}

fn random_number() -> Result<u32, LaunchError> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(io::Error::from)
        .map_err(io_error("draw a random number"))?;
    Ok(u32::from_ne_bytes(bytes))
}

fn io_error(action: &str) -> impl FnOnce(io::Error) -> LaunchError {
    let action = action.to_owned();
    move |source| LaunchError::Io { action, source }
}

#[cfg(test)]
mod tests;
