//! The report of a migration that has ended.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmferry_core::wire::hello::MigrationId;

use crate::api::migration::{ByEncoding, Stage};

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest runs on the target.
    Completed,
    /// Something failed; the guest runs on the source.
    RolledBack,
    /// An operator ended it; the guest runs on the source.
    Cancelled,
    /// The target would not take it; nothing changed.
    Refused,
    /// The guest wrote memory faster than it could cross until the time was up; it runs on the source.
    NotConverged,
    /// The guest or its QEMU ended on the source while it was being moved; it runs nowhere.
    Lost,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Completed => "completed",
            Outcome::RolledBack => "rolled back",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
            Outcome::NotConverged => "did not converge",
            Outcome::Lost => "lost the guest",
        })
    }
}

/// How long one stage took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// Its duration, milliseconds.
    pub ms: f64,
}

/// One round: all pages in the first, those dirtied meanwhile in each later one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RoundReport {
    /// From 1.
    pub round: u32,
    /// Pages carried.
    pub pages: u64,
    /// Those pages by encoding.
    pub by_encoding: ByEncoding,
    /// Its duration, milliseconds.
    pub ms: f64,
}

/// A stretch of time in which one coder was chosen for one kind of page, and the figures behind it when it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Coding {
    /// When it began, milliseconds since the stream did.
    pub from_ms: u64,
    /// `fresh`, or `changed` for pages that cross as differences.
    pub pages: String,
    /// The coder.
    pub coder: String,
    /// Batches in it.
    pub batches: u64,
    /// How many of them tried out another coder.
    pub probes: u64,
    /// What the link carries, bytes a second; absent if nothing was seen of it yet.
    pub link_bytes_per_s: Option<f64>,
    /// Bytes on the wire for a byte coded.
    pub ratio: f64,
    /// Processor time to encode a byte, nanoseconds.
    pub encode_ns_per_byte: f64,
    /// Processor time to decode one, nanoseconds.
    pub decode_ns_per_byte: f64,
    /// Processors to spare on the source.
    pub source_cores: f64,
    /// Processors to spare on the target.
    pub target_cores: f64,
    /// What a byte of QEMU's stream was expected to take, nanoseconds.
    pub expected_ns_per_byte: f64,
}

/// The result of comparing the two copies of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Bytes compared.
    pub bytes_compared: u64,
    /// Whether each was equal.
    pub equal: bool,
}

/// Processor time that the migration took, seconds, by process. Those of the guest's own work are part of its QEMU's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CpuSeconds {
    /// The agent on the source.
    pub source_agent: f64,
    /// The agent on the target.
    pub target_agent: f64,
    /// QEMU on the source.
    pub source_qemu: f64,
    /// QEMU on the target.
    pub target_qemu: f64,
}

/// A content source that pages were referred to: a disk, an image, memory that the target had kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContentReport {
    /// Its path, URI or name.
    pub source: String,
    /// Pages referred to it.
    pub pages: u64,
    /// Of those, pages that the target did not find there and asked for.
    pub pages_missed: u64,
    /// It took the target longer to read than to be sent the pages. From then on the target asked for those that were referred
    /// to it already, and no others were.
    #[serde(default)]
    pub is_slow: bool,
}

/// What a finished migration did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Its id.
    #[schema(value_type = String)]
    pub migration: MigrationId,
    /// The VM's name.
    pub vm: String,
    /// The source agent's name.
    pub from: String,
    /// The target agent's address.
    pub to: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it ended so, one sentence each; empty when it completed.
    pub reasons: Vec<String>,
    /// The stages that it went through, in order.
    pub stages: Vec<StageTime>,
    /// The rounds, in order.
    pub rounds: Vec<RoundReport>,
    /// From the guest's stop to the target's word that it runs, by the source's clock, milliseconds.
    pub blackout_source_ms: Option<f64>,
    /// From the arrival of the stop at the target until the guest ran there, by the target's clock, milliseconds.
    pub blackout_target_ms: Option<f64>,
    /// From the request to the end, milliseconds.
    pub total_ms: f64,
    /// All bytes sent on the wire, frames and control messages included.
    pub wire_bytes: u64,
    /// Those of them that were sent once more, since a link broke while they were on their way.
    #[serde(default)]
    pub resent_bytes: u64,
    /// Attempts, this one included. All figures are those of the last.
    #[serde(default)]
    pub attempts: u32,
    /// Bytes that earlier attempts sent on the wire.
    #[serde(default)]
    pub earlier_wire_bytes: u64,
    /// How often the link broke and was there again in time.
    #[serde(default)]
    pub link_breaks: u32,
    /// How long it was broken, all breaks together, milliseconds.
    #[serde(default)]
    pub link_down_ms: f64,
    /// Bytes of QEMU's stream that they stand for.
    pub stream_bytes: u64,
    /// Bytes of pages that the target's agent wrote straight into the guest's memory; the others its QEMU loaded.
    #[serde(default)]
    pub placed_bytes: u64,
    /// Why its QEMU had to load pages.
    #[serde(default)]
    pub not_placed: Option<String>,
    /// Known content that pages were referred to.
    #[serde(default)]
    pub contents: Vec<ContentReport>,
    /// Which coders were chosen, where they were, and why.
    #[serde(default)]
    pub coding: Vec<Coding>,
    /// The comparison of both memories, where it was asked for.
    pub verification: Option<Verification>,
    /// Processor time.
    pub cpu: CpuSeconds,
    /// Whether QEMU's stream could be followed to its end; if not, it was passed on as it was from some byte.
    pub stream_followed: bool,
    /// Where it was lost, and why.
    pub stream_lost: Option<String>,
    /// The digest of the stream that both sides agreed on, hexadecimal.
    pub digest: Option<String>,
}

impl Report {
    /// The report of a migration that ended before anything was transferred: all figures are zero or absent.
    pub fn without_transfer(
        migration: MigrationId,
        vm: &str,
        from: &str,
        to: &str,
        outcome: Outcome,
        reasons: Vec<String>,
        total_ms: f64,
    ) -> Report {
        Report {
            migration,
            vm: vm.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            outcome,
            reasons,
            stages: Vec::new(),
            rounds: Vec::new(),
            blackout_source_ms: None,
            blackout_target_ms: None,
            total_ms,
            wire_bytes: 0,
            resent_bytes: 0,
            attempts: 1,
            earlier_wire_bytes: 0,
            link_breaks: 0,
            link_down_ms: 0.0,
            stream_bytes: 0,
            placed_bytes: 0,
            not_placed: None,
            contents: Vec::new(),
            coding: Vec::new(),
            verification: None,
            cpu: CpuSeconds::default(),
            stream_followed: true,
            stream_lost: None,
            digest: None,
        }
    }
}
