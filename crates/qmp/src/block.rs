//! Disks as QEMU sees them.

use serde::Deserialize;

/// One guest disk (`query-block`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDevice {
    /// The drive's name, empty for a `-blockdev` disk.
    #[serde(default)]
    pub device: String,
    /// The device's path in QEMU's object tree.
    #[serde(default)]
    pub qdev: Option<String>,
    /// `ok`, `failed` or `nospace`; `None` where the device keeps no such status.
    #[serde(default)]
    pub io_status: Option<String>,
    /// The medium; `None` for an empty drive.
    #[serde(default)]
    pub inserted: Option<InsertedBlock>,
}

/// The medium in a drive (part of QMP `BlockDeviceInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InsertedBlock {
    /// The node on top.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Its driver: `qcow2`, `raw`, …
    #[serde(default)]
    pub drv: Option<String>,
    /// Whether it takes no writes.
    #[serde(default)]
    pub ro: bool,
}

/// One node of the block graph (`query-named-block-nodes`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// Its name.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Its driver: `file`, `nbd`, `qcow2`, …
    pub drv: String,
    /// What it reads and writes, as QEMU prints it.
    #[serde(default)]
    pub file: String,
    /// Whether it takes no writes.
    #[serde(default)]
    pub ro: bool,
    /// Whether it may be used now (QEMU 10.0); a migration deactivates its disks at the side that does not own them.
    #[serde(default)]
    pub active: Option<bool>,
    /// The image.
    #[serde(default)]
    pub image: Option<ImageInfo>,
}

/// Descriptors that QEMU knows under one number (`query-fdsets`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdSet {
    /// That number: a file is called `/dev/fdset/NUMBER` then.
    pub fdset_id: i64,
    /// What is in it.
    pub fds: Vec<FdSetEntry>,
}

/// One descriptor (QMP `FdsetFdInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FdSetEntry {
    /// What whoever gave it said about it.
    #[serde(default)]
    pub opaque: Option<String>,
}

/// An image (part of QMP `ImageInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Its file name or URI.
    pub filename: String,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// Bytes that it occupies, where known.
    #[serde(default)]
    pub actual_size: Option<u64>,
}
