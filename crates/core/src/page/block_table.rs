//! Which block of a content source had some content, by its hash, in as little memory as that takes.

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
    /// Memory that each block takes, bytes, at the most, also while a table is made.
    pub const BYTES_PER_BLOCK_MAX: u64 = 9;

    /// A table of the blocks with these hashes ([`block_hash`](super::content::block_hash)), numbered from 0; those of hash 0 are
    /// left out.
    pub fn new(hashes: &[u64]) -> Self {
        Self::with_precision(hashes.iter().copied(), u64::BITS)
    }

    fn with_precision(hashes: impl Iterator<Item = u64> + Clone, hash_bits: u32) -> Self {
        let count = hashes.clone().filter(|hash| *hash != 0).count();
        let numbered = || {
            // A block's number takes 32 bits of its entry: 16 TiB.
            let numbers = 0..=u32::MAX;
            numbers.zip(hashes.clone()).filter(|(_, hash)| *hash != 0)
        };
        // About eight to a bucket.
        let bits = (count / 8).checked_ilog2().unwrap_or(0).max(1);
        let bucket = |hash: u64| (hash >> (u64::BITS - bits)) as usize;
        let mut starts = vec![0u32; (1 << bits) + 1];
        for (_, hash) in numbered() {
            let length = &mut starts[bucket(hash) + 1];
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
        let mut filled = vec![0u8; 1 << bits];
        for (block, hash) in numbered() {
            let (bucket, tag) = (bucket(hash), table.tag(hash));
            let start = table.starts[bucket] as usize;
            let has_room = start + usize::from(filled[bucket]) < table.starts[bucket + 1] as usize;
            let entries = &mut table.entries[start..start + usize::from(filled[bucket])];
            // A content that an image repeats without end would fill its bucket with itself.
            if has_room && entries.iter().all(|entry| entry >> 32 != tag) {
                table.entries[start + usize::from(filled[bucket])] = tag << 32 | u64::from(block);
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
        let hashes = hashes.iter().map(|bytes| {
            bytes.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)) << (u64::BITS - PACKED_HASH_BITS)
        });
        Self::with_precision(hashes, PACKED_HASH_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::content::block_hash;
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
        let table = BlockTable::new(known);
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
        let table = BlockTable::new(&hashes);
        assert_eq!((table.len(), table.find(hashes[0])), (100, Some(0)));
        assert_eq!(table.find(hashes[1001]), Some(1001));
    }

    #[test]
    fn blocks_whose_hashes_are_made_alike_fill_one_bucket_and_no_more() {
        let alike: Vec<u64> = (1..100_000u64).map(|number| 0xabcd << 48 | number << 20).collect();
        let table = BlockTable::new(&alike);
        assert_eq!((table.len(), table.find(alike[0])), (BUCKET_MAX as usize, Some(0)));
        assert_eq!(table.find(alike[50_000]), None);
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
            let (whole, unpacked) = (BlockTable::new(&hashes), BlockTable::unpacked(&packed));
            for hash in &hashes {
                prop_assert_eq!(unpacked.find(*hash), whole.find(*hash));
            }
        }

        #[test]
        fn any_bytes_are_a_table(packed in proptest::collection::vec(any::<u8>(), 0..100), hash: u64) {
            BlockTable::unpacked(&packed).find(hash);
        }
    }
}
