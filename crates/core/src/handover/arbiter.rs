//! What an arbiter decides: who may run a VM whose two hosts can't reach each other.
//!
//! An arbiter is one register a VM that both hosts reach and that is changed by compare-and-swap. It holds a [`Holder`], as
//! seen from one handover:
//!
//! ```text
//!            Release (source)            Take (target)
//!  Source ───────────────────▶ Released ───────────────▶ Target
//!     │                            │
//!     └───────────┬────────────────┘
//!                 ▼  TakeBack (source)
//!              Returned
//! ```
//!
//! The target runs the VM only once it is `Target`, and a source that may have asked for the release resumes it only once it is
//! `Returned`, or the target has said that its own copy is gone. `Target` and `Returned` are final, so exactly one of both can
//! ever come about, whoever else is gone. That a host's lease has run out only says when it is time to ask: nothing is
//! decided by it.

use serde::{Deserialize, Serialize};

/// Who has the VM that a handover is about, as the arbiter has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The source, as before the handover.
    Source,
    /// Nobody: the source has released it, and whoever asks first gets it.
    Released,
    /// The target, which may have run it.
    Target,
    /// The source, for good: this handover's target can't have it any more.
    Returned,
}

/// What an arbiter is asked: one compare-and-swap each, and harmless when repeated or carried out late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Source: who has it? Changes nothing.
    Ask,
    /// Source: the target may have it.
    Release,
    /// Target: it is this host's, if it is released.
    Take,
    /// Source: it stays this host's, unless the target has taken it. A [`Release`](Claim::Release) that arrives later does
    /// nothing any more.
    TakeBack,
}

impl Claim {
    /// Who has the VM after this was asked of an arbiter by which `holder` had it.
    pub fn after(self, holder: Holder) -> Holder {
        match (self, holder) {
            (Claim::Release, Holder::Source) => Holder::Released,
            (Claim::Take, Holder::Released) => Holder::Target,
            (Claim::TakeBack, Holder::Source | Holder::Released) => Holder::Returned,
            (_, holder) => holder,
        }
    }
}

/// An arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ruling {
    /// Who has the VM, after what was asked.
    pub holder: Holder,
    /// The other host's lease has run out: it is dead, or can't reach the arbiter.
    pub other_is_gone: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRuling {
    /// The question never left this host: nothing will come of it.
    #[error("{0}")]
    Unasked(String),
    /// It was asked, and may be carried out yet.
    #[error("{0}")]
    Unanswered(String),
}

/// One of a handover's two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the VM comes from.
    Source,
    /// Where it was to go.
    Target,
}
