//! Pages as they were last sent, so that one that is sent again can cross as its difference to what the target holds.
//!
//! Memory is bounded. A page sent for the first time is kept while there is room, for nothing is known of it; one that is
//! sent again is always kept, since what was written twice is likely to be written a third time, and takes the place of
//! the former, then of the one kept longest.

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
    pages: HashMap<(BlockId, u64), Version>,
    sent_once: Vec<(BlockId, u64)>,
    /// With the number under which the page was entered: one that was forgotten and entered anew is further back as well.
    sent_again: VecDeque<((BlockId, u64), u64)>,
    entered: u64,
}

#[derive(Debug)]
struct Version {
    content: Box<[u8]>,
    /// Its number in `sent_again`; none while it was sent only once.
    again: Option<u64>,
}

impl Versions {
    /// Keeps nothing so far, and never more than about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// The page is sent as `content` now, for the first time or `again`. Returns what it was sent as before, if that was
    /// kept.
    pub fn replace(&mut self, block: BlockId, page: u64, content: &[u8], again: bool) -> Option<Box<[u8]>> {
        let key = (block, page);
        if let Some(version) = self.pages.get_mut(&key) {
            let before = std::mem::replace(&mut version.content, content.into());
            if version.again.is_none() {
                version.again = Some(enter(&mut self.sent_again, &mut self.entered, key));
            }
            return Some(before);
        }
        let bytes = content.len() + ENTRY_BYTES;
        while self.bytes + bytes > self.bytes_max {
            if !again || !self.evict() {
                return None;
            }
        }
        self.bytes += bytes;
        let again = again.then(|| enter(&mut self.sent_again, &mut self.entered, key));
        if again.is_none() {
            self.sent_once.push(key);
        }
        let content = content.into();
        self.pages.insert(key, Version { content, again });
        if self.sent_again.len() > 2 * self.pages.len() + QUEUE_SLACK {
            let pages = &self.pages;
            self.sent_again
                .retain(|(key, number)| pages.get(key).is_some_and(|version| version.again == Some(*number)));
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

    /// Drops a page; `false` if there is none to drop.
    fn evict(&mut self) -> bool {
        while let Some(key) = self.sent_once.pop() {
            // Pages that were sent again since are in the other queue, too.
            if self.pages.get(&key).is_some_and(|version| version.again.is_none()) {
                return self.remove(&key);
            }
        }
        while let Some((key, number)) = self.sent_again.pop_front() {
            if self
                .pages
                .get(&key)
                .is_some_and(|version| version.again == Some(number))
            {
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

/// Queues a page; returns its number there.
fn enter(queue: &mut VecDeque<((BlockId, u64), u64)>, entered: &mut u64, key: (BlockId, u64)) -> u64 {
    *entered += 1;
    queue.push_back((key, *entered));
    *entered
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
        assert_eq!(versions.replace(B, 1, &content(1), false), None);
        assert_eq!(
            versions.replace(B, 1, &content(2), true).as_deref(),
            Some(&content(1)[..])
        );
        assert_eq!(
            versions.replace(B, 1, &content(3), true).as_deref(),
            Some(&content(2)[..])
        );
        versions.forget(B, 1);
        assert_eq!(versions.replace(B, 1, &content(4), true), None);
    }

    #[test]
    fn pages_sent_again_take_the_place_of_those_sent_once_and_then_of_the_oldest() {
        let mut versions = room_for(2);
        for page in 0..5 {
            versions.replace(B, page, &content(page as u8), false);
        }
        assert_eq!(
            versions.replace(B, 0, &content(10), true).as_deref(),
            Some(&content(0)[..])
        );
        assert_eq!(
            versions.replace(B, 4, &content(14), true),
            None,
            "there was no room for it"
        );
        assert_eq!(versions.replace(B, 1, &content(11), true), None, "it went first");
        // Pages 4 and 1 are kept now: 0 was kept longest.
        assert_eq!(
            versions.replace(B, 4, &content(24), true).as_deref(),
            Some(&content(14)[..])
        );
        assert_eq!(versions.replace(B, 0, &content(20), false), None);
        assert!(versions.memory_bytes() <= 2 * (4096 + ENTRY_BYTES));
    }

    #[test]
    fn pages_that_come_and_go_do_not_fill_the_queue() {
        let mut versions = room_for(4);
        for _ in 0..10 * QUEUE_SLACK {
            versions.replace(B, 1, &content(1), true);
            versions.forget(B, 1);
        }
        assert!(versions.sent_again.len() <= 2 * QUEUE_SLACK);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut versions = Versions::new(0);
        versions.replace(B, 1, &content(1), true);
        assert_eq!(versions.replace(B, 1, &content(2), true), None);
        assert_eq!(versions.memory_bytes(), 0);
        let mut versions = Versions::new(4096);
        versions.replace(B, 1, &content(1), true);
        assert_eq!(
            versions.replace(B, 1, &content(2), true),
            None,
            "less room than one page takes"
        );
    }
}
