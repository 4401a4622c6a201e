//! Pages as they were last sent, so that one that is sent again can cross as its difference to what the target holds.
//!
//! Memory is bounded, and so is the work. Of every page hashes of its lines are kept, a sixteenth of its size: they tell which
//! lines changed. Whole pages are kept only of those that are sent again, since what was written twice is likely to be written
//! a third time, and a difference of contents is a quarter of the lines that it is in. Keeping what is sent once as well would be
//! memory to fill in the first round, nearly all of it for nothing. When there is no more room, the page kept longest goes.

use super::{known::Before, lines::LineHashes, sparse::Sparse};
use crate::qemu::BlockId;
use std::collections::{HashMap, VecDeque};

/// Memory that a page kept takes beside its content: its entry in the table and its place in a queue.
const ENTRY_BYTES: usize = 64;
/// Entries of pages no longer kept that a queue may hold in any case, before it is cleaned.
const QUEUE_SLACK: usize = 1024;

/// Contents as last sent, by page. Empty where the target can't be referred to what it holds.
#[derive(Debug, Default)]
pub struct Versions {
    bytes_max: usize,
    bytes: usize,
    /// Of every page sent, as far as there is room. Stale where a page was forgotten since.
    lines: Sparse<LineHashes>,
    pages: HashMap<(BlockId, u64), Version>,
    /// Pages in the order in which they were entered, with the number of that: one that was forgotten and entered anew is
    /// further back as well.
    queue: VecDeque<((BlockId, u64), u64)>,
    entered: u64,
}

#[derive(Debug)]
struct Version {
    content: Box<[u8]>,
    entered: u64,
}

impl Versions {
    /// Keeps nothing so far, and never more than about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// The page is sent; with `content`, again. Returns what was kept of its earlier version, which means something only if
    /// there was one.
    pub fn sent(&mut self, block: BlockId, page: u64, lines: Option<&LineHashes>, content: Option<&[u8]>) -> Before {
        let changed = lines.and_then(|lines| self.replace_lines(block, page, *lines));
        let kept = content.and_then(|content| self.replace(block, page, content));
        match (kept, changed) {
            (Some(content), _) => Before::Content(content),
            (None, Some(changed)) => Before::Changed(changed),
            (None, None) => Before::Unknown,
        }
    }

    fn replace_lines(&mut self, block: BlockId, page: u64, lines: LineHashes) -> Option<u64> {
        let before = self.lines.memory_bytes();
        if !self.lines.holds(block, page) && self.bytes + Sparse::<LineHashes>::CHUNK_BYTES > self.bytes_max {
            return None;
        }
        let entry = self.lines.entry(block, page);
        let changed = lines.changed(entry);
        *entry = lines;
        self.bytes += self.lines.memory_bytes() - before;
        Some(changed)
    }

    /// The page is sent again, as `content`. Returns what it was sent as before, if that was kept.
    fn replace(&mut self, block: BlockId, page: u64, content: &[u8]) -> Option<Box<[u8]>> {
        let key = (block, page);
        if let Some(version) = self.pages.get_mut(&key) {
            return Some(std::mem::replace(&mut version.content, content.into()));
        }
        let bytes = content.len() + ENTRY_BYTES;
        while self.bytes + bytes > self.bytes_max {
            if !self.evict() {
                return None;
            }
        }
        self.bytes += bytes;
        self.entered += 1;
        let version = Version {
            content: content.into(),
            entered: self.entered,
        };
        self.pages.insert(key, version);
        self.queue.push_back((key, self.entered));
        if self.queue.len() > 2 * self.pages.len() + QUEUE_SLACK {
            let pages = &self.pages;
            self.queue.retain(|(key, entered)| is_current(pages, key, *entered));
        }
        None
    }

    /// The target holds something else at this page than was sent as a page.
    pub fn forget(&mut self, block: BlockId, page: u64) {
        self.remove(&(block, page));
    }

    /// Whether there is room for any.
    pub fn keeps_any(&self) -> bool {
        self.bytes_max > 0
    }

    /// Memory that this takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the page kept longest; `false` if there is none.
    fn evict(&mut self) -> bool {
        while let Some((key, entered)) = self.queue.pop_front() {
            if is_current(&self.pages, &key, entered) {
                return self.remove(&key);
            }
        }
        false
    }

    fn remove(&mut self, key: &(BlockId, u64)) -> bool {
        let removed = self.pages.remove(key);
        self.bytes -= removed
            .as_ref()
            .map_or(0, |version| version.content.len() + ENTRY_BYTES);
        removed.is_some()
    }
}

/// Whether the page is kept since it was entered under this number.
fn is_current(pages: &HashMap<(BlockId, u64), Version>, key: &(BlockId, u64), entered: u64) -> bool {
    pages.get(key).is_some_and(|version| version.entered == entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BlockId = BlockId(0);

    fn content(fill: u8) -> [u8; 4096] {
        [fill; 4096]
    }

    fn room_for(pages: usize) -> Versions {
        Versions::new(pages * (4096 + ENTRY_BYTES))
    }

    #[test]
    fn a_page_is_given_back_as_it_was_sent_last() {
        let mut versions = room_for(10);
        assert_eq!(versions.replace(B, 1, &content(1)), None);
        assert_eq!(versions.replace(B, 1, &content(2)).as_deref(), Some(&content(1)[..]));
        assert_eq!(versions.replace(B, 1, &content(3)).as_deref(), Some(&content(2)[..]));
        versions.forget(B, 1);
        assert_eq!(versions.replace(B, 1, &content(4)), None);
    }

    #[test]
    fn the_page_kept_longest_makes_room() {
        let mut versions = room_for(2);
        for page in 0..3 {
            versions.replace(B, page, &content(page as u8));
        }
        assert_eq!(versions.replace(B, 2, &content(12)).as_deref(), Some(&content(2)[..]));
        assert_eq!(versions.replace(B, 0, &content(10)), None, "it went for page 2");
        assert_eq!(versions.replace(B, 1, &content(11)), None, "it went for page 0");
        assert!(versions.memory_bytes() <= 2 * (4096 + ENTRY_BYTES));
    }

    #[test]
    fn pages_that_come_and_go_do_not_fill_the_queue() {
        let mut versions = room_for(4);
        for _ in 0..10 * QUEUE_SLACK {
            versions.replace(B, 1, &content(1));
            versions.forget(B, 1);
        }
        assert!(versions.queue.len() <= 2 * QUEUE_SLACK);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut versions = Versions::new(0);
        versions.replace(B, 1, &content(1));
        assert_eq!(versions.replace(B, 1, &content(2)), None);
        assert_eq!(versions.memory_bytes(), 0);
        let mut versions = Versions::new(4096);
        versions.replace(B, 1, &content(1));
        assert_eq!(
            versions.replace(B, 1, &content(2)),
            None,
            "less room than one page takes"
        );
    }
}
