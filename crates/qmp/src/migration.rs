//! A migration as its QEMU sees it, and what can be set.

use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;

open_enum! {
    /// Where a migration stands (QMP `MigrationStatus`).
    pub enum MigrationStatus {
        /// None was ever started.
        None = "none",
        /// Started, nothing sent.
        Setup = "setup",
        /// Being cancelled.
        Cancelling = "cancelling",
        /// Cancelled; the guest runs on at the source.
        Cancelled = "cancelled",
        /// Pages cross.
        Active = "active",
        /// Post-copy: the target runs.
        PostcopyActive = "postcopy-active",
        /// Post-copy: the connection was lost.
        PostcopyPaused = "postcopy-paused",
        /// Post-copy: about to recover (QEMU 9.1).
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// Post-copy: recovers.
        PostcopyRecover = "postcopy-recover",
        /// Post-copy: device state crosses (QEMU 10.2).
        PostcopyDevice = "postcopy-device",
        /// Done. At the source with a return path: the target said so too. Its event comes before the source's run state
        /// is `postmigrate` (for an instant it still is `finish-migrate`).
        Completed = "completed",
        /// Failed; `error_desc` says why.
        Failed = "failed",
        /// COLO.
        Colo = "colo",
        /// Stopped before the last pages, by capability `pause-before-switchover`.
        PreSwitchover = "pre-switchover",
        /// The guest is stopped, the last pages and the device state cross.
        Device = "device",
        /// Waits for a failover NIC to be unplugged.
        WaitUnplug = "wait-unplug",
    }
}

open_enum! {
    /// A migration capability (QMP `MigrationCapability`): the ones that vmferry and its benchmark set.
    pub enum Capability {
        /// Send `MIGRATION` events.
        Events = "events",
        /// The target answers on the same socket.
        ReturnPath = "return-path",
        /// Throttle a guest that does not converge.
        AutoConverge = "auto-converge",
        /// Before QEMU 10.0: activate the target's disks only when it runs.
        LateBlockActivate = "late-block-activate",
        /// Wait for `migrate-continue` once the guest stopped.
        PauseBeforeSwitchover = "pause-before-switchover",
        /// The target must allow the switchover (QEMU 8.1).
        SwitchoverAck = "switchover-ack",
        /// Post-copy of RAM.
        PostcopyRam = "postcopy-ram",
        /// Page deltas of QEMU's own.
        Xbzrle = "xbzrle",
        /// Parallel connections of QEMU's own.
        Multifd = "multifd",
        /// Check that both machines have one UUID.
        ValidateUuid = "validate-uuid",
    }
}

/// `migrate-set-parameters`; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Parameters {
    /// Most bytes per second before the switchover; 0 is no limit, QEMU's default is 128 MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// QEMU switches over when it expects to need less, ms. 0 is a trap: QEMU then switches over right after the first pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Bytes per second that QEMU is to expect for the switchover instead of what it measured (QEMU 8.2); 0 unsets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail_switchover_bandwidth: Option<u64>,
    /// First throttle of `auto-converge`, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    /// Each further throttle of `auto-converge`, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    /// Connections of `multifd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    /// Compression of `multifd`: `none`, `zlib`, `zstd`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<String>,
    /// zstd's level under `multifd`, 0 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_zstd_level: Option<u8>,
    /// Cache of `xbzrle`, bytes, a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache_size: Option<u64>,
}

/// `query-migrate`. Times are in ms; what QEMU leaves out in the present status is `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Where it stands; `None` if this QEMU never migrated.
    pub status: Option<MigrationStatus>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Since its start, or its whole length.
    pub total_time: Option<u64>,
    /// Its setup.
    pub setup_time: Option<u64>,
    /// How long the guest was stopped, once it is over.
    pub downtime: Option<u64>,
    /// What QEMU expects that to be, while it goes on (counted in uncompressed bytes).
    pub expected_downtime: Option<u64>,
    /// The memory's share.
    pub ram: Option<RamInfo>,
    /// Percent by which the guest is throttled now.
    pub cpu_throttle_percentage: Option<u64>,
    /// Why this VM cannot be migrated at present; empty or `None`: nothing stands against it.
    pub blocked_reasons: Option<Vec<String>>,
}

/// The memory's share in a migration (QMP `MigrationRAMStats`). A field of a QEMU too old for it is 0.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RamInfo {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes of guest memory still to send.
    pub remaining: u64,
    /// Bytes of guest memory.
    pub total: u64,
    /// Zero pages sent.
    pub duplicate: u64,
    /// Other pages sent.
    pub normal: u64,
    /// Their bytes.
    pub normal_bytes: u64,
    /// Pages dirtied per second, measured at each sync of the dirty bitmap.
    pub dirty_pages_rate: u64,
    /// Syncs of the dirty bitmap so far.
    pub dirty_sync_count: u64,
    /// Bytes per page.
    pub page_size: u64,
    /// Pages sent per second.
    pub pages_per_second: u64,
    /// Throughput, 10^6 bits per second.
    pub mbps: f64,
    /// Bytes sent by `multifd`'s connections.
    pub multifd_bytes: u64,
    /// Bytes sent while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes sent while it was stopped.
    pub downtime_bytes: u64,
    /// Bytes sent after the switchover.
    pub postcopy_bytes: u64,
}
