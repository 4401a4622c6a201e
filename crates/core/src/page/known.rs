//! What the target holds already, so that it need not be sent again.
//!
//! Two tables: the fingerprint of what each page was last sent as, and, for each fingerprint, where it was sent last
//! (`Places`). An entry of the second is dropped as soon as its page is sent with other content, so it always names a page
//! whose content at the target is exactly that, as of this point of the stream. Where the target has only the last batches at
//! hand, the second is of what these had (`Recent`).
//!
//! Beside them, within a bound, hashes of the pages' lines: [`Versions`].

use super::{
    batch::{Batch, Op},
    fingerprint::Fingerprint,
    lines::LineHashes,
    places::{PlaceSent, Places},
    sparse::Sparse,
    versions::Versions,
};
use crate::qemu::BlockId;
use std::{
    collections::{HashMap, VecDeque},
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

/// What the target holds. Takes for each page sent 16 bytes (in chunks of 512), for each distinct content 13, and what
/// [`Versions`] may take.
#[derive(Debug)]
pub struct Known {
    reach: Reach,
    /// What each page was last sent as; the default where we cannot say (never sent, zero, foreign). No content hashes to
    /// the default but with probability 2^-128, and then it is sent again.
    held: Sparse<Fingerprint>,
    /// Where contents were sent; of use with [`Reach::All`].
    places: Places,
    /// The same with [`Reach::Batches`].
    recent: Recent,
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
            places: Places::default(),
            recent: Recent::default(),
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
        if let Reach::Batches(batches) = self.reach {
            self.recent.begin(batch.seq, batches);
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
                    let mut class = self.page(at.block, page, *fingerprint);
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

    /// Memory that a guest of so many pages makes this take, bytes, at the most, beside that of [`Versions`].
    pub fn memory_bytes_max(pages: u64) -> u64 {
        let chunks = pages.div_ceil(Sparse::<Fingerprint>::CHUNK) * Sparse::<Fingerprint>::CHUNK_BYTES as u64;
        chunks + pages * Places::BYTES_PER_CONTENT_MAX as u64 + Places::BYTES_MIN as u64
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.versions.memory_bytes()
            + self.held.memory_bytes()
            + self.places.memory_bytes()
            + self.recent.memory_bytes()
    }

    fn page(&mut self, block: BlockId, page: u64, fingerprint: Fingerprint) -> Class {
        let here = PlaceSent { block, page };
        let before = std::mem::replace(self.held.entry(block, page), fingerprint);
        if before != fingerprint {
            // First, because it looks as if its page held what that holds now.
            self.remove(&before, here);
        }
        let last = match self.reach {
            Reach::All => {
                let held = &self.held;
                let is_there = |place: PlaceSent| held.get(place.block, place.page) == fingerprint;
                self.places.insert(&fingerprint, here, is_there)
            }
            Reach::Batches(_) => self.recent.insert(fingerprint, here),
        };
        match last {
            Some(place) if place == here => Class::Same,
            Some(_) if before == fingerprint && self.reach == Reach::All => Class::Same,
            Some(PlaceSent { block, page }) => Class::Copy { block, page },
            None => Class::New { changed: None },
        }
    }

    fn forget(&mut self, block: BlockId, pages: Range<u64>) {
        let (places, recent) = (&mut self.places, &mut self.recent);
        self.held.for_each_present(block, pages, |page, held| {
            let before = std::mem::take(held);
            let here = PlaceSent { block, page };
            if before != Fingerprint::default() {
                places.remove(&before, here);
                recent.remove(&before, here);
            }
        });
    }

    fn remove(&mut self, before: &Fingerprint, here: PlaceSent) {
        self.places.remove(before, here);
        self.recent.remove(before, here);
    }
}

/// Where the contents of the last batches were sent.
#[derive(Debug, Default)]
struct Recent {
    contents: HashMap<Fingerprint, (PlaceSent, u64)>,
    /// Their numbers, and what was in them.
    batches: VecDeque<(u64, Vec<Fingerprint>)>,
}

impl Recent {
    /// A batch begins that may refer to so many before it; earlier ones are forgotten.
    fn begin(&mut self, seq: u64, reach: u64) {
        while let Some((old, contents)) = self.batches.pop_front_if(|(old, _)| old.saturating_add(reach) < seq) {
            for fingerprint in contents {
                if self.contents.get(&fingerprint).is_some_and(|(_, seq)| *seq == old) {
                    self.contents.remove(&fingerprint);
                }
            }
        }
        self.batches.push_back((seq, Vec::new()));
    }

    /// The batch has that content there. Returns where it was sent last.
    fn insert(&mut self, fingerprint: Fingerprint, place: PlaceSent) -> Option<PlaceSent> {
        let (seq, contents) = self.batches.back_mut()?;
        contents.push(fingerprint);
        let last = self.contents.insert(fingerprint, (place, *seq));
        last.map(|(place, _)| place)
    }

    fn remove(&mut self, before: &Fingerprint, place: PlaceSent) {
        if self.contents.get(before).is_some_and(|(last, _)| *last == place) {
            self.contents.remove(before);
        }
    }

    fn memory_bytes(&self) -> usize {
        // The standard table has one control byte per slot and keeps an eighth of its slots free.
        let slots = self.contents.capacity() / 7 * 8;
        let listed = self.batches.iter().map(|(_, contents)| contents.capacity());
        slots * (size_of::<(Fingerprint, (PlaceSent, u64))>() + 1)
            + listed.sum::<usize>() * size_of::<Fingerprint>()
            + self.batches.capacity() * size_of::<(u64, Vec<Fingerprint>)>()
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
    fn a_short_reach_takes_no_memory_for_contents_out_of_it() {
        let mut known = Known::new(Reach::Batches(4), 0);
        let mut most_at = |batches: std::ops::Range<u64>| {
            let most = batches.map(|seq| {
                let contents: Vec<_> = (0..100).map(|number| content(seq * 100 + number)).collect();
                let pages: Vec<u64> = (0..100).collect();
                known.classify(&batch(seq, &pages), &contents, &[]);
                known.recent.memory_bytes()
            });
            most.max()
        };
        // Where contents lie in the table is chance, and with it where it grows; ten times the contents would show.
        let (early, late) = (most_at(0..30).unwrap(), most_at(30..300).unwrap());
        assert!(late < early * 2, "{late} after {early} bytes");
    }

    #[test]
    fn memory_is_within_what_is_reckoned_with_at_every_size() {
        let mut known = Known::new(Reach::All, 0);
        let pages: Vec<u64> = (0..1 << 19).collect();
        for (seq, pages) in (0..).zip(pages.chunks(512)) {
            let contents: Vec<_> = pages.iter().copied().map(content).collect();
            known.classify(&batch(seq, pages), &contents, &[]);
            let (takes, most) = (known.memory_bytes() as u64, Known::memory_bytes_max((seq + 1) * 512));
            assert!(takes <= most, "{takes} > {most} bytes after {} pages", (seq + 1) * 512);
        }
    }

    #[test]
    fn a_guest_of_16_gib_leaves_what_is_reckoned_with_for_hashes() {
        const GUEST_BYTES: u64 = 16 << 30;
        const HASHES_BYTES: usize = 32 << 20;
        let session = crate::memory::Session {
            guest_bytes: GUEST_BYTES,
            lanes: 8,
            coders: crate::page::Coders::default(),
        };
        // Hashes of few pages, as 2 GiB are much for a test: their bound is kept whatever it is.
        let mut known = Known::new(Reach::All, HASHES_BYTES);
        let all = GUEST_BYTES / PAGE as u64;
        let lines = vec![LineHashes::default(); 1 << 14];
        for first in (0..all).step_by(lines.len()) {
            let pages: Vec<u64> = (first..all.min(first + lines.len() as u64)).collect();
            let contents: Vec<_> = pages.iter().map(|page| content_fast(*page)).collect();
            known.classify(&batch(first, &pages), &contents, &lines);
        }
        let hashes = known.versions.memory_bytes();
        assert!(hashes <= HASHES_BYTES && hashes > HASHES_BYTES * 9 / 10, "{hashes}");
        let others = (known.memory_bytes() - hashes) as u64;
        let left = session.versions_bytes_max(0);
        assert!(others + left <= session.source_bytes_max(), "{others} and {left} bytes");
        assert!(others > all * 25, "less than can be: {others}");
    }

    /// A content of its own for each number, without hashing: a product with an odd number, and its upper half.
    fn content_fast(number: u64) -> Fingerprint {
        let product = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        Fingerprint((product.rotate_left(64)).to_le_bytes())
    }
}
