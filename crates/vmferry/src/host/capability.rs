//! What this host offers to a VM.

use std::{
    collections::BTreeSet, fmt, fs, io, os::fd::OwnedFd, os::unix::net::UnixStream as StdUnixStream, path::Path,
    process::Stdio, time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    process::{Child, Command},
};
use utoipa::ToSchema;
use vmferry_qmp::{Capability, Qmp};

use crate::vm::{
    confine::SANDBOX,
    definition::{Accel, VmDefinition},
};

/// How long a QEMU that is only asked questions may take to answer them all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a QEMU may print before it ends; more is cut off.
const WORDS_BYTES_MAX: u64 = 4096;

/// A QEMU's version, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct QemuVersion {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2.
    pub micro: u32,
}

impl From<&vmferry_qmp::Version> for QemuVersion {
    fn from(version: &vmferry_qmp::Version) -> Self {
        let &vmferry_qmp::Version {
            major, minor, micro, ..
        } = version;
        Self { major, minor, micro }
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What a QEMU binary says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QemuFacts {
    /// Its version.
    pub version: QemuVersion,
    /// The machine types it has, no aliases.
    pub machines: BTreeSet<String>,
    /// Whether it can filter its own system calls.
    #[serde(default)]
    pub sandbox: bool,
}

/// A host's memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryFacts {
    /// All of it (`MemTotal`).
    pub total: u64,
    /// What processes can take without swapping (`MemAvailable`).
    pub available: u64,
    /// Huge pages of the default size that are free (`HugePages_Free`).
    pub huge_free: u64,
}

/// Why a QEMU binary did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be run.
    #[error("cannot run {binary}: {source}; install QEMU or tell the agent where it is with --qemu")]
    Run {
        /// The binary.
        binary: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It ended, or never answered.
    #[error("{binary} does not answer: {reason}")]
    Silent {
        /// The binary.
        binary: String,
        /// What it printed, or why we gave up.
        reason: String,
    },
}

/// Asks `binary` what it is, with a QEMU that has no machine.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe_qemu(binary: &Path) -> Result<QemuFacts, ProbeError> {
    // One that is built without seccomp, or may not use it here, ends.
    match probe_qemu_with(binary, &["-machine", "none", "-sandbox", SANDBOX]).await {
        Ok(facts) => Ok(QemuFacts { sandbox: true, ..facts }),
        Err(_) => probe_qemu_with(binary, &["-machine", "none"]).await,
    }
}

async fn probe_qemu_with(binary: &Path, arguments: &[&str]) -> Result<QemuFacts, ProbeError> {
    probe(binary, arguments, async |qmp| {
        let machines = qmp.query_machines().await?;
        Ok(QemuFacts {
            version: qmp.version().into(),
            machines: machines.into_iter().map(|machine| machine.name).collect(),
            sandbox: false,
        })
    })
    .await
}

/// Asks `binary` which migration capabilities it has.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe_capabilities(binary: &Path) -> Result<Vec<Capability>, ProbeError> {
    probe(binary, &["-machine", "none"], async |qmp| {
        let capabilities = qmp.query_migrate_capabilities().await?;
        Ok(capabilities.into_iter().map(|(capability, _)| capability).collect())
    })
    .await
}

/// Asks `binary` which CPU features the VM would have on this host.
///
/// # Errors
/// [`ProbeError`], also where the accelerator, the machine type or the CPU model is not to be had.
pub async fn probe_cpu(binary: &Path, definition: &VmDefinition) -> Result<BTreeSet<String>, ProbeError> {
    let accel = definition.accel.unwrap_or(Accel::Tcg).as_str();
    // The machine type decides too, as old ones turn features off.
    let arguments = ["-machine", definition.machine.as_str(), "-accel", accel, "-m", "16"];
    probe(binary, &arguments, async |qmp| cpu_features(qmp, &definition.cpu).await).await
}

/// The features of the CPU model `cpu` under the machine and accelerator of the QEMU behind `qmp`. QEMU knows some features
/// under several spellings (`sse4.1`, `sse4_1`); they are one here.
///
/// # Errors
/// QMP's.
pub async fn cpu_features(qmp: &Qmp, cpu: &str) -> vmferry_qmp::Result<BTreeSet<String>> {
    let model = qmp.query_cpu_model_expansion(cpu).await?;
    Ok(model
        .features()
        // QEMU's experimental switches are not the guest's to see.
        .filter(|name| !name.starts_with("x-"))
        .map(|name| name.replace(['_', '.'], "-"))
        .collect())
}

/// The memory of this host.
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub fn memory() -> io::Result<MemoryFacts> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse_meminfo(&text).ok_or_else(|| io::Error::other("/proc/meminfo lacks MemTotal or MemAvailable"))
}

/// Whether KVM runs guests here: its device opens, and the processor says that it has virtualization. Without the second, a
/// `/dev/kvm` belongs to a software KVM that runs some guests and not others.
pub fn kvm_is_usable() -> bool {
    let opens = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    opens && fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualization(&text))
}

fn parse_meminfo(text: &str) -> Option<MemoryFacts> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let number = |key: &str| value(key)?.parse::<u64>().ok();
    let bytes = |key: &str| {
        value(key)?
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    // A kernel without huge pages does not mention them.
    let huge_pages = number("HugePages_Free:").unwrap_or(0);
    Some(MemoryFacts {
        total: bytes("MemTotal:")?,
        available: bytes("MemAvailable:")?,
        huge_free: huge_pages.saturating_mul(bytes("Hugepagesize:").unwrap_or(0)),
    })
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The descriptor of a QEMU that is asked questions by which it notices that nobody asks any more.
const LIFELINE_FD: i32 = 3;

/// A QEMU that is asked questions. It ends when it is dropped, and when this agent ends, however that comes about.
struct Asked {
    process: Child,
    monitor: UnixStream,
    /// QEMU waits for a migration on the other end: when this one is closed, that has failed, and it ends.
    lifeline: StdUnixStream,
}

impl Asked {
    /// Starts it. Its monitor is its standard input, so it needs no file.
    fn start(binary: &Path, arguments: &[&str]) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (lifeline, waits) = StdUnixStream::pair()?;
        let mut command = std::process::Command::new(binary);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
            .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
            .args(["-incoming", &format!("fd:{LIFELINE_FD}")])
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let inherits = FdMapping {
            parent_fd: waits.into(),
            child_fd: LIFELINE_FD,
        };
        command.fd_mappings(vec![inherits]).map_err(io::Error::other)?;
        Ok(Self {
            process: Command::from(command).kill_on_drop(true).spawn()?,
            monitor: UnixStream::from_std(ours)?,
            lifeline,
        })
    }
}

/// Runs a QEMU that lives for the length of `questions`.
async fn probe<T>(
    binary: &Path,
    arguments: &[&str],
    questions: impl AsyncFnOnce(&Qmp) -> vmferry_qmp::Result<T>,
) -> Result<T, ProbeError> {
    let asked = Asked::start(binary, arguments).map_err(|source| ProbeError::Run {
        binary: binary.display().to_string(),
        source,
    })?;
    let Asked {
        mut process,
        monitor,
        lifeline: _lifeline,
    } = asked;
    let asked = tokio::time::timeout(PROBE_TIMEOUT, async { questions(&Qmp::over(monitor).await?).await }).await;
    let reason = match asked {
        Ok(Ok(answer)) => return Ok(answer),
        // It ended: what it printed says more.
        Ok(Err(vmferry_qmp::Error::Greeting { reason } | vmferry_qmp::Error::Closed { reason })) => {
            words(&mut process).await.unwrap_or(reason)
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took longer than {} s", PROBE_TIMEOUT.as_secs()),
    };
    Err(ProbeError::Silent {
        binary: binary.display().to_string(),
        reason,
    })
}

async fn words(child: &mut Child) -> Option<String> {
    child.start_kill().ok()?;
    let mut bytes = Vec::new();
    child
        .stderr
        .take()?
        .take(WORDS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: &str = "qemu-system-x86_64";

    fn definition(machine: &str, cpu: &str) -> VmDefinition {
        let text = format!("name = 'a'\nmachine = '{machine}'\ncpu = '{cpu}'\nvcpus = 1\nmemory = '16MiB'");
        VmDefinition::from_toml(&text).unwrap()
    }

    #[tokio::test]
    async fn the_installed_qemu_tells_version_and_machines() {
        let facts = probe_qemu(Path::new(QEMU)).await.unwrap();
        assert!(facts.version.major >= 6);
        assert!(facts.machines.contains("pc-q35-6.0") && !facts.machines.contains("q35"));
        assert!(facts.sandbox);
    }

    #[tokio::test]
    async fn cpu_features_are_those_of_model_and_accelerator() {
        let machine = "pc-q35-7.2";
        let max = probe_cpu(Path::new(QEMU), &definition(machine, "max")).await.unwrap();
        assert!(max.contains("sse4-1") && !max.contains("sse4_1"));
        let less = probe_cpu(Path::new(QEMU), &definition(machine, "max,sse4.1=off"))
            .await
            .unwrap();
        assert!(!less.contains("sse4-1"));
    }

    #[tokio::test]
    async fn a_qemu_that_is_asked_ends_with_who_asks() {
        for arguments in [&["-machine", "none"][..], &["-machine", "pc-q35-7.2", "-m", "16"]] {
            let asked = Asked::start(Path::new(QEMU), arguments).unwrap();
            let Asked {
                mut process,
                monitor,
                lifeline,
            } = asked;
            let qmp = Qmp::over(monitor).await.unwrap();
            assert!(!qmp.query_machines().await.unwrap().is_empty());
            // All that the end of an agent does: its monitor is not closed by QEMU's own choice, and nobody signals it.
            drop(lifeline);
            assert!(!process.wait().await.unwrap().success());
        }
    }

    #[tokio::test]
    async fn a_qemu_that_will_not_is_quoted() {
        let unknown = probe_cpu(Path::new(QEMU), &definition("pc-q35-99.0", "max"))
            .await
            .unwrap_err();
        assert!(
            unknown.to_string().contains("pc-q35-99.0") || unknown.to_string().contains("machine type"),
            "{unknown}"
        );
        let unknown = probe_cpu(Path::new(QEMU), &definition("pc-q35-7.2", "no-such-cpu"))
            .await
            .unwrap_err();
        assert!(unknown.to_string().contains("no-such-cpu"), "{unknown}");
        let missing = probe_qemu(Path::new("/no/such/qemu")).await.unwrap_err();
        assert!(matches!(missing, ProbeError::Run { .. }));
        let other = probe_qemu(Path::new("true")).await.unwrap_err();
        assert!(matches!(other, ProbeError::Silent { .. }));
    }

    #[test]
    fn this_host_has_memory() {
        let memory = memory().unwrap();
        assert!(memory.total > 0 && memory.available <= memory.total);
        assert_eq!(parse_meminfo("MemTotal: 5 kB\n"), None);
        let text = "MemTotal: 8 kB\nMemAvailable: 4 kB\nHugePages_Free:  3\nHugepagesize:  2048 kB\n";
        assert_eq!(parse_meminfo(text).unwrap().huge_free, 6 << 20);
    }

    #[test]
    fn virtualization_is_a_flag_of_its_own() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu vmx aes\n"));
        assert!(!has_virtualization("vmx flags : vnmi vmx\nflags : fpu aes svm_lock\n"));
    }
}
