//! What a page can be referred to beside the pages sent before: blocks of disks, images and checkpoints that the target
//! reads for itself, or earlier versions of it in memory that the target kept.
//!
//! The source only ever guesses that a block has some content, from a short hash of what it was when it was indexed. The
//! target reads the block and compares it with the page's fingerprint; where that differs it asks for the page. So nothing
//! here has to be true, a guess that is wrong costs bytes and a round trip, and a content source that is wrong too often is
//! not referred to any more. Nor is one that takes the target longer to read than to be sent the pages: it says so
//! ([`Reading`](super::Reading)).

use super::{
    BlockTable,
    batch::{Batch, Op},
    content::{BLOCK_BYTES, block_hash},
    delta,
    earlier::{EarlierTable, Place},
    fingerprint::Fingerprint,
    known::Class,
};
use crate::qemu::Block;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Content sources of one session.
pub const CONTENT_SOURCES_MAX: usize = 64;
/// Misses that a content source may have before their part counts.
const MISSES_FREE: u64 = 64;
/// Beyond those: one miss in so many pages.
const PAGES_PER_MISS: u64 = 8;

/// The content sources that a session's source may refer to, by number.
#[derive(Debug, Default)]
pub struct Catalog {
    sources: Vec<Source>,
    /// Sources that are there after the migration, too: so many, from the first.
    lasting: usize,
}

/// Content source, block, and the lines of it that changed.
type Found = (u16, u64, Option<u128>);

#[derive(Debug)]
struct Source {
    table: Arc<BlockTable>,
    earlier: EarlierTable,
    /// Pages that were referred to it.
    referred: AtomicU64,
    /// Of those, pages that the target asked for.
    missed: AtomicU64,
    /// The target takes longer to read it than to be sent the pages.
    is_slow: AtomicBool,
}

/// What came of referring to a content source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentTally {
    /// Pages that were referred to it.
    pub referred: u64,
    /// Of those, pages that the target asked for.
    pub missed: u64,
    /// The target refused to read it, for it took longer than to be sent the pages.
    pub is_slow: bool,
}

impl Catalog {
    /// Of these tables, numbered from 0; a page that several have is referred to the first.
    pub fn new(tables: Vec<Arc<BlockTable>>) -> Self {
        let sources = tables.into_iter().map(|table| Source {
            table,
            earlier: EarlierTable::default(),
            referred: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            is_slow: AtomicBool::new(false),
        });
        Self {
            sources: sources.take(CONTENT_SOURCES_MAX).collect(),
            lasting: CONTENT_SOURCES_MAX,
        }
    }

    /// The same, of which only the first `count` content sources are there after the migration, too. Others are memory of the VM
    /// that the target kept: it forgets that when the VM runs there.
    #[must_use]
    pub fn with_lasting(self, count: usize) -> Self {
        Self { lasting: count, ..self }
    }

    /// The same, with earlier versions of pages in the content source of that number.
    #[must_use]
    pub fn with_earlier(mut self, source: u16, earlier: EarlierTable) -> Self {
        if let Some(source) = self.sources.get_mut(usize::from(source)) {
            source.earlier = earlier;
        }
        self
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let tables = |source: &Source| source.table.memory_bytes() + source.earlier.memory_bytes();
        self.sources.iter().map(tables).sum()
    }

    /// Refers those of the batch's pages that the target would have to be sent to blocks that it can read. `blocks` is the
    /// stream's list. Lanes do this at the same time.
    pub fn refer(&self, batch: &Batch, blocks: &[Block], fingerprints: &[Fingerprint], classes: &mut [Class]) {
        if batch.page_bytes() != BLOCK_BYTES || !self.sources.iter().any(Source::is_good) {
            return;
        }
        let pages = batch.ops().iter().filter_map(|op| match op {
            Op::Page { at, start, .. } => Some((at, batch.page(*start))),
            _ => None,
        });
        for (((at, page), fingerprint), class) in pages.zip(fingerprints).zip(classes) {
            // A few lines cost no more than a fingerprint, and the target need not read a disk for them.
            match class {
                Class::New { changed } if !changed.is_some_and(delta::is_close) => {}
                _ => continue,
            }
            let found = self.content(page).or_else(|| {
                let name = &blocks.get(usize::from(at.block.0))?.name;
                self.earlier(Place::new(name.as_str(), at.offset), page)
            });
            if let Some((number, block, changed)) = found {
                self.sources[usize::from(number)]
                    .referred
                    .fetch_add(1, Ordering::Relaxed);
                *class = Class::Content {
                    source: number,
                    block,
                    changed,
                    fingerprint: *fingerprint,
                };
            }
        }
    }

    /// Content source and block that have the page's content.
    fn content(&self, page: &[u8]) -> Option<Found> {
        let hash = block_hash(page);
        self.good()
            .find_map(|(number, source)| Some((number, source.table.find(hash)?, None)))
    }

    /// Content source and block that have an earlier version of the page that is there.
    fn earlier(&self, place: Place, page: &[u8]) -> Option<Found> {
        self.good().find_map(|(number, source)| {
            let (block, changed) = source.earlier.find(place, page)?;
            Some((number, block, Some(changed)))
        })
    }

    fn good(&self) -> impl Iterator<Item = (u16, &Source)> {
        (0..).zip(&self.sources).filter(|(_, source)| source.is_good())
    }

    /// Whether a block will stand in one of them after the migration, as far as the source knows.
    pub fn holds(&self, block: &[u8]) -> bool {
        let hash = block_hash(block);
        let lasting = self.sources.iter().take(self.lasting);
        let mut good = lasting.filter(|source| source.is_good());
        good.any(|source| source.table.find(hash).is_some())
    }

    /// The target did not find a page where it was referred to.
    pub fn missed(&self, source: u16) {
        if let Some(source) = self.sources.get(usize::from(source)) {
            source.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The target refuses to read these content sources: a bit for each, the first one's the lowest.
    pub fn refused(&self, sources: u64) {
        for (number, source) in self.sources.iter().enumerate() {
            if sources >> number & 1 == 1 {
                source.is_slow.store(true, Ordering::Relaxed);
            }
        }
    }

    /// What came of referring to each content source.
    pub fn tallies(&self) -> Vec<ContentTally> {
        let tally = |source: &Source| ContentTally {
            referred: source.referred.load(Ordering::Relaxed),
            missed: source.missed.load(Ordering::Relaxed),
            is_slow: source.is_slow.load(Ordering::Relaxed),
        };
        self.sources.iter().map(tally).collect()
    }
}

impl Source {
    /// Whether it is worth referring to.
    fn is_good(&self) -> bool {
        let (referred, missed) = (
            self.referred.load(Ordering::Relaxed),
            self.missed.load(Ordering::Relaxed),
        );
        !self.is_slow.load(Ordering::Relaxed)
            && !self.table.is_empty()
            && missed <= MISSES_FREE + referred / PAGES_PER_MISS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_target_will_forget_is_not_held() {
        let blocks = [[1; BLOCK_BYTES], [2; BLOCK_BYTES]];
        let tables = blocks.map(|block| BlockTable::new(&[block_hash(&block)]).into());
        let held = |catalog: Catalog| blocks.map(|block| catalog.holds(&block));
        assert_eq!(held(Catalog::new(tables.to_vec())), [true, true]);
        assert_eq!(held(Catalog::new(tables.to_vec()).with_lasting(1)), [true, false]);
    }

    #[test]
    fn a_source_that_is_often_wrong_is_left_alone() {
        let catalog = Catalog::new(vec![BlockTable::new(&[1]).into()]);
        assert!(catalog.sources[0].is_good());
        for _ in 0..=MISSES_FREE {
            catalog.missed(0);
        }
        assert!(!catalog.sources[0].is_good());
        catalog.sources[0].referred.store(PAGES_PER_MISS, Ordering::Relaxed);
        assert!(catalog.sources[0].is_good(), "one in eight is worth it");
        catalog.missed(7);
    }

    #[test]
    fn a_source_that_the_target_refuses_is_left_alone() {
        let table: Arc<BlockTable> = BlockTable::new(&[1]).into();
        let catalog = Catalog::new(vec![table; 3]);
        catalog.refused(0b010 | 1 << 63);
        assert_eq!(
            [0, 1, 2].map(|number: usize| catalog.sources[number].is_good()),
            [true, false, true]
        );
        catalog.refused(0);
        let slow: Vec<bool> = catalog.tallies().iter().map(|tally| tally.is_slow).collect();
        assert_eq!(slow, [false, true, false], "what was refused stays so");
    }
}
