//! Memory that was kept of a VM, as the source of its return is told of it: the content of each block, where it was, and
//! hashes of its pieces. A page that changed since then crosses as the pieces that differ from the earlier version.
//!
//! A piece is a sixteenth of a page and its hash has 8 bits, so that one of 256 changed pieces is taken for unchanged. Such a
//! page is asked for, as every page is that does not come out with its fingerprint. Hashes of 16 bits would spare that at twice
//! the bytes for every block, changed or not; pieces twice as long would cost as many bytes in every page that changed.
//!
//! ```text
//! offset size
//!      0    4  blocks: n
//!      4   5n  the upper 40 bits of each block's hash, in block order, 0 for none
//!           …  runs: the first blocks in the same order, as many as there is room for. Of each run n, where it begins,
//!              counted from the end of the run before modulo 2^64; n blocks; for each 16 bytes: hashes of its pieces
//! ```
//!
//! Integers are big-endian, `n` is a [varint](super::payload).

use super::{
    block_table::{BlockTable, PACKED_BYTES},
    content::{BLOCK_BYTES, block_hash, part_hash},
    delta::{self, LINES},
    payload::{Reader, put_varint},
};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// Pieces of a block.
const PIECES: usize = 16;
/// Lines of a piece.
const PIECE_LINES: usize = LINES / PIECES;
/// Bytes of a table for each block, at the most: one that is a run of its own.
pub const TABLE_BYTES_PER_BLOCK_MAX: usize = PACKED_BYTES + RUN_BYTES_MAX + PIECES;
/// Bytes of a run in front of the hashes: two varints.
const RUN_BYTES_MAX: usize = 20;

/// Where in a guest's memory a block is: 16 bits of a hash of the RAM block's name, and the number in it of the block of
/// [`BLOCK_BYTES`]. Names that share a hash cost bytes and no more, as whatever else is wrong with an earlier version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub u64);

impl Place {
    /// So many bytes behind the beginning of the RAM block of that name.
    pub fn new(name: &str, offset: u64) -> Self {
        let (name, block) = (xxh3_64(name.as_bytes()), offset / BLOCK_BYTES as u64);
        Self(name << 48 | block)
    }

    /// So many blocks farther on.
    #[must_use]
    pub fn ahead(self, blocks: u64) -> Self {
        Self(self.0.wrapping_add(blocks))
    }
}

/// Short hashes of a block's pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces(pub [u8; PIECES]);

impl Pieces {
    /// Those of a block.
    pub fn of(block: &[u8]) -> Self {
        let mut pieces = Self::default();
        for (hash, piece) in pieces.0.iter_mut().zip(block.chunks(BLOCK_BYTES / PIECES)) {
            *hash = part_hash(piece) as u8;
        }
        pieces
    }

    /// The lines of pieces that differ, the first line's bit the lowest.
    fn changed(&self, before: &Self) -> u128 {
        let pairs = self.0.iter().zip(&before.0).enumerate();
        pairs.fold(0, |mask, (number, (now, before))| match now == before {
            true => mask,
            false => mask | ((1 << PIECE_LINES) - 1) << (number * PIECE_LINES),
        })
    }
}

/// What is known of a block that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptBlock {
    /// Its content's [`block_hash`].
    pub hash: u64,
    /// Where it was.
    pub place: Place,
    /// Hashes of its pieces.
    pub pieces: Pieces,
}

impl KeptBlock {
    /// Of a block with that content.
    pub fn new(place: Place, block: &[u8]) -> Self {
        Self {
            hash: block_hash(block),
            place,
            pieces: Pieces::of(block),
        }
    }
}

/// What crosses the wire of so many blocks, in at most `bytes_max` bytes; `None` if not even the hashes of all have room.
/// `read` gives all blocks in order, some at once, and is called twice, so that they need not be in memory.
///
/// # Errors
/// That of `read`.
pub fn pack<E>(
    blocks: u64,
    bytes_max: usize,
    mut read: impl FnMut(&mut dyn FnMut(&[KeptBlock])) -> Result<(), E>,
) -> Result<Option<Vec<u8>>, E> {
    let (Ok(count), Ok(blocks)) = (u32::try_from(blocks), usize::try_from(blocks)) else {
        return Ok(None);
    };
    let hashes_bytes = size_of_val(&count) + blocks.saturating_mul(PACKED_BYTES);
    if hashes_bytes > bytes_max {
        return Ok(None);
    }
    // At once, because a vector that grows has its content twice. What is not filled takes no memory.
    let mut packed = Vec::with_capacity(bytes_max.min(hashes_bytes + blocks * (RUN_BYTES_MAX + PIECES)));
    packed.extend_from_slice(&count.to_be_bytes());
    read(&mut |blocks| BlockTable::pack(blocks.iter().map(|block| block.hash), &mut packed))?;
    let mut end = Place::default();
    let mut has_room = packed.len() <= bytes_max;
    read(&mut |blocks| {
        for run in blocks.chunk_by(|block, next| block.place.ahead(1) == next.place) {
            let room = bytes_max.saturating_sub(packed.len() + RUN_BYTES_MAX) / PIECES;
            let whole = run.len() <= room;
            // Behind a run that is cut there is no room for another: blocks are numbered as they come.
            let run = &run[..if has_room { run.len().min(room) } else { 0 }];
            has_room &= whole;
            let Some(first) = run.first() else { break };
            put_varint(first.place.0.wrapping_sub(end.0), &mut packed);
            put_varint(run.len() as u64, &mut packed);
            packed.extend(run.iter().flat_map(|block| block.pieces.0));
            end = first.place.ahead(run.len() as u64);
        }
    })?;
    Ok(Some(packed))
}

/// The tables of what was [packed](pack), made in at most `bytes_max` bytes or those of `packed`: what has no room is left out,
/// from the end. Any bytes are some tables; what is incomplete is left out, too.
pub fn unpack(mut packed: Vec<u8>, bytes_max: usize) -> (BlockTable, EarlierTable) {
    const COUNT_BYTES: usize = size_of::<u32>();
    const TABLE_BYTES: usize = BlockTable::BYTES_PER_BLOCK_MAX as usize;
    let blocks = Reader::new(&packed).u32().unwrap_or_default() as usize;
    let in_table = blocks.min(bytes_max.saturating_sub(COUNT_BYTES) / (PACKED_BYTES + TABLE_BYTES));
    let hashes_bytes = COUNT_BYTES + in_table * PACKED_BYTES;
    let room = bytes_max.saturating_sub(in_table * TABLE_BYTES);
    packed.truncate(room.saturating_sub(room / RUNS_PART).max(hashes_bytes));
    packed.shrink_to_fit();
    let table = BlockTable::unpacked(packed.get(COUNT_BYTES..hashes_bytes).unwrap_or_default());
    let runs_at = COUNT_BYTES.saturating_add(blocks.saturating_mul(PACKED_BYTES));
    let runs_max = room.saturating_sub(packed.len()) / RUN_MEMORY_BYTES_MAX;
    (table, EarlierTable::compacted(packed, runs_at, runs_max))
}

/// Of the memory for earlier versions, one byte in so many is for runs, if there are many.
const RUNS_PART: usize = 8;
/// Memory of a run: a vector that grows has its content twice, and as much room again.
const RUN_MEMORY_BYTES_MAX: usize = 3 * size_of::<Run>();

/// Earlier versions of pages, by where they were: 16 bytes for each, and as many for each run of neighbours.
#[derive(Debug, Default)]
pub struct EarlierTable {
    /// By place.
    runs: Vec<Run>,
    /// [`Pieces`] of each block, from block 0 on.
    pieces: Vec<u8>,
}

/// Blocks that were neighbours and are.
#[derive(Debug)]
struct Run {
    place: Place,
    block: u32,
    count: u32,
}

impl EarlierTable {
    /// Of what is packed, in the same memory, but for the runs: so many of these at most. They begin at byte `runs_at`.
    fn compacted(mut packed: Vec<u8>, runs_at: usize, runs_max: usize) -> Self {
        let (mut runs, mut blocks, mut read) = (Vec::<Run>::new(), 0, runs_at);
        let mut end = Place::default();
        while let Some((run, pieces)) = packed.get(read..).and_then(|rest| Run::read(rest, end, blocks)) {
            let pieces = read + pieces.start..read + pieces.end;
            (read, end) = (pieces.end, run.place.ahead(u64::from(run.count)));
            packed.copy_within(pieces, blocks * PIECES);
            let count = run.count;
            // Long runs come in parts.
            let goes_on = |last: &&mut Run| last.place.ahead(u64::from(last.count)) == run.place;
            if let Some(last) = runs.last_mut().filter(goes_on) {
                last.count += count;
            } else if runs.len() < runs_max {
                runs.push(run);
            } else {
                break;
            }
            blocks += count as usize;
        }
        packed.truncate(blocks * PIECES);
        packed.shrink_to_fit();
        runs.shrink_to_fit();
        runs.sort_unstable_by_key(|run| run.place);
        Self { runs, pieces: packed }
    }

    /// The block that has an earlier version of the page at that place, and the lines in which the two differ as far as hashes
    /// tell; `None` if there is none of which at least half is the same.
    pub(super) fn find(&self, place: Place, page: &[u8]) -> Option<(u64, u128)> {
        let behind = self.runs.partition_point(|run| run.place <= place);
        let run = self.runs[..behind].last()?;
        let ahead = place.0 - run.place.0;
        if ahead >= u64::from(run.count) {
            return None;
        }
        let block = u64::from(run.block) + ahead;
        let (all, _) = self.pieces.as_chunks();
        let changed = Pieces::of(page).changed(&Pieces(*all.get(block as usize)?));
        // A page in which nothing seems to have changed would have been found by its own hash.
        (changed != 0 && delta::is_close(changed)).then_some((block, changed))
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>() + self.pieces.capacity()
    }
}

impl Run {
    /// The run that `packed` begins with, of blocks from `block` on, and where their pieces stand; `None` if there are no more.
    fn read(packed: &[u8], end: Place, block: usize) -> Option<(Self, Range<usize>)> {
        let mut reader = Reader::new(packed);
        let place = end.ahead(reader.varint()?);
        let count = u32::try_from(reader.varint()?).ok().filter(|count| *count > 0)?;
        let pieces_bytes = (count as usize).checked_mul(PIECES)?;
        let start = packed.len() - reader.bytes_left();
        reader.bytes(pieces_bytes)?;
        let run = Self {
            place,
            block: u32::try_from(block).ok()?,
            count,
        };
        Some((run, start..start + pieces_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn page(seed: u64) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        blake3::Hasher::new()
            .update(&seed.to_be_bytes())
            .finalize_xof()
            .fill(&mut page);
        page
    }

    /// Blocks that were at these places of two RAM blocks.
    fn blocks(places: &[u64]) -> Vec<KeptBlock> {
        let place = |number: &u64| Place::new(["ram", "rom"][*number as usize % 2], number / 2 * BLOCK_BYTES as u64);
        places
            .iter()
            .map(|number| KeptBlock::new(place(number), &page(*number)))
            .collect()
    }

    fn packed(blocks: &[KeptBlock], bytes_max: usize) -> Option<Vec<u8>> {
        // Some at once, as they come from a file.
        let read = |each: &mut dyn FnMut(&[KeptBlock])| {
            blocks.chunks(64).for_each(each);
            Ok::<_, Infallible>(())
        };
        pack(blocks.len() as u64, bytes_max, read).unwrap()
    }

    /// Checkpoints keep these hashes over versions of this program.
    #[test]
    fn places_and_pieces_stay_what_they_are() {
        assert_eq!(Place::new("pc.ram", 3 * 4096), Place(0xbad4_0000_0000_0003));
        assert_eq!(Pieces::of(&[0x5a; BLOCK_BYTES]).0, [0x34; 16]);
    }

    #[test]
    fn the_pieces_that_changed_are_told_if_they_are_few() {
        let kept = KeptBlock::new(Place::new("ram", 8192), &page(1));
        let (_, table) = unpack(packed(&[kept], 1000).unwrap(), usize::MAX);
        let changed = |places: &[usize]| {
            let mut page = page(1);
            places.iter().for_each(|place| page[*place] ^= 1);
            table.find(kept.place, &page)
        };
        assert_eq!(changed(&[0, 255]), Some((0, 0xff)));
        assert_eq!(changed(&[256, 4095]), Some((0, 0xff << 8 | 0xff << 120)));
        assert_eq!(changed(&[]), None);
        let halves: Vec<usize> = (0..8).map(|piece| piece * 512).collect();
        assert_eq!(changed(&halves).map(|(_, changed)| changed.count_ones()), Some(64));
        assert_eq!(changed(&[&halves[..], &[300]].concat()), None);
        assert_eq!(table.find(kept.place.ahead(1), &page(1)), None);
        assert_eq!(table.find(Place::new("rom", 8192), &page(1)), None);
    }

    #[test]
    fn what_has_no_room_is_left_out_from_the_end() {
        let numbers: Vec<u64> = (0..200).step_by(2).collect();
        let blocks = blocks(&numbers);
        let found = |bytes_max| {
            let packed = packed(&blocks, bytes_max)?;
            assert!(packed.len() <= bytes_max);
            let (table, earlier) = unpack(packed, usize::MAX);
            assert_eq!(table.len(), blocks.len());
            let is_found = |(block, number): &(&KeptBlock, &u64)| {
                assert_eq!(earlier.find(block.place, &page(u64::MAX)), None, "nothing is the same");
                let mut changed = page(**number);
                changed[300] ^= 1;
                earlier.find(block.place, &changed).is_some()
            };
            Some(blocks.iter().zip(&numbers).filter(is_found).count())
        };
        let hashes = 4 + 100 * PACKED_BYTES;
        assert_eq!(found(hashes - 1), None);
        assert_eq!(found(hashes), Some(0));
        assert_eq!(found(hashes + RUN_BYTES_MAX + 16 * 7 + 15), Some(7));
        assert_eq!(found(usize::MAX), Some(100));
    }

    #[test]
    fn tables_take_no_more_memory_than_they_may() {
        let blocks = blocks(&(0..6000).step_by(2).collect::<Vec<_>>());
        let all = packed(&blocks, usize::MAX).unwrap();
        for bytes_max in [0, 10, 4 + 14 * 1000, 4 + 14 * 3000, 60_000, 80_000, 200_000] {
            let (table, earlier) = unpack(all.clone(), bytes_max);
            let found = blocks.iter().filter(|block| table.find(block.hash).is_some()).count();
            assert_eq!(
                found,
                blocks.len().min(bytes_max.saturating_sub(4) / 14),
                "in {bytes_max} bytes"
            );
            let least = BlockTable::new(&[]).memory_bytes();
            assert!(table.memory_bytes() + earlier.memory_bytes() <= bytes_max.max(least));
        }
        let (_, earlier) = unpack(all, 400_000);
        assert_eq!(earlier.pieces.len(), blocks.len() * PIECES);
    }

    proptest! {
        #[test]
        fn every_block_is_found_where_it_was(places in prop::collection::hash_set(0u64..300, 0..150)) {
            let places: Vec<u64> = places.into_iter().collect();
            let mut sorted = places.clone();
            sorted.sort_unstable_by_key(|place| (place % 2, *place));
            for places in [places, sorted] {
                let blocks = blocks(&places);
                let packed = packed(&blocks, usize::MAX).unwrap();
                prop_assert!(packed.len() <= 4 + blocks.len() * TABLE_BYTES_PER_BLOCK_MAX);
                let (table, earlier) = unpack(packed, usize::MAX);
                for ((number, block), place) in (0..).zip(&blocks).zip(&places) {
                    prop_assert_eq!(table.find(block.hash), Some(number));
                    let mut page = page(*place);
                    page[700] ^= 1;
                    prop_assert_eq!(earlier.find(block.place, &page), Some((number, 0xff << 16)));
                }
            }
        }

        #[test]
        fn any_bytes_are_tables(packed in prop::collection::vec(any::<u8>(), 0..200), place: u64) {
            let (_, earlier) = unpack(packed, usize::MAX);
            earlier.find(Place(place), &page(0));
        }
    }
}
