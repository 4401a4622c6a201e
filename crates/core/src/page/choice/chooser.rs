//! The choice itself.

use super::super::{Coded, lz::Coders};
use super::{
    costs::{Average, CONTENT_BYTES_MIN, Cost, Costs, PageKind},
    link::{Link, Window},
    log::{Log, Stretch},
    predict::{Conditions, Prediction, predict},
    recorded::recorded,
};
use std::time::Duration;

/// Coders whose times differ by no more than this part count as equally fast; the processors decide between them.
const TIE: f64 = 0.02;

/// A coder as fast as the present one has to spare the processors this part before it takes over: no change is free, since a
/// coder that was away begins with an old history.
const GAIN_MIN: f64 = 0.1;

/// The part of a session's time that trying coders out may cost.
const PROBE_PART: f64 = 0.01;

/// Batches of a kind of page after which a coder's figures are old.
const OLD_BATCHES: u64 = 512;

/// How much better than assumed a coder may turn out that was never measured, and one whose figures are old: only coders that
/// could then be the best are tried.
const HOPE_UNKNOWN: f64 = 0.6;
const HOPE_OLD: f64 = 0.85;

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
    /// The part of the stream that has to be coded.
    content: Average,
    present: u8,
}

/// Chooses a coder for each batch.
#[derive(Debug)]
pub struct Chooser {
    coders: Coders,
    kinds: [Kind; PageKind::ALL.len()],
    link: Link,
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
        Chooser {
            kinds: PageKind::ALL.map(|kind| Kind {
                costs: Costs::recorded(kind, count),
                content: Average::default(),
                present: FIRST.min(count as u8 - 1),
            }),
            coders,
            link: Link::new(limit),
            conditions: Conditions {
                link_bytes_per_s: f64::INFINITY,
                source_cores,
                // Nothing is known of the target before it says so.
                target_cores: source_cores,
                shared: false,
                lanes,
                source_ns_per_byte: recorded().source_ns_per_byte,
                target_ns_per_byte: recorded().target_ns_per_byte,
                floor_ns_per_byte: 0.0,
            },
            source_other: Average::default(),
            target_other: Average::default(),
            budget_ns: 0.0,
            log: Log::default(),
        }
    }

    /// The number of the coder for the next batch, most of whose pages are of this kind.
    pub fn choose(&mut self, kind: PageKind) -> u8 {
        let Some(link) = self.link.bytes_per_s() else {
            return self.kinds[kind as usize].present;
        };
        self.conditions.link_bytes_per_s = link;
        let best = self.best(kind);
        self.kinds[kind as usize].present = best;
        self.probe(kind, best).unwrap_or(best)
    }

    /// The coder with the least time; among those about as fast, the present one unless another spares the processors.
    fn best(&self, kind: PageKind) -> u8 {
        let all: Vec<Prediction> = (0..self.coders.len() as u8)
            .map(|coder| self.predicted(kind, &self.kinds[kind as usize].costs.of(coder)))
            .collect();
        let least = all.iter().map(|one| one.total).fold(f64::INFINITY, f64::min);
        let is_fast = |one: &Prediction| one.total <= least * (1.0 + TIE);
        let present = self.kinds[kind as usize].present;
        let now = &all[usize::from(present)];
        // To spare processors is no reason to find out the hard way what the link carries.
        let is_safe = |one: &Prediction| {
            let wire = one.link * self.conditions.link_bytes_per_s / one.total;
            !is_fast(now) || one.link <= now.link || self.link.is_safe(wire)
        };
        let cheapest = all.iter().enumerate().filter(|(_, one)| is_fast(one) && is_safe(one));
        let cheapest = cheapest.min_by(|(_, a), (_, b)| a.cpu.total_cmp(&b.cpu));
        let Some((cheapest, best)) = cheapest else {
            return present;
        };
        match is_fast(now) && now.cpu * (1.0 - GAIN_MIN) <= best.cpu {
            true => present,
            false => cheapest as u8,
        }
    }

    /// A coder that should be tried out on the next batch instead.
    fn probe(&mut self, kind: PageKind, best: u8) -> Option<u8> {
        let state = &self.kinds[kind as usize];
        let now = self.predicted(kind, &state.costs.of(best));
        let batch_bytes = crate::limits::BATCH_BYTES as f64;
        self.budget_ns += PROBE_PART * now.total * batch_bytes;
        let candidates = (0..self.coders.len() as u8).filter(|coder| *coder != best);
        let (coder, price) = candidates
            .filter_map(|coder| {
                let hope = match state.costs.age(coder) {
                    None => HOPE_UNKNOWN,
                    Some(age) if age >= OLD_BATCHES => HOPE_OLD,
                    Some(_) => return None,
                };
                let cost = state.costs.of(coder);
                let hoped = Cost {
                    encode_ns_per_byte: cost.encode_ns_per_byte * hope,
                    decode_ns_per_byte: cost.decode_ns_per_byte * hope,
                    ratio: cost.ratio * hope,
                };
                let could_win = self.predicted(kind, &hoped).total < now.total * (1.0 - TIE);
                let price = (self.predicted(kind, &cost).total - now.total).max(0.0) * batch_bytes;
                could_win.then_some((coder, price))
            })
            .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        // A probe that costs little more than the budget has is put off until it has it.
        (price <= self.budget_ns).then(|| {
            self.budget_ns -= price;
            coder
        })
    }

    fn predicted(&self, kind: PageKind, cost: &Cost) -> Prediction {
        let content = self.kinds[kind as usize].content.get().unwrap_or(1.0);
        predict(cost, content, &self.conditions)
    }

    /// A batch was encoded.
    pub fn encoded(&mut self, kind: PageKind, coder: u8, batch: &Encoded) {
        let state = &mut self.kinds[kind as usize];
        state.costs.encoded(coder, &batch.coded, batch.encode.as_nanos() as f64);
        let stream_bytes = batch.stream_bytes.max(1) as f64;
        if batch.stream_bytes >= CONTENT_BYTES_MIN {
            state.content.add(batch.coded.content_bytes as f64 / stream_bytes);
            self.source_other.add(batch.other.as_nanos() as f64 / stream_bytes);
        }
        if let Some(other) = self.source_other.get() {
            self.conditions.source_ns_per_byte = other;
        }
        self.log.batch(kind, coder);
    }

    /// The target decoded a batch with so much content in it.
    pub fn decoded(&mut self, kind: PageKind, coder: u8, content_bytes: u64, decode: Duration) {
        let costs = &mut self.kinds[kind as usize].costs;
        costs.decoded(coder, content_bytes, decode.as_nanos() as f64);
    }

    /// What the target does besides decoding took so long for so many bytes of the stream.
    pub fn placed(&mut self, stream_bytes: u64, other: Duration) {
        if stream_bytes >= CONTENT_BYTES_MIN {
            self.target_other.add(other.as_nanos() as f64 / stream_bytes as f64);
        }
        if let Some(other) = self.target_other.get() {
            self.conditions.target_ns_per_byte = other;
        }
    }

    /// What was seen of the link since the last call, at `now` (time since the session began).
    pub fn window(&mut self, window: &Window, now: Duration) {
        self.link.observe(window);
        for kind in PageKind::ALL {
            let state = &self.kinds[kind as usize];
            if let Some(link) = self.link.bytes_per_s()
                && let Some(content) = state.content.get()
            {
                let coder = state.present;
                let mut on = self.conditions;
                on.link_bytes_per_s = link;
                let cost = state.costs.of(coder);
                let settings = self.coders.get(coder).copied().unwrap_or_default();
                self.log.stretch(Stretch {
                    from_ms: now.as_millis() as u64,
                    batches: 0,
                    probes: 0,
                    kind,
                    coder,
                    settings,
                    content,
                    cost,
                    link_bytes_per_s: link,
                    link_measured: self.link.is_measured(),
                    source_cores: on.source_cores,
                    target_cores: on.target_cores,
                    predicted: predict(&cost, content, &on),
                });
            }
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
