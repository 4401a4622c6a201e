//! What each coder costs and saves, by kind of page.

use super::super::{Coded, delta, known::Class};
use super::recorded;
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

/// Kinds of pages that coders treat differently enough to choose for each. (Pages that no coder makes smaller are found one
/// by one, and cross as they are with any coder.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PageKind {
    /// Pages that the target has no version of.
    Fresh,
    /// Pages that cross as their difference to what the target holds.
    Changed,
}

impl PageKind {
    /// All of them.
    pub const ALL: [PageKind; 2] = [PageKind::Fresh, PageKind::Changed];

    /// What most of a batch's pages that have to be sent are.
    pub fn of(classes: &[Class]) -> PageKind {
        let (mut fresh, mut changed) = (0, 0);
        for class in classes {
            match class {
                Class::New { changed: Some(lines) } if delta::is_close(*lines) => changed += 1,
                Class::New { .. } => fresh += 1,
                Class::Same | Class::Copy { .. } | Class::Content { .. } => {}
            }
        }
        match changed > fresh {
            true => PageKind::Changed,
            false => PageKind::Fresh,
        }
    }
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PageKind::Fresh => "fresh",
            PageKind::Changed => "changed",
        })
    }
}

/// Weight of the latest batch in an average: about the last ten count.
const WEIGHT: f64 = 0.2;

/// Less content than that says nothing about a coder: what a call costs by itself would count as the coder's, bytes.
pub const CONTENT_BYTES_MIN: u64 = 16 * 1024;

/// An average over the last batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average(Option<f64>);

impl Average {
    pub(super) fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |average| average + WEIGHT * (value - average)));
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
/// which every coder's batches teach, and one for each coder by which it differs.
#[derive(Clone, Debug)]
struct Factor {
    pages: Average,
    apart: Vec<f64>,
    /// Batches that each coder had.
    batches: Vec<u32>,
}

impl Factor {
    fn new(coders: usize) -> Factor {
        Factor {
            pages: Average::default(),
            apart: vec![1.0; coders],
            batches: vec![0; coders],
        }
    }

    fn add(&mut self, coder: usize, factor: f64) {
        let (Some(apart), Some(batches)) = (self.apart.get_mut(coder), self.batches.get_mut(coder)) else {
            return;
        };
        *batches += 1;
        if let Some(pages) = self.pages.get()
            && pages > 0.1
        {
            let now = (factor / pages).clamp(1.0 / APART_MAX, APART_MAX);
            let weight = (1.0 / f64::from(*batches)).max(APART_WEIGHT_MIN);
            *apart += weight * (now - *apart);
        }
        self.pages.add(factor / *apart);
    }

    fn of(&self, coder: usize) -> f64 {
        self.pages.get().unwrap_or(1.0) * self.apart[coder]
    }
}

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
    pub(super) fn recorded(kind: PageKind, coders: usize) -> Costs {
        Costs {
            assumed: (0..coders).map(|number| recorded::assumed(kind, number)).collect(),
            encode: Factor::new(coders),
            decode: Factor::new(coders),
            density: Factor::new(coders),
            measured_at: vec![None; coders],
            batches: 0,
        }
    }

    /// A batch was encoded in so many nanoseconds.
    pub(super) fn encoded(&mut self, coder: u8, coded: &Coded, encode_ns: f64) {
        self.batches += 1;
        let number = usize::from(coder);
        let Some(assumed) = self.assumed.get(number) else {
            return;
        };
        if coded.content_bytes < CONTENT_BYTES_MIN {
            return;
        }
        let content = coded.content_bytes as f64;
        self.encode
            .add(number, encode_ns / content / assumed.encode_ns_per_byte);
        // No coding at all says nothing about how dense the pages are.
        if assumed.ratio < RATIO_MAX {
            let ratio = (coded.wire_bytes as f64 / content).clamp(1e-4, 1.0);
            self.density.add(number, ratio.ln() / assumed.ratio.ln());
        }
        self.measured_at[number] = Some(self.batches);
    }

    /// A batch was decoded in so many nanoseconds.
    pub(super) fn decoded(&mut self, coder: u8, content_bytes: u64, decode_ns: f64) {
        let number = usize::from(coder);
        if let Some(assumed) = self.assumed.get(number)
            && content_bytes >= CONTENT_BYTES_MIN
        {
            let decode = decode_ns / content_bytes as f64;
            self.decode.add(number, decode / assumed.decode_ns_per_byte);
        }
    }

    /// Batches since the coder was measured; `None` if it never was.
    pub(super) fn age(&self, coder: u8) -> Option<u64> {
        let measured_at = (*self.measured_at.get(usize::from(coder))?)?;
        Some(self.batches - measured_at)
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
