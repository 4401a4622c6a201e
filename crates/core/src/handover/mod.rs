//! The transaction that moves a VM: reserve, pre-copy, stop-and-copy, commit (the four stages of the paper's Figure 2).
//!
//! Two state machines, [`Source`] and [`Target`], take events and give effects; drivers outside this crate carry the
//! effects out and report what came of them as further events. An effect list is carried out in order, and a
//! [`Journal`](SourceEffect::Journal) effect is always its last: nothing after a record happens before it is durable.
//!
//! ```text
//! source                                              target
//! Journal(Offered) ── Reserve ─────────────────────▶ check, start QEMU -incoming -S
//!                  ◀───────────────────── Reserved ──
//! migrate          ══ pages, round after round ════▶ load
//! guest stops      ══ last pages, device state ════▶ load; QEMU's SHUT 0 is held
//!                                                    Journal(Prepared)
//! compare images   ◀───────────────────── Prepared ──
//! give SHUT 0 to QEMU, see `postmigrate`
//! Journal(Released)   ◀── the commit point: before it only the source may run, after it only the target
//!                  ── Commit (repeated) ───────────▶ Journal(Owned), cont, announce
//! end QEMU         ◀────────────────────── Running ── Journal(TakenOver)
//! Journal(HandedOver)
//! ```
//!
//! The rules that the order serves:
//! * Until its QEMU is given SHUT 0, anything that kills the source's agent closes the migration socket, and QEMU resumes
//!   the guest by itself. From there to `Released`, a restarted source without the record has the target's copy dropped.
//! * A target runs the VM only after a `Commit` or an inquiry answered `Released`; both follow the record.
//! * No passage of time resumes a released copy. Only the target's durable word that its own copy is gone, unrun, does.
//! * With an [`arbiter`], the commit point is its ruling that the VM is released, asked for once `Released` is durable. The
//!   target runs the VM only after it has taken it there, the source again only after it has taken it back there.

pub mod arbiter;
mod recover;
mod source;
mod target;

pub use recover::{AfterRestart, FoundQemu, after_restart, answer};
pub use source::{Source, SourceEffect, SourceEvent};
pub use target::{Target, TargetEffect, TargetEvent};

use crate::wire::message::Handover;
use arbiter::Side;
use serde::{Deserialize, Serialize};

/// A durable fact about one handover. Replaying one is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// Source: an attempt began. Until `Released` the VM is this host's.
    Offered {
        /// The attempt.
        handover: Handover,
        /// Where the target's agent listens, to reach it again after a restart.
        peer: String,
    },
    /// Source: the VM is the target's, or with an arbiter whoever's that says; this copy never runs again unless `Reclaimed`
    /// follows.
    Released {
        /// The attempt.
        handover: Handover,
        /// What the arbiter calls the target's host, if there is an arbiter. It is asked only after this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arbiter: Option<String>,
    },
    /// Source: the target runs it and this copy was ended.
    HandedOver {
        /// The attempt.
        handover: Handover,
    },
    /// Source: the attempt ended with the guest running here.
    RolledBack {
        /// The attempt.
        handover: Handover,
    },
    /// Source: after the release, the target durably dropped its copy unrun, or the arbiter gave the VM back, or was never
    /// asked for it; the VM is this host's again.
    Reclaimed {
        /// The attempt.
        handover: Handover,
    },
    /// Target: a complete paused image is here; whether it may run is the source's to say.
    Prepared {
        /// The attempt.
        handover: Handover,
        /// Where the source's agent listens, to ask it.
        peer: String,
        /// An arbiter has to say that it may.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        arbiter: bool,
    },
    /// Target: the VM is this host's.
    Owned {
        /// The attempt.
        handover: Handover,
    },
    /// Target: its guest was started; nothing of the handover is left to do here.
    TakenOver {
        /// The attempt.
        handover: Handover,
    },
    /// Target: the copy that was prepared is gone and never ran.
    Dropped {
        /// The attempt.
        handover: Handover,
    },
    /// Either: the other host is gone for ever, as an operator says, who decided which copy is the VM. Written in place of the
    /// record by which the same would have been decided otherwise, [`Record::plain`].
    Resolved {
        /// The attempt.
        handover: Handover,
        /// Which host this is.
        by: Side,
        /// Whose copy is the VM.
        keep: Side,
    },
}

impl Record {
    /// The record in whose place this one stands, which is itself unless an operator decided.
    pub fn plain(&self) -> Record {
        let Record::Resolved { handover, by, keep } = self else {
            return self.clone();
        };
        let handover = handover.clone();
        match (by, keep) {
            (Side::Source, Side::Source) => Record::Reclaimed { handover },
            (Side::Source, Side::Target) => Record::HandedOver { handover },
            (Side::Target, Side::Source) => Record::Dropped { handover },
            (Side::Target, Side::Target) => Record::Owned { handover },
        }
    }

    /// The attempt that it is about.
    pub fn handover(&self) -> &Handover {
        match self {
            Record::Offered { handover, .. }
            | Record::Released { handover, .. }
            | Record::HandedOver { handover }
            | Record::RolledBack { handover }
            | Record::Reclaimed { handover }
            | Record::Prepared { handover, .. }
            | Record::Owned { handover }
            | Record::TakenOver { handover }
            | Record::Dropped { handover }
            | Record::Resolved { handover, .. } => handover,
        }
    }
}

/// The stages of the paper's Figure 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The target is asked, checks, and sets resources aside.
    Reserve,
    /// Pages cross while the guest runs.
    PreCopy,
    /// The guest is stopped; what is left crosses, and both sides hold the same image.
    StopAndCopy,
    /// Ownership changes hands.
    Commit,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Reserve => "reserve",
            Stage::PreCopy => "pre-copy",
            Stage::StopAndCopy => "stop-and-copy",
            Stage::Commit => "commit",
        })
    }
}

/// Why an attempt ended without a handover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "cause", content = "detail", rename_all = "kebab-case")]
pub enum Cause {
    /// The target would not take it.
    #[error("the target refuses: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The guest wrote faster than the link carries, or the time allowed was too short.
    #[error("{0}")]
    NotConverging(String),
    /// The connection to the peer's agent is gone.
    #[error("lost the target's agent: {0}")]
    PeerLost(String),
    /// The target could not go on.
    #[error("the target failed: {0}")]
    Target(String),
    /// The stream broke on this side, or a lane did.
    #[error("the transfer failed: {0}")]
    Transfer(String),
    /// The source's QEMU ended its migration.
    #[error("the source's QEMU failed: {0}")]
    Qemu(String),
    /// A record could not be made durable.
    #[error("the journal can't be written: {0}")]
    Journal(String),
    /// The images differ.
    #[error("the target's image is not the source's: {0}")]
    Image(String),
    /// A stage took longer than it may.
    #[error("{0} took longer than {1:?}")]
    TooLong(Stage, std::time::Duration),
    /// The arbiter can't be asked, or has given the VM back, or the target has none.
    #[error("{0}")]
    Arbiter(String),
    /// An operator decided after the other host was gone.
    #[error("an operator decided that the copy here is the VM")]
    Resolved,
    /// The guest or its QEMU ended during the attempt.
    #[error("the guest's QEMU on the source ended during {0}")]
    GuestGone(Stage),
}

/// How an attempt ended, as its source knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target owns and runs the VM; the source's copy is gone.
    HandedOver,
    /// The guest runs on the source, and the target holds nothing, or will drop what it holds when it asks.
    RolledBack(Cause),
    /// The guest does not run: its QEMU died on the source before the target held an image, or would not go on.
    Lost(Cause),
}

#[cfg(test)]
mod examples;
#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;
