//! What the API says about a migration: the request, its progress while it runs, and the report at its end.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmferry_core::{
    handover,
    limits::{LANES_MAX, LINK_PATIENCE_MAX},
    page::lz::{Codec, CodecSettings, Coders, LzError},
    wire::hello::MigrationId,
};

use crate::api::types::with_port;

pub use crate::api::report::{
    Coding, ContentReport, CpuSeconds, Outcome, Report, RoundReport, StageTime, Verification,
};

/// The coder that pages go through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CodecChoice {
    /// Chosen while pages cross, by kind of page, from what link, pages and processors turn out to be.
    Auto,
    /// None: pages cross as they are.
    Raw,
    /// zstd with a dictionary as long as the session.
    #[default]
    Zstd,
    /// LZ4: less CPU, more bytes.
    Lz4,
    /// The dictionary coder that the design started from, after Lempel and Ziv's of 1978; the baseline for comparisons.
    Lz78,
}

impl CodecChoice {
    /// The coder, where it is a fixed one.
    fn fixed(self) -> Option<Codec> {
        match self {
            CodecChoice::Auto => None,
            CodecChoice::Raw => Some(Codec::Raw),
            CodecChoice::Zstd => Some(Codec::Zstd),
            CodecChoice::Lz4 => Some(Codec::Lz4),
            CodecChoice::Lz78 => Some(Codec::Lz78),
        }
    }
}

/// What `POST /v1/vms/{name}/migrate` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The target agent, `HOST` or `HOST:PORT`; the port is 7464 if none is given.
    pub to: String,
    /// The coder.
    #[serde(default)]
    pub codec: CodecChoice,
    /// zstd's level, 1 to 19; a default that costs little if absent. The other coders have none.
    #[serde(default)]
    pub level: Option<i32>,
    /// TCP connections, and threads that encode, 1 to 64; chosen from the host's processors if absent.
    #[serde(default)]
    pub lanes: Option<usize>,
    /// Memory of the source's agent for hashes of pages as they were sent, so that pages sent again cross as differences,
    /// bytes; what all else leaves of an eighth of the guest's memory and 256 MiB if absent, none if 0.
    #[serde(default)]
    pub delta_memory_bytes: Option<u64>,
    /// The longest pause of the guest that is acceptable, milliseconds.
    #[serde(default = "MigrateRequest::default_max_downtime_ms")]
    pub max_downtime_ms: u64,
    /// A limit on what crosses the wire, bytes a second; none if absent.
    #[serde(default)]
    pub bandwidth_bytes_s: Option<u64>,
    /// Give up, with the guest running on the source, if it has not converged by then, seconds.
    #[serde(default = "MigrateRequest::default_timeout_s")]
    pub timeout_s: u64,
    /// The longest that the guest may stand still, milliseconds, whatever happens to the link or the target: then the attempt is
    /// rolled back.
    #[serde(default = "MigrateRequest::default_max_blackout_ms")]
    pub max_blackout_ms: u64,
    /// How long a link that breaks is waited for, the guest running, milliseconds; 0 for not at all, and no further attempt.
    #[serde(default = "MigrateRequest::default_link_patience_ms")]
    pub link_patience_ms: u64,
    /// How often the migration is tried again after an attempt that a broken link, or an end of the target's agent, rolled back.
    #[serde(default = "MigrateRequest::default_retries")]
    pub retries: u32,
    /// Compare all memory byte for byte before the commit; lengthens the pause.
    #[serde(default)]
    pub verify: bool,
}

impl MigrateRequest {
    /// `max_downtime_ms` where none is given.
    pub const fn default_max_downtime_ms() -> u64 {
        300
    }

    /// `max_blackout_ms` where none is given.
    pub const fn default_max_blackout_ms() -> u64 {
        10_000
    }

    /// `link_patience_ms` where none is given.
    pub const fn default_link_patience_ms() -> u64 {
        120_000
    }

    /// `retries` where none is given.
    pub const fn default_retries() -> u32 {
        3
    }

    /// `timeout_s` where none is given.
    pub const fn default_timeout_s() -> u64 {
        600
    }

    /// A request with the default of every setting.
    pub fn to(to: impl Into<String>) -> Self {
        MigrateRequest {
            to: to.into(),
            codec: CodecChoice::default(),
            level: None,
            lanes: None,
            delta_memory_bytes: None,
            max_downtime_ms: Self::default_max_downtime_ms(),
            bandwidth_bytes_s: None,
            timeout_s: Self::default_timeout_s(),
            max_blackout_ms: Self::default_max_blackout_ms(),
            link_patience_ms: Self::default_link_patience_ms(),
            retries: Self::default_retries(),
            verify: false,
        }
    }

    /// The target as `HOST:PORT`.
    pub fn address(&self) -> String {
        with_port(&self.to)
    }

    /// The coders that the data plane may choose from: one where it is fixed.
    ///
    /// # Errors
    /// When the level is one that zstd does not have.
    pub fn coders(&self) -> Result<Coders, LzError> {
        let Some(codec) = self.codec.fixed() else {
            return Ok(Coders::auto());
        };
        let default = CodecSettings::default();
        Coders::new(vec![CodecSettings {
            codec,
            level: self.level.unwrap_or(default.level),
            ..default
        }])
    }

    /// Everything about the request that cannot be carried out whatever the hosts are like, as sentences.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.to.trim().is_empty() {
            problems.push("`to` is empty: give the target agent as HOST or HOST:PORT".to_owned());
        }
        if let Some(lanes) = self.lanes.filter(|lanes| !(1..=LANES_MAX).contains(lanes)) {
            problems.push(format!("`lanes` is {lanes}: it can be 1 to {LANES_MAX}"));
        }
        if self.level.is_some() && self.codec != CodecChoice::Zstd {
            problems.push("`level` is given: only zstd has levels; ask for `codec` zstd or leave it out".to_owned());
        } else if let Err(error) = self.coders() {
            problems.push(format!("`level`: {error}"));
        }
        if self.max_downtime_ms == 0 {
            problems.push(
                "`max_downtime_ms` is 0: a guest cannot be moved without a pause; 300 is a usual value".to_owned(),
            );
        }
        if self.max_downtime_ms > self.max_blackout_ms {
            problems.push(format!(
                "`max_downtime_ms` is {}: a guest that stands still for more than `max_blackout_ms`, {}, is rolled back",
                self.max_downtime_ms, self.max_blackout_ms
            ));
        }
        let patience_max = LINK_PATIENCE_MAX.as_millis() as u64;
        if self.link_patience_ms > patience_max {
            problems.push(format!(
                "`link_patience_ms` is {}: a target waits {patience_max} at the most",
                self.link_patience_ms
            ));
        }
        if self.bandwidth_bytes_s == Some(0) {
            problems.push("`bandwidth_bytes_s` is 0: nothing would ever cross; leave it out for no limit".to_owned());
        }
        if self.timeout_s == 0 {
            problems.push("`timeout_s` is 0: the migration would end before it began".to_owned());
        }
        problems
    }
}

/// The four stages of a migration, and its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The target checks what the VM needs and sets it aside.
    #[default]
    Reserve,
    /// The guest runs on the source while its memory crosses, round after round.
    Precopy,
    /// The guest is stopped; the last pages and the devices cross.
    StopAndCopy,
    /// Ownership passes to the target.
    Commit,
    /// Over: the report says how.
    Done,
}

impl From<handover::Stage> for Stage {
    fn from(stage: handover::Stage) -> Self {
        match stage {
            handover::Stage::Reserve => Stage::Reserve,
            handover::Stage::PreCopy => Stage::Precopy,
            handover::Stage::StopAndCopy => Stage::StopAndCopy,
            handover::Stage::Commit => Stage::Commit,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Reserve => "reserve",
            Stage::Precopy => "pre-copy",
            Stage::StopAndCopy => "stop-and-copy",
            Stage::Commit => "commit",
            Stage::Done => "done",
        })
    }
}

/// Pages of one encoding and the bytes they took on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Encoded {
    /// How many pages.
    pub pages: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
}

impl Encoded {
    /// Both together.
    pub fn plus(&self, other: &Encoded) -> Encoded {
        Encoded {
            pages: self.pages.saturating_add(other.pages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// How pages crossed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ByEncoding {
    /// All zero: a run.
    pub zero: Encoded,
    /// What the target already held at that address.
    pub same: Encoded,
    /// A reference to another page sent before.
    pub copy: Encoded,
    /// What stands in known content that the target reads (disks, images, memory that it kept), and what it then asked for.
    #[serde(default)]
    pub content: Encoded,
    /// The difference to an earlier version in memory that the target kept.
    #[serde(default)]
    pub patch: Encoded,
    /// The difference to what the target held at that address.
    #[serde(default)]
    pub delta: Encoded,
    /// LZ.
    pub lz: Encoded,
    /// As they are, because LZ would not have paid.
    pub raw: Encoded,
}

impl ByEncoding {
    /// Each encoding with its name, in the order reports use.
    pub fn named(&self) -> [(&'static str, Encoded); 8] {
        [
            ("zero", self.zero),
            ("same", self.same),
            ("copy", self.copy),
            ("content", self.content),
            ("patch", self.patch),
            ("delta", self.delta),
            ("lz", self.lz),
            ("raw", self.raw),
        ]
    }

    /// All encodings together.
    pub fn total(&self) -> Encoded {
        self.named()
            .iter()
            .fold(Encoded::default(), |sum, (_, encoded)| sum.plus(encoded))
    }

    /// Both, encoding by encoding.
    pub fn plus(&self, other: &ByEncoding) -> ByEncoding {
        ByEncoding {
            zero: self.zero.plus(&other.zero),
            same: self.same.plus(&other.same),
            copy: self.copy.plus(&other.copy),
            content: self.content.plus(&other.content),
            patch: self.patch.plus(&other.patch),
            delta: self.delta.plus(&other.delta),
            lz: self.lz.plus(&other.lz),
            raw: self.raw.plus(&other.raw),
        }
    }
}

/// How far a migration is. Rates are over the last second or so; totals are since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The stage it is in.
    pub stage: Stage,
    /// The round of pre-copy, from 1; 0 before the first.
    pub round: u32,
    /// Pages still to send, as QEMU counts them.
    pub pages_left: u64,
    /// All pages of the guest.
    pub pages_total: u64,
    /// Pages that the guest writes, a second.
    pub dirty_pages_per_s: f64,
    /// Bytes on the wire, a second.
    pub wire_bytes_per_s: f64,
    /// Bytes of QEMU's stream carried, a second.
    pub raw_bytes_per_s: f64,
    /// Bytes on the wire so far.
    pub wire_bytes: u64,
    /// Bytes of QEMU's stream carried so far.
    pub stream_bytes: u64,
    /// Pages and bytes so far, by encoding.
    pub by_encoding: ByEncoding,
    /// The pause that stopping now would cause, milliseconds; absent until something was measured.
    pub predicted_blackout_ms: Option<f64>,
    /// Time left, seconds; absent while the guest dirties memory as fast as it crosses.
    pub eta_s: Option<f64>,
    /// Time since it began, milliseconds.
    pub elapsed_ms: u64,
    /// Which attempt it is, from 1; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// For how long the link has been broken, milliseconds, while it is.
    #[serde(default)]
    pub link_down_ms: Option<u64>,
}

/// One migration away from this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: MigrationId,
    /// The VM's name.
    pub vm: String,
    /// The target agent's address.
    pub to: String,
    /// Whether an operator asked to cancel it. A migration past its commit completes all the same.
    pub cancelling: bool,
    /// How far it is.
    pub progress: Progress,
    /// What it did; present exactly when it is over.
    pub report: Option<Report>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_a_port_gets_the_default_one() {
        for (to, address) in [
            ("host-b", "host-b:7464"),
            ("host-b:9000", "host-b:9000"),
            ("10.0.0.2", "10.0.0.2:7464"),
            ("fd00::2", "[fd00::2]:7464"),
            ("[fd00::2]", "[fd00::2]:7464"),
            ("[fd00::2]:9000", "[fd00::2]:9000"),
        ] {
            assert_eq!(MigrateRequest::to(to).address(), address);
        }
    }

    #[test]
    fn a_request_names_all_its_problems_at_once() {
        let mut request = MigrateRequest::to(" ");
        assert_eq!(request.problems().len(), 1);
        request.lanes = Some(LANES_MAX + 1);
        request.max_downtime_ms = 0;
        request.bandwidth_bytes_s = Some(0);
        request.timeout_s = 0;
        request.codec = CodecChoice::Zstd;
        request.level = Some(99);
        assert_eq!(request.problems().len(), 6);
        request.codec = CodecChoice::Lz4;
        request.level = Some(1);
        assert_eq!(request.problems().len(), 6, "only zstd has levels");
        assert!(MigrateRequest::to("b").problems().is_empty());
    }

    #[test]
    fn a_request_of_only_a_target_takes_every_default() {
        let request: MigrateRequest = serde_json::from_str(r#"{"to":"host-b"}"#).unwrap();
        assert_eq!(request, MigrateRequest::to("host-b"));
        assert!(serde_json::from_str::<MigrateRequest>(r#"{"to":"host-b","lane":1}"#).is_err());
    }
}
