//! Source and target joined by a network that breaks (and loses what was on its way), repeats and delays, on hosts whose
//! agents are killed and restarted at any step, journals that fail, and QEMUs that die: whatever the order, at most one copy
//! runs, and none is lost that a living host still holds.

use super::examples::{handover, transfer};
use super::*;
use crate::page::StreamDigest;
use crate::wire::message::{Image, Message, Reservation, Verdict};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Qemu {
    Absent,
    /// Source: runs the guest, no migration. Target: runs the guest.
    Running,
    /// Source: runs the guest, pages flow.
    Migrating,
    /// Source: stopped for the final pass; a closed socket resumes it.
    Stopped,
    PostMigrate,
    /// Target: waits for or loads the stream.
    Incoming,
    /// Target: complete and paused.
    Paused,
}

/// What the outside can do; drawn at random, skipped where it makes no sense at that moment.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Deliver,
    DeliverBack,
    Repeat,
    BreakLink,
    Step,
    Journal,
    JournalFails,
    Tick,
    Cancel,
    KillSourceAgent,
    KillTargetAgent,
    KillSourceQemu,
    KillTargetQemu,
}

#[derive(Debug, Default)]
struct Host {
    journal: Vec<Record>,
    /// A record that was asked for and is not yet durable.
    pending: Option<Record>,
}

struct World {
    now: Duration,
    source: Option<Source>,
    target: Option<Target>,
    a: Host,
    b: Host,
    a_qemu: Qemu,
    b_qemu: Qemu,
    a_qemu_killed: bool,
    b_qemu_killed: bool,
    b_ran: bool,
    /// The target's QEMU was told to run its guest, which outlives the agent.
    b_told: bool,
    to_b: VecDeque<Message>,
    to_a: VecDeque<Message>,
    link: bool,
    outcome: Option<Outcome>,
    image_complete: bool,
}

impl World {
    fn new() -> World {
        let (source, effects) = Source::new(
            handover(),
            "b".into(),
            transfer(),
            serde_json::Value::Null,
            Duration::from_secs(10),
            false,
        );
        let mut world = World {
            now: Duration::ZERO,
            source: Some(source),
            target: None,
            a: Host::default(),
            b: Host::default(),
            a_qemu: Qemu::Running,
            b_qemu: Qemu::Absent,
            a_qemu_killed: false,
            b_qemu_killed: false,
            b_ran: false,
            b_told: false,
            to_b: VecDeque::new(),
            to_a: VecDeque::new(),
            link: true,
            outcome: None,
            image_complete: false,
        };
        world.do_source(effects);
        world
    }

    fn on_source(&mut self, event: SourceEvent) {
        if let Some(source) = &mut self.source {
            let effects = source.handle(event, self.now);
            self.do_source(effects);
        }
    }

    fn on_target(&mut self, event: TargetEvent) {
        if let Some(target) = &mut self.target {
            let effects = target.handle(event, self.now);
            self.do_target(effects);
        }
    }

    /// QEMU's migration socket closed: a guest that is only stopped for the final pass goes on.
    fn close_migration(&mut self) {
        if matches!(self.a_qemu, Qemu::Migrating | Qemu::Stopped) {
            self.a_qemu = Qemu::Running;
        }
    }

    fn do_source(&mut self, effects: Vec<SourceEffect>) {
        for (index, effect) in effects.iter().enumerate() {
            match effect.clone() {
                SourceEffect::Journal(record) => {
                    assert_eq!(
                        index + 1,
                        effects.len(),
                        "nothing may follow a record before it is durable: {effects:?}"
                    );
                    self.a.pending = Some(record);
                }
                SourceEffect::Send(message) => {
                    if self.link {
                        self.to_b.push_back(message);
                    }
                }
                SourceEffect::OpenStream { .. } => {
                    if self.a_qemu == Qemu::Running {
                        self.a_qemu = Qemu::Migrating;
                    }
                }
                SourceEffect::LetStop => {}
                SourceEffect::CompareImage(_) => self.on_source(SourceEvent::Compared(Ok(()))),
                SourceEffect::DeliverShut => {
                    if self.a_qemu == Qemu::Stopped {
                        self.a_qemu = Qemu::PostMigrate;
                    }
                }
                SourceEffect::ResumeGuest => {
                    self.close_migration();
                    let resumed = if self.a_qemu == Qemu::Absent {
                        Err("gone".into())
                    } else {
                        Ok(())
                    };
                    if resumed.is_ok() {
                        self.a_qemu = Qemu::Running;
                    }
                    self.check();
                    self.on_source(SourceEvent::Resumed(resumed));
                }
                SourceEffect::EndQemu => self.a_qemu = Qemu::Absent,
                SourceEffect::Arbitrate(_) => panic!("there is no arbiter"),
                SourceEffect::Finish(outcome) => {
                    self.outcome = Some(outcome);
                    self.source = None;
                }
            }
        }
    }

    fn do_target(&mut self, effects: Vec<TargetEffect>) {
        for (index, effect) in effects.iter().enumerate() {
            match effect.clone() {
                TargetEffect::Reserve { .. } => {
                    self.b_qemu = Qemu::Incoming;
                    self.on_target(TargetEvent::Reserved(Ok(Reservation::default())));
                }
                TargetEffect::Journal(record) => {
                    assert_eq!(
                        index + 1,
                        effects.len(),
                        "nothing may follow a record before it is durable: {effects:?}"
                    );
                    self.b.pending = Some(record);
                }
                TargetEffect::Send(message) => {
                    if self.link {
                        self.to_a.push_back(message);
                    }
                }
                TargetEffect::Inquire => {
                    if self.link {
                        self.inquire(Message::Inquire { handover: handover() });
                    }
                }
                TargetEffect::Arbitrate(_) => panic!("there is no arbiter"),
                TargetEffect::StartGuest if self.b_qemu == Qemu::Absent => {
                    self.on_target(TargetEvent::QemuGone("gone".into()));
                }
                TargetEffect::StartGuest => {
                    self.b_told = true;
                    self.b_qemu = Qemu::Running;
                    self.b_ran = true;
                    self.check();
                    self.on_target(TargetEvent::Started(Ok(())));
                }
                TargetEffect::Drop { .. } => {
                    assert_ne!(self.b_qemu, Qemu::Running, "a running guest was dropped");
                    self.b_qemu = Qemu::Absent;
                }
                TargetEffect::Finish { .. } => self.target = None,
            }
        }
    }

    /// An inquiry and its answer, as one step: the source's agent answers from its state machine or its journal.
    fn inquire(&mut self, inquiry: Message) {
        let under_way = self.source.as_ref().map(Source::verdict);
        if let Some(message) = answer(&self.a.journal, under_way, &inquiry) {
            self.on_target(TargetEvent::Peer(message));
        }
    }

    fn deliver_to_b(&mut self) {
        let Some(message) = self.to_b.pop_front() else {
            return;
        };
        match (&self.target, message) {
            (
                None,
                Message::Reserve {
                    handover,
                    transfer,
                    offer,
                },
            ) if self.b.journal.is_empty() && !self.b_qemu_killed => {
                let (target, effects) = Target::new(handover, "a".into(), transfer, offer, false);
                self.target = Some(target);
                self.do_target(effects);
            }
            (None, message) => {
                if let Some(reply) = answer(&self.b.journal, None, &message) {
                    self.to_a.push_back(reply);
                }
            }
            (Some(_), message) => self.on_target(TargetEvent::Peer(message)),
        }
    }

    fn journal(&mut self, fails: bool) {
        let result = if fails { Err("disk full".to_owned()) } else { Ok(()) };
        if let Some(record) = self.a.pending.take() {
            if !fails {
                self.a.journal.push(record);
            }
            self.on_source(SourceEvent::Journaled(result));
        } else if let Some(record) = self.b.pending.take() {
            if !fails {
                self.b.journal.push(record);
            }
            self.on_target(TargetEvent::Journaled(result));
        }
    }

    /// The QEMUs go on by themselves.
    fn step(&mut self) {
        if self.target.is_some() && self.a_qemu == Qemu::Migrating && self.b_qemu == Qemu::Incoming {
            self.on_target(TargetEvent::StreamOpened);
            self.a_qemu = Qemu::Stopped;
            self.on_source(SourceEvent::GuestStopped);
        } else if self.a_qemu == Qemu::Stopped && self.b_qemu == Qemu::Incoming && self.link {
            self.b_qemu = Qemu::Paused;
            self.image_complete = true;
            let image = Image {
                stream: StreamDigest::default(),
                memory: None,
            };
            self.on_target(TargetEvent::Loaded(image));
        } else if self.a_qemu == Qemu::PostMigrate {
            self.on_source(SourceEvent::PostMigrate);
        }
    }

    fn restart_a(&mut self) {
        self.source = None;
        self.a.pending = None;
        self.to_a.clear();
        self.to_b.clear();
        self.close_migration();
        self.break_link();
        match after_restart(&self.a.journal) {
            AfterRestart::RollBack(_) | AfterRestart::Nothing => {
                let released = matches!(self.a.journal.last(), Some(Record::HandedOver { .. }));
                if self.a_qemu == Qemu::PostMigrate && !released {
                    self.a_qemu = Qemu::Running;
                }
                if matches!(
                    self.a.journal.last(),
                    Some(Record::Offered { .. } | Record::Reclaimed { .. })
                ) {
                    self.a.journal.push(Record::RolledBack { handover: handover() });
                }
            }
            AfterRestart::Commit(handover, _, arbiter) => {
                let gone = self.a_qemu == Qemu::Absent;
                let (source, effects) = Source::released(handover, arbiter, gone, self.now);
                self.source = Some(source);
                self.do_source(effects);
            }
            other => panic!("a source's journal gave {other:?}"),
        }
    }

    fn restart_b(&mut self) {
        self.target = None;
        self.b.pending = None;
        self.to_a.clear();
        self.to_b.clear();
        self.break_link();
        let found = match (self.b_qemu, self.b_told) {
            (Qemu::Absent, true) => FoundQemu::Gone,
            (Qemu::Absent, false) => FoundQemu::GoneUnstarted,
            _ => FoundQemu::Other,
        };
        let ran = |last: Option<&Record>| matches!(last, Some(Record::TakenOver { .. } | Record::Owned { .. }));
        match after_restart(&self.b.journal).given(found) {
            AfterRestart::Nothing if ran(self.b.journal.last()) => {}
            AfterRestart::Nothing => self.b_qemu = Qemu::Absent,
            AfterRestart::Ask(handover, peer, arbiter) => {
                let (target, effects) = Target::prepared(handover, peer, arbiter, self.now);
                self.target = Some(target);
                self.do_target(effects);
                if self.b_qemu == Qemu::Absent {
                    self.on_target(TargetEvent::QemuGone("found dead".into()));
                }
            }
            AfterRestart::Run(handover, peer) => {
                let (target, effects) = Target::owned(handover, peer);
                self.target = Some(target);
                self.do_target(effects);
            }
            AfterRestart::GiveBack(handover, peer) => {
                let (target, effects) = Target::owned_unstarted(handover, peer);
                self.target = Some(target);
                self.do_target(effects);
            }
            other => panic!("a target's journal gave {other:?}"),
        }
    }

    fn break_link(&mut self) {
        self.to_a.clear();
        self.to_b.clear();
        self.on_source(SourceEvent::PeerLost("cut".into()));
        self.on_target(TargetEvent::PeerLost("cut".into()));
    }

    fn suffer(&mut self, fate: Fate) {
        match fate {
            Fate::Deliver => self.deliver_to_b(),
            Fate::DeliverBack => {
                if let Some(message) = self.to_a.pop_front() {
                    self.on_source(SourceEvent::Peer(message));
                }
            }
            Fate::Repeat => {
                if let Some(message) = self.to_b.front().cloned() {
                    self.to_b.push_back(message);
                }
                if let Some(message) = self.to_a.front().cloned() {
                    self.to_a.push_back(message);
                }
            }
            Fate::BreakLink => self.break_link(),
            Fate::Step => self.step(),
            Fate::Journal => self.journal(false),
            Fate::JournalFails => self.journal(true),
            Fate::Tick => self.tick(),
            Fate::Cancel => self.on_source(SourceEvent::Cancel),
            Fate::KillSourceAgent => self.restart_a(),
            Fate::KillTargetAgent => self.restart_b(),
            Fate::KillSourceQemu => {
                // A guest that ran here and dies is a guest that crashed: no migration can be blamed for it.
                self.a_qemu_killed |= self.a_qemu != Qemu::Absent;
                self.a_qemu = Qemu::Absent;
                self.on_source(SourceEvent::QemuGone);
            }
            Fate::KillTargetQemu => {
                self.b_qemu_killed |= self.b_qemu != Qemu::Absent;
                self.b_qemu = Qemu::Absent;
                self.on_target(TargetEvent::QemuGone("killed".into()));
            }
        }
        self.check();
    }

    fn tick(&mut self) {
        self.now += Duration::from_secs(1);
        if self
            .source
            .as_ref()
            .and_then(Source::deadline)
            .is_some_and(|at| at <= self.now)
        {
            self.on_source(SourceEvent::Tick);
        }
        if self
            .target
            .as_ref()
            .and_then(Target::deadline)
            .is_some_and(|at| at <= self.now)
        {
            self.on_target(TargetEvent::Tick);
        }
    }

    fn check(&self) {
        let runs = |qemu| matches!(qemu, Qemu::Running | Qemu::Migrating);
        assert!(!(runs(self.a_qemu) && runs(self.b_qemu)), "two copies run");
        if runs(self.b_qemu) {
            assert!(self.image_complete, "an incomplete image runs");
            assert!(
                self.a.journal.contains(&Record::Released {
                    handover: handover(),
                    arbiter: None
                }),
                "the target runs it unreleased"
            );
        }
        if self.outcome == Some(Outcome::HandedOver) {
            assert!(self.b.journal.contains(&Record::Owned { handover: handover() }));
        }
    }

    /// The network and the hosts are well again for long enough.
    fn heal(&mut self) {
        for _ in 0..400 {
            for fate in [Fate::Journal, Fate::Deliver, Fate::DeliverBack, Fate::Step, Fate::Tick] {
                self.suffer(fate);
            }
        }
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    use Fate::*;
    let fate = prop_oneof![
        40 => Just(Deliver), 40 => Just(DeliverBack), 40 => Just(Step), 60 => Just(Journal), 10 => Just(Tick),
        5 => Just(Repeat), 3 => Just(BreakLink), 3 => Just(JournalFails), 1 => Just(Cancel),
        3 => Just(KillSourceAgent), 3 => Just(KillTargetAgent), 1 => Just(KillSourceQemu), 1 => Just(KillTargetQemu),
    ];
    prop::collection::vec(fate, 0..60)
}

#[test]
fn an_undisturbed_handover_ends_with_the_guest_on_the_target() {
    let mut world = World::new();
    world.heal();
    assert_eq!(world.outcome, Some(Outcome::HandedOver));
    assert_eq!((world.a_qemu, world.b_qemu), (Qemu::Absent, Qemu::Running));
    let kinds: Vec<_> = world
        .a
        .journal
        .iter()
        .chain(&world.b.journal)
        .map(|record| format!("{record:?}"))
        .collect();
    assert_eq!(kinds.len(), 6, "{kinds:?}");
}

#[test]
fn a_cancellation_at_any_step_before_the_release_leaves_the_guest_on_the_source() {
    for steps in 0..40 {
        let mut world = World::new();
        let mut cancelled = false;
        for step in 0..80 {
            if step == steps {
                cancelled = world.source.as_ref().is_some_and(Source::can_cancel);
                world.suffer(Fate::Cancel);
            }
            let fate = [Fate::Journal, Fate::Deliver, Fate::DeliverBack, Fate::Step][step % 4];
            world.suffer(fate);
        }
        world.heal();
        let expected = if cancelled {
            (Qemu::Running, Qemu::Absent)
        } else {
            (Qemu::Absent, Qemu::Running)
        };
        assert_eq!((world.a_qemu, world.b_qemu), expected, "cancelled before step {steps}");
    }
}

#[test]
fn a_copy_that_died_is_taken_back_though_the_target_could_not_write_that() {
    use Fate::*;
    let mut world = World::new();
    for fate in [
        Journal,
        Deliver,
        DeliverBack,
        Step,
        Step,
        Journal,
        KillTargetQemu,
        JournalFails,
        DeliverBack,
        Step,
        DeliverBack,
    ] {
        world.suffer(fate);
    }
    world.heal();
    assert_eq!((world.a_qemu, world.b_qemu), (Qemu::Running, Qemu::Absent));
}

#[test]
fn a_guest_that_died_with_its_agent_before_it_ran_is_taken_back() {
    use Fate::*;
    let mut world = World::new();
    for fate in [
        Journal,
        Deliver,
        DeliverBack,
        Step,
        Step,
        Deliver,
        Journal,
        DeliverBack,
        Step,
        Journal,
        Deliver,
        KillTargetQemu,
        Journal,
        KillTargetAgent,
    ] {
        world.suffer(fate);
    }
    world.heal();
    assert_eq!((world.a_qemu, world.b_qemu), (Qemu::Running, Qemu::Absent));
    assert!(matches!(world.b.journal.last(), Some(Record::Dropped { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]
    #[test]
    fn whatever_fails_at_most_one_copy_runs_and_none_is_lost(fates in fates()) {
        let mut world = World::new();
        for fate in fates {
            world.suffer(fate);
        }
        world.heal();
        // A target's QEMU that dies before it ran its guest costs nothing but the attempt.
        let guest_was_killed = world.a_qemu_killed || world.b_qemu_killed && world.b_ran;
        if !guest_was_killed {
            let runs = [world.a_qemu, world.b_qemu].iter().filter(|qemu| **qemu == Qemu::Running).count();
            prop_assert_eq!(runs, 1, "a {:?} {:?}, b {:?} {:?}, {:?}", world.a_qemu, world.a.journal, world.b_qemu, world.b.journal, world.outcome);
        }
        let released = matches!(world.source.as_ref().map(Source::verdict), Some(Verdict::Released));
        prop_assert!(world.source.is_none() || released, "the source neither ended nor commits");
    }
}
