//! The machine: version, run state, machine types and CPU models.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::open_enum::open_enum;

/// QEMU's version (`query-version`). Ordered by major, minor, micro.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(from = "VersionAnswer")]
pub struct Version {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2.
    pub micro: u32,
    /// The distributor's addition, often empty.
    pub package: String,
}

#[derive(Deserialize)]
struct VersionAnswer {
    qemu: VersionTriple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct VersionTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<VersionAnswer> for Version {
    fn from(answer: VersionAnswer) -> Self {
        let VersionTriple { major, minor, micro } = answer.qemu;
        Self {
            major,
            minor,
            micro,
            package: answer.package,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

open_enum! {
    /// What the virtual machine is doing (QMP `RunState`).
    pub enum RunState {
        /// A debugger stopped it.
        Debug = "debug",
        /// The migration's completion stopped it, before `postmigrate`.
        FinishMigrate = "finish-migrate",
        /// Waits for, or loads, an incoming migration.
        InMigrate = "inmigrate",
        /// The CPUs ran into something QEMU cannot handle.
        InternalError = "internal-error",
        /// A disk error stopped it.
        IoError = "io-error",
        /// Stopped by a person or a program.
        Paused = "paused",
        /// Its state was sent away; it runs again only by `cont`.
        PostMigrate = "postmigrate",
        /// Started with `-S`, not yet run.
        Prelaunch = "prelaunch",
        /// A snapshot is being restored.
        RestoreVm = "restore-vm",
        /// The CPUs run.
        Running = "running",
        /// A snapshot is being saved.
        SaveVm = "save-vm",
        /// Shut down, QEMU kept with `-no-shutdown`.
        Shutdown = "shutdown",
        /// The guest sleeps (ACPI S3).
        Suspended = "suspended",
        /// The watchdog stopped it.
        Watchdog = "watchdog",
        /// The guest panicked.
        GuestPanicked = "guest-panicked",
        /// COLO.
        Colo = "colo",
    }
}

/// `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether the CPUs run.
    pub running: bool,
    /// The run state.
    pub status: RunState,
}

/// One machine type (`query-machines`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// Its name, such as `pc-q35-10.0`; never an alias.
    pub name: String,
    /// Its alias, such as `q35` for the newest of its family.
    #[serde(default)]
    pub alias: Option<String>,
    /// Most vCPUs it takes.
    #[serde(default)]
    pub cpu_max: u32,
    /// Whether QEMU will remove it.
    #[serde(default)]
    pub deprecated: bool,
}

/// One CPU model (`query-cpu-definitions`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuDefinition {
    /// Its name for `-cpu`.
    pub name: String,
    /// Whether it means the same on every host and with every machine type of this version. `host` and `max` do not.
    #[serde(default)]
    pub migration_safe: Option<bool>,
    /// Features that this host or accelerator lacks; `None` where QEMU did not say.
    #[serde(default)]
    pub unavailable_features: Option<Vec<String>>,
}

/// A CPU model with its properties, as `query-cpu-model-expansion` answers: booleans are features, the rest levels and names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CpuModel {
    /// The model's name.
    pub name: String,
    /// Every property QEMU knows of it.
    #[serde(default)]
    pub props: Map<String, Value>,
}

impl CpuModel {
    /// The names of all features that are on.
    pub fn features(&self) -> impl Iterator<Item = &str> {
        self.props
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .map(|(name, _)| name.as_str())
    }
}

/// `query-memory-size-summary`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// What the machine started with.
    pub base_memory: u64,
    /// What was plugged in since; `None` where the machine takes none.
    #[serde(default)]
    pub plugged_memory: Option<u64>,
}
