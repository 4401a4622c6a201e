//! A table over the guest's pages (or words of them) that allocates only where it was written.
//!
//! A stream may name a block of many terabytes and one page at its end, so nothing here grows with a block's length.

use crate::qemu::BlockId;
use foldhash::fast::RandomState;
use std::{collections::HashMap, ops::Range};

/// Entries allocated together: one chunk stands for 2 MiB of 4 KiB pages.
const CHUNK: u64 = 512;
/// Bytes from which on the standard allocator maps memory for each allocation, in whole pages.
const MAPPED_BYTES: usize = 128 << 10;
const MAPPED_PAGE_BYTES: usize = 4096;

/// Entries by block and index; an entry never written is `T::default()`.
#[derive(Debug, Default)]
pub(super) struct Sparse<T> {
    chunks: HashMap<(BlockId, u64), Box<[T]>, RandomState>,
}

impl<T: Copy + Default> Sparse<T> {
    /// Entries allocated together.
    pub(super) const CHUNK: u64 = CHUNK;
    /// Memory that each chunk takes, at the most.
    pub(super) const CHUNK_BYTES: usize = {
        let entries = CHUNK as usize * size_of::<T>();
        // Up to two places in the table of chunks, with a byte for each, and four while that grows.
        let listed = 4 * (size_of::<((BlockId, u64), Box<[T]>)>() + 1);
        let allocated = if entries < MAPPED_BYTES {
            size_of::<[usize; 2]>()
        } else {
            MAPPED_PAGE_BYTES
        };
        entries + listed + allocated
    };

    /// Whether the entry is allocated.
    pub(super) fn holds(&self, block: BlockId, index: u64) -> bool {
        self.chunks.contains_key(&(block, index / CHUNK))
    }

    pub(super) fn get(&self, block: BlockId, index: u64) -> T {
        match self.chunks.get(&(block, index / CHUNK)) {
            Some(chunk) => chunk[(index % CHUNK) as usize],
            None => T::default(),
        }
    }

    /// The entry, allocated if it was never written.
    pub(super) fn entry(&mut self, block: BlockId, index: u64) -> &mut T {
        let chunk = self.chunks.entry((block, index / CHUNK));
        let chunk = chunk.or_insert_with(|| vec![T::default(); CHUNK as usize].into_boxed_slice());
        &mut chunk[(index % CHUNK) as usize]
    }

    /// Visits those of the entries that are allocated.
    pub(super) fn for_each_present(&mut self, block: BlockId, indices: Range<u64>, mut visit: impl FnMut(u64, &mut T)) {
        let mut index = indices.start;
        while index < indices.end {
            let chunk_end = (index - index % CHUNK + CHUNK).min(indices.end);
            if let Some(chunk) = self.chunks.get_mut(&(block, index / CHUNK)) {
                for index in index..chunk_end {
                    visit(index, &mut chunk[(index % CHUNK) as usize]);
                }
            }
            index = chunk_end;
        }
    }

    /// Indices of all allocated entries, in order of block and index, with their values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlockId, u64, T)> {
        let mut keys: Vec<_> = self.chunks.iter().collect();
        keys.sort_unstable_by_key(|(key, _)| **key);
        keys.into_iter().flat_map(|((block, chunk), entries)| {
            entries
                .iter()
                .zip(chunk * CHUNK..)
                .map(|(entry, index)| (*block, index, *entry))
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.len() * Self::CHUNK_BYTES
    }
}
