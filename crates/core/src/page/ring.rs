//! The pages most recently given out, which the target's QEMU may not have loaded yet.

use super::batch::{Batch, Op};
use crate::{limits::BATCH_BYTES, qemu::BlockId, session::charge};
use foldhash::fast::RandomState;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Stream bytes kept. A page given out longer ago than this stands in the guest's memory: between us and QEMU's loader
/// lie at most a socket's buffer and its own 32 KiB, which is far less. Small batches count for [more than they
/// hold](charge); as QEMU cuts its stream, a section's header and footer at the least in each, those kept still hold more.
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
    /// What those count for.
    charged: u64,
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
        self.charged += charge(batch.stream().len() as u64);
        self.batches.push_back(batch);
        while self.charged > RING_BYTES as u64
            && let Some(oldest) = self.batches.pop_front()
        {
            self.charged -= charge(oldest.stream().len() as u64);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_CHARGE_BYTES_MIN;

    fn batch(seq: u64, stream: Vec<u8>) -> Arc<Batch> {
        Arc::new(Batch {
            seq,
            round: 0,
            stream,
            ops: Vec::new(),
            page_bytes: 4096,
            postcopy: false,
            stopped: false,
        })
    }

    #[test]
    fn batches_of_a_byte_are_not_kept_without_end() {
        let (mut ring, mut spent) = (Ring::default(), Vec::new());
        let most = RING_BYTES as u64 / BATCH_CHARGE_BYTES_MIN;
        for seq in 0..most + 100 {
            ring.push(batch(seq, vec![7]), &mut spent);
        }
        assert_eq!(ring.batches.len() as u64, most);
    }

    #[test]
    fn as_many_whole_batches_are_kept_as_are_promised() {
        let (mut ring, mut spent) = (Ring::default(), Vec::new());
        for seq in 0..RING_BATCHES + 3 {
            ring.push(batch(seq, vec![0; BATCH_BYTES]), &mut spent);
        }
        assert!(ring.batches.len() as u64 > RING_BATCHES);
        assert!(spent.iter().all(|buffer| buffer.len() == BATCH_BYTES));
    }
}
