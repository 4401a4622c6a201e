//! What the API says about hosts and VMs, and what it is asked.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vmferry_core::wire::hello::MigrationId;

use crate::api::migration::Outcome;

/// The TCP port agents listen on for one another when none is named.
pub const PORT_DEFAULT: u16 = 7464;

/// An agent's address as `HOST:PORT`. IPv6 addresses are written in brackets when a port follows, and may be bare otherwise.
pub fn with_port(address: &str) -> String {
    let address = address.trim();
    if let Ok(bare) = address.parse::<std::net::Ipv6Addr>() {
        return format!("[{bare}]:{PORT_DEFAULT}");
    }
    let after_host = address.rsplit(']').next().unwrap_or(address);
    match after_host.contains(':') {
        true => address.to_owned(),
        false => format!("{address}:{PORT_DEFAULT}"),
    }
}

/// One agent and the host it runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The agent's name, as given by `--name` (default: the host name).
    pub name: String,
    /// vmferry's version.
    pub version: String,
    /// Where other agents reach this one.
    pub listen: String,
    /// The QEMU binary that guests are started with.
    pub qemu: String,
    /// That QEMU's version, such as `10.0.2`.
    pub qemu_version: String,
    /// The host's memory, bytes.
    pub memory_total_bytes: u64,
    /// Memory that the kernel could hand out now without swapping, bytes.
    pub memory_available_bytes: u64,
    /// How many VMs this agent owns, stopped ones included.
    pub vms: usize,
    /// What of QEMUs' confinement this host can't do, and why; empty where it can do all.
    #[serde(default)]
    pub unconfined: Vec<String>,
}

/// How far the index of a content source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IndexState {
    /// Others are being read.
    Waiting,
    /// It is being read.
    Indexing,
    /// Pages that stand in it are found.
    Ready,
    /// It can't be indexed; it is tried again later.
    Failed,
}

impl std::fmt::Display for IndexState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            IndexState::Waiting => "waiting",
            IndexState::Indexing => "indexing",
            IndexState::Ready => "ready",
            IndexState::Failed => "failed",
        })
    }
}

/// A content source of this host: something that its VMs read, or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IndexView {
    /// Its path or URI.
    pub source: String,
    /// Whether the operator named it.
    pub is_image: bool,
    /// How far its index is.
    pub state: IndexState,
    /// Its length, bytes, as far as known.
    pub bytes: u64,
    /// Of those, read so far while it is being indexed.
    pub bytes_done: u64,
    /// Since its index was found up to date, seconds; absent while there is none.
    pub age_s: Option<u64>,
    /// Why it failed.
    pub reason: Option<String>,
}

/// What `GET /v1/index` is asked.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct IndexQuery {
    /// Answer when nothing is left to be indexed, or the agent ends.
    #[serde(default)]
    pub wait: bool,
}

/// What a VM is doing, as its QEMU last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Its QEMU is being started.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped: by an operator, or for the last round of a migration.
    Paused,
    /// A handover is bringing it here; another host still owns it.
    Incoming,
    /// Its QEMU lives, but does not answer this agent.
    Unreachable,
    /// It has no QEMU any more; the definition is kept until `stop` forgets it or `run` starts it anew.
    Stopped,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Incoming => "incoming",
            VmState::Unreachable => "unreachable",
            VmState::Stopped => "stopped",
        })
    }
}

/// One VM that this agent owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Unique on its host.
    pub name: String,
    /// The identity the guest sees; it stays the same across migrations.
    pub uuid: Option<String>,
    /// What it is doing now.
    pub state: VmState,
    /// Why it is in that state, where that isn't plain: how its QEMU ended, for instance.
    pub reason: Option<String>,
    /// Counts the owners the VM has had; each handover raises it by one.
    pub epoch: u64,
    /// Its QEMU's process id.
    pub pid: Option<u32>,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// QEMU's versioned machine type.
    pub machine: String,
    /// The migration that is moving it, if one is.
    #[schema(value_type = Option<String>)]
    pub migration: Option<MigrationId>,
}

/// A handover that waits for a host that may be gone for ever, and what an operator has to know to decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResolveView {
    /// The VM's name.
    pub vm: String,
    /// The handover's migration.
    #[schema(value_type = String)]
    pub migration: MigrationId,
    /// The epoch in which the target would have the VM.
    pub epoch: u64,
    /// This host.
    pub here: String,
    /// Whether the VM was to come here, rather than to leave.
    pub is_target: bool,
    /// Where the other host's agent listens.
    pub other: String,
    /// What this host's journal has of the handover, oldest first.
    pub records: Vec<String>,
    /// What the arbiter says, if there is one.
    pub arbiter: Option<String>,
    /// What must be true before the copy here is kept, and what comes of it.
    pub keep_here: String,
    /// The same of the other host's copy.
    pub keep_other: String,
}

/// An operator's decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The migration that it is about, as `GET` names it.
    #[schema(value_type = String)]
    pub migration: MigrationId,
    /// The host whose copy is the VM: this one's name, or the other's address.
    pub keep: String,
}

/// How `DELETE /v1/vms/{name}` stops a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct StopQuery {
    /// Stop it even while a migration moves it away: the migration is cancelled first.
    pub force: bool,
}

/// Something that happened on this host, as `GET /v1/events` streams it, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises by one with each event of this agent's run.
    pub seq: u64,
    /// When, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum EventKind {
    /// A VM is now in this state.
    VmState {
        /// The VM's name.
        vm: String,
        /// Its state from now on.
        state: VmState,
        /// Why, where that isn't plain.
        reason: Option<String>,
    },
    /// A VM is no longer this agent's: it was stopped and forgotten, or another host owns it.
    VmGone {
        /// The VM's name.
        vm: String,
        /// Where it went.
        reason: String,
    },
    /// A migration away from this host began.
    MigrationStarted {
        /// Its id.
        #[schema(value_type = String)]
        migration: MigrationId,
        /// The VM's name.
        vm: String,
        /// The target agent's address.
        to: String,
    },
    /// A migration away from this host ended.
    MigrationFinished {
        /// Its id.
        #[schema(value_type = String)]
        migration: MigrationId,
        /// The VM's name.
        vm: String,
        /// How it ended.
        outcome: Outcome,
    },
    /// The reader was slower than the events: some were left out of its stream.
    Missed {
        /// How many.
        events: u64,
    },
}
