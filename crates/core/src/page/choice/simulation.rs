//! A session in virtual time, on recorded costs: the shipped [`Chooser`] against every fixed coder.
//!
//! Batches pass three stages in order, each of which works on one batch at a time at the speed of all its processors, with
//! room for a few batches between two stages; where both sides share processors, the first stage does both sides' work.
//! The chooser hears what it would hear from the data plane, when it would: times with noise, acknowledgements when the
//! batch left the last stage, and what the target saw arrive.

use super::{
    chooser::{Chooser, Encoded},
    mixes::{Content, Mix},
    recorded::recorded,
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
    /// What it sends.
    pub mix: &'a Mix,
    /// Where the errors of measurements come from.
    pub seed: u64,
}

/// What is to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every batch through the coder of this number.
    Fixed(u8),
    /// As chosen.
    Chosen,
}

/// What a session took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// From its first batch until the last was placed.
    pub seconds: f64,
    /// Processor time of both sides.
    pub processor_s: f64,
    /// Bytes on the link.
    pub wire_bytes: u64,
}

impl Taken {
    fn add(&mut self, work: &Work) {
        self.processor_s += (work.encode_ns + work.decode_ns + work.source_other_ns + work.target_other_ns) / 1e9;
        self.wire_bytes += work.wire_bytes;
    }
}

/// A batch that is on its way: when it arrives, and what the chooser then hears.
struct OnTheWay<'a> {
    arrives: f64,
    /// The part of it that the target saw arrive.
    seen: f64,
    content: &'a Content,
    coder: u8,
    work: Work,
}

impl Session<'_> {
    /// Lanes, as the data plane has by default.
    fn lanes(&self) -> u16 {
        self.source_cores.clamp(1.0, LANES_DEFAULT_MAX) as u16
    }

    fn batches(&self) -> impl Iterator<Item = &Content> {
        self.mix.batches.iter().map(|number| &self.mix.contents[*number])
    }

    /// Runs it under a policy.
    pub fn run(&self, policy: Policy) -> Taken {
        match policy {
            Policy::Fixed(coder) => self.fixed(coder),
            Policy::Chosen => self.chosen(),
        }
    }

    fn fixed(&self, coder: u8) -> Taken {
        let mut taken = Taken::default();
        let mut stages = Stages::new(usize::from(self.lanes()));
        for content in self.batches() {
            let work = self.work(content, coder);
            stages.pass(&work.stages);
            taken.add(&work);
        }
        taken.seconds = stages.end();
        taken
    }

    fn chosen(&self) -> Taken {
        let mut taken = Taken::default();
        let lanes = self.lanes();
        let mut chooser = Chooser::new(Coders::auto(), lanes, self.source_cores, None);
        chooser.cores(None, Some(self.target_cores), None);
        if self.shared {
            chooser.on_one_host();
        }
        let mut stages = Stages::new(usize::from(lanes));
        let mut on_the_way: VecDeque<OnTheWay<'_>> = VecDeque::new();
        let mut noise = Random(self.seed);
        for content in self.batches() {
            let now = stages.next_start();
            while let Some(arrived) = on_the_way.pop_front_if(|batch| batch.arrives <= now) {
                self.hear(&arrived, &mut chooser, &mut noise);
            }
            let coder = chooser.choose(&content.load);
            let work = self.work(content, coder);
            let (arrives, seen) = stages.pass(&work.stages);
            taken.add(&work);
            let batch = Encoded {
                stream_bytes: BATCH_BYTES as u64,
                coded: Coded {
                    content_bytes: content_bytes(content),
                    wire_bytes: work.wire_bytes,
                },
                encode: noise.measured(work.encode_ns),
                other: noise.measured(work.source_other_ns),
            };
            chooser.encoded(&content.load, coder, &batch);
            chooser.cores(None, None, Some(work.starved.unwrap_or(0.0)));
            on_the_way.push_back(OnTheWay {
                arrives,
                seen,
                content,
                coder,
                work,
            });
        }
        taken.seconds = stages.end();
        taken
    }

    fn hear(&self, batch: &OnTheWay<'_>, chooser: &mut Chooser, noise: &mut Random) {
        let OnTheWay {
            seen, content, work, ..
        } = batch;
        let bytes = work.wire_bytes as f64 * seen;
        chooser.carried(bytes as u64, noise.measured(work.stages[1] * seen * 1e9));
        let decode = noise.measured(work.decode_ns);
        chooser.decoded(&content.load, batch.coder, content_bytes(content), decode);
        chooser.placed(BATCH_BYTES as u64, noise.measured(work.target_other_ns));
    }

    fn work(&self, content: &Content, coder: u8) -> Work {
        let cost = &content.coders[usize::from(coder)];
        let bytes = BATCH_BYTES as f64;
        let content = bytes * content.load.content;
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
            target_other_ns,
            starved,
        }
    }
}

/// Bytes of a batch that have to be coded.
fn content_bytes(content: &Content) -> u64 {
    (BATCH_BYTES as f64 * content.load.content) as u64
}

/// What a batch takes.
struct Work {
    stages: [f64; 3],
    wire_bytes: u64,
    encode_ns: f64,
    decode_ns: f64,
    source_other_ns: f64,
    target_other_ns: f64,
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

    /// Takes a batch through; returns when it is done, and the part of it that the last stage saw arrive: what arrives while
    /// it is at work on the batch before is there when it looks.
    fn pass(&mut self, work: &[f64; 3]) -> (f64, f64) {
        let start = self.next_start();
        self.done[0] = start + work[0];
        let start = self.done[0].max(self.done[1]).max(self.room_at(1));
        self.began(0, start);
        self.done[1] = start + work[1];
        let arrived = self.done[1];
        let seen = (arrived - start.max(self.done[2])).max(0.0) / work[1];
        let start = arrived.max(self.done[2]);
        self.began(1, start);
        self.done[2] = start + work[2];
        (self.done[2], seen)
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

/// Numbers that look random, in an order that repeats in each run.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// From 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Less than `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// Between two numbers, as likely in each power of two.
    pub(super) fn between(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.unit())
    }

    /// So many nanoseconds, as measured: no measurement is exact, this one is a tenth off at most.
    fn measured(&mut self, ns: f64) -> Duration {
        Duration::from_secs_f64(ns * (0.9 + 0.2 * self.unit()) / 1e9)
    }
}
