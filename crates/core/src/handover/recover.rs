//! What a journal says after its agent was restarted, and what it answers a peer when no state machine lives any more.

use super::Record;
use crate::wire::message::{Handover, Message, Verdict};

/// What a restarted agent owes a handover that its journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterRestart {
    /// Nothing: it ended.
    Nothing,
    /// Source: it was not released, or was taken back. See that the guest runs, then write `RolledBack`.
    RollBack(Handover),
    /// Source: it was released, or may be once the arbiter is asked, by which the target's host is called so. Say `Commit` until
    /// the target, whose agent listens at the address, answers: [`super::Source::released`].
    Commit(Handover, String, Option<String>),
    /// Target: it promised. Ask the source, whose agent listens at the address, and the arbiter if that is to say so:
    /// [`super::Target::prepared`].
    Ask(Handover, String, bool),
    /// Target: it owns the VM. See that the guest runs: [`super::Target::owned`].
    Run(Handover, String),
    /// Target: it owns the VM, whose QEMU is gone and never ran it. The source has it again once it is told:
    /// [`super::Target::owned_unstarted`].
    GiveBack(Handover, String),
}

/// What a restarted agent finds of the QEMU that a handover is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundQemu {
    /// It has ended, and may have run its guest.
    Gone,
    /// It has ended, and was never told to run its guest.
    GoneUnstarted,
    /// It lives, and stands in `postmigrate`.
    PostMigrate,
    /// It lives, in any other state.
    Other,
}

impl AfterRestart {
    /// What is owed, given what was found of the VM's QEMU.
    pub fn given(self, qemu: FoundQemu) -> AfterRestart {
        match (self, qemu) {
            // A released copy stands in `postmigrate` until it is ended: any other state says that it was resumed, because
            // the write was reported as failed. The target was never told, nor will it be.
            (AfterRestart::Commit(handover, ..), FoundQemu::Other) => AfterRestart::RollBack(handover),
            (AfterRestart::Run(handover, peer), FoundQemu::GoneUnstarted) => AfterRestart::GiveBack(handover, peer),
            // Its guest may have run, and then ended like any other.
            (AfterRestart::Run(..), FoundQemu::Gone) => AfterRestart::Nothing,
            (after, _) => after,
        }
    }
}

/// Reads the records of one handover, oldest first.
pub fn after_restart(records: &[Record]) -> AfterRestart {
    let peer = || {
        let of = |record: &Record| match record {
            Record::Offered { peer, .. } | Record::Prepared { peer, .. } => Some(peer.clone()),
            _ => None,
        };
        records.iter().find_map(of).unwrap_or_default()
    };
    match records.last().map(Record::plain) {
        Some(Record::Offered { handover, .. } | Record::Reclaimed { handover }) => AfterRestart::RollBack(handover),
        Some(Record::Released { handover, arbiter }) => AfterRestart::Commit(handover, peer(), arbiter),
        Some(Record::Prepared { handover, arbiter, .. }) => AfterRestart::Ask(handover, peer(), arbiter),
        Some(Record::Owned { handover }) => AfterRestart::Run(handover, peer()),
        Some(
            Record::HandedOver { .. }
            | Record::RolledBack { .. }
            | Record::TakenOver { .. }
            | Record::Dropped { .. }
            | Record::Resolved { .. },
        )
        | None => AfterRestart::Nothing,
    }
}

/// Answers a peer's `Inquire`, `Commit` or `Abort`: with the verdict of whoever carries the handover out here, else from the journal
/// alone.
pub fn answer(records: &[Record], under_way: Option<Verdict>, message: &Message) -> Option<Message> {
    let handover = match message {
        Message::Inquire { handover } | Message::Commit { handover } | Message::Abort { handover, .. } => {
            handover.clone()
        }
        _ => return None,
    };
    let last = records.last().map(Record::plain);
    if let Message::Inquire { .. } = message {
        let verdict = under_way.unwrap_or(match last {
            Some(Record::Released { .. } | Record::HandedOver { .. }) => Verdict::Released,
            // No record, or one before the release: it was never made, and without a state machine never will be.
            _ => Verdict::Aborted,
        });
        return Some(Message::Outcome { handover, verdict });
    }
    match (message, last) {
        // An `Abort`, too, if an operator decided for the copy here while the source was gone.
        (_, Some(Record::Owned { .. } | Record::TakenOver { .. })) => Some(Message::Running { handover }),
        // Without a record and without a state machine there is no copy here that could ever run.
        (_, Some(Record::Dropped { .. })) | (Message::Abort { .. }, None) => Some(Message::Dropped {
            handover,
            reason: "the target's copy was dropped before it ran".to_owned(),
        }),
        _ => None,
    }
}
