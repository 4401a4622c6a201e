//! Tables of indexed blocks, made in as much memory as the operator allows.

use vmferry_content::{Index, IndexError};
use vmferry_core::page::BlockTable;

/// Memory for the hash of each block that goes into a table.
const HASH_BYTES: u64 = 8;
/// Memory for its place in the table; blocks of zeros have none.
const ENTRY_BYTES: u64 = 9;
/// Hashes read at once.
const PIECE_BLOCKS: u64 = 8192;

/// Divides memory among indexes of so many blocks. None gets more than it can use, and what small ones leave over is for the
/// large ones.
pub(super) fn shares(memory: u64, blocks: &[u64]) -> Vec<u64> {
    let mut by_size: Vec<usize> = (0..blocks.len()).collect();
    by_size.sort_by_key(|number| blocks[*number]);
    let (mut left, mut heirs) = (memory, blocks.len() as u64);
    let mut shares = vec![0; blocks.len()];
    for number in by_size {
        shares[number] = (left / heirs).min(blocks[number].saturating_mul(HASH_BYTES + ENTRY_BYTES));
        left -= shares[number];
        heirs -= 1;
    }
    shares
}

/// The table of an index's first blocks: of so many that it takes at most `memory` bytes while it is made, and about half of
/// that from then on.
pub(super) fn table(index: &Index, memory: u64) -> Result<BlockTable, IndexError> {
    Ok(BlockTable::new(&first_hashes(index, memory)?))
}

fn first_hashes(index: &Index, memory: u64) -> Result<Vec<u64>, IndexError> {
    // At once, because a vector that grows has its content twice. What is not filled takes no memory.
    let mut hashes = Vec::with_capacity(index.header().blocks.min(memory / HASH_BYTES) as usize);
    let mut taken = 0;
    for first in (0..index.header().blocks).step_by(PIECE_BLOCKS as usize) {
        for hash in index.hashes(first..first + PIECE_BLOCKS)? {
            taken += if hash == 0 {
                HASH_BYTES
            } else {
                HASH_BYTES + ENTRY_BYTES
            };
            if taken > memory {
                return Ok(hashes);
            }
            hashes.push(hash);
        }
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_content::{BLOCK_BYTES, Cancel, ImageFile, ScanOptions, index::scan};

    #[test]
    fn what_small_indexes_leave_is_for_the_large_ones() {
        assert_eq!(shares(1700, &[40, 10, 1000]), [680, 170, 850]);
        assert_eq!(shares(1700, &[1000, 1000]), [850, 850]);
        assert_eq!(shares(1700, &[]), [0; 0]);
    }

    #[test]
    fn a_table_takes_no_more_memory_than_it_may() {
        const ZEROS: usize = 9000;
        const CONTENTS: usize = 1000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let mut bytes = vec![0; (ZEROS + CONTENTS) * BLOCK_BYTES];
        for (block, number) in bytes.chunks_mut(BLOCK_BYTES).skip(ZEROS).zip(1u32..) {
            block[..4].copy_from_slice(&number.to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        let (image, path) = (ImageFile::open(&path).unwrap(), folder.path().join("index"));
        let index = scan(&image, None, &path, &ScanOptions::default(), &Cancel::new(), |_| {}).unwrap();

        let zeros = ZEROS as u64 * HASH_BYTES;
        for (memory, contents) in [
            (0, 0),
            (zeros, 0),
            (zeros + 16, 0),
            (zeros + 17 * 100, 100),
            (zeros + 17 * 1000, 1000),
            (u64::MAX, 1000),
        ] {
            let hashes = first_hashes(&index, memory).unwrap();
            let table = table(&index, memory).unwrap();
            assert_eq!(table.len(), contents, "in {memory} bytes");
            // The smallest directory is larger than nothing.
            let least = BlockTable::new(&[]).memory_bytes() as u64;
            assert!(hashes.len() as u64 * HASH_BYTES + table.memory_bytes() as u64 <= memory.saturating_add(least));
        }
    }
}
