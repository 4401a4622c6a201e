//! Reads a source and hashes its blocks.

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::setpriority_process;
use vmferry_core::page::content::block_hash;

use super::{Index, IndexError, reader::Reader, writer::IndexWriter};
use crate::{BLOCK_BYTES, Blocks, Change, aligned::AlignedBuffer};

/// Blocks read at once: 1 MiB.
const PIECE_BLOCKS: u64 = 256;
/// Of the least priority that a process can ask for. The kernel derives the priority of its reads from it.
const NICE: i32 = 19;

/// How to scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Bytes to read in a second at most; `None` for as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Whether to compute [`IndexHeader::digest`](super::IndexHeader::digest).
    pub digest: bool,
}

/// Why there is no index, or none that is up to date.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It was cancelled.
    #[error("the scan was cancelled")]
    Cancelled,
    /// The source cannot be read.
    #[error("cannot read it to index it: {0}; see that this host reaches it, then try again")]
    Read(#[from] io::Error),
    /// The index cannot be kept, or an earlier one not be read.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Ends a scan from another thread. Clones belong to the same scan.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(Mutex<bool>, Condvar)>);

impl Cancel {
    /// For a scan that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the scan end with [`ScanError::Cancelled`] at its next piece.
    pub fn cancel(&self) {
        let (cancelled, told) = &*self.0;
        *cancelled.lock().unwrap_or_else(PoisonError::into_inner) = true;
        told.notify_all();
    }

    /// Waits, but not when it is cancelled.
    pub(super) fn wait(&self, time: Duration) -> Result<(), ScanError> {
        let (cancelled, told) = &*self.0;
        let cancelled = cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let (cancelled, _) = told
            .wait_timeout_while(cancelled, time, |cancelled| !*cancelled)
            .unwrap_or_else(PoisonError::into_inner);
        if *cancelled { Err(ScanError::Cancelled) } else { Ok(()) }
    }
}

/// Hashes all blocks of `content` on this thread, into the file `path`, which has the index then, or what it had before. Where some
/// cannot be read, it keeps what `earlier`, an index of the same source, has of them. `progress` is told the number of blocks that
/// are done, after each piece.
///
/// Blocks that are written meanwhile are found in one state or the other.
///
/// # Errors
/// [`ScanError`].
pub fn scan(
    content: &dyn Blocks,
    earlier: Option<&Index>,
    path: &Path,
    options: &ScanOptions,
    cancel: &Cancel,
    mut progress: impl FnMut(u64),
) -> Result<Index, ScanError> {
    let identity = content.identity()?;
    let blocks = content.blocks();
    let mut scan = Scan {
        reader: Reader::new(content, options, cancel),
        earlier,
        options,
        cancel,
        is_whole: true,
        digest: blake3::Hasher::new(),
        index: IndexWriter::create(path, identity)?,
    };
    let mut buffer = AlignedBuffer::new(PIECE_BLOCKS as usize * BLOCK_BYTES);
    while let Some(data) = content.next_data(scan.index.blocks())? {
        scan.skip_to(data.start)?;
        for start in data.clone().step_by(PIECE_BLOCKS as usize) {
            scan.piece(start..data.end.min(start + PIECE_BLOCKS), buffer.bytes())?;
            progress(scan.index.blocks());
        }
    }
    scan.skip_to(blocks)?;
    progress(blocks);
    let stayed = content.identity()?.since(&identity);
    let is_known = scan.is_whole && matches!(stayed, Change::Nothing | Change::Unknown);
    let digest = (options.digest && is_known).then(|| *scan.digest.finalize().as_bytes());
    Ok(scan.index.finish(digest)?)
}

/// Runs `work` on a thread of its own and of the least priority.
///
/// # Errors
/// The system has no more threads.
pub fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name("content-scan".to_owned()).spawn(move || {
        // On Linux it is the thread's alone. Less is always permitted.
        let _ = setpriority_process(None, NICE);
        work()
    })
}

/// A scan under way. `index` has all blocks that are done.
struct Scan<'a> {
    reader: Reader<'a>,
    earlier: Option<&'a Index>,
    options: &'a ScanOptions,
    cancel: &'a Cancel,
    /// Whether all blocks could be read.
    is_whole: bool,
    digest: blake3::Hasher,
    index: IndexWriter,
}

impl Scan<'_> {
    /// Counts blocks up to `end` as zeros.
    fn skip_to(&mut self, end: u64) -> Result<(), ScanError> {
        static ZEROS: [u8; 64 * BLOCK_BYTES] = [0; 64 * BLOCK_BYTES];
        while self.index.blocks() < end {
            self.cancel.wait(Duration::ZERO)?;
            let count = (end - self.index.blocks()).min(64) as usize;
            if self.options.digest {
                self.digest.update(&ZEROS[..count * BLOCK_BYTES]);
            }
            self.index.add(&[0; 64][..count])?;
        }
        Ok(())
    }

    fn piece(&mut self, blocks: Range<u64>, buffer: &mut [u8]) -> Result<(), ScanError> {
        let count = (blocks.end - blocks.start) as usize;
        let piece = &mut buffer[..count * BLOCK_BYTES];
        let hashes = if self.reader.read(blocks.start, piece)? {
            if self.options.digest {
                self.digest.update(piece);
            }
            piece.chunks(BLOCK_BYTES).map(block_hash).collect()
        } else {
            self.is_whole = false;
            let mut known = match self.earlier.map(|earlier| earlier.hashes(blocks)) {
                None | Some(Err(IndexError::Unusable { .. })) => Vec::new(),
                Some(known) => known?,
            };
            known.resize(count, 0);
            known
        };
        Ok(self.index.add(&hashes)?)
    }
}
