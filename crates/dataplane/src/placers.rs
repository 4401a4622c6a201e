//! Threads that write pages into the guest's memory, several batches at once: most of that time the kernel finds, clears and
//! fills fresh memory, which it does for each thread on a core of its own.
//!
//! Two batches that write the same page are never under way together, so the later one's content is what stays.

use crate::guest_memory::GuestMemory;
use crate::processors;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use vmferry_core::limits::PAGE_BYTES_MAX;
use vmferry_core::page::Batch;
use vmferry_core::qemu::BlockId;

static ZEROS: [u8; PAGE_BYTES_MAX] = [0; PAGE_BYTES_MAX];

/// A page to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// Its block.
    pub(crate) block: BlockId,
    /// Bytes from the block's start.
    pub(crate) offset: u64,
    /// Where in the batch's stream its content begins; none for zeros.
    pub(crate) start: Option<usize>,
}

/// Batches that are being placed, or are to be.
pub(crate) struct Placers {
    jobs: Sender<Job>,
    /// Batches whose pages are all written.
    pub(crate) placed: Receiver<io::Result<Placed>>,
    /// Pages that are being written, and by which batch.
    busy: HashMap<(BlockId, u64), u64>,
}

struct Job {
    memory: Arc<GuestMemory>,
    batch: Arc<Batch>,
    writes: Vec<Write>,
}

/// What a placer's thread runs.
pub(crate) struct Placer {
    jobs: Receiver<Job>,
    placed: Sender<io::Result<Placed>>,
}

/// A batch whose pages are all written.
pub(crate) struct Placed {
    /// Its number.
    pub(crate) seq: u64,
    /// Processor time that it took.
    pub(crate) processor: Duration,
}

impl Placers {
    /// For `threads` threads, each of which has to [run](Placer::run) one of the placers.
    pub(crate) fn new(threads: usize) -> (Placers, Vec<Placer>) {
        let (jobs, inbox) = unbounded();
        // A batch under way has a place here, so that no thread ever waits to tell.
        let (to_writer, placed) = bounded(BATCHES_MAX);
        let placer = || Placer {
            jobs: inbox.clone(),
            placed: to_writer.clone(),
        };
        let placers = Placers {
            jobs,
            placed,
            busy: HashMap::new(),
        };
        (placers, (0..threads).map(|_| placer()).collect())
    }

    /// Whether none of these pages is being written.
    pub(crate) fn are_free(&self, writes: &[Write]) -> bool {
        self.busy.is_empty()
            || writes
                .iter()
                .all(|write| !self.busy.contains_key(&(write.block, write.offset)))
    }

    /// Has a batch's pages written; its number comes back over `placed`. Not before they [are free](Self::are_free), and for
    /// no more than [`BATCHES_MAX`] batches at once.
    pub(crate) fn start(&mut self, memory: Arc<GuestMemory>, batch: Arc<Batch>, writes: Vec<Write>) {
        let pages = writes.iter().map(|write| ((write.block, write.offset), batch.seq));
        self.busy.extend(pages);
        // Fails when the threads have ended, which ends the session.
        let _ = self.jobs.send(Job { memory, batch, writes });
    }

    /// A batch is placed.
    pub(crate) fn finish(&mut self, writes: &[Write]) {
        for write in writes {
            self.busy.remove(&(write.block, write.offset));
        }
    }
}

/// Batches under way at once. What was given out longer ago is read from memory, so this has to be less than what the
/// assembler keeps.
pub(crate) const BATCHES_MAX: usize = 8;
const _: () = assert!((BATCHES_MAX as u64) < vmferry_core::page::RING_BATCHES);

impl Placer {
    /// Writes batches until there are no more.
    pub(crate) fn run(self) {
        for Job { memory, batch, writes } in self.jobs {
            let zeros = &ZEROS[..batch.page_bytes()];
            let page = |write: &Write| {
                let content = write.start.map_or(zeros, |start| batch.page(start));
                (write.block, write.offset, content)
            };
            let pages: Vec<(BlockId, u64, &[u8])> = writes.iter().map(page).collect();
            let began = processors::of_this_thread();
            let placed = memory.write(&pages).map(|()| Placed {
                seq: batch.seq,
                processor: processors::of_this_thread().saturating_sub(began),
            });
            if self.placed.send(placed).is_err() {
                return;
            }
        }
    }
}
