//! Both sides of a handover hear anything from their peer, in any order, between any events of their own: neither panics, a guest
//! starts at the target only after a release was heard and its record written, and goes on at the source after a release only once
//! the target said that its copy is gone.
//!
//! Each event is a byte for what happens, and one for its details.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vmferry_core::handover::{
    Record, Source, SourceEffect, SourceEvent, Target, TargetEffect, TargetEvent, after_restart, answer,
};
use vmferry_core::page::{Coders, StreamDigest};
use vmferry_core::wire::hello::MigrationId;
use vmferry_core::wire::message::{Epoch, Handover, Image, Message, Reservation, Transfer, Verdict};
use vmferry_fuzz::within;

const MEMORY_BYTES_MAX: usize = 1 << 20;

/// The handover under way for most details, and others that differ in one thing.
fn handover(detail: u8) -> Handover {
    let other = |is: u8| u64::from(detail >> 4 == is);
    Handover {
        migration: MigrationId(7 + u128::from(other(1))),
        vm: if other(2) == 1 { "db" } else { "web" }.to_owned(),
        epoch: Epoch(2 + other(3)),
    }
}

fn message(what: u8, detail: u8) -> Message {
    let handover = handover(detail);
    let reason = String::new();
    match what % 14 {
        0 => Message::Reserve {
            handover,
            transfer: transfer(),
            offer: serde_json::Value::Null,
        },
        1 => Message::Reserved(Reservation::default()),
        2 => Message::Refused { reasons: vec![reason] },
        3 => Message::DescribeDisks,
        4 => Message::Prepared {
            handover,
            image: image(),
        },
        5 => Message::Commit { handover },
        6 => Message::Running { handover },
        7 => Message::Abort { handover, reason },
        8 => Message::Dropped { handover, reason },
        9 => Message::Stuck { handover, reason },
        10 => Message::Inquire { handover },
        11 => {
            let verdicts = [Verdict::Released, Verdict::Undecided, Verdict::Aborted];
            Message::Outcome {
                handover,
                verdict: verdicts[usize::from(detail & 15) % 3],
            }
        }
        12 => Message::Stopped,
        _ => Message::Unknown,
    }
}

fn transfer() -> Transfer {
    Transfer {
        lanes: 1,
        coders: Coders::default(),
        fingerprint_key: [0; 32],
        verify_memory: false,
        bandwidth: None,
        link_patience_ms: 0,
    }
}

fn image() -> Image {
    Image {
        stream: StreamDigest::default(),
        memory: None,
    }
}

fn outcome(detail: u8) -> Result<(), String> {
    if detail & 1 == 0 { Ok(()) } else { Err(String::new()) }
}

fuzz_target!(|data: &[u8]| {
    let Some((way, events)) = data.split_first() else {
        return;
    };
    within(MEMORY_BYTES_MAX, || match way % 4 {
        0 => source(events, false),
        1 => source(events, true),
        2 => target(events, way / 4),
        _ => journal(events),
    });
});

fn source(events: &[u8], is_released: bool) {
    let mut now = Duration::ZERO;
    let (mut source, effects) = if is_released {
        Source::released(handover(0), None, false, now)
    } else {
        let limit = Duration::from_secs(1);
        Source::new(
            handover(0),
            "b:1".to_owned(),
            transfer(),
            serde_json::Value::Null,
            limit,
            false,
        )
    };
    let mut seen = AtSource {
        may_be_released: is_released,
        ..AtSource::default()
    };
    seen.effects(&effects);
    for event in events.chunks_exact(2) {
        let (what, detail) = (event[0], event[1]);
        now += Duration::from_millis(100);
        let why = String::new();
        let event = match what % 32 {
            0 => SourceEvent::Journaled(outcome(detail)),
            1 => SourceEvent::PeerLost(why),
            2 => SourceEvent::PeerBack,
            3 => SourceEvent::Cancel,
            4 => SourceEvent::NotConverging(why),
            5 => SourceEvent::StopNow,
            6 => SourceEvent::GuestStopped,
            7 => SourceEvent::TransferFailed(why),
            8 => SourceEvent::MigrationFailed(why),
            9 => SourceEvent::PostMigrate,
            10 => SourceEvent::Compared(outcome(detail)),
            11 => SourceEvent::Resumed(outcome(detail)),
            12 => SourceEvent::QemuGone,
            13 => SourceEvent::Tick,
            what => SourceEvent::Peer(message(what - 14, detail)),
        };
        let is_dropped =
            matches!(&event, SourceEvent::Peer(Message::Dropped { handover: of, .. }) if *of == handover(0));
        seen.is_dropped |= seen.may_be_released && is_dropped;
        seen.effects(&source.handle(event, now));
        assert!(
            source
                .deadline()
                .is_none_or(|deadline| deadline <= now + Duration::from_secs(60))
        );
    }
}

/// What the source has done so far.
#[derive(Default)]
struct AtSource {
    /// The record of the release is durable, or may be.
    may_be_released: bool,
    /// After that, the target said that its copy is gone.
    is_dropped: bool,
    is_over: bool,
}

impl AtSource {
    fn effects(&mut self, effects: &[SourceEffect]) {
        assert!(!self.is_over || effects.is_empty());
        for (place, effect) in effects.iter().enumerate() {
            match effect {
                SourceEffect::Journal(record) => {
                    assert_eq!(place + 1, effects.len(), "an effect behind a record");
                    self.may_be_released |= matches!(record, Record::Released { .. });
                }
                SourceEffect::ResumeGuest => assert!(!self.may_be_released || self.is_dropped),
                SourceEffect::Finish(_) => self.is_over = true,
                _ => {}
            }
        }
    }
}

fn target(events: &[u8], way: u8) {
    let mut now = Duration::ZERO;
    let peer = "a:1".to_owned();
    let (mut target, effects) = match way % 3 {
        0 => Target::new(handover(0), peer, transfer(), serde_json::Value::Null, false),
        1 => Target::prepared(handover(0), peer, false, now),
        _ => Target::owned(handover(0), peer),
    };
    let was_owned = way % 3 == 2;
    let mut seen = AtTarget {
        is_released: was_owned,
        is_owned: was_owned,
        ..AtTarget::default()
    };
    seen.effects(&effects);
    for event in events.chunks_exact(2) {
        let (what, detail) = (event[0], event[1]);
        now += Duration::from_millis(100);
        let why = String::new();
        let event = match what % 28 {
            0 => TargetEvent::Journaled(outcome(detail)),
            1 => TargetEvent::PeerLost(why),
            2 => TargetEvent::Reserved(
                outcome(detail)
                    .map(|()| Reservation::default())
                    .map_err(|why| vec![why]),
            ),
            3 => TargetEvent::StreamOpened,
            4 => TargetEvent::Loaded(image()),
            5 => TargetEvent::LoadFailed(why),
            6 => TargetEvent::QemuGone(why),
            7 => TargetEvent::Started(outcome(detail)),
            8 => TargetEvent::StartUnknown(why),
            9 => TargetEvent::Tick,
            what => TargetEvent::Peer(message(what - 10, detail)),
        };
        match &event {
            TargetEvent::Peer(Message::Commit { handover: of }) => seen.is_released |= *of == handover(0),
            TargetEvent::Peer(Message::Outcome {
                handover: of,
                verdict: Verdict::Released,
            }) => {
                seen.is_released |= *of == handover(0);
            }
            TargetEvent::Journaled(outcome) => {
                seen.is_owned |= seen.writes_owned && outcome.is_ok();
                seen.writes_owned = false;
            }
            // It counts from where its guest is being started.
            TargetEvent::Started(Ok(())) => seen.has_run |= target.owns(),
            _ => {}
        }
        seen.effects(&target.handle(event, now));
        assert!(
            target
                .deadline()
                .is_none_or(|deadline| deadline <= now + Duration::from_secs(60))
        );
    }
}

/// What the target has done so far.
#[derive(Default)]
struct AtTarget {
    /// It heard that the source released the VM.
    is_released: bool,
    writes_owned: bool,
    is_owned: bool,
    has_run: bool,
    is_over: bool,
}

impl AtTarget {
    fn effects(&mut self, effects: &[TargetEffect]) {
        assert!(!self.is_over || effects.is_empty());
        for (place, effect) in effects.iter().enumerate() {
            match effect {
                TargetEffect::Journal(record) => {
                    assert_eq!(place + 1, effects.len(), "an effect behind a record");
                    self.writes_owned = matches!(record, Record::Owned { .. });
                    assert!(!self.writes_owned || self.is_released);
                }
                TargetEffect::StartGuest => assert!(self.is_owned),
                TargetEffect::Drop { .. } => assert!(!self.has_run),
                TargetEffect::Finish { .. } => self.is_over = true,
                _ => {}
            }
        }
    }
}

/// Records in any order: what is owed and what is answered after a restart.
fn journal(events: &[u8]) {
    let mut records = Vec::new();
    for event in events.chunks_exact(2).take(64) {
        let (handover, peer) = (handover(event[1]), "b:1".to_owned());
        records.push(match event[0] % 9 {
            0 => Record::Offered { handover, peer },
            1 => Record::Released {
                handover,
                arbiter: None,
            },
            2 => Record::HandedOver { handover },
            3 => Record::RolledBack { handover },
            4 => Record::Reclaimed { handover },
            5 => Record::Prepared {
                handover,
                peer,
                arbiter: false,
            },
            6 => Record::Owned { handover },
            7 => Record::TakenOver { handover },
            _ => Record::Dropped { handover },
        });
        let _ = after_restart(&records);
        let asked = message(event[0] / 9, event[1]);
        if let Some(Message::Running { .. }) = answer(&records, None, &asked) {
            assert!(matches!(
                records.last(),
                Some(Record::Owned { .. } | Record::TakenOver { .. })
            ));
        }
    }
}
