//! The choice itself.

use super::super::{Coded, lz::Coders};
use super::{
    costs::{Average, CONTENT_BYTES_MIN, Cost, Costs},
    kind::{Load, PageKind},
    link::Link,
    log::{Log, Stretch},
    predict::{Conditions, Prediction, predict},
    recorded::recorded,
};
use std::time::Duration;

/// Coders whose times differ by no more than this part count as equally fast; how much work they are decides between them. It
/// is nearly all that the choice may lose against the best coder (`tests/coder_choice.rs`): predictions err too.
const TIE: f64 = 0.04;

/// A coder as fast as the present one has to save this part of the work before it takes over: no change is free, since a
/// coder that was away begins with an old history.
const GAIN_MIN: f64 = 0.1;

/// The part of a session's time that trying coders out may cost.
const PROBE_PART: f64 = 0.01;

/// The coder of the first batches, by its number in [`Coders::auto`]: Zstandard at its first level, which costs a fast link
/// little and a slow one, too.
const FIRST: u8 = 2;

/// What was measured of a batch when it was encoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    /// What had to be coded.
    pub coded: Coded,
    /// Processor time of encoding.
    pub encode: Duration,
    /// Processor time of everything else that the lane did for it.
    pub other: Duration,
}

/// One kind of page: what it costs, and what was chosen last.
#[derive(Clone, Debug)]
struct Kind {
    costs: Costs,
    /// What the last batch had to send, if there was one.
    load: Option<Load>,
    present: u8,
}

/// The smaller part of a batch.
struct Rest {
    part: f64,
    cost: Cost,
}

/// Chooses a coder for each batch.
#[derive(Debug)]
pub struct Chooser {
    coders: Coders,
    kinds: [Kind; PageKind::ALL.len()],
    /// What coders do with pages that they hardly make smaller.
    dense: Costs,
    link: Link,
    /// The target was heard of: before that, only the recorded costs are known.
    is_heard: bool,
    conditions: Conditions,
    source_other: Average,
    target_other: Average,
    /// What probes may still cost, nanoseconds.
    budget_ns: f64,
    log: Log,
}

impl Chooser {
    /// For a session of so many lanes between hosts that have so many processors to spare each, over a link that may be used
    /// up to `limit` bytes a second.
    pub fn new(coders: Coders, lanes: u16, source_cores: f64, limit: Option<u64>) -> Chooser {
        let count = coders.len();
        let link = Link::new(limit);
        Chooser {
            kinds: PageKind::ALL.map(|kind| Kind {
                costs: Costs::recorded(kind, false, count),
                load: None,
                present: FIRST.min(count as u8 - 1),
            }),
            dense: Costs::recorded(PageKind::Fresh, true, count),
            coders,
            is_heard: false,
            conditions: Conditions {
                link_bytes_per_s: link.bytes_per_s(),
                source_cores,
                // Nothing is known of the target before it says so.
                target_cores: source_cores,
                shared: false,
                lanes,
                source_ns_per_byte: recorded().source_ns_per_byte,
                target_ns_per_byte: recorded().target_ns_per_byte,
                floor_ns_per_byte: 0.0,
            },
            link,
            source_other: Average::default(),
            target_other: Average::default(),
            budget_ns: 0.0,
            log: Log::default(),
        }
    }

    /// The number of the coder for the next batch, which has this to send.
    pub fn choose(&mut self, load: &Load) -> u8 {
        let state = &mut self.kinds[load.kind as usize];
        state.load = Some(*load);
        if !self.is_heard {
            return state.present;
        }
        let best = self.best(load);
        self.kinds[load.kind as usize].present = best;
        self.probe(load, best).unwrap_or(best)
    }

    /// The coder with the least time; among those about as fast, the present one unless another is much less work.
    fn best(&self, load: &Load) -> u8 {
        let present = self.kinds[load.kind as usize].present;
        let all: Vec<Prediction> = (0..self.coders.len() as u8)
            .map(|coder| self.predicted(load, &self.cost(load, coder)))
            .collect();
        let least = all.iter().map(|one| one.total).fold(f64::INFINITY, f64::min);
        let is_fast = |one: &Prediction| one.total <= least * (1.0 + TIE);
        let fast = all.iter().enumerate().filter(|(_, one)| is_fast(one));
        let now = &all[usize::from(present)];
        match fast.min_by(|(_, a), (_, b)| a.work.total_cmp(&b.work)) {
            Some((lightest, one)) if !is_fast(now) || one.work < now.work * (1.0 - GAIN_MIN) => lightest as u8,
            _ => present,
        }
    }

    /// A coder that should be tried out on the next batch instead.
    fn probe(&mut self, load: &Load, best: u8) -> Option<u8> {
        let now = self.predicted(load, &self.cost(load, best));
        let batch_bytes = crate::limits::BATCH_BYTES as f64;
        self.budget_ns += PROBE_PART * now.total * batch_bytes;
        let candidates = (0..self.coders.len() as u8).filter(|coder| *coder != best);
        let (coder, price) = candidates
            .filter_map(|coder| {
                let cost = self.cost(load, coder);
                let hope = 1.0 - (1.0 - load.dense) * self.kinds[load.kind as usize].costs.luck(coder);
                let hoped = Cost {
                    encode_ns_per_byte: cost.encode_ns_per_byte * hope,
                    decode_ns_per_byte: cost.decode_ns_per_byte * hope,
                    ratio: cost.ratio * hope,
                };
                let could_win = self.predicted(load, &hoped).total < now.total * (1.0 - TIE);
                let price = (self.predicted(load, &cost).total - now.total).max(0.0) * batch_bytes;
                could_win.then_some((coder, price))
            })
            .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        // A probe that costs little more than the budget has is put off until it has it.
        (price <= self.budget_ns).then(|| {
            self.budget_ns -= price;
            coder
        })
    }

    /// What the coder costs on the pages of such a batch.
    fn cost(&self, load: &Load, coder: u8) -> Cost {
        let costs = self.kinds[load.kind as usize].costs.of(coder);
        costs.blend(&self.dense.of(coder), load.dense)
    }

    fn predicted(&self, load: &Load, cost: &Cost) -> Prediction {
        predict(cost, load.content, &self.conditions)
    }

    /// A batch was encoded.
    pub fn encoded(&mut self, load: &Load, coder: u8, batch: &Encoded) {
        let content = batch.coded.content_bytes as f64;
        let (costs, rest) = self.most_of(load, coder);
        costs.encoded(
            coder,
            content * (1.0 - rest.part),
            batch.coded.wire_bytes as f64 - content * rest.part * rest.cost.ratio,
            batch.encode.as_nanos() as f64 - content * rest.part * rest.cost.encode_ns_per_byte,
        );
        if batch.stream_bytes >= CONTENT_BYTES_MIN {
            let other = batch.other.as_nanos() as f64 / batch.stream_bytes as f64;
            self.conditions.source_ns_per_byte = self.source_other.add(other);
        }
        self.log.batch(load.kind, coder);
    }

    /// The target decoded a batch with so much content in it.
    pub fn decoded(&mut self, load: &Load, coder: u8, content_bytes: u64, decode: Duration) {
        let content = content_bytes as f64;
        let (costs, rest) = self.most_of(load, coder);
        let rest_ns = content * rest.part * rest.cost.decode_ns_per_byte;
        costs.decoded(coder, content * (1.0 - rest.part), decode.as_nanos() as f64 - rest_ns);
    }

    /// Whose costs such a batch tells of most, and what is known of the rest of it.
    fn most_of(&mut self, load: &Load, coder: u8) -> (&mut Costs, Rest) {
        let kind = &mut self.kinds[load.kind as usize].costs;
        let (costs, other, part) = match load.dense > 0.5 {
            true => (&mut self.dense, kind, 1.0 - load.dense),
            false => (kind, &mut self.dense, load.dense),
        };
        let cost = other.of(coder);
        (costs, Rest { part, cost })
    }

    /// What the target does besides decoding took so long for so many bytes of the stream.
    pub fn placed(&mut self, stream_bytes: u64, other: Duration) {
        if stream_bytes >= CONTENT_BYTES_MIN {
            let other = other.as_nanos() as f64 / stream_bytes as f64;
            self.conditions.target_ns_per_byte = self.target_other.add(other);
        }
    }

    /// The target acknowledged something, and saw so many bytes arrive in that time, in which the link was busy.
    pub fn carried(&mut self, bytes: u64, time: Duration) {
        self.is_heard = true;
        self.link.carried(bytes, time);
        self.conditions.link_bytes_per_s = self.link.bytes_per_s();
    }

    /// Has what is chosen at `now` (time since the session began) in the log.
    pub fn note(&mut self, now: Duration) {
        for kind in PageKind::ALL {
            let Kind { load, present, .. } = &self.kinds[kind as usize];
            let Some(load) = load else { continue };
            let (on, cost) = (&self.conditions, self.cost(load, *present));
            self.log.stretch(Stretch {
                from_ms: now.as_millis() as u64,
                batches: 0,
                probes: 0,
                kind,
                coder: *present,
                settings: self.coders.get(*present).copied().unwrap_or_default(),
                content: load.content,
                cost,
                link_bytes_per_s: on.link_bytes_per_s,
                source_cores: on.source_cores,
                target_cores: on.target_cores,
                predicted: self.predicted(load, &cost),
            });
        }
    }

    /// Processors that each side has to spare; `None` where nothing new is known. `floor`: the least nanoseconds that QEMU
    /// takes to write a byte of its stream, where it was seen to be the slowest.
    pub fn cores(&mut self, source: Option<f64>, target: Option<f64>, floor: Option<f64>) {
        let on = &mut self.conditions;
        on.source_cores = source.unwrap_or(on.source_cores);
        on.target_cores = target.unwrap_or(on.target_cores);
        on.floor_ns_per_byte = floor.unwrap_or(on.floor_ns_per_byte);
    }

    /// Both sides are on one host, whose processors are the source's.
    pub fn on_one_host(&mut self) {
        self.conditions.shared = true;
    }

    /// What was chosen so far, and why.
    pub fn log(&self) -> &Log {
        &self.log
    }
}
