//! Faults built in on purpose, at the model's edge: if the search does not find one, the rule that it breaks is not checked,
//! or not needed.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mutation {
    /// Every record of this kind is reported as written, and is not in the journal.
    LeaveOut(String),
    /// Wherever the second of these effects follows the first, they are carried out the other way round.
    Swap(String, String),
    /// The arbiter, or what is made of its answers.
    Arbiter(Wrong),
}

/// What is wrong about an arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    /// That it does not answer is taken for that it was not asked.
    SilenceIsNo,
    /// The target runs the VM once it is told, whatever the arbiter says.
    TakesAnyway,
    /// The source gets the VM back even if the target has taken it.
    TakesBackAnyway,
    /// The source hears that the VM is released, and it is not.
    ReleasesNothing,
}

impl Mutation {
    pub(super) fn swap(first: &str, second: &str) -> Mutation {
        Mutation::Swap(first.to_owned(), second.to_owned())
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mutation::LeaveOut(record) => write!(f, "without the record {record}"),
            Mutation::Swap(first, second) => write!(f, "{second} before {first}"),
            Mutation::Arbiter(wrong) => write!(f, "the arbiter: {wrong:?}"),
        }
    }
}

/// What a mutation is known to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    /// The rule that the shortest counterexample breaks.
    Breaks(&'static str),
    /// Nothing, and why that is so.
    Harmless(&'static str),
}

/// A mutation as it stands in [`KNOWN`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    LeaveOut(&'static str),
    Swap(&'static str, &'static str),
    Arbiter(Wrong),
}

impl From<Known> for Mutation {
    fn from(known: Known) -> Mutation {
        match known {
            Known::LeaveOut(record) => Mutation::LeaveOut(record.to_owned()),
            Known::Swap(first, second) => Mutation::swap(first, second),
            Known::Arbiter(wrong) => Mutation::Arbiter(wrong),
        }
    }
}

/// Every record, and every two effects that ever follow one another.
pub(super) const KNOWN: &[(Known, Effect)] = &[
    (
        Known::LeaveOut("Offered"),
        Effect::Breaks("the guest stands still for ever"),
    ),
    (
        Known::LeaveOut("Released"),
        Effect::Breaks("an image runs that its guest has left behind"),
    ),
    (
        Known::LeaveOut("HandedOver"),
        Effect::Harmless(
            "a restarted source finds `Released`, says `Commit` and hears `Running` again. The record keeps the VM from being \
             listed meanwhile, and ends the asking",
        ),
    ),
    (
        Known::LeaveOut("RolledBack"),
        Effect::Harmless("a restarted source sees once more that the guest runs. The record ends that"),
    ),
    (
        Known::LeaveOut("Reclaimed"),
        Effect::Harmless(
            "a restarted source finds `Released` and its guest running, or asks and hears `Dropped` again, which the target has \
             written. The record uses up the epoch, for the next handover",
        ),
    ),
    (
        Known::LeaveOut("Prepared"),
        Effect::Breaks("the hosts never come to an end"),
    ),
    (
        Known::LeaveOut("Owned"),
        Effect::Breaks("a committed migration is undone"),
    ),
    (
        Known::LeaveOut("TakenOver"),
        Effect::Harmless("a restarted target sees once more that the guest runs, and says so. The record ends that"),
    ),
    (
        Known::LeaveOut("Dropped"),
        Effect::Breaks("the hosts never come to an end"),
    ),
    (
        Known::Swap("EndQemu", "Journal HandedOver"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
    (
        Known::Swap("Drop", "Journal Dropped"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
    (
        Known::Swap("Drop", "Send Dropped"),
        Effect::Harmless("nothing was promised, so the source runs its guest whatever becomes of the copy"),
    ),
    (
        Known::Swap("Send Abort", "ResumeGuest"),
        Effect::Harmless(
            "the target runs nothing that is not released; what it is told only lets it drop its copy sooner",
        ),
    ),
    (
        Known::Swap("Send Abort", "Journal RolledBack"),
        Effect::Harmless("the target runs nothing that is not released; it asks, and hears `Aborted`"),
    ),
    (
        Known::Swap("Send Abort", "Finish Lost"),
        Effect::Harmless("the target runs nothing that is not released; it asks, and hears `Aborted`"),
    ),
    (
        Known::Swap("Send Running", "Journal TakenOver"),
        Effect::Harmless("`Owned` is written, so that a `Commit` is answered `Running` in any case"),
    ),
    (
        Known::Swap("Send Dropped", "Finish"),
        Effect::Harmless("a source that does not hear it loses its lane, and asks again if it has to know"),
    ),
    (
        Known::Swap("Send Refused", "Finish"),
        Effect::Harmless("a source that does not hear it loses its lane, and rolls back for that"),
    ),
];

/// The same with an arbiter: what differs from [`KNOWN`].
pub(super) const KNOWN_WITH_ARBITER: &[(Known, Effect)] = &[
    (
        Known::LeaveOut("Released"),
        Effect::Breaks("the VM is lost though no QEMU died that had its only copy"),
    ),
    (
        Known::LeaveOut("Reclaimed"),
        Effect::Breaks("the hosts never come to an end"),
    ),
    (
        Known::LeaveOut("Owned"),
        Effect::Breaks("a committed migration is undone"),
    ),
    (
        Known::Arbiter(Wrong::SilenceIsNo),
        Effect::Breaks("the VM is lost though no QEMU died that had its only copy"),
    ),
    (
        Known::Arbiter(Wrong::TakesAnyway),
        Effect::Breaks("an image runs that its guest has left behind"),
    ),
    (
        Known::Arbiter(Wrong::TakesBackAnyway),
        Effect::Breaks("an image runs that its guest has left behind"),
    ),
    (
        Known::Arbiter(Wrong::ReleasesNothing),
        Effect::Breaks("the hosts never come to an end"),
    ),
    (
        Known::Swap("Send Commit", "Arbitrate Ask"),
        Effect::Harmless("neither changes anything here; both are repeated"),
    ),
    (
        Known::Swap("Send Abort", "Arbitrate TakeBack"),
        Effect::Harmless("either alone keeps the target from running the VM, and the source waits for one of both"),
    ),
    (
        Known::Swap("Inquire", "Arbitrate Take"),
        Effect::Harmless("the source's answer only has the arbiter asked once more"),
    ),
    (
        Known::Swap("EndQemu", "Journal Resolved"),
        Effect::Harmless("with an arbiter an operator decides at the source only where its QEMU is gone"),
    ),
    (
        Known::Swap("Drop", "Journal Resolved"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
];

/// The same without an arbiter and with an operator: what differs from [`KNOWN`].
pub(super) const KNOWN_WITH_OPERATOR: &[(Known, Effect)] = &[
    (
        Known::LeaveOut("Resolved"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
    (
        Known::Swap("EndQemu", "Journal Resolved"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
    (
        Known::Swap("Drop", "Journal Resolved"),
        Effect::Breaks("a QEMU is left behind at the host that does not have the VM"),
    ),
];
