//! What a page can be referred to beside the pages sent before: blocks of disks, images and checkpoints that the target
//! reads for itself, or earlier versions of it in memory that the target kept.
//!
//! The source only ever guesses that a block has some content, from a short hash of what it was when it was indexed. The
//! target reads the block and compares it with the page's fingerprint; where that differs it asks for the page. So nothing
//! here has to be true, a guess that is wrong costs bytes and a round trip, and a content source that is wrong too often is
//! not referred to any more.

use super::{
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
    atomic::{AtomicU64, Ordering},
};

/// Content sources of one session.
pub const CONTENT_SOURCES_MAX: usize = 64;
/// Misses that a content source may have before their part counts.
const MISSES_FREE: u64 = 64;
/// Beyond those: one miss in so many pages.
const PAGES_PER_MISS: u64 = 8;

/// Blocks by the hash of their content: 8 bytes for each block that is not zero and has a content of its own, and half a
/// byte for the directory.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    /// log2 of the number of buckets; a hash's upper bits are its bucket's number.
    bits: u32,
    /// Where in `entries` each bucket begins, and behind the last where it ends.
    starts: Vec<u32>,
    /// The 32 bits of the hash behind its bucket's number, then the block. Unused at the end of a bucket: 0 and block 0.
    entries: Vec<u64>,
    hash_bits: u32,
    len: usize,
}

/// Blocks in a bucket. There are eight or so, unless somebody chose them: everybody can make blocks whose hashes are alike, and
/// looking through a bucket has to stay short.
const BUCKET_MAX: u32 = 32;

/// Bits of a hash that [`BlockTable::pack`] passes on. Of a million blocks, one page in a million is then taken for a block
/// that it is not.
const PACKED_HASH_BITS: u32 = 40;
/// Bytes of a [packed](BlockTable::pack) hash.
pub(super) const PACKED_BYTES: usize = PACKED_HASH_BITS as usize / 8;

impl BlockTable {
    /// A table of the blocks with these hashes ([`block_hash`]), numbered from 0; those of hash 0 are left out, and all beyond
    /// the first `blocks_max`.
    pub fn new(hashes: &[u64], blocks_max: usize) -> Self {
        Self::with_precision(hashes, blocks_max, u64::BITS)
    }

    fn with_precision(hashes: &[u64], blocks_max: usize, hash_bits: u32) -> Self {
        let count = hashes.iter().filter(|hash| **hash != 0).count().min(blocks_max);
        let numbered = || {
            // A block's number takes 32 bits of its entry: 16 TiB.
            let numbers = 0..=u32::MAX;
            numbers.zip(hashes).filter(|(_, hash)| **hash != 0).take(count)
        };
        // About eight to a bucket.
        let bits = (count / 8).checked_ilog2().unwrap_or(0).max(1);
        let bucket = |hash: u64| (hash >> (u64::BITS - bits)) as usize;
        let mut starts = vec![0u32; (1 << bits) + 1];
        for (_, hash) in numbered() {
            let length = &mut starts[bucket(*hash) + 1];
            *length = (*length + 1).min(BUCKET_MAX);
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let entries = starts.last().copied().unwrap_or_default();
        let mut table = Self {
            bits,
            starts,
            entries: vec![0; entries as usize],
            hash_bits,
            len: 0,
        };
        let mut filled = vec![0u32; 1 << bits];
        for (block, hash) in numbered() {
            let (bucket, tag) = (bucket(*hash), table.tag(*hash));
            let start = table.starts[bucket] as usize;
            let has_room = start + (filled[bucket] as usize) < table.starts[bucket + 1] as usize;
            let entries = &mut table.entries[start..start + filled[bucket] as usize];
            // A content that an image repeats without end would fill its bucket with itself.
            if has_room && entries.iter().all(|entry| entry >> 32 != tag) {
                table.entries[start + filled[bucket] as usize] = tag << 32 | u64::from(block);
                filled[bucket] += 1;
                table.len += 1;
            }
        }
        table
    }

    /// The block that had content of this hash.
    pub fn find(&self, hash: u64) -> Option<u64> {
        if hash == 0 || self.len == 0 {
            return None;
        }
        let bucket = (hash >> (u64::BITS - self.bits)) as usize;
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        let tag = self.tag(hash);
        let found = self.entries[start..end].iter().find(|entry| **entry >> 32 == tag)?;
        // What is left free behind repeated contents looks like block 0 with a tag of zeros.
        (*found != 0 || tag == 0).then_some(found & u64::from(u32::MAX))
    }

    /// The part of a hash behind its bucket's number, as far as it is known.
    fn tag(&self, hash: u64) -> u64 {
        let known = hash & (u64::MAX << (u64::BITS - self.hash_bits));
        (known << self.bits) >> 32
    }

    /// Blocks that can be found.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.len() * size_of::<u64>() + self.starts.len() * size_of::<u32>()
    }

    /// Appends hashes as they cross the wire for a table of what only the other side has: the upper 40 bits of each, in order.
    pub(super) fn pack(hashes: impl Iterator<Item = u64>, packed: &mut Vec<u8>) {
        for hash in hashes {
            // One that is not zero must not become it.
            let upper = (hash >> (u64::BITS - PACKED_HASH_BITS)).max(u64::from(hash != 0));
            packed.extend_from_slice(&upper.to_be_bytes()[3..]);
        }
    }

    /// The table of [packed](Self::pack) hashes; an incomplete one at the end is left out.
    pub(super) fn unpacked(packed: &[u8]) -> Self {
        let (hashes, _) = packed.as_chunks::<PACKED_BYTES>();
        let hashes: Vec<u64> = hashes
            .iter()
            .map(|bytes| {
                bytes.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)) << (u64::BITS - PACKED_HASH_BITS)
            })
            .collect();
        Self::with_precision(&hashes, usize::MAX, PACKED_HASH_BITS)
    }
}

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
}

impl Catalog {
    /// Of these tables, numbered from 0; a page that several have is referred to the first.
    pub fn new(tables: Vec<Arc<BlockTable>>) -> Self {
        let sources = tables.into_iter().map(|table| Source {
            table,
            earlier: EarlierTable::default(),
            referred: AtomicU64::new(0),
            missed: AtomicU64::new(0),
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

    /// Pages referred to each content source, and how many of them the target did not find there.
    pub fn tallies(&self) -> Vec<(u64, u64)> {
        let tally = |source: &Source| {
            (
                source.referred.load(Ordering::Relaxed),
                source.missed.load(Ordering::Relaxed),
            )
        };
        self.sources.iter().map(tally).collect()
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let of_source = |source: &Source| source.table.memory_bytes() + source.earlier.memory_bytes();
        self.sources.iter().map(of_source).sum()
    }
}

impl Source {
    /// Whether it is worth referring to.
    fn is_good(&self) -> bool {
        let (referred, missed) = (
            self.referred.load(Ordering::Relaxed),
            self.missed.load(Ordering::Relaxed),
        );
        !self.table.is_empty() && missed <= MISSES_FREE + referred / PAGES_PER_MISS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hashes(count: u64) -> Vec<u64> {
        (1..=count)
            .map(|number| block_hash(&number.to_be_bytes().repeat(512)))
            .collect()
    }

    #[test]
    fn every_block_is_found_and_nothing_else() {
        let hashes = hashes(20_000);
        let (known, unknown) = hashes.split_at(10_000);
        let table = BlockTable::new(known, usize::MAX);
        for (block, hash) in (0..).zip(known) {
            assert_eq!(table.find(*hash), Some(block));
        }
        assert!(unknown.iter().all(|hash| table.find(*hash).is_none()));
        assert_eq!((table.len(), table.find(0)), (10_000, None));
        assert!(table.memory_bytes() < 10_000 * 10);
    }

    #[test]
    fn a_repeated_content_takes_one_place() {
        let mut hashes = vec![hashes(1)[0]; 1000];
        hashes.extend(self::hashes(100));
        let table = BlockTable::new(&hashes, usize::MAX);
        assert_eq!((table.len(), table.find(hashes[0])), (100, Some(0)));
        assert_eq!(table.find(hashes[1001]), Some(1001));
    }

    #[test]
    fn blocks_whose_hashes_are_made_alike_fill_one_bucket_and_no_more() {
        let alike: Vec<u64> = (1..100_000u64).map(|number| 0xabcd << 48 | number << 20).collect();
        let table = BlockTable::new(&alike, usize::MAX);
        assert_eq!((table.len(), table.find(alike[0])), (BUCKET_MAX as usize, Some(0)));
        assert_eq!(table.find(alike[50_000]), None);
    }

    #[test]
    fn no_more_blocks_than_there_is_room_for() {
        let hashes = hashes(100);
        let table = BlockTable::new(&hashes, 10);
        assert_eq!(
            (table.len(), table.find(hashes[9]), table.find(hashes[10])),
            (10, Some(9), None)
        );
    }

    proptest! {
        #[test]
        fn packed_tables_find_the_same_blocks(mut hashes in proptest::collection::vec(any::<u64>(), 0..3000), zeros in proptest::collection::vec(any::<prop::sample::Index>(), 0..50)) {
            for index in zeros {
                if let Some(hash) = (!hashes.is_empty()).then(|| index.index(hashes.len())).map(|at| &mut hashes[at]) {
                    *hash = 0;
                }
            }
            let mut packed = Vec::new();
            BlockTable::pack(hashes.iter().copied(), &mut packed);
            prop_assert_eq!(packed.len(), hashes.len() * 5);
            let (whole, unpacked) = (BlockTable::new(&hashes, usize::MAX), BlockTable::unpacked(&packed));
            for hash in &hashes {
                prop_assert_eq!(unpacked.find(*hash), whole.find(*hash));
            }
        }

        #[test]
        fn any_bytes_are_a_table(packed in proptest::collection::vec(any::<u8>(), 0..100), hash: u64) {
            BlockTable::unpacked(&packed).find(hash);
        }
    }

    #[test]
    fn what_the_target_will_forget_is_not_held() {
        let blocks = [[1; BLOCK_BYTES], [2; BLOCK_BYTES]];
        let tables = blocks.map(|block| BlockTable::new(&[block_hash(&block)], 1).into());
        let held = |catalog: Catalog| blocks.map(|block| catalog.holds(&block));
        assert_eq!(held(Catalog::new(tables.to_vec())), [true, true]);
        assert_eq!(held(Catalog::new(tables.to_vec()).with_lasting(1)), [true, false]);
    }

    #[test]
    fn a_source_that_is_often_wrong_is_left_alone() {
        let catalog = Catalog::new(vec![BlockTable::new(&hashes(10), usize::MAX).into()]);
        assert!(catalog.sources[0].is_good());
        for _ in 0..=MISSES_FREE {
            catalog.missed(0);
        }
        assert!(!catalog.sources[0].is_good());
        catalog.sources[0].referred.store(PAGES_PER_MISS, Ordering::Relaxed);
        assert!(catalog.sources[0].is_good(), "one in eight is worth it");
        catalog.missed(7);
    }
}
