//! Where each content was sent last, in as little memory as that takes.
//!
//! An entry is 8 bytes: a page, and 18 bits of its content's fingerprint. The fingerprint itself is not here, for the table of
//! what each page was sent as has it; whoever looks something up compares with that. A table that doubles would have half of
//! its room free, and all of its content twice while it is copied. So there are many small ones, which grow by a quarter.

use super::fingerprint::Fingerprint;
use crate::{limits, qemu::BlockId};

/// log2 of the number of segments.
const SEGMENT_BITS: u32 = 12;
/// Bits of a fingerprint in an entry, behind those that choose the segment. An entry's slot follows from them alone, so growing
/// needs no fingerprints.
const TAG_BITS: u32 = 18;
const PAGE_BITS: u32 = 36;
const BLOCK_BITS: u32 = 10;

const _: () = assert!(TAG_BITS + PAGE_BITS + BLOCK_BITS == u64::BITS);
const _: () = assert!(limits::BLOCKS_MAX <= 1 << BLOCK_BITS);
const _: () = assert!(limits::GUEST_BYTES_MAX / limits::PAGE_BYTES_MIN as u64 <= 1 << PAGE_BITS);

/// No entry. The last page that there could be of the last block is not kept.
const FREE: u64 = u64::MAX;
const SLOTS_MIN: usize = 8;

/// A page, by block and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlaceSent {
    pub(super) block: BlockId,
    pub(super) page: u64,
}

impl PlaceSent {
    /// The entry of a content that was sent there; none for a page that no guest has.
    fn entry(self, fingerprint: &Fingerprint) -> Option<u64> {
        let fits = u32::from(self.block.0) < 1 << BLOCK_BITS && self.page < 1 << PAGE_BITS;
        let place = u64::from(self.block.0) << PAGE_BITS | self.page;
        let entry = tag(fingerprint) << (PAGE_BITS + BLOCK_BITS) | place;
        (fits && entry != FREE).then_some(entry)
    }

    fn of(entry: u64) -> Self {
        let block = entry >> PAGE_BITS & ((1 << BLOCK_BITS) - 1);
        Self {
            block: BlockId(block as u16),
            page: entry & ((1 << PAGE_BITS) - 1),
        }
    }
}

/// The upper bits of a fingerprint: it is a keyed hash, which no guest can aim.
fn upper(fingerprint: &Fingerprint) -> u64 {
    fingerprint
        .0
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
}

fn segment_of(fingerprint: &Fingerprint) -> usize {
    (upper(fingerprint) >> (u64::BITS - SEGMENT_BITS)) as usize
}

fn tag(fingerprint: &Fingerprint) -> u64 {
    upper(fingerprint) << SEGMENT_BITS >> (u64::BITS - TAG_BITS)
}

/// For each content at most one page that was sent with it, for each page at most one content.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// None before the first content.
    segments: Vec<Segment>,
}

impl Places {
    /// Memory for each content, at the most, beside [`Self::BYTES_MIN`].
    pub(super) const BYTES_PER_CONTENT_MAX: usize = size_of::<u64>() * 13 / 8;
    /// Memory for a few contents.
    pub(super) const BYTES_MIN: usize = (size_of::<Segment>() + SLOTS_MIN * size_of::<u64>()) << SEGMENT_BITS;

    /// The content was sent at that place. Returns where it was sent last; `is_there` says whether a page holds it.
    pub(super) fn insert(
        &mut self,
        fingerprint: &Fingerprint,
        place: PlaceSent,
        is_there: impl Fn(PlaceSent) -> bool,
    ) -> Option<PlaceSent> {
        if self.segments.is_empty() {
            self.segments.resize_with(1 << SEGMENT_BITS, Segment::default);
        }
        let entry = place.entry(fingerprint)?;
        let segment = &mut self.segments[segment_of(fingerprint)];
        match segment.find(tag(fingerprint), |entry| is_there(PlaceSent::of(entry))) {
            Some(slot) => Some(PlaceSent::of(std::mem::replace(&mut segment.slots[slot], entry))),
            None => {
                segment.add(entry);
                None
            }
        }
    }

    /// The place does not hold that content any more.
    pub(super) fn remove(&mut self, fingerprint: &Fingerprint, place: PlaceSent) {
        let (segment, entry) = (self.segments.get_mut(segment_of(fingerprint)), place.entry(fingerprint));
        if let (Some(segment), Some(entry)) = (segment, entry)
            && let Some(slot) = segment.find(tag(fingerprint), |other| other == entry)
        {
            segment.free(slot);
        }
    }

    /// Memory that this takes, bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let slots = |segment: &Segment| segment.slots.len() * size_of::<u64>();
        self.segments.len() * size_of::<Segment>() + self.segments.iter().map(slots).sum::<usize>()
    }
}

/// A table with open addressing: an entry is in the slot of its tag or behind it, with no free slot between.
#[derive(Debug, Default)]
struct Segment {
    slots: Box<[u64]>,
    used: usize,
}

impl Segment {
    fn home(&self, tag: u64) -> usize {
        (tag as usize * self.slots.len()) >> TAG_BITS
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    /// The slot of the entry with that tag for which `is_it` holds.
    fn find(&self, tag: u64, is_it: impl Fn(u64) -> bool) -> Option<usize> {
        let mut slot = self.home(tag);
        loop {
            let entry = *self.slots.get(slot).filter(|entry| **entry != FREE)?;
            if entry >> (u64::BITS - TAG_BITS) == tag && is_it(entry) {
                return Some(slot);
            }
            slot = self.next(slot);
        }
    }

    fn add(&mut self, entry: u64) {
        // A fifth stays free: with less, looking through the rest takes long.
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            self.grow();
        }
        self.place(entry);
        self.used += 1;
    }

    fn grow(&mut self) {
        let slots = SLOTS_MIN.max(self.slots.len() + self.slots.len() / 4);
        let before = std::mem::replace(&mut self.slots, vec![FREE; slots].into());
        before
            .into_iter()
            .filter(|entry| *entry != FREE)
            .for_each(|entry| self.place(entry));
    }

    fn place(&mut self, entry: u64) {
        let mut slot = self.home(entry >> (u64::BITS - TAG_BITS));
        while self.slots[slot] != FREE {
            slot = self.next(slot);
        }
        self.slots[slot] = entry;
    }

    /// Frees a slot, and moves up what stands behind it.
    fn free(&mut self, mut free: usize) {
        let slots = self.slots.len();
        let ahead = |from: usize, to: usize| (to + slots - from) % slots;
        let mut slot = self.next(free);
        while self.slots[slot] != FREE {
            let home = self.home(self.slots[slot] >> (u64::BITS - TAG_BITS));
            if ahead(home, slot) >= ahead(free, slot) {
                self.slots[free] = self.slots[slot];
                free = slot;
            }
            slot = self.next(slot);
        }
        self.slots[free] = FREE;
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn at(page: u64) -> PlaceSent {
        PlaceSent {
            block: BlockId((page % 3) as u16),
            page,
        }
    }

    /// All in one segment; with few tags, so that many share one.
    fn content(number: u8) -> Fingerprint {
        let mut fingerprint = [0; 16];
        fingerprint[..8].copy_from_slice(&(u64::from(number % 7) << 36 | u64::from(number)).to_le_bytes());
        Fingerprint(fingerprint)
    }

    proptest! {
        #[test]
        fn contents_are_where_they_were_sent_last(sent in prop::collection::vec((0u64..60, any::<u8>()), 0..400)) {
            let (mut places, mut held, mut last) = (Places::default(), HashMap::new(), HashMap::new());
            for (page, number) in sent {
                let fingerprint = content(number);
                if let Some(before) = held.insert(page, fingerprint).filter(|before| *before != fingerprint) {
                    places.remove(&before, at(page));
                    if last.get(&before) == Some(&page) {
                        last.remove(&before);
                    }
                }
                let found = places.insert(&fingerprint, at(page), |place| held.get(&place.page) == Some(&fingerprint));
                prop_assert_eq!(found, last.insert(fingerprint, page).map(at));
            }
            prop_assert_eq!(places.segments.iter().map(|segment| segment.used).sum::<usize>(), last.len());
        }
    }

    #[test]
    fn a_page_that_no_guest_has_is_not_kept() {
        let mut places = Places::default();
        let beyond = PlaceSent {
            block: BlockId(1 << BLOCK_BITS),
            page: 1 << PAGE_BITS,
        };
        let last = PlaceSent {
            block: BlockId((1 << BLOCK_BITS) - 1),
            page: (1 << PAGE_BITS) - 1,
        };
        for place in [beyond, last] {
            let ones = Fingerprint([0xff; 16]);
            assert_eq!(places.insert(&ones, place, |_| true), None);
            assert_eq!(places.insert(&ones, place, |_| true), None);
        }
    }
}
