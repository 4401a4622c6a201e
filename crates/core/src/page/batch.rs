//! A stretch of QEMU's stream, split into operations that refer to its bytes.

use crate::qemu::{Block, BlockId, PageAt};
use std::{ops::Range, sync::Arc};

/// At most [`BATCH_BYTES`](crate::limits::BATCH_BYTES) of QEMU's stream: what one thread encodes and one frame carries.
///
/// Source and target have the same type, because they hold the same thing: the stream's bytes, and where in them the
/// pages are. On the source the bytes are the buffer that was read into, on the target the one that is written out; no
/// page is copied to be looked at.
#[derive(Debug)]
pub struct Batch {
    /// Place in the session's order, from 0, without gaps.
    pub seq: u64,
    /// Pre-copy round in which the batch was cut. For reports only.
    pub round: u32,
    pub(super) stream: Vec<u8>,
    pub(super) ops: Vec<Op>,
    pub(super) page_bytes: usize,
    pub(super) postcopy: bool,
    /// The guest stood still when the source's QEMU wrote (the end of) it.
    pub(super) stopped: bool,
}

/// What a part of a batch is. Positions count from the start of the batch's stream bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bytes passed on as they are.
    Bytes(Range<usize>),
    /// The stream's block list is complete from here on. Stands for no bytes (those are [`Op::Bytes`]).
    Blocks(Arc<[Block]>),
    /// A PAGE record.
    Page {
        /// Which page.
        at: PageAt,
        /// Where the record begins.
        record: usize,
        /// Where its content begins, [`Batch::page_bytes`] long.
        start: usize,
    },
    /// ZERO records for neighbouring pages of one block, the first of which may carry the block's name.
    Zero {
        /// The first page.
        at: PageAt,
        /// Where the first record begins.
        record: usize,
        /// How many pages, at least 1.
        pages: u64,
    },
    /// A record that leaves the page with content we do not know; all of its bytes.
    Foreign {
        /// The page's block.
        block: BlockId,
        /// Bytes from the start of the block.
        offset: u64,
        /// The record, its block's name included if it carries one.
        range: Range<usize>,
    },
}

impl Batch {
    /// The bytes of QEMU's stream that the batch stands for.
    pub fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// What those bytes are, in order, without gaps.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether the guest stood still when the source's QEMU wrote it. Only the source knows.
    pub fn is_of_stopped_guest(&self) -> bool {
        self.stopped
    }

    /// The guest's page size, bytes. Meaningless in a batch without pages.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Content of the page that begins at `start` of an [`Op::Page`] of this batch.
    pub fn page(&self, start: usize) -> &[u8] {
        &self.stream[start..start + self.page_bytes]
    }

    /// The contents of the pages, in order: one per [`Op::Page`].
    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        self.starts().into_iter().map(|start| self.page(start))
    }

    /// Where the contents of the pages begin, in order.
    pub(super) fn starts(&self) -> Vec<usize> {
        let start = |op: &Op| match op {
            Op::Page { start, .. } => Some(*start),
            _ => None,
        };
        self.ops.iter().filter_map(start).collect()
    }

    /// The buffer, for [`BatchBuilder::cut`](super::BatchBuilder::cut) to fill again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.stream
    }

    /// The block's name as the record at `record` carries it, if `at` says that it does.
    pub(super) fn name(&self, at: &PageAt, record: usize) -> &[u8] {
        if !at.named {
            return &[];
        }
        // The word is 8 bytes, then come the name's length and the name; whoever made the op saw them there.
        let length = usize::from(self.stream[record + 8]);
        &self.stream[record + 9..record + 9 + length]
    }
}
