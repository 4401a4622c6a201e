//! What pages were last sent as, so that one that is sent again can cross as the lines that changed.
//!
//! Not the pages themselves but hashes of their lines, an eighth of their size: enough to tell which lines changed. Memory is
//! bounded; when there is no more room, pages sent for the first time have to be sent whole again.

use super::{lines::LineHashes, sparse::Sparse};
use crate::qemu::BlockId;

/// Line hashes of pages as last sent.
#[derive(Debug, Default)]
pub struct Versions {
    bytes_max: usize,
    lines: Sparse<LineHashes>,
}

impl Versions {
    /// Keeps nothing so far, and never more than `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// Memory that hashes of all of so many pages take, bytes.
    pub fn memory_bytes_max(pages: u64) -> u64 {
        pages.div_ceil(Sparse::<LineHashes>::CHUNK) * Sparse::<LineHashes>::CHUNK_BYTES as u64
    }

    /// The page is sent. Returns which lines differ from what it was sent as before, the first line's bit the lowest; this
    /// means something only if it was. `None` if there is no room.
    pub fn sent(&mut self, block: BlockId, page: u64, lines: &LineHashes) -> Option<u128> {
        let room = self.memory_bytes() + Sparse::<LineHashes>::CHUNK_BYTES <= self.bytes_max;
        if !room && !self.lines.holds(block, page) {
            return None;
        }
        let before = std::mem::replace(self.lines.entry(block, page), *lines);
        Some(lines.changed(&before))
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.lines.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::FingerprintKey;

    const B: BlockId = BlockId(0);
    const ROOM_FOR_ONE: usize = Sparse::<LineHashes>::CHUNK_BYTES;

    fn lines(page: &[u8]) -> LineHashes {
        FingerprintKey::new([7; 32]).page_lines(page)
    }

    #[test]
    fn lines_that_changed_since_the_page_was_sent_are_told() {
        let mut versions = Versions::new(ROOM_FOR_ONE);
        let mut page = [1; 4096];
        versions.sent(B, 1, &lines(&page));
        assert_eq!(versions.sent(B, 1, &lines(&page)), Some(0));
        (page[0], page[33], page[4095]) = (9, 9, 9);
        assert_eq!(versions.sent(B, 1, &lines(&page)), Some(1 | 1 << 1 | 1 << 127));
        assert_eq!(versions.sent(B, 1, &lines(&page)), Some(0));
    }

    #[test]
    fn without_room_nothing_is_kept_and_what_was_kept_stays() {
        let page = lines(&[1; 4096]);
        let mut versions = Versions::new(ROOM_FOR_ONE - 1);
        assert_eq!(versions.sent(B, 1, &page), None);
        assert_eq!(versions.memory_bytes(), 0);
        let mut versions = Versions::new(2 * ROOM_FOR_ONE - 1);
        versions.sent(B, 1, &page);
        assert_eq!(versions.sent(B, 1 << 20, &page), None, "room for one chunk only");
        assert_eq!(versions.sent(B, 1, &page), Some(0));
        assert_eq!(versions.memory_bytes(), ROOM_FOR_ONE);
    }
}
