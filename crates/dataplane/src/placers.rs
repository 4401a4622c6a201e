//! Threads that write pages into the guest's memory, several batches at once: most of that time the kernel finds, clears and
//! fills fresh memory, which it does for each thread on a core of its own.
//!
//! Each thread has parts of the guest's memory that are its own, as large as what the kernel finds and clears at once. If two
//! threads write to fresh memory that close together, both clear all of it, and one does so for nothing. It also means that of
//! two versions of a page the later one stays: both take the same way.
//!
//! QEMU sends pages in the order of addresses, and [`BATCHES_MAX`] batches are two or three regions: so many threads work at once,
//! however many there are.

use crate::guest_memory::GuestMemory;
use crate::processors;
use crossbeam_channel::{Receiver, Sender, bounded};
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

/// The kernel's huge page on most machines, bytes: the part of memory that one thread has to itself.
const REGION_BYTES: u64 = 2 << 20;

/// Those who have pages written, and the way to them.
pub(crate) struct Placers {
    /// One for each thread.
    jobs: Vec<Sender<Job>>,
    /// What is written of batches.
    pub(crate) placed: Receiver<io::Result<Placed>>,
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

/// A part of a batch's pages is written.
pub(crate) struct Placed {
    /// The batch's number.
    pub(crate) seq: u64,
    /// Processor time that it took.
    pub(crate) processor: Duration,
}

impl Placers {
    /// For `threads` threads, each of which has to [run](Placer::run) one of the placers.
    pub(crate) fn new(threads: usize) -> (Placers, Vec<Placer>) {
        // What is under way has a place here, so that no thread ever waits to tell.
        let (to_writer, placed) = bounded(BATCHES_MAX * threads);
        let (jobs, placers) = (0..threads)
            .map(|_| {
                let (jobs, inbox) = bounded(BATCHES_MAX);
                let placed = to_writer.clone();
                (jobs, Placer { jobs: inbox, placed })
            })
            .unzip();
        (Placers { jobs, placed }, placers)
    }

    /// Has a batch's pages written, after those of batches before it. Returns in how many parts: so many times will its number
    /// come back over `placed`. For no more than [`BATCHES_MAX`] batches at once.
    pub(crate) fn start(&self, memory: &Arc<GuestMemory>, batch: &Arc<Batch>, writes: Vec<Write>) -> usize {
        let mut parts: Vec<Vec<Write>> = vec![Vec::new(); self.jobs.len()];
        for write in writes {
            let region = write.offset / REGION_BYTES + u64::from(write.block.0);
            parts[(region % self.jobs.len() as u64) as usize].push(write);
        }
        let parts = parts
            .into_iter()
            .zip(&self.jobs)
            .filter(|(writes, _)| !writes.is_empty());
        parts
            .map(|(writes, jobs)| {
                let (memory, batch) = (memory.clone(), batch.clone());
                // Fails when the threads have ended, which ends the session.
                let _ = jobs.send(Job { memory, batch, writes });
            })
            .count()
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
