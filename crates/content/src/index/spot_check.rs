//! Whether an index still says what its source holds, as far as a few blocks of it tell.

use std::hash::{BuildHasher, RandomState};

use vmferry_core::page::content::block_hash;

use super::{Cancel, Index, ScanError, ScanOptions, reader::Reader};
use crate::{BLOCK_BYTES, Blocks, aligned::AlignedBuffer};

/// Blocks that are looked at: 4 MiB.
const SAMPLE_BLOCKS: u64 = 1024;
/// A source of less is read whole: that takes hardly longer than to read so many blocks here and there. 64 MiB.
const SOURCE_BLOCKS_MIN: u64 = 16 * SAMPLE_BLOCKS;
/// One block in so many may hold something else than the index says. That many pages are then looked for in vain or not at
/// all, which is little beside reading everything again.
const BLOCKS_PER_CHANGE: u64 = 32;

/// Reads blocks of `content` that nobody can foresee, and compares them with `index`, an earlier one of the same source:
/// whether that is nearly what a scan would find. What cannot be read does not count.
///
/// # Errors
/// [`ScanError`].
pub(super) fn is_current(
    content: &dyn Blocks,
    index: &Index,
    options: &ScanOptions,
    cancel: &Cancel,
) -> Result<bool, ScanError> {
    if content.blocks() < SOURCE_BLOCKS_MIN {
        return Ok(false);
    }
    let mut reader = Reader::new(content, options, cancel);
    let mut buffer = AlignedBuffer::new(BLOCK_BYTES);
    let (mut held, mut changed) = (0, 0);
    for block in sample(content.blocks(), &RandomState::new()) {
        if !reader.read(block, buffer.bytes())? {
            continue;
        }
        // Nothing is known of what it grew by.
        let known = index.hashes(block..block + 1)?.pop().unwrap_or(0);
        let found = block_hash(buffer.bytes());
        // Zeros are not looked for: a disk that is nearly empty changed a lot when a tenth of the rest did.
        held += u64::from(known != 0 || found != 0);
        changed += u64::from(known != found);
    }
    Ok(changed * BLOCKS_PER_CHANGE <= held)
}

/// One block of each of [`SAMPLE_BLOCKS`] parts of nearly the same length.
fn sample(blocks: u64, random: &impl BuildHasher) -> impl Iterator<Item = u64> {
    let start = move |part: u64| part * (blocks / SAMPLE_BLOCKS) + part.min(blocks % SAMPLE_BLOCKS);
    (0..SAMPLE_BLOCKS).map(move |part| {
        let (start, end) = (start(part), start(part + 1));
        start + random.hash_one(part) % (end - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_may_be_looked_at_and_none_behind_the_last() {
        for blocks in [SAMPLE_BLOCKS, SOURCE_BLOCKS_MIN + 77, u64::MAX / BLOCK_BYTES as u64] {
            let sampled: Vec<u64> = sample(blocks, &RandomState::new()).collect();
            assert_eq!(sampled.len() as u64, SAMPLE_BLOCKS);
            assert!(sampled.is_sorted_by(|one, next| one < next) && sampled.last() < Some(&blocks));
        }
        let mut seen = vec![false; 2 * SAMPLE_BLOCKS as usize + 1];
        while seen.contains(&false) {
            for block in sample(seen.len() as u64, &RandomState::new()) {
                seen[block as usize] = true;
            }
        }
    }
}
