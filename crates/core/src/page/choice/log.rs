//! What was chosen over stretches of time, and the figures behind it: what `--explain` shows.

use super::super::lz::CodecSettings;
use super::{costs::Cost, kind::PageKind, predict::Prediction};

/// The most stretches that are kept; later ones are left out.
pub const STRETCHES_MAX: usize = 200;

/// A stretch of time in which one coder was chosen for one kind of page. The figures are those at its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// When it began, milliseconds since the session did.
    pub from_ms: u64,
    /// Batches of this kind in it.
    pub batches: u64,
    /// How many of these tried out another coder.
    pub probes: u64,
    /// The kind.
    pub kind: PageKind,
    /// The coder's number.
    pub coder: u8,
    /// The coder.
    pub settings: CodecSettings,
    /// The part of the stream that had to be coded, in the last batch before it.
    pub content: f64,
    /// What the coder cost.
    pub cost: Cost,
    /// What the link carries, bytes a second; infinite if nothing was seen of it yet.
    pub link_bytes_per_s: f64,
    /// Processors to spare on the source.
    pub source_cores: f64,
    /// And on the target.
    pub target_cores: f64,
    /// Time per byte of the stream.
    pub predicted: Prediction,
}

/// All stretches so far.
#[derive(Clone, Debug, Default)]
pub struct Log {
    stretches: Vec<Stretch>,
    /// For each kind, where its present stretch is.
    present: [Option<usize>; PageKind::ALL.len()],
}

impl Log {
    /// In the order in which they began.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// A stretch goes on, or begins if another coder was chosen.
    pub(super) fn stretch(&mut self, stretch: Stretch) {
        let present = &mut self.present[stretch.kind as usize];
        let goes_on = present.is_some_and(|at| self.stretches[at].coder == stretch.coder);
        if goes_on {
            return;
        }
        if self.stretches.len() == STRETCHES_MAX {
            return;
        }
        *present = Some(self.stretches.len());
        self.stretches.push(stretch);
    }

    /// A batch of this kind went through this coder.
    pub(super) fn batch(&mut self, kind: PageKind, coder: u8) {
        if let Some(at) = self.present[kind as usize] {
            let stretch = &mut self.stretches[at];
            stretch.batches += 1;
            stretch.probes += u64::from(stretch.coder != coder);
        }
    }
}
