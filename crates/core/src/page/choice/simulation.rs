//! A session in virtual time, on recorded costs: the shipped [`Chooser`] against every fixed coder.
//!
//! Batches pass three stages in order, each of which works on one batch at a time at the speed of all its processors, with
//! room for a few batches between two stages; where both sides share processors, the first stage does both sides' work.
//! The chooser hears what it would hear from the data plane, when it would: times with noise, acknowledgements when the
//! batch left the last stage, and windows of waiting times.

use super::{
    chooser::{Chooser, Encoded},
    costs::Cost,
    link::Window,
    recorded::{Pages, recorded},
};
use crate::limits::BATCH_BYTES;
use crate::page::{Coded, Coders};
use std::collections::VecDeque;
use std::time::Duration;

/// Lanes that a session has by default, one a processor up to this many.
const LANES_DEFAULT_MAX: f64 = 8.0;

/// The least time in which QEMU writes a byte of its stream, and somebody else reads it, nanoseconds: one thread each that
/// copies into a socket and out of it, at 2.5 GB/s. Assumed; it lets a fast link and many processors have no more to do than
/// they would.
pub const STREAM_NS_PER_BYTE: f64 = 0.4;

/// A session to simulate.
#[derive(Clone, Debug)]
pub struct Session<'a> {
    /// What the link carries, bytes a second.
    pub link_bytes_per_s: f64,
    /// Processors of the source, or of the host that both are on.
    pub source_cores: f64,
    /// Processors of the target.
    pub target_cores: f64,
    /// Both are on one host.
    pub shared: bool,
    /// How much slower than the recording machine both hosts are.
    pub slowness: f64,
    /// The content of the batches, in turn; each stands for [`BATCH_BYTES`] of stream.
    pub batches: Vec<&'a Pages>,
}

/// What is to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every batch through the coder of this number.
    Fixed(u8),
    /// As chosen.
    Chosen,
}

/// A batch that is on its way: when it arrives, and what the chooser then hears.
struct OnTheWay {
    arrives: f64,
    /// How long the last stage had waited for it.
    idle: f64,
    batch: usize,
    coder: u8,
    wire_bytes: u64,
    decode_ns: f64,
}

impl Session<'_> {
    /// Lanes, as the data plane has by default.
    fn lanes(&self) -> u16 {
        self.source_cores.clamp(1.0, LANES_DEFAULT_MAX) as u16
    }

    /// The session's length under a policy, seconds.
    pub fn seconds(&self, policy: Policy) -> f64 {
        let lanes = self.lanes();
        let mut chooser = Chooser::new(Coders::auto(), lanes, self.source_cores, None);
        chooser.cores(None, Some(self.target_cores), None);
        if self.shared {
            chooser.on_one_host();
        }
        // What each stage had done with every batch, and when the window began.
        let mut stages = Stages::new(usize::from(lanes));
        let mut on_the_way: VecDeque<OnTheWay> = VecDeque::new();
        let mut window = Seen::default();
        let mut noise = Noise(1);
        for (number, pages) in self.batches.iter().enumerate() {
            let now = stages.next_start();
            while let Some(arrived) = on_the_way.pop_front_if(|batch| batch.arrives <= now) {
                let content = self.batches[arrived.batch];
                let time = Duration::from_secs_f64(arrived.decode_ns * noise.factor() / 1e9);
                chooser.decoded(content.kind(), arrived.coder, content_bytes(content), time);
                let other = BATCH_BYTES as f64 * recorded().target_ns_per_byte * self.slowness;
                chooser.placed(BATCH_BYTES as u64, Duration::from_secs_f64(other / 1e9));
                window.batches += 1;
                window.wire_bytes += arrived.wire_bytes;
                // Before the first batch there was nothing to wait for.
                window.idle += if arrived.batch == 0 { 0.0 } else { arrived.idle };
            }
            window.source_waits += stages.waits_for_room();
            if let Some(seen) = window.close(now) {
                chooser.window(&seen, Duration::from_secs_f64(now));
            }
            let coder = match policy {
                Policy::Fixed(coder) => coder,
                Policy::Chosen => chooser.choose(pages.kind()),
            };
            let cost = pages.coders[usize::from(coder)];
            let work = self.work(&cost, pages.content);
            let (arrives, idle) = stages.pass(&work.stages);
            let encode = Duration::from_secs_f64(work.encode_ns * noise.factor() / 1e9);
            let batch = Encoded {
                stream_bytes: BATCH_BYTES as u64,
                coded: Coded {
                    content_bytes: content_bytes(pages),
                    wire_bytes: work.wire_bytes,
                },
                encode,
                other: Duration::from_secs_f64(work.source_other_ns / 1e9),
            };
            chooser.encoded(pages.kind(), coder, &batch);
            chooser.cores(None, None, Some(work.starved.unwrap_or(0.0)));
            on_the_way.push_back(OnTheWay {
                arrives,
                idle,
                batch: number,
                coder,
                wire_bytes: work.wire_bytes,
                decode_ns: work.decode_ns,
            });
        }
        stages.end()
    }

    fn work(&self, cost: &Cost, content: f64) -> Work {
        let bytes = BATCH_BYTES as f64;
        let content = bytes * content;
        let slow = self.slowness;
        let lanes = f64::from(self.lanes());
        let source_other_ns = bytes * recorded().source_ns_per_byte * slow;
        let target_other_ns = bytes * recorded().target_ns_per_byte * slow;
        let encode_ns = content * cost.encode_ns_per_byte * slow;
        let decode_ns = content * cost.decode_ns_per_byte * slow;
        let mut source = (source_other_ns + encode_ns) / 1e9 / self.source_cores.min(lanes);
        let mut target = (target_other_ns + decode_ns) / 1e9 / self.target_cores.min(lanes);
        if self.shared {
            let both = source_other_ns + encode_ns + target_other_ns + decode_ns;
            source = source.max(both / 1e9 / self.source_cores.min(2.0 * lanes));
            target = 0.0;
        }
        let floor = bytes * STREAM_NS_PER_BYTE * slow / 1e9;
        // A stage that waits for QEMU for a good part of its time knows it.
        let starved = (source < 0.7 * floor).then_some(STREAM_NS_PER_BYTE * slow);
        source = source.max(floor);
        let wire_bytes = (content * cost.ratio) as u64;
        Work {
            stages: [source, wire_bytes as f64 / self.link_bytes_per_s, target],
            wire_bytes,
            encode_ns,
            decode_ns,
            source_other_ns,
            starved,
        }
    }
}

/// Bytes of a batch of such pages that have to be coded.
fn content_bytes(pages: &Pages) -> u64 {
    (BATCH_BYTES as f64 * pages.content) as u64
}

/// What a batch takes.
struct Work {
    stages: [f64; 3],
    wire_bytes: u64,
    encode_ns: f64,
    decode_ns: f64,
    source_other_ns: f64,
    /// What QEMU takes per byte of its stream, where it is the slowest so that this shows.
    starved: Option<f64>,
}

/// Three stages with bounded room between them.
struct Stages {
    room: usize,
    /// When each of the last batches began in the second and in the third stage.
    began: [VecDeque<f64>; 2],
    /// When each stage was done with the batch before.
    done: [f64; 3],
}

impl Stages {
    fn new(room: usize) -> Stages {
        Stages {
            room,
            began: Default::default(),
            done: [0.0; 3],
        }
    }

    /// When there was room behind a stage for the next batch.
    fn room_at(&self, behind: usize) -> f64 {
        let began = &self.began[behind];
        match began.len() < self.room {
            true => 0.0,
            false => began[0],
        }
    }

    /// When the first stage can begin its next batch.
    fn next_start(&self) -> f64 {
        self.done[0].max(self.room_at(0))
    }

    /// How long the first stage has to wait for that.
    fn waits_for_room(&self) -> f64 {
        self.next_start() - self.done[0]
    }

    /// Takes a batch through; returns when it is done, and how long the last stage had waited for it.
    fn pass(&mut self, work: &[f64; 3]) -> (f64, f64) {
        let start = self.next_start();
        self.done[0] = start + work[0];
        let start = self.done[0].max(self.done[1]).max(self.room_at(1));
        self.began(0, start);
        self.done[1] = start + work[1];
        let start = self.done[1].max(self.done[2]);
        let idle = start - self.done[2];
        self.began(1, start);
        self.done[2] = start + work[2];
        (self.done[2], idle)
    }

    fn began(&mut self, stage: usize, at: f64) {
        self.began[stage].push_back(at);
        if self.began[stage].len() > self.room {
            self.began[stage].pop_front();
        }
    }

    fn end(&self) -> f64 {
        self.done[2]
    }
}

/// What the source sees of the link.
#[derive(Default)]
struct Seen {
    since: f64,
    batches: u64,
    wire_bytes: u64,
    source_waits: f64,
    idle: f64,
}

impl Seen {
    fn close(&mut self, now: f64) -> Option<Window> {
        let span = now - self.since;
        let span_min = Window::span_min(Duration::from_secs_f64(now)).as_secs_f64();
        if self.batches < Window::BATCHES_MIN || span < span_min {
            return None;
        }
        let seen = std::mem::take(self);
        self.since = now;
        Some(Window {
            span: Duration::from_secs_f64(span),
            wire_bytes: seen.wire_bytes,
            source_waits: (seen.source_waits / span).clamp(0.0, 1.0),
            target_waits: (seen.idle / span).clamp(0.0, 1.0),
        })
    }
}

/// Measurements are never exact: a tenth too much or too little, in an order that repeats in each run.
struct Noise(u64);

impl Noise {
    fn factor(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        0.9 + 0.2 * (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}
