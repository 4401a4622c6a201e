//! The pages most recently given out, which the target's QEMU may not have loaded yet.

use super::batch::{Batch, Op};
use crate::{limits::BATCH_BYTES, qemu::BlockId};
use foldhash::fast::RandomState;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Stream bytes kept. A page given out longer ago than this stands in the guest's memory: between us and QEMU's loader
/// lie at most a socket's buffer and its own 32 KiB, which is far less.
const RING_BYTES: usize = 8 * 1024 * 1024;
/// Memory of the batches kept, bytes, at the most, and of where pages are in them.
pub const RING_MEMORY_BYTES_MAX: u64 = 2 * RING_BYTES as u64;
/// Buffers kept for a caller that does not fetch them.
const SPENT_MAX: usize = 8;
/// How many batches before the current one are kept for sure, whatever they hold.
pub const RING_BATCHES: u64 = (RING_BYTES / BATCH_BYTES) as u64 - 1;

/// Recent batches, and where in them the latest content of each page is.
#[derive(Debug, Default)]
pub(super) struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    index: HashMap<(BlockId, u64), At, RandomState>,
}

/// Where a page's content is: in the batch of that number, from that byte of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) seq: u64,
    pub(super) start: usize,
}

impl Ring {
    /// Where the page at that offset of the block was given out last.
    pub(super) fn find(&self, block: BlockId, offset: u64) -> Option<At> {
        self.index.get(&(block, offset)).copied()
    }

    /// Notes that the page's latest content is there.
    pub(super) fn note(&mut self, block: BlockId, offset: u64, at: At) {
        self.index.insert((block, offset), at);
    }

    /// The content at a place in a batch that was pushed.
    pub(super) fn content(&self, at: At, page_bytes: usize) -> Option<&[u8]> {
        let first = self.batches.front()?.seq;
        let batch = self.batches.get(usize::try_from(at.seq.checked_sub(first)?).ok()?)?;
        batch.stream().get(at.start..)?.get(..page_bytes)
    }

    /// Adds the batch whose pages have been noted, and lets the oldest go, whose buffers are added to `spent`.
    pub(super) fn push(&mut self, batch: Arc<Batch>, spent: &mut Vec<Vec<u8>>) {
        self.bytes += batch.stream().len();
        self.batches.push_back(batch);
        while self.bytes > RING_BYTES
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.stream().len();
            for op in oldest.ops() {
                if let Op::Page { at, .. } = op
                    && self
                        .find(at.block, at.offset)
                        .is_some_and(|found| found.seq == oldest.seq)
                {
                    self.index.remove(&(at.block, at.offset));
                }
            }
            // Nobody else has it: whoever was given it has long written it.
            if spent.len() < SPENT_MAX {
                spent.extend(Arc::into_inner(oldest).map(Batch::into_buffer));
            }
        }
    }
}
