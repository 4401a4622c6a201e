//! The target's side: it runs the VM only after the source durably gave it up, and drops its copy otherwise.

use super::Record;
use super::arbiter::{Claim, Holder, NoRuling, Ruling, Side};
use crate::wire::message::{Handover, Image, Message, Reservation, Transfer, Verdict};
use serde_json::Value;
use std::time::Duration;

/// How long a reservation stands without a stream.
const RESERVATION_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two inquiries at a source that can't be reached.
const INQUIRY_REPEAT: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetEvent {
    /// The record that was last asked for is durable, or is not.
    Journaled(Result<(), String>),
    /// The peer said this.
    Peer(Message),
    /// The control lane is gone.
    PeerLost(String),
    /// The checks are done and QEMU waits for the stream ([`TargetEffect::Reserve`]). Or every reason why not.
    Reserved(Result<Reservation, Vec<String>>),
    /// All lanes are connected.
    StreamOpened,
    /// QEMU has loaded the whole stream and is paused; its SHUT 0 is held, and the image described.
    Loaded(Image),
    /// The stream, a lane, or QEMU's loading of it failed.
    LoadFailed(String),
    /// QEMU ended by itself.
    QemuGone(String),
    /// QEMU was told to run the guest ([`TargetEffect::StartGuest`]) and does, or why it would not or could not be told. A
    /// QEMU that is gone before it was told is [`QemuGone`](TargetEvent::QemuGone).
    Started(Result<(), String>),
    /// QEMU, or only its monitor, was gone while it was told: the guest may run or not. It is told again.
    StartUnknown(String),
    /// What came of [`TargetEffect::Arbitrate`]. Only the answer to the latest question is told.
    Ruled(Claim, Result<Ruling, NoRuling>),
    /// The source's host is gone for ever, says an operator, and this side's copy is the VM, or the other.
    Resolved(Side),
    /// Time has passed; see [`Target::deadline`].
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetEffect {
    /// Check the offer, set memory aside, start QEMU paused and waiting; report [`TargetEvent::Reserved`].
    Reserve {
        /// How the stream will cross.
        transfer: Transfer,
        /// What the source offered.
        offer: Value,
    },
    /// Make this durable, then report [`TargetEvent::Journaled`].
    Journal(Record),
    /// Say this to the peer, if it can be reached.
    Send(Message),
    /// Ask the source's agent, over a connection of its own, about this handover; its answer comes as an event.
    Inquire,
    /// Ask the arbiter, and report [`TargetEvent::Ruled`]. A question that is under way already is not waited for any more.
    Arbitrate(Claim),
    /// Start the guest, announce it on its networks; report [`TargetEvent::Started`]. Durably before the first time, for as
    /// long as this host is not rebooted: that it may have run.
    StartGuest,
    /// End QEMU, free what was set aside.
    Drop {
        /// Why, for logs.
        reason: String,
    },
    /// The attempt is over; `true` if the VM is now this host's.
    Finish {
        /// Whether the VM is this host's.
        owned: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Reserving,
    /// Set aside; the stream is awaited.
    Reserved,
    Receiving,
    /// `Prepared` is being written.
    Preparing(Image),
    /// The source's decision is awaited.
    Prepared,
    /// `Owned` is being written.
    Owning {
        /// The copy's QEMU died meanwhile, and never ran.
        gone: bool,
    },
    /// The VM is this host's and its guest is being started; again at each commit if QEMU would not.
    Starting {
        failed: bool,
    },
    /// `Dropped` is being written, if need be again and again; the copy is gone.
    Dropping(String),
    /// The VM is this host's and runs; the source may not have heard.
    Running,
    Finished,
}

/// The target's state machine.
#[derive(Clone, Debug)]
pub struct Target {
    handover: Handover,
    peer: String,
    state: State,
    /// `Owned` may be on the disk, written or reported as failed: a restarted agent would take the VM for its own.
    may_own: bool,
    /// The guest may have been started without that being known, by an agent before this one or by a monitor that broke.
    may_have_run: bool,
    /// An arbiter decides.
    arbiter: bool,
    deadline: Option<Duration>,
}

impl Target {
    /// Answers a [`Message::Reserve`]; `peer` is where the source's agent listens.
    pub fn new(
        handover: Handover,
        peer: String,
        transfer: Transfer,
        offer: Value,
        arbiter: bool,
    ) -> (Target, Vec<TargetEffect>) {
        let target = Target {
            arbiter,
            ..Target::in_state(State::Reserving, handover, peer)
        };
        (target, vec![TargetEffect::Reserve { transfer, offer }])
    }

    /// Takes up an image that was prepared before the agent restarted: asks the source, and the arbiter if there is one.
    pub fn prepared(handover: Handover, peer: String, arbiter: bool, now: Duration) -> (Target, Vec<TargetEffect>) {
        let mut target = Target {
            arbiter,
            ..Target::in_state(State::Prepared, handover, peer)
        };
        let effects = target.inquire(now);
        (target, effects)
    }

    /// Takes up a VM that was owned but perhaps not started before the agent restarted.
    pub fn owned(handover: Handover, peer: String) -> (Target, Vec<TargetEffect>) {
        let target = Target {
            may_own: true,
            may_have_run: true,
            ..Target::in_state(State::Starting { failed: false }, handover, peer)
        };
        (target, vec![TargetEffect::StartGuest])
    }

    /// Takes up a VM that was owned before the agent restarted, and whose QEMU is gone without ever having been told to run it.
    pub fn owned_unstarted(handover: Handover, peer: String) -> (Target, Vec<TargetEffect>) {
        let mut target = Target {
            may_own: true,
            ..Target::in_state(State::Starting { failed: false }, handover, peer)
        };
        let effects = target.drop_promised("the target's QEMU ended before it ran".to_owned());
        (target, effects)
    }

    fn in_state(state: State, handover: Handover, peer: String) -> Target {
        Target {
            handover,
            peer,
            state,
            may_own: false,
            may_have_run: false,
            arbiter: false,
            deadline: None,
        }
    }

    /// Whether the attempt waits for somebody who may be gone for ever, so that an operator may decide.
    pub fn can_be_resolved(&self) -> bool {
        self.state == State::Prepared
    }

    /// When [`TargetEvent::Tick`] is due, on the driver's clock.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Where the source's agent listens.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Whether the VM is this host's.
    pub fn owns(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running)
    }

    /// Takes an event at `now` (time since any fixed moment) and says what to do.
    pub fn handle(&mut self, event: TargetEvent, now: Duration) -> Vec<TargetEffect> {
        use TargetEffect as Do;
        use TargetEvent as On;
        match (&self.state, event) {
            (State::Finished, _) => vec![],

            (State::Reserving, On::Reserved(Ok(reservation))) => {
                self.enter(State::Reserved, Some(now + RESERVATION_LIMIT));
                vec![Do::Send(Message::Reserved(reservation))]
            }
            (State::Reserving, On::Reserved(Err(reasons))) => {
                self.enter(State::Finished, None);
                vec![Do::Send(Message::Refused { reasons }), Do::Finish { owned: false }]
            }
            (State::Reserved, On::StreamOpened) => {
                self.enter(State::Receiving, None);
                vec![]
            }
            (State::Reserved, On::Tick) => self.drop_unpromised("the reservation expired before a stream came".into()),

            (State::Receiving, On::Loaded(image)) => {
                self.enter(State::Preparing(image), None);
                vec![Do::Journal(Record::Prepared {
                    handover: self.handover.clone(),
                    peer: self.peer.clone(),
                    arbiter: self.arbiter,
                })]
            }
            (State::Preparing(image), On::Journaled(Ok(()))) => {
                let image = *image;
                // The source answers at once, unless it is gone; then it is asked.
                self.enter(State::Prepared, Some(now + INQUIRY_REPEAT));
                vec![Do::Send(Message::Prepared {
                    handover: self.handover.clone(),
                    image,
                })]
            }
            (State::Preparing(_), On::Journaled(Err(why))) => {
                self.drop_unpromised(format!("the journal can't be written: {why}"))
            }

            (State::Prepared, On::Peer(message)) if message.is_release(&self.handover) && self.arbiter => {
                self.take(now)
            }
            (State::Prepared, On::Peer(message)) if message.is_release(&self.handover) => self.own(),
            (State::Prepared, On::Peer(message)) => match message.abort_reason(&self.handover) {
                Some(reason) => self.drop_promised(reason),
                None => vec![],
            },
            (State::Prepared, On::Ruled(_, Ok(ruling))) => match ruling.holder {
                Holder::Target => self.own(),
                Holder::Returned => self.drop_promised("the arbiter has given the VM back to its source".to_owned()),
                Holder::Source | Holder::Released => vec![],
            },
            (State::Prepared, On::PeerLost(_) | On::Tick) => self.inquire(now),
            (State::Prepared, On::QemuGone(why)) => self.drop_promised(why),
            (State::Prepared, On::Resolved(Side::Target)) => self.own_by(Record::Resolved {
                handover: self.handover.clone(),
                by: Side::Target,
                keep: Side::Target,
            }),
            (State::Prepared, On::Resolved(keep)) => self.drop_by(
                "an operator decided that the source's copy is the VM".to_owned(),
                Record::Resolved {
                    handover: self.handover.clone(),
                    by: Side::Target,
                    keep,
                },
            ),

            (State::Owning { .. }, On::QemuGone(_)) => {
                self.enter(State::Owning { gone: true }, None);
                vec![]
            }
            (State::Owning { gone: true }, On::Journaled(_)) => {
                self.drop_promised("the target's QEMU ended before it ran".to_owned())
            }
            (State::Owning { .. }, On::Journaled(Ok(()))) => {
                self.enter(State::Starting { failed: false }, None);
                vec![Do::StartGuest]
            }
            // Not written means not owned: the source goes on saying `Commit`, and the next one tries again.
            (State::Owning { .. }, On::Journaled(Err(_))) => {
                self.enter(State::Prepared, Some(now + INQUIRY_REPEAT));
                vec![]
            }
            (State::Starting { .. }, On::Started(Ok(()))) => self.take_over(),
            // Its guest may have run and written to its disks before that: its end is the guest's, like any other.
            (State::Starting { .. }, On::QemuGone(_)) if self.may_have_run => self.take_over(),
            // Without the record a restarted agent would see once more that the guest runs, which is harmless.
            (State::Running, On::Journaled(_)) => {
                self.enter(State::Finished, None);
                vec![Do::Finish { owned: true }]
            }
            (State::Starting { .. }, On::Started(Err(reason))) => {
                self.enter(State::Starting { failed: true }, Some(now + INQUIRY_REPEAT));
                vec![Do::Send(Message::Stuck {
                    handover: self.handover.clone(),
                    reason,
                })]
            }
            (State::Starting { .. }, On::StartUnknown(_)) => {
                self.may_have_run = true;
                self.enter(State::Starting { failed: true }, Some(now + INQUIRY_REPEAT));
                vec![]
            }
            // Only a QEMU that never ran the guest ends here: the source's copy is as good as this one was.
            (State::Starting { .. }, On::QemuGone(why)) => self.drop_promised(why),
            (State::Starting { failed: true }, On::Tick | On::Peer(Message::Commit { .. })) => {
                self.enter(State::Starting { failed: false }, None);
                vec![Do::StartGuest]
            }
            // The source did not hear the first answer.
            (State::Running, On::Peer(Message::Commit { handover })) if handover == self.handover => {
                vec![Do::Send(Message::Running { handover })]
            }

            (State::Dropping(reason), On::Journaled(Ok(()))) => {
                let reason = reason.clone();
                self.finish_dropped(reason)
            }
            // The copy is gone, written or not, and the source may have released it: it has to be told until it is written.
            (State::Dropping(_), On::Journaled(Err(_))) => {
                self.deadline = Some(now + INQUIRY_REPEAT);
                self.dropped_unwritten()
            }
            (State::Dropping(_), On::Peer(message))
                if message.is_release(&self.handover) || message.abort_reason(&self.handover).is_some() =>
            {
                self.dropped_unwritten()
            }
            (State::Dropping(_), On::Tick) => {
                self.deadline = None;
                vec![Do::Journal(Record::Dropped {
                    handover: self.handover.clone(),
                })]
            }

            (State::Reserving | State::Reserved | State::Receiving | State::Preparing(_), event) => match event {
                On::Peer(message) => match message.abort_reason(&self.handover) {
                    Some(reason) => self.drop_unpromised(reason),
                    None => vec![],
                },
                On::PeerLost(why) | On::LoadFailed(why) | On::QemuGone(why) => self.drop_unpromised(why),
                _ => vec![],
            },
            _ => vec![],
        }
    }

    fn enter(&mut self, state: State, deadline: Option<Duration>) {
        self.state = state;
        self.deadline = deadline;
    }

    fn inquire(&mut self, now: Duration) -> Vec<TargetEffect> {
        self.deadline = Some(now + INQUIRY_REPEAT);
        let take = self.arbiter.then_some(TargetEffect::Arbitrate(Claim::Take));
        [TargetEffect::Inquire].into_iter().chain(take).collect()
    }

    fn take(&mut self, now: Duration) -> Vec<TargetEffect> {
        self.deadline = Some(now + INQUIRY_REPEAT);
        vec![TargetEffect::Arbitrate(Claim::Take)]
    }

    fn own(&mut self) -> Vec<TargetEffect> {
        self.own_by(Record::Owned {
            handover: self.handover.clone(),
        })
    }

    fn own_by(&mut self, record: Record) -> Vec<TargetEffect> {
        self.enter(State::Owning { gone: false }, None);
        self.may_own = true;
        vec![TargetEffect::Journal(record)]
    }

    fn take_over(&mut self) -> Vec<TargetEffect> {
        self.enter(State::Running, None);
        vec![
            TargetEffect::Send(Message::Running {
                handover: self.handover.clone(),
            }),
            TargetEffect::Journal(Record::TakenOver {
                handover: self.handover.clone(),
            }),
        ]
    }

    /// Before `Prepared` is durable nothing was promised: the copy may go without a word in the journal.
    fn drop_unpromised(&mut self, reason: String) -> Vec<TargetEffect> {
        let mut effects = vec![TargetEffect::Drop { reason: reason.clone() }];
        effects.extend(self.finish_dropped(reason));
        effects
    }

    fn drop_promised(&mut self, reason: String) -> Vec<TargetEffect> {
        self.drop_by(
            reason,
            Record::Dropped {
                handover: self.handover.clone(),
            },
        )
    }

    fn drop_by(&mut self, reason: String, record: Record) -> Vec<TargetEffect> {
        self.enter(State::Dropping(reason.clone()), None);
        vec![TargetEffect::Drop { reason }, TargetEffect::Journal(record)]
    }

    fn finish_dropped(&mut self, reason: String) -> Vec<TargetEffect> {
        self.enter(State::Finished, None);
        vec![self.dropped(reason), TargetEffect::Finish { owned: false }]
    }

    /// Before it is written that the copy is gone, that may be said only if nothing on the disk says otherwise: after a
    /// restart it would be unsaid, with the source's copy running or its end asked for.
    fn dropped_unwritten(&self) -> Vec<TargetEffect> {
        match &self.state {
            State::Dropping(reason) if !self.may_own => vec![self.dropped(reason.clone())],
            _ => vec![],
        }
    }

    fn dropped(&self, reason: String) -> TargetEffect {
        TargetEffect::Send(Message::Dropped {
            handover: self.handover.clone(),
            reason,
        })
    }
}

impl Message {
    /// Whether this tells the target of `handover` that the VM is its own.
    fn is_release(&self, handover: &Handover) -> bool {
        match self {
            Message::Commit { handover: of } => of == handover,
            Message::Outcome {
                handover: of,
                verdict: Verdict::Released,
            } => of == handover,
            _ => false,
        }
    }

    /// Why the target of `handover` has to drop its copy, if this says so.
    fn abort_reason(&self, handover: &Handover) -> Option<String> {
        match self {
            Message::Abort { handover: of, reason } if of == handover => Some(format!("the source aborted: {reason}")),
            Message::Outcome {
                handover: of,
                verdict: Verdict::Aborted,
            } if of == handover => Some("the source has not released the VM and never will".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples::{handover, transfer};
    use super::*;

    #[test]
    fn a_reservation_that_nothing_comes_for_expires() {
        let (mut target, _) = Target::new(handover(), "a".into(), transfer(), Value::Null, false);
        let reserved = Duration::from_secs(5);
        target.handle(TargetEvent::Reserved(Ok(Reservation::default())), reserved);
        assert_eq!(target.deadline(), Some(reserved + RESERVATION_LIMIT));
        let effects = target.handle(TargetEvent::Tick, reserved + RESERVATION_LIMIT);
        let [
            TargetEffect::Drop { reason },
            TargetEffect::Send(Message::Dropped { .. }),
            TargetEffect::Finish { owned: false },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert!(reason.contains("expired"), "{reason}");
    }
}
