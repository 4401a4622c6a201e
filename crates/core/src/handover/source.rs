//! The source's side: it owns the VM until its journal says `Released`, and ends with the guest running on one host.

use super::arbiter::{Claim, Holder, NoRuling, Ruling, Side};
use super::{Cause, Outcome, Record, Stage};
use crate::wire::message::{Handover, Image, Message, Reservation, Transfer, Verdict};
use serde_json::Value;
use std::time::Duration;

/// Longest that a target may take to check, start its QEMU and answer.
const RESERVE_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two repetitions of `Commit`, of an `Abort` that has to be heard, or of what an arbiter is asked.
const COMMIT_REPEAT: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The record that was last asked for is durable, or is not (a failed write counts as not written).
    Journaled(Result<(), String>),
    /// The peer said this.
    Peer(Message),
    /// The control lane is gone.
    PeerLost(String),
    /// The control lane is there again ([`Source::needs_peer`] only; before, a lost lane ends the attempt).
    PeerBack,
    /// Somebody wants the attempt ended.
    Cancel,
    /// The controller gives up: says why.
    NotConverging(String),
    /// The controller decided to stop the guest.
    StopNow,
    /// QEMU stopped the guest for its final pass.
    GuestStopped,
    /// The lanes or the reading of QEMU's stream broke.
    TransferFailed(String),
    /// QEMU's migration ended in failure.
    MigrationFailed(String),
    /// QEMU is in `postmigrate`: from here, no socket error restarts the guest.
    PostMigrate,
    /// The images were compared ([`SourceEffect::CompareImage`]).
    Compared(Result<(), String>),
    /// The guest runs here ([`SourceEffect::ResumeGuest`]), or could not be made to.
    Resumed(Result<(), String>),
    /// QEMU ended by itself.
    QemuGone,
    /// What came of [`SourceEffect::Arbitrate`] with this claim. Only the answer to the latest question is told.
    Ruled(Claim, Result<Ruling, NoRuling>),
    /// The target's host is gone for ever, says an operator, and this side's copy is the VM, or the other.
    Resolved(Side),
    /// Time has passed; see [`Source::deadline`].
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEffect {
    /// Make this durable, then report [`SourceEvent::Journaled`].
    Journal(Record),
    /// Say this to the peer, if it can be reached.
    Send(Message),
    /// Connect the lanes and have QEMU migrate into them.
    OpenStream(Reservation),
    /// Let QEMU stop the guest at its next chance.
    LetStop,
    /// Compare the target's image with what was sent, and report [`SourceEvent::Compared`].
    CompareImage(Image),
    /// Give QEMU the SHUT 0 that it waits for.
    DeliverShut,
    /// End QEMU's migration whatever its state, see that the guest runs, announce it, report [`SourceEvent::Resumed`].
    ResumeGuest,
    /// End the QEMU whose VM is now the target's.
    EndQemu,
    /// Ask the arbiter, and report [`SourceEvent::Ruled`]. A question that is under way already is not waited for any more.
    Arbitrate(Claim),
    /// The attempt is over.
    Finish(Outcome),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// `Offered` is being written.
    Offering,
    Reserving,
    PreCopy,
    /// The guest is stopped, the target has not said `Prepared`.
    Stopped,
    /// The images are being compared.
    Comparing,
    /// SHUT 0 is given; `postmigrate` is awaited.
    Completing,
    /// `Released` is being written.
    Releasing,
    /// `Released` could not be written, for this cause, and may be on the disk all the same: a restarted agent that finds it
    /// there has the target run its copy. So the target's word that this is gone is awaited before the guest may go on.
    Revoking(Cause),
    /// `Released` is written. Whether the arbiter released the VM is to be heard from it; the guest may run here no more
    /// before that is known.
    Arbitrating,
    /// The VM is the target's; it is told so until it answers.
    Committing,
    /// `HandedOver` is being written.
    Ending,
    /// The guest is being made to run here again, for this cause.
    Resuming(Cause),
    /// `RolledBack` is being written.
    RollingBack(Cause),
    /// `Reclaimed` is being written, or that an operator decided.
    Reclaiming(Cause),
    Finished,
}

/// The source's state machine.
#[derive(Clone, Debug)]
pub struct Source {
    handover: Handover,
    /// What the target is asked, until it is.
    reserve: Option<Message>,
    /// Longest that the guest may stand still before the attempt is rolled back.
    max_blackout: Duration,
    state: State,
    /// The source's QEMU is dead, but the target may hold all of its guest.
    qemu_gone: bool,
    /// An arbiter decides.
    arbiter: bool,
    /// What it calls the target's host, once that has said so.
    target_host: Option<String>,
    /// The arbiter may have been asked for the release, and the answer was not heard.
    may_be_released: bool,
    deadline: Option<Duration>,
}

impl Source {
    /// Starts an attempt, with an arbiter or without; carry out the effects.
    pub fn new(
        handover: Handover,
        peer: String,
        transfer: Transfer,
        offer: Value,
        max_blackout: Duration,
        arbiter: bool,
    ) -> (Source, Vec<SourceEffect>) {
        let reserve = Message::Reserve {
            handover: handover.clone(),
            transfer,
            offer,
        };
        let record = Record::Offered {
            handover: handover.clone(),
            peer,
        };
        let source = Source {
            handover,
            reserve: Some(reserve),
            max_blackout,
            state: State::Offering,
            qemu_gone: false,
            arbiter,
            target_host: None,
            may_be_released: false,
            deadline: None,
        };
        (source, vec![SourceEffect::Journal(record)])
    }

    /// Takes up a handover that was released before the agent restarted: says `Commit` until the target answers, once the
    /// `arbiter` has said that it was released, if there is one (by what it calls the target's host).
    pub fn released(
        handover: Handover,
        arbiter: Option<String>,
        qemu_gone: bool,
        now: Duration,
    ) -> (Source, Vec<SourceEffect>) {
        let mut source = Source {
            handover,
            reserve: None,
            max_blackout: Duration::ZERO,
            state: State::Committing,
            qemu_gone,
            arbiter: arbiter.is_some(),
            target_host: arbiter,
            may_be_released: true,
            deadline: None,
        };
        let effects = if source.arbiter {
            source.arbitrate(now)
        } else {
            source.commit(now)
        };
        (source, effects)
    }

    /// What the arbiter calls the target's host.
    pub fn target_host(&self) -> Option<&str> {
        self.target_host.as_deref()
    }

    /// Whether the attempt waits for somebody who may be gone for ever, so that an operator may decide.
    pub fn can_be_resolved(&self) -> bool {
        matches!(self.state, State::Arbitrating | State::Committing)
    }

    /// The stage for people; after the end, the last one.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Offering | State::Reserving => Stage::Reserve,
            State::PreCopy | State::Resuming(_) | State::RollingBack(_) => Stage::PreCopy,
            State::Stopped | State::Comparing => Stage::StopAndCopy,
            _ => Stage::Commit,
        }
    }

    /// When [`SourceEvent::Tick`] is due, on the driver's clock.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Whether a cancellation would still be heard.
    pub fn can_cancel(&self) -> bool {
        self.stage() < Stage::Commit
    }

    /// What this host answers a target that asks about this handover.
    pub fn verdict(&self) -> Verdict {
        match self.state {
            State::Committing | State::Ending => Verdict::Released,
            State::Revoking(_)
            | State::Resuming(_)
            | State::RollingBack(_)
            | State::Reclaiming(_)
            | State::Finished => Verdict::Aborted,
            _ => Verdict::Undecided,
        }
    }

    /// Whether a lost control lane has to be replaced: the attempt can't end before the target was heard.
    pub fn needs_peer(&self) -> bool {
        matches!(self.state, State::Committing | State::Revoking(_))
    }

    /// Takes an event at `now` (time since any fixed moment) and says what to do.
    pub fn handle(&mut self, event: SourceEvent, now: Duration) -> Vec<SourceEffect> {
        use SourceEffect as Do;
        use SourceEvent as On;
        match (&self.state, event) {
            (State::Finished, _) => vec![],

            (State::Offering, On::Journaled(Ok(()))) => {
                self.enter(State::Reserving, Some(now + RESERVE_LIMIT));
                self.reserve.take().map(Do::Send).into_iter().collect()
            }
            (State::Offering, On::Journaled(Err(why))) => self.finish(Outcome::RolledBack(Cause::Journal(why))),

            (State::Reserving, On::Peer(Message::Reserved(reservation))) => {
                self.target_host.clone_from(&reservation.arbiter_host);
                if self.arbiter && self.target_host.is_none() {
                    return self.roll_back(Cause::Arbiter(
                        "the target's agent does not ask the arbiter that this one asks".to_owned(),
                    ));
                }
                self.enter(State::PreCopy, None);
                vec![Do::OpenStream(reservation)]
            }
            (State::Reserving, On::Peer(Message::Refused { reasons })) => self.roll_back(Cause::Refused(reasons)),

            // Whether it answers is better known before the guest stands still.
            (State::PreCopy, On::StopNow) if self.arbiter => {
                let asks = self.deadline.is_none().then_some(Do::Arbitrate(Claim::Ask));
                self.deadline = self.deadline.or(Some(now + self.max_blackout));
                asks.into_iter().collect()
            }
            (
                State::PreCopy,
                On::Ruled(
                    _,
                    Ok(Ruling {
                        holder: Holder::Source, ..
                    }),
                ),
            ) => {
                self.deadline = Some(now + self.max_blackout);
                vec![Do::LetStop]
            }
            (State::PreCopy, On::Ruled(_, Ok(_))) => self.roll_back(Cause::Arbiter(
                "the arbiter says that the VM is not this host's".to_owned(),
            )),
            (State::PreCopy, On::Ruled(_, Err(why))) => self.roll_back(Cause::Arbiter(why.to_string())),
            // A QEMU that neither stops its guest nor says anything is not waited for.
            (State::PreCopy, On::StopNow) => {
                self.deadline = Some(now + self.max_blackout);
                vec![Do::LetStop]
            }
            (State::PreCopy, On::GuestStopped) => {
                self.enter(State::Stopped, Some(now + self.max_blackout));
                vec![Do::Send(Message::Stopped)]
            }

            // A target can be ready before this side heard that its guest stopped: the stream is the faster messenger.
            (State::PreCopy | State::Stopped, On::Peer(Message::Prepared { handover, image }))
                if handover == self.handover =>
            {
                self.enter(State::Comparing, Some(now + self.max_blackout));
                vec![Do::CompareImage(image)]
            }
            (State::Comparing, On::Compared(Ok(()))) if self.qemu_gone => self.release(),
            (State::Comparing, On::Compared(Ok(()))) => {
                self.enter(State::Completing, Some(now + self.max_blackout));
                vec![Do::DeliverShut]
            }
            (State::Comparing, On::Compared(Err(why))) => self.resume(Cause::Image(why)),

            (State::Completing, On::PostMigrate) => self.release(),
            // The target's image is complete and promised, and nothing runs here any more: it is the VM now.
            (State::Completing, On::QemuGone) => {
                self.qemu_gone = true;
                self.release()
            }
            // The target keeps its promise until it hears from us, so a lost peer is no reason to undo this.
            (State::Completing, On::PeerLost(_) | On::Cancel | On::NotConverging(_) | On::TransferFailed(_)) => vec![],

            (State::Releasing, On::Journaled(Ok(()))) if self.arbiter => self.arbitrate(now),
            (State::Releasing, On::Journaled(Ok(()))) => {
                self.state = State::Committing;
                self.commit(now)
            }
            // The target's copy is the only one: the record is tried again, as long as that takes.
            (State::Releasing, On::Journaled(Err(_))) if self.qemu_gone => {
                self.deadline = Some(now + COMMIT_REPEAT);
                vec![]
            }
            (State::Releasing, On::Tick) if self.qemu_gone => {
                self.deadline = None;
                self.release()
            }
            (State::Releasing, On::Journaled(Err(why))) => self.revoke(Cause::Journal(why), now),
            (State::Revoking(cause), On::Tick | On::PeerBack) => {
                let cause = cause.clone();
                self.revoke(cause, now)
            }
            (State::Revoking(cause), On::Peer(Message::Dropped { handover, .. })) if handover == self.handover => {
                let cause = cause.clone();
                self.resume(cause)
            }
            // A restarted agent that finds the record there asks for the release, and hears that it is too late.
            (
                State::Revoking(cause),
                On::Ruled(
                    _,
                    Ok(Ruling {
                        holder: Holder::Returned,
                        ..
                    }),
                ),
            ) => {
                let cause = cause.clone();
                self.resume(cause)
            }
            (State::Revoking(_), On::QemuGone) => {
                self.qemu_gone = true;
                vec![]
            }

            (State::Arbitrating, On::Ruled(_, Ok(Ruling { holder, .. }))) => match holder {
                Holder::Released | Holder::Target => {
                    self.state = State::Committing;
                    self.commit(now)
                }
                Holder::Returned => self.reclaim(Cause::Arbiter("the arbiter has given the VM back".to_owned())),
                Holder::Source => vec![],
            },
            // Nothing was asked that could still come about, and what is asked after a restart is asked only if this host did
            // not write before that it has the VM.
            (State::Arbitrating, On::Ruled(_, Err(NoRuling::Unasked(why))))
                if !self.may_be_released && !self.qemu_gone =>
            {
                self.reclaim(Cause::Arbiter(why))
            }
            (State::Arbitrating, On::Ruled(_, Err(no))) => {
                self.may_be_released |= matches!(no, NoRuling::Unanswered(_));
                vec![]
            }
            // The question before this one may be carried out yet.
            (State::Arbitrating, On::Tick) => {
                self.may_be_released = true;
                self.arbitrate(now)
            }

            (State::Committing, On::Tick | On::PeerBack) => self.commit(now),
            // It asked the arbiter itself.
            (State::Arbitrating | State::Committing, On::Peer(Message::Running { handover }))
                if handover == self.handover =>
            {
                self.end(Record::HandedOver { handover })
            }
            (State::Arbitrating | State::Committing, On::Peer(Message::Dropped { handover, reason }))
                if handover == self.handover =>
            {
                self.reclaim(Cause::Target(reason))
            }
            (State::Arbitrating | State::Committing, On::QemuGone) => {
                self.qemu_gone = true;
                vec![]
            }
            (State::Committing, On::Ruled(_, Ok(ruling))) => match (ruling.holder, ruling.other_is_gone) {
                // A target that is only out of reach may take it first. Where this side's copy has died, it has to.
                (Holder::Released, true) if !self.qemu_gone => vec![Do::Arbitrate(Claim::TakeBack)],
                (Holder::Returned, _) => self.reclaim(Cause::PeerLost(
                    "the target's host is gone, and had not taken the VM".to_owned(),
                )),
                // The guest may have run there, and ended like any other.
                (Holder::Target, true) => self.end(Record::HandedOver {
                    handover: self.handover.clone(),
                }),
                _ => vec![],
            },
            (State::Arbitrating | State::Committing, On::Resolved(Side::Source)) => self.reclaim(Cause::Resolved),
            (State::Arbitrating | State::Committing, On::Resolved(keep)) => self.end(Record::Resolved {
                handover: self.handover.clone(),
                by: Side::Source,
                keep,
            }),
            // A journal that fails here loses nothing: a restart would say `Commit` again and hear `Running`.
            (State::Ending, On::Journaled(_)) => self.finish(Outcome::HandedOver),

            (State::Reclaiming(cause), On::Journaled(Ok(()))) => {
                let cause = cause.clone();
                self.resume(cause)
            }
            // The guest may not run before the record says so. It is tried again; a restarted agent tries as well.
            (State::Reclaiming(_), On::Journaled(Err(_))) => {
                self.deadline = Some(now + COMMIT_REPEAT);
                vec![]
            }
            (State::Reclaiming(cause), On::Tick) => {
                let cause = cause.clone();
                self.reclaim(cause)
            }

            (State::Resuming(cause), On::Resumed(Ok(()))) => {
                let cause = cause.clone();
                self.enter(State::RollingBack(cause), None);
                vec![Do::Journal(Record::RolledBack {
                    handover: self.handover.clone(),
                })]
            }
            (State::Resuming(_), On::Resumed(Err(why))) => self.finish(Outcome::Lost(Cause::Qemu(why))),
            (State::Resuming(_), On::QemuGone) => self.finish(Outcome::Lost(Cause::GuestGone(Stage::PreCopy))),
            (State::RollingBack(cause), On::Journaled(_)) => {
                let cause = cause.clone();
                self.finish(Outcome::RolledBack(cause))
            }

            (State::PreCopy, On::QemuGone) => self.lose(Cause::GuestGone(Stage::PreCopy)),
            (State::Offering | State::Reserving, On::QemuGone) => self.lose(Cause::GuestGone(Stage::Reserve)),
            // What the target gets of the stream may be all of it; then the guest lives on there.
            (State::Stopped | State::Comparing, On::QemuGone) => {
                self.qemu_gone = true;
                vec![]
            }
            // A QEMU that died also breaks the stream and its own migration; the target's word decides, or the deadline.
            (State::Stopped | State::Comparing, On::TransferFailed(_) | On::MigrationFailed(_)) if self.qemu_gone => {
                vec![]
            }

            (
                State::Offering
                | State::Reserving
                | State::PreCopy
                | State::Stopped
                | State::Comparing
                | State::Completing,
                event,
            ) => match failure(&self.handover, event, self.stage(), self.limit()) {
                Some(cause) => self.roll_back(cause),
                None => vec![],
            },
            _ => vec![],
        }
    }

    fn limit(&self) -> Duration {
        if self.state == State::Reserving {
            RESERVE_LIMIT
        } else {
            self.max_blackout
        }
    }

    fn enter(&mut self, state: State, deadline: Option<Duration>) {
        self.state = state;
        self.deadline = deadline;
    }

    fn abort(&self, cause: &Cause) -> SourceEffect {
        SourceEffect::Send(Message::Abort {
            handover: self.handover.clone(),
            reason: cause.to_string(),
        })
    }

    /// Ends an attempt that was not released. Before the stream was opened the guest was never touched.
    fn roll_back(&mut self, cause: Cause) -> Vec<SourceEffect> {
        if matches!(self.state, State::Offering | State::Reserving) {
            let abort = self.abort(&cause);
            self.enter(State::RollingBack(cause), None);
            return vec![
                abort,
                SourceEffect::Journal(Record::RolledBack {
                    handover: self.handover.clone(),
                }),
            ];
        }
        self.resume(cause)
    }

    fn resume(&mut self, cause: Cause) -> Vec<SourceEffect> {
        if self.qemu_gone {
            return self.lose(cause);
        }
        let abort = self.abort(&cause);
        self.enter(State::Resuming(cause), None);
        vec![abort, SourceEffect::ResumeGuest]
    }

    fn revoke(&mut self, cause: Cause, now: Duration) -> Vec<SourceEffect> {
        let abort = self.abort(&cause);
        self.enter(State::Revoking(cause), Some(now + COMMIT_REPEAT));
        let take_back = self.arbiter.then_some(SourceEffect::Arbitrate(Claim::TakeBack));
        [abort].into_iter().chain(take_back).collect()
    }

    fn arbitrate(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.enter(State::Arbitrating, Some(now + COMMIT_REPEAT));
        vec![SourceEffect::Arbitrate(Claim::Release)]
    }

    fn reclaim(&mut self, cause: Cause) -> Vec<SourceEffect> {
        let handover = self.handover.clone();
        let record = match cause {
            Cause::Resolved => Record::Resolved {
                handover,
                by: Side::Source,
                keep: Side::Source,
            },
            _ => Record::Reclaimed { handover },
        };
        self.enter(State::Reclaiming(cause), None);
        vec![SourceEffect::Journal(record)]
    }

    /// The VM is the target's, and the copy here of no more use.
    fn end(&mut self, record: Record) -> Vec<SourceEffect> {
        self.enter(State::Ending, None);
        vec![SourceEffect::EndQemu, SourceEffect::Journal(record)]
    }

    fn lose(&mut self, cause: Cause) -> Vec<SourceEffect> {
        let mut effects = vec![self.abort(&cause)];
        effects.extend(self.finish(Outcome::Lost(cause)));
        effects
    }

    fn release(&mut self) -> Vec<SourceEffect> {
        self.enter(State::Releasing, None);
        vec![SourceEffect::Journal(Record::Released {
            handover: self.handover.clone(),
            arbiter: self.target_host.clone().filter(|_| self.arbiter),
        })]
    }

    fn commit(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.deadline = Some(now + COMMIT_REPEAT);
        let commit = SourceEffect::Send(Message::Commit {
            handover: self.handover.clone(),
        });
        let ask = self.arbiter.then_some(SourceEffect::Arbitrate(Claim::Ask));
        [commit].into_iter().chain(ask).collect()
    }

    fn finish(&mut self, outcome: Outcome) -> Vec<SourceEffect> {
        self.enter(State::Finished, None);
        vec![SourceEffect::Finish(outcome)]
    }
}

/// The cause for which an event ends an attempt that is not released, if it does.
fn failure(handover: &Handover, event: SourceEvent, stage: Stage, limit: Duration) -> Option<Cause> {
    Some(match event {
        SourceEvent::Cancel => Cause::Cancelled,
        SourceEvent::NotConverging(why) => Cause::NotConverging(why),
        SourceEvent::PeerLost(why) => Cause::PeerLost(why),
        SourceEvent::TransferFailed(why) => Cause::Transfer(why),
        SourceEvent::MigrationFailed(why) => Cause::Qemu(why),
        SourceEvent::Peer(Message::Dropped { handover: of, reason }) if of == *handover => Cause::Target(reason),
        SourceEvent::Tick => Cause::TooLong(stage, limit),
        _ => return None,
    })
}
