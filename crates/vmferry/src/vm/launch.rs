//! Starting a QEMU that outlives the agent, finding it again, ending it.

use std::{fs, io, path::Path, process::Stdio, time::Duration};

use tokio::process::Command;
use vmferry_qmp::Qmp;

use super::{command_line, definition::VmDefinition, folder::VmFolder, network, process::Process};

pub use super::command_line::Role;

/// How long QEMU may take to set a machine up. Preallocating memory is what takes long, about 1 s per 4 GiB.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a QEMU that was told to quit may take before it is killed. It flushes its disks meanwhile.
const QUIT_GRACE: Duration = Duration::from_secs(10);

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

/// Starts the QEMU `binary` for a completed `definition` and puts its NICs on the network. Its CPUs do not run yet: `cont`
/// boots it, or, with [`Role::Incoming`], `migrate-incoming` lets it be filled first.
///
/// # Errors
/// [`LaunchError`]; then no QEMU of this start is left.
pub async fn launch(
    binary: &Path,
    definition: VmDefinition,
    folder: VmFolder,
    role: Role,
) -> Result<RunningVm, LaunchError> {
    if let Some(process) = find_process(&folder)? {
        return Err(LaunchError::AlreadyRuns {
            name: definition.name,
            pid: process.pid(),
        });
    }
    prepare_folder(&folder, &definition)?;
    let taps = network::tap_names(&definition, random_number()?);
    let arguments = command_line::arguments(&definition, &folder, &taps, role);
    tracing::debug!(binary = %binary.display(), ?arguments, "starting QEMU");
    start(binary, &arguments, &definition.name, &folder).await?;

    let Some(process) = find_process(&folder)? else {
        return Err(LaunchError::Ended {
            name: definition.name,
            reason: last_words(&folder),
        });
    };
    match attach(&definition, &folder, &taps).await {
        Ok(qmp) => Ok(RunningVm {
            definition,
            folder,
            process,
            qmp,
        }),
        Err(error) => {
            process.kill().await.map_err(io_error("end a QEMU that is of no use"))?;
            folder.remove_runtime_files().map_err(io_error("clean up"))?;
            Err(error)
        }
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

/// Runs QEMU until it has daemonized: then the machine is set up and its monitors listen.
async fn start(binary: &Path, arguments: &[String], name: &str, folder: &VmFolder) -> Result<(), LaunchError> {
    let run = format!("run {}", binary.display());
    let log = fs::File::options()
        .append(true)
        .open(folder.log())
        .map_err(io_error("open QEMU's log"))?;
    let mut child = Command::new(binary)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Not a pipe: were a daemon to keep its end open, we would wait for the guest's end.
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(io_error(&run))?;
    let reason = match tokio::time::timeout(START_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => match last_words(folder) {
            words if words.is_empty() => format!("it ended with {status} and said nothing"),
            words => words,
        },
        Ok(Err(source)) => return Err(io_error(&run)(source)),
        Err(_) => format!("it was not ready within {} s", START_TIMEOUT.as_secs()),
    };
    // The daemon may live on where its parent was given up.
    if let Some(process) = find_process(folder)? {
        process.kill().await.map_err(io_error("end a QEMU that is of no use"))?;
    }
    Err(LaunchError::Refused {
        name: name.to_owned(),
        reason,
    })
}

async fn attach(definition: &VmDefinition, folder: &VmFolder, taps: &[String]) -> Result<Qmp, LaunchError> {
    let qmp = Qmp::connect(folder.qmp()).await?;
    network::connect_taps(definition, taps).await?;
    Ok(qmp)
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
