//! Messages of the handover, as JSON on the control lane.
//!
//! JSON, because the control lane carries a few dozen messages in a migration, and a reader of another version skips the
//! fields that it does not know; `postcard` or any other positional format would need a new protocol version for each.

use super::hello::MigrationId;
use crate::limits::MESSAGE_VALUES_MAX;
use crate::page::{Coders, StreamDigest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How often the VM has changed hands: the owner of epoch *e* hands it over as *e* + 1. A message or record of an older
/// epoch is about a past migration and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch in which the next owner owns it.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt to hand one VM over: what both journals and every message of the commit name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Handover {
    /// This attempt.
    pub migration: MigrationId,
    /// The VM's name.
    pub vm: String,
    /// The epoch in which the target would own it.
    pub epoch: Epoch,
}

/// How the stream will cross, chosen by the source before the target reserves anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Data lanes, each a connection with an encoder and a decoder of its own.
    pub lanes: u16,
    /// The coders that pages go through; each batch names one by its number in this list.
    pub coders: Coders,
    /// Key of this session's page fingerprints, drawn by the source.
    pub fingerprint_key: [u8; 32],
    /// Whether both sides hash the guest's memory and compare before the commit.
    pub verify_memory: bool,
    /// The most that the source sends on all data lanes together, bytes per second, if it keeps to a limit: the target can't
    /// see it and weighs what sending takes.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// How long both sides wait for a link that breaks, milliseconds.
    #[serde(default)]
    pub link_patience_ms: u64,
}

/// What a target that took a VM in can do for its transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Whether the target can read back what its QEMU has loaded, so that references may reach any page.
    pub reads_guest_memory: bool,
    /// Content sources that pages may be referred to, by number: those of the source's offer that this host can read, and
    /// behind them those whose tables it sent.
    #[serde(default)]
    pub contents: Vec<u16>,
    /// What the arbiter calls this host, if its agent asks the one that the source's agent asks.
    #[serde(default)]
    pub arbiter_host: Option<String>,
}

/// What a side's memory held when the guest was stopped: a hash over every page that the stream carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHash {
    /// Bytes of guest memory that went into it.
    pub bytes: u64,
    /// BLAKE3-256 over them, block by block, in address order.
    pub hash: [u8; 32],
}

/// What the target holds, paused and complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of the stream that its QEMU loaded.
    pub stream: StreamDigest,
    /// Of its memory, if the transfer asked for it.
    pub memory: Option<MemoryHash>,
}

/// What the source answers a target that asks whether it may run the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The source has durably given the VM up: the target owns it.
    Released,
    /// The migration is under way and not decided.
    Undecided,
    /// The source knows no such release and will never make one: the target drops its copy (presumed abort).
    Aborted,
}

/// A message on the control lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// Source: will you take this VM? Nothing has changed on either side.
    Reserve {
        /// The attempt.
        handover: Handover,
        /// How the stream will cross.
        transfer: Transfer,
        /// The VM's definition and what the source knows of its needs; the agents' matter, not the protocol's.
        offer: Value,
    },
    /// Target: yes. Memory is set aside and its QEMU waits for the stream.
    Reserved(Reservation),
    /// Target: no; every reason at once.
    Refused {
        /// Each a sentence that says what to change.
        reasons: Vec<String>,
    },
    /// Target, before it answers `Reserve`: some disks look different from the offer. The guest may have written to them since;
    /// what do they look like now?
    DescribeDisks,
    /// Source's answer to that; the agents' matter.
    Disks {
        /// Every disk's description.
        disks: Value,
    },
    /// Target: a complete image is here, paused, and this host has durably promised to run it or to ask before dropping it.
    Prepared {
        /// The attempt.
        handover: Handover,
        /// What it holds.
        image: Image,
    },
    /// Source: this VM is yours; the source has durably given it up. Repeated until answered.
    Commit {
        /// The attempt.
        handover: Handover,
    },
    /// Target: the VM is owned here, durably, and its guest runs.
    Running {
        /// The attempt.
        handover: Handover,
    },
    /// Source: it's off. The target drops what it has. Repeated until `Dropped` is heard where the source's record of the
    /// release may be on its disk.
    Abort {
        /// The attempt.
        handover: Handover,
        /// Why.
        reason: String,
    },
    /// Target: its copy is gone, was never run and never will be; the source keeps the VM, or takes it back. Also the answer to an
    /// `Abort` of an attempt that the target knows nothing of.
    Dropped {
        /// The attempt.
        handover: Handover,
        /// Why.
        reason: String,
    },
    /// Target: it owns the VM but could not start it yet; it tries again at each commit.
    Stuck {
        /// The attempt.
        handover: Handover,
        /// What QEMU said.
        reason: String,
    },
    /// Target that lost its source after it promised: may I run it?
    Inquire {
        /// The attempt.
        handover: Handover,
    },
    /// Source's answer to that.
    Outcome {
        /// The attempt.
        handover: Handover,
        /// The answer.
        verdict: Verdict,
    },
    /// Source: its guest is stopped, the last pages follow. The target waits less for what it reads, and counts from here.
    Stopped,
    /// Either: still here. See [`crate::limits::HEARTBEAT`].
    Heartbeat,
    /// Target, just before `Running`: its side of the figures, for the report; the agents' matter.
    Figures {
        /// The figures.
        figures: Value,
    },
    /// A message that this version does not know; ignored, so that a newer peer can say more.
    #[serde(other)]
    Unknown,
}

/// Why a payload is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It would take far more memory than any that is meant.
    #[error("a message of more than {MESSAGE_VALUES_MAX} JSON values")]
    TooManyValues,
    /// It is not JSON, nested too deeply, or not a message.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Message {
    /// Reads the payload of a `Message` frame. Values are counted before anything is allocated for them.
    pub fn read(payload: &[u8]) -> Result<Message, MessageError> {
        read_json(payload)
    }
}

/// Reads a message whose values are counted before anything is allocated for them.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, MessageError> {
    // Every value but the outermost stands behind one of these. Some in strings are counted, too.
    let values = payload.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{'));
    if values.count() > MESSAGE_VALUES_MAX {
        return Err(MessageError::TooManyValues);
    }
    Ok(serde_json::from_slice(payload)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONTROL_FRAME_BYTES_MAX;

    fn disks(disks: &str) -> Result<Message, MessageError> {
        Message::read(format!(r#"{{"message":"disks","disks":{disks}}}"#).as_bytes())
    }

    #[test]
    fn messages_of_many_values_are_refused_before_they_are_read() {
        for part in ["0,", "[],", "[0],", "{},", r#"{"a":0},"#] {
            let many = part.repeat(CONTROL_FRAME_BYTES_MAX / 2 / part.len());
            let error = disks(&format!("[{many}0]")).unwrap_err();
            assert!(matches!(error, MessageError::TooManyValues), "{part}: {error}");
        }
        assert!(disks(&format!("[{}0]", "0,".repeat(10_000))).is_ok());
    }

    #[test]
    fn messages_nested_deeply_are_refused() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let error = disks(&[&open.repeat(30_000), "0", &close.repeat(30_000)].concat()).unwrap_err();
            assert!(error.to_string().contains("recursion"), "{error}");
        }
    }

    #[test]
    fn a_message_of_a_later_version_is_not_an_error() {
        let later = Message::read(br#"{"message":"sing","song":["la",{"la":1}]}"#);
        assert_eq!(later.unwrap(), Message::Unknown);
        assert!(Message::read(b"").is_err() && Message::read(b"{}").is_err());
    }
}
