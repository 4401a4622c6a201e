//! What the target holds already, so that it need not be sent again.
//!
//! Two tables: the fingerprint of what each page was last sent as, and, for each fingerprint, where it was sent last. An
//! entry of the second is dropped as soon as its page is sent with other content, so it always names a page whose content
//! at the target is exactly that, as of this point of the stream.
//!
//! Beside them, within a bound, hashes of the pages' lines: [`Versions`].

use super::{
    batch::{Batch, Op},
    fingerprint::Fingerprint,
    lines::LineHashes,
    sparse::Sparse,
    versions::Versions,
};
use crate::qemu::BlockId;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

/// How a page's content reaches the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// The target has to be sent the content.
    New {
        /// Which lines differ from what the page holds at the target at this point of the stream, the first line's bit the
        /// lowest; `None` if that is not known.
        changed: Option<u128>,
    },
    /// The page holds that content at the target already.
    Same,
    /// Another page holds it there, at this point of the stream.
    Copy {
        /// That page's block.
        block: BlockId,
        /// Its number in the block.
        page: u64,
    },
    /// A block of known content that the target can read has it, or an earlier version, as far as the source knows
    /// ([`Catalog`](super::Catalog)).
    Content {
        /// The content source's number.
        source: u16,
        /// The block's number.
        block: u64,
        /// Which lines differ from that block, the first line's bit the lowest; `None` if it is the page.
        changed: Option<u128>,
        /// The page's, by which the target tells.
        fingerprint: Fingerprint,
    },
}

/// Which of the pages sent before may be referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All: the target can read its guest's memory.
    All,
    /// Those in this batch and the `n` before it, which the target still has at hand; use
    /// [`RING_BATCHES`](super::RING_BATCHES).
    Batches(u64),
}

/// Where a content was sent last.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Block in the upper 16 bits, page in the lower 48 (the largest guest has 2^36 pages of the smallest size): half the
    /// memory of two fields.
    packed: u64,
    seq: u64,
}

const PAGE_BITS: u32 = 48;

fn packed(block: BlockId, page: u64) -> u64 {
    u64::from(block.0) << PAGE_BITS | page
}

/// What the target holds. Takes 16 bytes a page sent (in chunks of 512), 38 to 75 a distinct content, and what [`Versions`]
/// may take.
#[derive(Debug)]
pub struct Known {
    reach: Reach,
    /// What each page was last sent as; the default where we cannot say (never sent, zero, foreign). No content hashes to
    /// the default but with probability 2^-128, and then it is sent again.
    held: Sparse<Fingerprint>,
    index: HashMap<Fingerprint, Place, BuildHasherDefault<FirstBytes>>,
    versions: Versions,
    postcopy: bool,
}

impl Known {
    /// Knows of nothing yet. Line hashes of pages are kept in up to `versions_bytes_max` of memory, if all pages may
    /// be referred to.
    pub fn new(reach: Reach, versions_bytes_max: usize) -> Self {
        Self {
            reach,
            held: Sparse::default(),
            index: HashMap::default(),
            versions: Versions::new(if reach == Reach::All { versions_bytes_max } else { 0 }),
            postcopy: false,
        }
    }

    /// Says for each page of the batch how it has to cross, and remembers that the target then holds it. To be called in
    /// the order of [`Batch::seq`]; `fingerprints` and `lines` are the batch's, in order. Without `lines`, no
    /// page is told by what changed.
    pub fn classify(&mut self, batch: &Batch, fingerprints: &[Fingerprint], lines: &[LineHashes]) -> Vec<Class> {
        if batch.postcopy && !self.postcopy {
            // From here on the guest runs at the target and changes its pages itself, or they were discarded.
            *self = Self {
                postcopy: true,
                ..Self::new(self.reach, 0)
            };
        }
        if self.postcopy {
            return vec![Class::New { changed: None }; fingerprints.len()];
        }
        let page_bytes = (batch.page_bytes() as u64).max(1);
        let (mut fingerprints, mut lines) = (fingerprints.iter(), lines.iter());
        let mut classes = Vec::with_capacity(fingerprints.len());
        for op in batch.ops() {
            match op {
                Op::Page { at, .. } => {
                    let Some(fingerprint) = fingerprints.next() else {
                        break;
                    };
                    let page = at.offset / page_bytes;
                    let again = self.held.get(at.block, page) != Fingerprint::default();
                    let mut class = self.page(at.block, page, *fingerprint, batch.seq);
                    if let (true, Some(lines)) = (class != Class::Same, lines.next()) {
                        let changes = self.versions.sent(at.block, page, lines);
                        if let (Class::New { changed }, true) = (&mut class, again) {
                            *changed = changes;
                        }
                    }
                    classes.push(class);
                }
                Op::Zero { at, pages, .. } => {
                    let first = at.offset / page_bytes;
                    self.forget(at.block, first..first + pages);
                }
                Op::Foreign { block, offset, .. } => {
                    let page = offset / page_bytes;
                    self.forget(*block, page..page + 1);
                }
                Op::Bytes(_) | Op::Blocks(_) => {}
            }
        }
        classes
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        // The standard table has one control byte per slot and keeps an eighth of its slots free.
        let slots = self.index.capacity() / 7 * 8;
        self.versions.memory_bytes() + self.held.memory_bytes() + slots * (size_of::<(Fingerprint, Place)>() + 1)
    }

    fn page(&mut self, block: BlockId, page: u64, fingerprint: Fingerprint, seq: u64) -> Class {
        let here = Place {
            packed: packed(block, page),
            seq,
        };
        let held = self.held.entry(block, page);
        let before = std::mem::replace(held, fingerprint);
        let last = self.index.insert(fingerprint, here);
        if before != fingerprint && self.index.get(&before).is_some_and(|place| place.packed == here.packed) {
            self.index.remove(&before);
        }
        let last = last.filter(|place| match self.reach {
            Reach::All => true,
            Reach::Batches(batches) => place.seq.saturating_add(batches) >= seq,
        });
        match last {
            Some(place) if place.packed == here.packed => Class::Same,
            Some(_) if before == fingerprint && self.reach == Reach::All => Class::Same,
            Some(place) => Class::Copy {
                block: BlockId((place.packed >> PAGE_BITS) as u16),
                page: place.packed & ((1 << PAGE_BITS) - 1),
            },
            None => Class::New { changed: None },
        }
    }

    fn forget(&mut self, block: BlockId, pages: Range<u64>) {
        self.held.for_each_present(block, pages, |page, held| {
            let before = std::mem::take(held);
            if self
                .index
                .get(&before)
                .is_some_and(|place| place.packed == packed(block, page))
            {
                self.index.remove(&before);
            }
        });
    }
}

/// Hashes a fingerprint by its first bytes: it is a keyed hash already, which no guest can aim.
#[derive(Debug, Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::PageAt;

    const PAGE: usize = 4096;

    /// A batch of page records for these pages of block 0; their content is left zero, for only fingerprints count.
    fn batch(seq: u64, pages: &[u64]) -> Batch {
        let ops = pages.iter().enumerate().map(|(index, page)| {
            let at = PageAt {
                block: BlockId(0),
                offset: page * PAGE as u64,
                named: false,
            };
            let record = index * (PAGE + 8);
            let start = record + 8;
            Op::Page { at, record, start }
        });
        Batch {
            seq,
            round: 0,
            stream: Vec::new(),
            ops: ops.collect(),
            page_bytes: PAGE,
            postcopy: false,
            stopped: false,
        }
    }

    fn content(id: u64) -> Fingerprint {
        let hash = blake3::hash(&id.to_be_bytes());
        Fingerprint(crate::page::fingerprint::truncated(hash.as_bytes()))
    }

    const NEW: Class = Class::New { changed: None };

    fn copy(page: u64) -> Class {
        Class::Copy {
            block: BlockId(0),
            page,
        }
    }

    #[test]
    fn a_page_sent_before_is_same_where_it_was_and_a_copy_elsewhere() {
        let mut known = Known::new(Reach::All, 0);
        let classes = known.classify(&batch(0, &[1, 2, 1]), &[content(1); 3], &[]);
        assert_eq!(classes, [NEW, copy(1), Class::Same]);
        let classes = known.classify(&batch(1, &[2, 3]), &[content(1); 2], &[]);
        assert_eq!(classes, [Class::Same, copy(2)]);
    }

    #[test]
    fn a_page_overwritten_is_referred_to_no_more() {
        let mut known = Known::new(Reach::All, 0);
        known.classify(&batch(0, &[1, 1]), &[content(1), content(2)], &[]);
        let classes = known.classify(&batch(1, &[5, 6]), &[content(1), content(2)], &[]);
        assert_eq!(classes, [NEW, copy(1)]);
    }

    #[test]
    fn a_short_reach_sends_again_what_was_sent_too_long_ago() {
        let mut known = Known::new(Reach::Batches(2), 0);
        known.classify(&batch(0, &[1]), &[content(1)], &[]);
        assert_eq!(known.classify(&batch(2, &[1]), &[content(1)], &[]), [Class::Same]);
        assert_eq!(known.classify(&batch(5, &[1]), &[content(1)], &[]), [NEW]);
        assert_eq!(known.classify(&batch(6, &[2]), &[content(1)], &[]), [copy(1)]);
        assert_eq!(known.classify(&batch(8, &[1]), &[content(1)], &[]), [copy(2)]);
    }

    #[test]
    fn nothing_is_referred_to_once_post_copy_begins() {
        let mut known = Known::new(Reach::All, 0);
        known.classify(&batch(0, &[1]), &[content(1)], &[]);
        let switch = Batch {
            postcopy: true,
            ..batch(1, &[1, 2])
        };
        assert_eq!(known.classify(&switch, &[content(1); 2], &[]), [NEW, NEW]);
        assert_eq!(known.memory_bytes(), 0);
    }

    #[test]
    fn memory_follows_the_pages_seen_and_not_where_they_are() {
        let mut known = Known::new(Reach::All, 0);
        let far_apart: Vec<u64> = (0..100).map(|index| index << 28).collect();
        let contents: Vec<_> = (0..100).map(content).collect();
        known.classify(&batch(0, &far_apart), &contents, &[]);
        assert!(known.memory_bytes() < 100 * 10_000);
    }

    #[test]
    fn a_gib_of_distinct_pages_takes_less_than_a_fortieth_of_it() {
        let mut known = Known::new(Reach::All, 0);
        let pages: Vec<u64> = (0..1 << 18).collect();
        let contents: Vec<_> = pages.iter().copied().map(content).collect();
        for (seq, pages) in pages.chunks(128).enumerate() {
            let first = seq * 128;
            known.classify(&batch(seq as u64, pages), &contents[first..first + pages.len()], &[]);
        }
        assert!(known.memory_bytes() < (1 << 30) / 40, "{}", known.memory_bytes());
    }
}
