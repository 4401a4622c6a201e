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
use vmferry_core::page::{Catalog, earlier};

use crate::content::Known;

/// What the source knows of it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    offered: Vec<Known>,
    /// Tables from the target, packed, as far as they have come.
    tables: BTreeMap<u16, Vec<u8>>,
    tables_bytes: usize,
    /// What these may take: none before something was offered, nor once the catalog is made.
    tables_bytes_max: usize,
}

impl Contents {
    /// Those that this host has indexes of, for a guest with so much memory, bytes.
    pub(super) fn offered(offered: Vec<Known>, memory_bytes: u64) -> Self {
        // Memory that was kept has hardly more blocks than the guest has pages.
        let blocks_max = usize::try_from(2 * memory_bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        Self {
            offered,
            tables_bytes_max: (blocks_max.saturating_mul(earlier::TABLE_BYTES_PER_BLOCK_MAX))
                .min(CONTENT_TABLES_BYTES_MAX),
            ..Self::default()
        }
    }

    /// Takes a part of a table.
    pub(super) fn take(&mut self, number: u16, part: &[u8]) -> Result<(), String> {
        let is_its_own = (self.offered.len()..CONTENT_SOURCES_MAX).contains(&usize::from(number));
        self.tables_bytes = self.tables_bytes.saturating_add(part.len());
        if !is_its_own || part.is_empty() || self.tables_bytes > self.tables_bytes_max {
            return Err("the target sends a table that it may not send".to_owned());
        }
        self.tables.entry(number).or_default().extend_from_slice(part);
        Ok(())
    }

    /// The catalog of those that the target can read, and what each is. It takes a while for large tables.
    pub(super) fn catalog(mut self, readable: &[u16]) -> (Catalog, Vec<String>) {
        let lasting = self.offered.len();
        let mut offered = self.offered.into_iter();
        let (mut tables, mut earlier_versions, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let count = readable.iter().max().map_or(0, |last| last.saturating_add(1));
        for number in 0..count.min(CONTENT_SOURCES_MAX as u16) {
            let known = offered.next();
            let is_readable = readable.contains(&number);
            let table = match (&known, self.tables.remove(&number)) {
                _ if !is_readable => Arc::default(),
                (Some(known), _) => known.table(),
                (None, Some(packed)) => {
                    let (table, earlier) = earlier::unpack(&packed);
                    earlier_versions.push((number, earlier));
                    Arc::new(table)
                }
                (None, None) => Arc::default(),
            };
            tables.push(table);
            names.push(known.map_or_else(|| "the target's own".to_owned(), |known| known.name.to_string()));
        }
        let mut catalog = Catalog::new(tables).with_lasting(lasting);
        for (number, earlier) in earlier_versions {
            catalog = catalog.with_earlier(number, earlier);
        }
        (catalog, names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_without_end_are_refused() {
        let mut contents = Contents::offered(Vec::new(), 1 << 20);
        let part = vec![7; 4096];
        let taken = (0..1000).take_while(|_| contents.take(0, &part).is_ok()).count();
        assert_eq!(taken, contents.tables_bytes_max / part.len());
        assert!(taken > 0 && contents.take(0, &[1; 4096]).is_err());
        let kept: usize = contents.tables.values().map(Vec::len).sum();
        assert!(kept <= contents.tables_bytes_max);
    }

    #[test]
    fn only_what_may_be_there_is_taken() {
        let mut contents = Contents::offered(Vec::new(), 1 << 30);
        assert!(contents.take(0, &[]).is_err(), "parts of nothing have no end");
        assert!(contents.take(CONTENT_SOURCES_MAX as u16, &[1]).is_err());
        assert!(contents.take(u16::MAX, &[1]).is_err());
        assert!(contents.take(1, &[1]).is_ok());
        // Once the stream is open, and in a migration for which nothing was offered.
        assert!(Contents::default().take(0, &[1]).is_err());
        let (catalog, names) = contents.catalog(&[u16::MAX, 1, 1]);
        assert!(names.len() <= CONTENT_SOURCES_MAX && catalog.tallies().len() == names.len());
    }
}
