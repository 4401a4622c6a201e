//! Short hashes of a page's lines, by which the source tells which lines changed since it sent the page, without keeping the
//! page: a sixteenth of its size.
//!
//! Two contents of a line that have one hash are told apart by the fingerprint of the page that the target rebuilds, and the
//! session ends there. So hashes are keyed, which leaves that to chance: one changed line in four thousand million.

use super::{batch::Batch, delta::LINES, fingerprint::FingerprintKey};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Of each line of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineHashes([u32; LINES]);

impl Default for LineHashes {
    fn default() -> Self {
        Self([0; LINES])
    }
}

impl LineHashes {
    /// A bit for each line that differs, the first line's the lowest.
    pub(super) fn changed(&self, before: &Self) -> u64 {
        let pairs = self.0.iter().zip(&before.0).enumerate();
        pairs.fold(0, |mask, (number, (now, before))| {
            mask | u64::from(now != before) << number
        })
    }
}

impl FingerprintKey {
    /// The line hashes of a batch's pages, in order.
    pub fn lines(&self, batch: &Batch) -> Vec<LineHashes> {
        let line_bytes = batch.page_bytes() / LINES;
        if line_bytes == 0 {
            return Vec::new();
        }
        let seed = self.derived("line hashes");
        let seed = seed.first_chunk().map_or(0, |seed| u64::from_le_bytes(*seed));
        let hashes = |page: &[u8]| {
            let mut hashes = LineHashes::default();
            for (hash, line) in hashes.0.iter_mut().zip(page.chunks_exact(line_bytes)) {
                *hash = xxh3_64_with_seed(line, seed) as u32;
            }
            hashes
        };
        batch.pages().map(hashes).collect()
    }
}
