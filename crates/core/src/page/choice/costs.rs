//! What each coder costs and saves, by kind of page.

use super::{kind::PageKind, recorded};
use serde::{Deserialize, Serialize};

/// What a coder costs and saves per byte of content: pages that have to be sent, differences, other records.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Processor time of the source, nanoseconds.
    pub encode_ns_per_byte: f64,
    /// Processor time of the target, nanoseconds.
    pub decode_ns_per_byte: f64,
    /// Bytes on the wire for a byte of content.
    pub ratio: f64,
}

impl Cost {
    /// That of content of which a part (0 to 1) costs as the other does.
    pub(super) fn blend(&self, other: &Cost, part: f64) -> Cost {
        let blend = |this: f64, other: f64| this + part * (other - this);
        Cost {
            encode_ns_per_byte: blend(self.encode_ns_per_byte, other.encode_ns_per_byte),
            decode_ns_per_byte: blend(self.decode_ns_per_byte, other.decode_ns_per_byte),
            ratio: blend(self.ratio, other.ratio),
        }
    }
}

/// Weight of the latest batch in an average: about the last four count. Pages change more than measurements err.
const WEIGHT: f64 = 0.5;

/// Less content than that says nothing about a coder: what a call costs by itself would count as the coder's, bytes.
pub const CONTENT_BYTES_MIN: u64 = 16 * 1024;

/// An average over the last batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average(Option<f64>);

impl Average {
    /// Returns the average with this value in it.
    pub(super) fn add(&mut self, value: f64) -> f64 {
        let average = self.0.map_or(value, |average| average + WEIGHT * (value - average));
        *self.0.insert(average)
    }

    pub(super) fn get(self) -> Option<f64> {
        self.0
    }
}

/// Weight of the latest batch in what tells coders apart, at the least: it changes less than the pages do. The first batches
/// count for more.
const APART_WEIGHT_MIN: f64 = 0.05;

/// The most that a single batch may say about a coder: a page of zeros or a thread held up says nothing.
const APART_MAX: f64 = 3.0;

/// One figure of all coders, as a factor of what was recorded. Pages change from batch to batch, and with them the figures of
/// all coders; each coder is measured only on the batches that it had. So there is one factor for what the pages are like now,
/// which every coder's batches teach, and one for each coder by which it differs. The latter is learned where two coders meet:
/// what changes while the coder stays is the pages.
#[derive(Clone, Debug)]
struct Factor {
    pages: Average,
    apart: Vec<f64>,
    /// Batches that each coder had, and those of them behind another coder's.
    batches: Vec<u32>,
    compared: Vec<u32>,
    /// The coder of the last batch.
    last: Option<usize>,
}

impl Factor {
    fn new(coders: usize) -> Factor {
        Factor {
            pages: Average::default(),
            apart: vec![1.0; coders],
            batches: vec![0; coders],
            compared: vec![0; coders],
            last: None,
        }
    }

    fn add(&mut self, coder: usize, factor: f64) {
        if coder >= self.apart.len() {
            return;
        }
        self.batches[coder] += 1;
        let after_another = self.last.replace(coder) != Some(coder);
        if let Some(pages) = self.pages.get()
            && after_another
            && pages > 0.1
        {
            self.compared[coder] += 1;
            let now = (factor / pages).clamp(1.0 / APART_MAX, APART_MAX);
            let weight = (1.0 / f64::from(self.compared[coder])).max(APART_WEIGHT_MIN);
            self.apart[coder] += weight * (now - self.apart[coder]);
        }
        self.pages.add(factor / self.apart[coder]);
    }

    fn of(&self, coder: usize) -> f64 {
        self.pages.get().unwrap_or(1.0) * self.apart[coder]
    }
}

/// The part by which a coder may be better than assumed that was never measured: the recorded ones differ from one another
/// by about as much.
const LUCK_UNKNOWN: f64 = 0.6;

/// How fast that shrinks: a coder measured once may still be an eighth better.
const LUCK_SHRINKS: f64 = 4.0;

/// Batches of a kind of page after which a coder's measurements count half.
const OLD_BATCHES: f64 = 32.0;

/// No coder is faster than that part of what was recorded: where the rest of a batch is estimated, less can seem to be left.
const FACTOR_MIN: f64 = 0.05;

/// All coders on one kind of page.
#[derive(Clone, Debug)]
pub(super) struct Costs {
    assumed: Vec<Cost>,
    encode: Factor,
    decode: Factor,
    /// Of the logarithm of the ratio: how dense pages are acts on coders as an exponent. Where one finds nothing, none will.
    density: Factor,
    /// The count of batches when each coder was measured last.
    measured_at: Vec<Option<u64>>,
    /// Batches of this kind so far.
    batches: u64,
}

impl Costs {
    /// As they were recorded for this kind.
    pub(super) fn recorded(kind: PageKind, is_dense: bool, coders: usize) -> Costs {
        let assumed = |number| recorded::assumed(kind, is_dense, number);
        Costs {
            assumed: (0..coders).map(assumed).collect(),
            encode: Factor::new(coders),
            decode: Factor::new(coders),
            density: Factor::new(coders),
            measured_at: vec![None; coders],
            batches: 0,
        }
    }

    /// So much of a batch was encoded in so many nanoseconds.
    pub(super) fn encoded(&mut self, coder: u8, content_bytes: f64, wire_bytes: f64, encode_ns: f64) {
        self.batches += 1;
        let number = usize::from(coder);
        let Some(assumed) = self.assumed.get(number) else {
            return;
        };
        if content_bytes < CONTENT_BYTES_MIN as f64 {
            return;
        }
        // No coding at all says nothing about how dense the pages are, nor does a batch of which a sample misjudged so much that
        // less than nothing is left for them.
        if assumed.ratio < RATIO_MAX && wire_bytes > 0.0 {
            let ratio = (wire_bytes / content_bytes).clamp(1e-4, 1.0);
            let density = ratio.ln() / assumed.ratio.ln();
            self.density.add(number, density);
        }
        let encode = encode_ns / content_bytes / assumed.encode_ns_per_byte;
        self.encode.add(number, encode.max(FACTOR_MIN));
        self.measured_at[number] = Some(self.batches);
    }

    /// So much of a batch was decoded in so many nanoseconds.
    pub(super) fn decoded(&mut self, coder: u8, content_bytes: f64, decode_ns: f64) {
        let number = usize::from(coder);
        if let Some(assumed) = self.assumed.get(number)
            && content_bytes >= CONTENT_BYTES_MIN as f64
        {
            let decode = decode_ns / content_bytes / assumed.decode_ns_per_byte;
            self.decode.add(number, decode.max(FACTOR_MIN));
        }
    }

    /// The part by which the coder may turn out better than [`of`](Self::of) says: much if it was never measured, less with
    /// each measurement, none of which is exact, and more again the longer ago they were.
    pub(super) fn luck(&self, coder: u8) -> f64 {
        let number = usize::from(coder);
        let measurements = self.measured_at[number].map_or(0.0, |at| {
            let age = (self.batches - at) as f64;
            f64::from(self.encode.batches[number]) / (1.0 + age / OLD_BATCHES)
        });
        LUCK_UNKNOWN / (1.0 + LUCK_SHRINKS * measurements)
    }

    /// What the coder costs on the pages of the last batches, as far as one can know.
    pub(super) fn of(&self, coder: u8) -> Cost {
        let number = usize::from(coder);
        let assumed = &self.assumed[number];
        Cost {
            encode_ns_per_byte: assumed.encode_ns_per_byte * self.encode.of(number),
            decode_ns_per_byte: assumed.decode_ns_per_byte * self.decode.of(number),
            ratio: match assumed.ratio < RATIO_MAX {
                true => assumed.ratio.powf(self.density.of(number)),
                false => assumed.ratio,
            },
        }
    }
}

/// A coder that is recorded with more than this does not make anything smaller.
const RATIO_MAX: f64 = 0.99;
