//! The known content that a migration's pages are referred to: what the source offers, what the target can read of it, and
//! what only the target has.
//!
//! Content sources are numbered: first those of the source's offer, in its order, then those whose tables the target sends
//! before it says `Reserved`.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmferry_core::limits::CONTENT_TABLES_BYTES_MAX;
use vmferry_core::page::catalog::CONTENT_SOURCES_MAX;
use vmferry_core::page::content::BLOCK_BYTES;
use vmferry_core::page::{BlockTable, Catalog, earlier};

use crate::content::{self, Known};

/// What the source knows of it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    offered: Vec<Known>,
    /// Tables from the target, packed, as far as they have come and there is room.
    tables: BTreeMap<u16, Vec<u8>>,
    /// What was sent of them.
    sent_bytes: usize,
    /// What may be: nothing before something was offered, nor once the catalog is made.
    sent_bytes_max: usize,
    /// Memory for all tables.
    tables_bytes_max: usize,
}

impl Contents {
    /// Those that this host has indexes of, for a guest of `guest_bytes` of memory. All tables may take `tables_bytes_max`.
    pub(super) fn offered(offered: Vec<Known>, guest_bytes: u64, tables_bytes_max: u64) -> Self {
        // Memory that was kept has hardly more blocks than the guest has pages.
        let blocks_max = usize::try_from(2 * guest_bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        Self {
            offered,
            sent_bytes_max: (blocks_max.saturating_mul(earlier::TABLE_BYTES_PER_BLOCK_MAX))
                .min(CONTENT_TABLES_BYTES_MAX),
            tables_bytes_max: usize::try_from(tables_bytes_max).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }

    /// Takes a part of a table. What there is no memory for is left out: then less is referred to.
    pub(super) fn take(&mut self, number: u16, part: &[u8]) -> Result<(), String> {
        let is_its_own = (self.offered.len()..CONTENT_SOURCES_MAX).contains(&usize::from(number));
        let room = self.tables_bytes_max.saturating_sub(self.sent_bytes);
        self.sent_bytes = self.sent_bytes.saturating_add(part.len());
        if !is_its_own || part.is_empty() || self.sent_bytes > self.sent_bytes_max {
            return Err("the target sends a table that it may not send".to_owned());
        }
        let part = &part[..part.len().min(room)];
        let table = self.tables.entry(number).or_default();
        // Not twice as much at once, which is what a large table would have room for then.
        table.reserve_exact(part.len());
        table.extend_from_slice(part);
        Ok(())
    }

    /// The catalog of those that the target can read, and what each is. It takes a while for large tables.
    pub(super) fn catalog(mut self, readable: &[u16]) -> (Catalog, Vec<String>) {
        let is_readable = |number: &u16| readable.contains(number);
        self.tables.retain(|number, _| is_readable(number));
        // Their memory is taken already, so that the others have what is left.
        let mut left = self.tables_bytes_max;
        let mut packed_bytes: usize = self.tables.values().map(Vec::len).sum();
        let mut own = BTreeMap::new();
        for (number, packed) in self.tables {
            packed_bytes -= packed.len();
            let (table, earlier) = earlier::unpack(packed, left.saturating_sub(packed_bytes));
            left = left.saturating_sub(table.memory_bytes() + earlier.memory_bytes());
            own.insert(number, (table, earlier));
        }
        let offered: Vec<(u16, &Known)> = (0..).zip(&self.offered).collect();
        let (numbers, known): (Vec<u16>, Vec<&Known>) = offered
            .iter()
            .copied()
            .filter(|(number, _)| is_readable(number))
            .unzip();
        let mut tables: BTreeMap<u16, Arc<BlockTable>> =
            numbers.into_iter().zip(content::tables(&known, left as u64)).collect();
        let count = readable.iter().max().map_or(0, |last| last.saturating_add(1));
        let count = count.min(CONTENT_SOURCES_MAX as u16);
        let name = |number: u16| match self.offered.get(usize::from(number)) {
            Some(known) => known.name.to_string(),
            None => "the target's own".to_owned(),
        };
        let mut earlier_versions = Vec::new();
        for (number, (table, earlier)) in own {
            tables.insert(number, Arc::new(table));
            earlier_versions.push((number, earlier));
        }
        let all = (0..count).map(|number| tables.remove(&number).unwrap_or_default());
        let mut catalog = Catalog::new(all.collect()).with_lasting(self.offered.len());
        for (number, earlier) in earlier_versions {
            catalog = catalog.with_earlier(number, earlier);
        }
        (catalog, (0..count).map(name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use vmferry_core::page::{KeptBlock, Place};

    const GUEST_BYTES: u64 = 64 << 20;

    /// What a target sends that kept so many blocks.
    fn table(blocks: u64) -> Vec<u8> {
        let block = |number: u64| {
            let content = (number + 1).to_le_bytes().repeat(BLOCK_BYTES / 8);
            KeptBlock::new(Place::new("ram", number * BLOCK_BYTES as u64), &content)
        };
        let kept: Vec<KeptBlock> = (0..blocks).map(block).collect();
        let read = |each: &mut dyn FnMut(&[KeptBlock])| {
            each(&kept);
            Ok::<_, Infallible>(())
        };
        let Ok(packed) = earlier::pack(blocks, usize::MAX, read);
        packed.unwrap()
    }

    #[test]
    fn tables_of_kept_memory_stay_within_the_memory_for_indexes() {
        let packed = table(5000);
        for bytes_max in [0, 1000, 14 * 4000, 130_000, 1 << 20] {
            let mut contents = Contents::offered(Vec::new(), GUEST_BYTES, bytes_max);
            packed.chunks(10_000).for_each(|part| contents.take(0, part).unwrap());
            let taken: usize = contents.tables.values().map(Vec::capacity).sum();
            assert!(taken as u64 <= bytes_max, "{taken} of {bytes_max} bytes");
            let (catalog, names) = contents.catalog(&[0]);
            assert_eq!(names, ["the target's own"]);
            // The smallest directory is larger than nothing.
            let least = BlockTable::new(&[]).memory_bytes() as u64;
            assert!(catalog.memory_bytes() as u64 <= bytes_max + least, "{bytes_max}");
            assert_eq!(catalog.memory_bytes() > 5000 * 24, bytes_max > 5000 * 30);
        }
    }

    #[test]
    fn a_target_that_sends_too_much_is_told_so() {
        let mut contents = Contents::offered(Vec::new(), GUEST_BYTES, 0);
        let most = 2 * GUEST_BYTES as usize / BLOCK_BYTES * earlier::TABLE_BYTES_PER_BLOCK_MAX;
        assert!(contents.take(0, &vec![0; most]).is_ok());
        assert!(contents.take(0, &[0]).is_err());
        assert!(Contents::default().take(0, &[0]).is_err());
    }

    #[test]
    fn tables_without_end_are_refused() {
        let mut contents = Contents::offered(Vec::new(), 1 << 20, u64::MAX);
        let part = vec![7; 4096];
        let taken = (0..1000).take_while(|_| contents.take(0, &part).is_ok()).count();
        assert_eq!(taken, contents.sent_bytes_max / part.len());
        assert!(taken > 0 && contents.take(0, &[1; 4096]).is_err());
        let kept: usize = contents.tables.values().map(Vec::len).sum();
        assert!(kept <= contents.sent_bytes_max);
    }

    #[test]
    fn only_what_may_be_there_is_taken() {
        let mut contents = Contents::offered(Vec::new(), 1 << 30, u64::MAX);
        assert!(contents.take(0, &[]).is_err(), "parts of nothing have no end");
        assert!(contents.take(CONTENT_SOURCES_MAX as u16, &[1]).is_err());
        assert!(contents.take(u16::MAX, &[1]).is_err());
        assert!(contents.take(1, &[1]).is_ok());
        let (catalog, names) = contents.catalog(&[u16::MAX, 1, 1]);
        assert!(names.len() <= CONTENT_SOURCES_MAX && catalog.tallies().len() == names.len());
    }
}
