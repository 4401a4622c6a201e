//! What all sources of content have in common.

use std::{fmt::Debug, io, ops::Range};

use crate::Identity;

/// Bytes of a block: the page of most guests, and the unit in which disks are read past the page cache.
pub const BLOCK_BYTES: usize = 4096;

/// Content in blocks of [`BLOCK_BYTES`], readable from several threads at once. Every call blocks its thread.
pub trait Blocks: Send + Sync + Debug {
    /// How many whole blocks there were when it was opened; bytes behind the last whole one are never looked at.
    fn blocks(&self) -> u64;

    /// Fills `into`, which may lie anywhere in memory, from block `first` on, with what is there now and not what a cache of
    /// this host remembers.
    ///
    /// # Errors
    /// `into` is no whole number of blocks, it reaches past the end, or the system's or server's error.
    fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()>;

    /// The next blocks from `from` on that may hold something else than zeros; `None` if there are no more.
    ///
    /// # Errors
    /// The system's.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.blocks();
        Ok((from < end).then_some(from..end))
    }

    /// What tells later whether this is still the same content.
    ///
    /// # Errors
    /// The system's.
    fn identity(&self) -> io::Result<Identity>;
}

/// Checks that a read of `length` bytes from block `first` on stays within `blocks`, and gives its offset in bytes.
pub(crate) fn offset_of(first: u64, length: usize, blocks: u64) -> io::Result<u64> {
    if !length.is_multiple_of(BLOCK_BYTES) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{length} bytes are no whole number of blocks of {BLOCK_BYTES} bytes"),
        ));
    }
    let end = first.checked_add((length / BLOCK_BYTES) as u64);
    if end.is_none_or(|end| end > blocks) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("it has {blocks} blocks, and none behind"),
        ));
    }
    first
        .checked_mul(BLOCK_BYTES as u64)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
