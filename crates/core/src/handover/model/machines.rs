//! The shipped state machines, with every value numbered. What a machine does on an event is asked of it once and then
//! remembered, so that a state of the world is a handful of small numbers.

use super::super::arbiter::{Claim, Holder, NoRuling, Ruling, Side};
use super::super::examples::{handover, transfer};
use super::super::*;
use super::mutation::Mutation;
use crate::page::StreamDigest;
use crate::wire::message::{Image, Message, Reservation, Verdict};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

pub(super) type Map<K, V> = HashMap<K, V, RandomState>;

/// The number of a value in its table. 0 is no value.
pub(super) type Id = u16;

/// Values by their numbers, equal when they print the same.
pub(super) struct Table<T> {
    values: Vec<T>,
    ids: Map<String, Id>,
}

impl<T: Debug + Clone> Table<T> {
    fn new() -> Table<T> {
        Table {
            values: Vec::new(),
            ids: Map::default(),
        }
    }

    pub(super) fn id(&mut self, value: &T) -> Id {
        let text = format!("{value:?}");
        if let Some(id) = self.ids.get(&text) {
            return *id;
        }
        self.values.push(value.clone());
        let id = Id::try_from(self.values.len()).unwrap();
        self.ids.insert(text, id);
        id
    }

    pub(super) fn get(&self, id: Id) -> &T {
        &self.values[usize::from(id) - 1]
    }
}

/// What a machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Written(bool),
    Peer(Id),
    PeerLost,
    PeerBack,
    Cancel,
    StopNow,
    GuestStopped,
    TransferFailed,
    MigrationFailed,
    PostMigrate,
    Compared(bool),
    Resumed(bool),
    QemuGone,
    Tick,
    Reserved(bool),
    StreamOpened,
    Loaded,
    LoadFailed,
    Started(bool),
    StartUnknown,
    Ruled(Claim, Answer),
    Resolved(Side),
}

/// What comes of a question to the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Is(Holder, bool),
    Unasked,
    Unanswered,
}

impl Answer {
    fn told(self) -> Result<Ruling, NoRuling> {
        match self {
            Answer::Is(holder, other_is_gone) => Ok(Ruling { holder, other_is_gone }),
            Answer::Unasked => Err(NoRuling::Unasked(String::new())),
            Answer::Unanswered => Err(NoRuling::Unanswered(String::new())),
        }
    }
}

/// What a driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Journal(Id),
    Send(Id),
    OpenStream,
    LetStop,
    CompareImage,
    DeliverShut,
    ResumeGuest,
    EndQemu,
    Reserve,
    Inquire,
    StartGuest,
    Drop,
    Arbitrate(Claim),
    /// Whether the VM is the target's.
    Finish(bool),
}

/// One kind of state machine and its effect lists. What is left of a list is a list, too.
pub(super) struct Machines<M, F> {
    machines: Table<M>,
    plans: Table<Vec<F>>,
    handled: Map<(Id, Event), (Id, Id)>,
    /// The first of a list, and the rest.
    steps: Map<Id, (Act, Id)>,
    /// Every effect list that was given, before any mutation.
    pub(super) given: Vec<Vec<String>>,
}

impl<M: Debug + Clone, F: Debug + Clone> Machines<M, F> {
    fn new() -> Self {
        Machines {
            machines: Table::new(),
            plans: Table::new(),
            handled: Map::default(),
            steps: Map::default(),
            given: Vec::new(),
        }
    }

    pub(super) fn get(&self, machine: Id) -> &M {
        self.machines.get(machine)
    }

    pub(super) fn step(&self, plan: Id) -> (Act, Id) {
        self.steps[&plan]
    }

    /// The first of a list, in words.
    pub(super) fn first(&self, plan: Id) -> String {
        short(&self.plans.get(plan)[0])
    }

    fn plan(&mut self, mut effects: Vec<F>, mutation: Option<&Mutation>, act: &mut impl FnMut(&F) -> Act) -> Id {
        let names: Vec<String> = effects.iter().map(short).collect();
        if let Some(journal) = names.iter().position(|name| name.starts_with("Journal")) {
            let last = journal + 1 == names.len();
            assert!(last, "nothing may follow a record before it is durable: {names:?}");
        }
        if let Some(Mutation::Swap(first, second)) = mutation
            && let Some(at) = names
                .windows(2)
                .position(|pair| pair[0] == *first && pair[1] == *second)
        {
            effects.swap(at, at + 1);
        }
        if !self.given.contains(&names) {
            self.given.push(names);
        }
        self.number(&effects, act)
    }

    fn number(&mut self, effects: &[F], act: &mut impl FnMut(&F) -> Act) -> Id {
        let Some((first, rest)) = effects.split_first() else {
            return 0;
        };
        let id = self.plans.id(&effects.to_vec());
        let rest = self.number(rest, act);
        self.steps.insert(id, (act(first), rest));
        id
    }
}

/// Both kinds of machine, and what they exchange and write.
pub(super) struct Machinery {
    pub(super) sources: Machines<Source, SourceEffect>,
    pub(super) targets: Machines<Target, TargetEffect>,
    pub(super) messages: Table<Message>,
    pub(super) records: Table<Record>,
    pub(super) mutation: Option<Mutation>,
}

impl Machinery {
    pub(super) fn new(mutation: Option<Mutation>) -> Machinery {
        Machinery {
            sources: Machines::new(),
            targets: Machines::new(),
            messages: Table::new(),
            records: Table::new(),
            mutation,
        }
    }

    /// Whether records of this kind are only said to be written.
    pub(super) fn forgets(&self, record: Id) -> bool {
        matches!(&self.mutation, Some(Mutation::LeaveOut(kind)) if short(self.records.get(record)) == *kind)
    }

    /// A source and the first effects that it gave.
    pub(super) fn source(&mut self, (source, effects): (Source, Vec<SourceEffect>)) -> (Id, Id) {
        let (messages, records) = (&mut self.messages, &mut self.records);
        let mut act = |effect: &SourceEffect| source_act(effect, messages, records);
        let plan = self.sources.plan(effects, self.mutation.as_ref(), &mut act);
        (self.sources.machines.id(&source), plan)
    }

    /// A target and the first effects that it gave.
    pub(super) fn target(&mut self, (target, effects): (Target, Vec<TargetEffect>)) -> (Id, Id) {
        let (messages, records) = (&mut self.messages, &mut self.records);
        let mut act = |effect: &TargetEffect| target_act(effect, messages, records);
        let plan = self.targets.plan(effects, self.mutation.as_ref(), &mut act);
        (self.targets.machines.id(&target), plan)
    }

    /// The source after an event, and its effects.
    ///
    /// Time stands still: it only ever enters the deadlines that a machine gives, which it does not look at itself. When a
    /// tick comes is for the world to choose.
    pub(super) fn tell_source(&mut self, source: Id, event: Event) -> (Id, Id) {
        if let Some(handled) = self.sources.handled.get(&(source, event)) {
            return *handled;
        }
        let mut machine = self.sources.get(source).clone();
        let effects = machine.handle(source_event(event, &self.messages), Duration::ZERO);
        let handled = self.source((machine, effects));
        self.sources.handled.insert((source, event), handled);
        handled
    }

    /// The target after an event, and its effects.
    pub(super) fn tell_target(&mut self, target: Id, event: Event) -> (Id, Id) {
        if let Some(handled) = self.targets.handled.get(&(target, event)) {
            return *handled;
        }
        let mut machine = self.targets.get(target).clone();
        let effects = machine.handle(target_event(event, &self.messages), Duration::ZERO);
        let handled = self.target((machine, effects));
        self.targets.handled.insert((target, event), handled);
        handled
    }

    pub(super) fn message(&mut self, message: Message) -> Id {
        self.messages.id(&without_reasons(message))
    }
}

fn why<T>(holds: bool, good: T) -> Result<T, String> {
    if holds { Ok(good) } else { Err(String::new()) }
}

fn source_event(event: Event, messages: &Table<Message>) -> SourceEvent {
    match event {
        Event::Written(done) => SourceEvent::Journaled(why(done, ())),
        Event::Peer(message) => SourceEvent::Peer(messages.get(message).clone()),
        Event::PeerLost => SourceEvent::PeerLost(String::new()),
        Event::PeerBack => SourceEvent::PeerBack,
        Event::Cancel => SourceEvent::Cancel,
        Event::StopNow => SourceEvent::StopNow,
        Event::GuestStopped => SourceEvent::GuestStopped,
        Event::TransferFailed => SourceEvent::TransferFailed(String::new()),
        Event::MigrationFailed => SourceEvent::MigrationFailed(String::new()),
        Event::PostMigrate => SourceEvent::PostMigrate,
        Event::Compared(equal) => SourceEvent::Compared(why(equal, ())),
        Event::Resumed(runs) => SourceEvent::Resumed(why(runs, ())),
        Event::QemuGone => SourceEvent::QemuGone,
        Event::Ruled(claim, answer) => SourceEvent::Ruled(claim, answer.told()),
        Event::Resolved(keep) => SourceEvent::Resolved(keep),
        Event::Tick => SourceEvent::Tick,
        other => panic!("a source is told {other:?}"),
    }
}

fn target_event(event: Event, messages: &Table<Message>) -> TargetEvent {
    match event {
        Event::Written(done) => TargetEvent::Journaled(why(done, ())),
        Event::Peer(message) => TargetEvent::Peer(messages.get(message).clone()),
        Event::PeerLost => TargetEvent::PeerLost(String::new()),
        Event::Reserved(done) => TargetEvent::Reserved(if done {
            Ok(Reservation {
                arbiter_host: Some("b".to_owned()),
                ..Reservation::default()
            })
        } else {
            Err(vec![String::new()])
        }),
        Event::StreamOpened => TargetEvent::StreamOpened,
        Event::Loaded => TargetEvent::Loaded(image()),
        Event::LoadFailed => TargetEvent::LoadFailed(String::new()),
        Event::QemuGone => TargetEvent::QemuGone(String::new()),
        Event::Started(done) => TargetEvent::Started(why(done, ())),
        Event::StartUnknown => TargetEvent::StartUnknown(String::new()),
        Event::Ruled(claim, answer) => TargetEvent::Ruled(claim, answer.told()),
        Event::Resolved(keep) => TargetEvent::Resolved(keep),
        Event::Tick => TargetEvent::Tick,
        other => panic!("a target is told {other:?}"),
    }
}

fn source_act(effect: &SourceEffect, messages: &mut Table<Message>, records: &mut Table<Record>) -> Act {
    match effect {
        SourceEffect::Journal(record) => Act::Journal(records.id(record)),
        SourceEffect::Send(message) => Act::Send(messages.id(&without_reasons(message.clone()))),
        SourceEffect::OpenStream(_) => Act::OpenStream,
        SourceEffect::LetStop => Act::LetStop,
        SourceEffect::CompareImage(_) => Act::CompareImage,
        SourceEffect::DeliverShut => Act::DeliverShut,
        SourceEffect::ResumeGuest => Act::ResumeGuest,
        SourceEffect::EndQemu => Act::EndQemu,
        SourceEffect::Arbitrate(claim) => Act::Arbitrate(*claim),
        SourceEffect::Finish(outcome) => Act::Finish(*outcome == Outcome::HandedOver),
    }
}

fn target_act(effect: &TargetEffect, messages: &mut Table<Message>, records: &mut Table<Record>) -> Act {
    match effect {
        TargetEffect::Reserve { .. } => Act::Reserve,
        TargetEffect::Journal(record) => Act::Journal(records.id(record)),
        TargetEffect::Send(message) => Act::Send(messages.id(&without_reasons(message.clone()))),
        TargetEffect::Inquire => Act::Inquire,
        TargetEffect::StartGuest => Act::StartGuest,
        TargetEffect::Arbitrate(claim) => Act::Arbitrate(*claim),
        TargetEffect::Drop { .. } => Act::Drop,
        TargetEffect::Finish { owned } => Act::Finish(*owned),
    }
}

/// A value's variants, without what is in them: `Send(Commit { handover: … })` is `Send Commit`.
pub(super) fn short(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let head = text.split(['{', '"', '[']).next().unwrap_or_default();
    let words = head.split(['(', ')', ' ']).filter(|word| !word.is_empty());
    // Two at most: behind them come causes.
    words.take(2).collect::<Vec<_>>().join(" ")
}

/// A message without the reasons in it, which decide nothing and would only multiply the states.
fn without_reasons(message: Message) -> Message {
    let reason = String::new();
    match message {
        Message::Abort { handover, .. } => Message::Abort { handover, reason },
        Message::Dropped { handover, .. } => Message::Dropped { handover, reason },
        Message::Stuck { handover, .. } => Message::Stuck { handover, reason },
        other => other,
    }
}

pub(super) fn new_source(arbiter: bool) -> (Source, Vec<SourceEffect>) {
    Source::new(
        handover(),
        "b".into(),
        transfer(),
        serde_json::Value::Null,
        Duration::from_secs(10),
        arbiter,
    )
}

fn image() -> Image {
    Image {
        stream: StreamDigest::default(),
        memory: None,
    }
}

pub(super) fn new_target(arbiter: bool) -> (Target, Vec<TargetEffect>) {
    Target::new(handover(), "a".into(), transfer(), serde_json::Value::Null, arbiter)
}

/// Whether a machine could act upon a message.
pub(super) fn matters(message: &Message) -> bool {
    !matches!(
        message,
        Message::Stopped
            | Message::Outcome {
                verdict: Verdict::Undecided,
                ..
            }
    )
}
