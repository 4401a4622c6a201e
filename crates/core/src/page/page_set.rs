//! A set of the guest's pages.

use super::sparse::Sparse;
use crate::qemu::BlockId;
use std::ops::Range;

/// A set of pages, by block and page number: one bit each, allocated for the 128 MiB (of 4 KiB pages) around a member.
#[derive(Debug, Default)]
pub struct PageSet {
    words: Sparse<u64>,
}

impl PageSet {
    /// Memory that a guest of so many pages makes a set take, bytes, at the most.
    pub fn memory_bytes_max(pages: u64) -> u64 {
        let chunks = pages.div_ceil(64 * Sparse::<u64>::CHUNK);
        chunks * Sparse::<u64>::CHUNK_BYTES as u64
    }

    /// Adds a run of pages.
    pub fn insert(&mut self, block: BlockId, pages: Range<u64>) {
        let mut page = pages.start;
        while page < pages.end {
            let word_end = (page - page % 64 + 64).min(pages.end);
            let ones = u64::MAX >> (64 - (word_end - page));
            *self.words.entry(block, page / 64) |= ones << (page % 64);
            page = word_end;
        }
    }

    /// Whether the page is in the set.
    pub fn contains(&self, block: BlockId, page: u64) -> bool {
        self.words.get(block, page / 64) & (1 << (page % 64)) != 0
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|(_, _, word)| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pages by block and page number, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, u64)> {
        self.words.iter().flat_map(|(block, index, word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| (block, index * 64 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_across_words_and_chunks_are_members_and_their_neighbours_are_not() {
        let mut set = PageSet::default();
        let (a, b) = (BlockId(0), BlockId(3));
        set.insert(a, 60..70);
        set.insert(a, 64 * 512 - 1..64 * 512 + 1);
        set.insert(b, 1 << 34..(1 << 34) + 64);
        set.insert(b, 5..5);
        assert_eq!(set.len(), 10 + 2 + 64);
        assert!(!set.contains(a, 59) && set.contains(a, 60) && set.contains(a, 69) && !set.contains(a, 70));
        assert!(!set.contains(b, 5) && set.contains(b, 1 << 34));
        let pages: Vec<_> = set.iter().map(|(block, page)| (block.0, page)).collect();
        assert!(pages.is_sorted());
        assert_eq!(pages.len(), 76);
    }
}
