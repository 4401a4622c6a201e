//! Fills in the pages that a batch refers to, checks all of it, and gives out the stream.

use super::{
    batch::{Batch, Op},
    decode::{Content, Decoded},
    delta,
    digest::{RunningDigest, StreamDigest},
    fingerprint::{Fingerprint, FingerprintKey},
    page_set::PageSet,
    ring::{At, Ring},
};
use crate::limits::GUEST_BYTES_MAX;
use crate::qemu::{Block, BlockId, FLAG_CONTINUE};
use std::sync::Arc;

/// Turns the session's batches into the source's stream, in order.
pub struct Assembler {
    key: FingerprintKey,
    digest: RunningDigest,
    next_seq: u64,
    /// What its blocks may have together.
    guest_bytes_max: u64,
    blocks: Arc<[Block]>,
    page_bytes: usize,
    /// The block of the last page record: a record without a name is about the same.
    previous: Option<BlockId>,
    ring: Ring,
    touched: PageSet,
    spent: Vec<Vec<u8>>,
}

/// Reads the target guest's memory: fills the buffer with what stands at that offset of the block.
pub type ReadMemory<'a> = dyn FnMut(BlockId, u64, &mut [u8]) -> Result<(), ReadError> + 'a;

/// The guest's memory can't be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("cannot read the target guest's memory: {0}")]
pub struct ReadError(pub String);

/// Why a batch was not given out. The session is over then; the target's guest has not been given a byte of it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    /// Batches must come in order.
    #[error("batch {got} came where batch {expected} belongs")]
    Order {
        /// The batch that came.
        got: u64,
        /// The batch that belongs there.
        expected: u64,
    },
    /// The stream's block list came twice, or a block isn't a whole number of pages.
    #[error("the source's list of memory blocks makes no sense")]
    Blocks,
    /// The source's guest is larger than the one that was agreed on.
    #[error("the source's memory blocks have {bytes} bytes together, and at most {max} were expected")]
    TooLarge {
        /// Bytes of all blocks.
        bytes: u64,
        /// The most that there may be.
        max: u64,
    },
    /// A page that no block has.
    #[error("page at {offset:#x} of block {block} does not exist in this guest")]
    NoSuchPage {
        /// Index in the block list.
        block: u16,
        /// Bytes from the block's start.
        offset: u64,
    },
    /// The block that a record is said to be about is not the one that its bytes name.
    #[error("the source names another block than it means; source and target do not agree, start the migration again")]
    Block,
    /// A page that stood in known content, and was neither found nor supplied.
    #[error("a page is missing that the target should have asked for, which is a defect in vmferry")]
    Missing,
    /// A difference that is none of a page.
    #[error("a page's difference makes no sense; source and target do not agree, start the migration again")]
    Delta,
    /// The guest's memory.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was rebuilt is not what the source had.
    #[error(
        "the stream rebuilt up to byte {bytes} differs from the source's; \
         the target's copy is of no use, start the migration again"
    )]
    Differs {
        /// Bytes of the stream up to the end of the batch.
        bytes: u64,
    },
}

impl Assembler {
    /// An assembler at the start of a stream.
    pub fn new(key: FingerprintKey) -> Self {
        Self {
            digest: RunningDigest::new(&key),
            key,
            next_seq: 0,
            guest_bytes_max: GUEST_BYTES_MAX,
            blocks: Arc::from([]),
            page_bytes: 0,
            previous: None,
            ring: Ring::default(),
            touched: PageSet::default(),
            spent: Vec::new(),
        }
    }

    /// The same, for a guest whose memory blocks have no more than so many bytes together. What is noted of pages that the stream
    /// touched grows with the guest, and a source could name a larger one than there is.
    #[must_use]
    pub fn with_guest_bytes_max(self, guest_bytes_max: u64) -> Self {
        Self {
            guest_bytes_max,
            ..self
        }
    }

    /// Completes the next batch. Its [stream bytes](Batch::stream) are the source's, proven by the running digest, and
    /// have to be handed to QEMU in this order.
    ///
    /// `read` is asked for content that was given out more than 8 MiB of stream ago, so all but the last few MiB given
    /// out must have been handed on by then. A source that only refers to
    /// [recent batches](super::Reach::Batches) never makes it be asked.
    pub fn apply(&mut self, decoded: Decoded, read: &mut ReadMemory<'_>) -> Result<Arc<Batch>, AssembleError> {
        let Decoded {
            mut batch,
            after,
            pages,
            deltas,
            ..
        } = decoded;
        if batch.seq != self.next_seq {
            return Err(AssembleError::Order {
                got: batch.seq,
                expected: self.next_seq,
            });
        }
        let fingerprints = self.fill(&mut batch, &pages, &deltas, read)?;
        let digest = self.key.batch(&batch, &fingerprints);
        if self.digest.extend(batch.stream().len(), digest) != after {
            return Err(AssembleError::Differs { bytes: after.bytes });
        }
        self.next_seq += 1;
        let batch = Arc::new(batch);
        self.ring.push(batch.clone(), &mut self.spent);
        Ok(batch)
    }

    /// A buffer that is not needed any more, for a [`Decoder`](super::Decoder).
    pub fn spent(&mut self) -> Option<Vec<u8>> {
        self.spent.pop()
    }

    /// The digest of everything given out.
    pub fn digest(&self) -> StreamDigest {
        self.digest.current()
    }

    /// The number of the batch to come.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The source's memory blocks; empty until the stream has listed them.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The guest's page size, bytes; 0 until the stream has listed its blocks.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// The pages that the stream has written at the target. All others hold there what they held before.
    pub fn touched(&self) -> &PageSet {
        &self.touched
    }

    /// Fills the holes, in the stream's order, and returns the fingerprints of all pages.
    fn fill(
        &mut self,
        batch: &mut Batch,
        pages: &[Content],
        deltas: &[u8],
        read: &mut ReadMemory<'_>,
    ) -> Result<Vec<Fingerprint>, AssembleError> {
        let mut sources = pages.iter();
        for index in 0..batch.ops.len() {
            match &batch.ops[index] {
                Op::Bytes(_) => {}
                Op::Blocks(blocks) => self.take_blocks(blocks.clone(), batch.page_bytes)?,
                Op::Zero { at, pages, record } => {
                    self.touch(at.block, at.offset, *pages, batch.page_bytes)?;
                    self.turn_to(at.block, at.named.then(|| batch.name(at, *record)))?;
                }
                Op::Foreign { block, offset, range } => {
                    let (block, offset) = (*block, *offset);
                    self.touch(block, offset, 1, batch.page_bytes)?;
                    self.turn_to(block, name_in(&batch.stream[range.clone()]))?;
                }
                Op::Page { at, start, record } => {
                    let (at, start) = (*at, *start);
                    self.touch(at.block, at.offset, 1, batch.page_bytes)?;
                    self.turn_to(at.block, at.named.then(|| batch.name(&at, *record)))?;
                    match sources.next() {
                        Some(Content::At(block, offset)) => self.copy(batch, start, *block, *offset, read)?,
                        Some(Content::Delta(range)) => {
                            self.copy(batch, start, at.block, at.offset, read)?;
                            let page = &mut batch.stream[start..start + self.page_bytes];
                            if !delta::apply(&deltas[range.clone()], page) {
                                return Err(AssembleError::Delta);
                            }
                        }
                        Some(Content::Block { .. }) => return Err(AssembleError::Missing),
                        Some(Content::Here(_)) | None => {}
                    }
                    self.ring.note(at.block, at.offset, At { seq: batch.seq, start });
                }
            }
        }
        let filled: Vec<&[u8]> = batch
            .pages()
            .zip(pages)
            .filter_map(|(content, page)| (!matches!(page, Content::Here(_))).then_some(content))
            .collect();
        let mut filled = self.key.contents(&filled).into_iter();
        let fingerprint = |page: &Content| match page {
            Content::Here(fingerprint) => Some(*fingerprint),
            Content::At(..) | Content::Delta(..) | Content::Block { .. } => filled.next(),
        };
        Ok(pages.iter().filter_map(fingerprint).collect())
    }

    /// Fills the hole at `start` with what the target holds at that offset of the block.
    fn copy(
        &mut self,
        batch: &mut Batch,
        start: usize,
        block: BlockId,
        offset: u64,
        read: &mut ReadMemory<'_>,
    ) -> Result<(), AssembleError> {
        self.check(block, offset, 1)?;
        let page_bytes = self.page_bytes;
        match self.ring.find(block, offset) {
            Some(at) if at.seq == batch.seq => {
                batch.stream.copy_within(at.start..at.start + page_bytes, start);
                return Ok(());
            }
            Some(at) => {
                if let Some(content) = self.ring.content(at, page_bytes) {
                    batch.stream[start..start + page_bytes].copy_from_slice(content);
                    return Ok(());
                }
            }
            None => {}
        }
        read(block, offset, &mut batch.stream[start..start + page_bytes])?;
        Ok(())
    }

    /// The next record is about this block, and carries this name. The stream's bytes decide, as they do for QEMU; the digest
    /// proves those, and not what the source says beside them.
    fn turn_to(&mut self, block: BlockId, name: Option<&[u8]>) -> Result<(), AssembleError> {
        let said = match name {
            Some(name) => {
                let blocks = self.blocks.get(usize::from(block.0));
                blocks.is_some_and(|block| block.name.as_str().as_bytes() == name)
            }
            None => self.previous == Some(block),
        };
        self.previous = Some(block);
        said.then_some(()).ok_or(AssembleError::Block)
    }

    fn take_blocks(&mut self, blocks: Arc<[Block]>, page_bytes: usize) -> Result<(), AssembleError> {
        if !self.blocks.is_empty() || blocks.is_empty() {
            return Err(AssembleError::Blocks);
        }
        // No sum of so few that are each within their bound overflows.
        let bytes = blocks.iter().map(|block| block.bytes).sum();
        if bytes > self.guest_bytes_max {
            return Err(AssembleError::TooLarge {
                bytes,
                max: self.guest_bytes_max,
            });
        }
        self.blocks = blocks;
        self.page_bytes = page_bytes;
        Ok(())
    }

    fn touch(&mut self, block: BlockId, offset: u64, pages: u64, page_bytes: usize) -> Result<(), AssembleError> {
        if page_bytes != self.page_bytes {
            return Err(AssembleError::Blocks);
        }
        self.check(block, offset, pages)?;
        let first = offset / page_bytes as u64;
        self.touched.insert(block, first..first + pages);
        Ok(())
    }

    /// Whether the guest has these pages. The decoder has bounded both numbers.
    fn check(&self, block: BlockId, offset: u64, pages: u64) -> Result<(), AssembleError> {
        let length = self.blocks.get(usize::from(block.0)).map_or(0, |block| block.bytes);
        if offset + pages * self.page_bytes as u64 > length {
            return Err(AssembleError::NoSuchPage { block: block.0, offset });
        }
        Ok(())
    }
}

/// The block's name in a record that QEMU encoded, if it carries one.
fn name_in(record: &[u8]) -> Option<&[u8]> {
    let (word, rest) = record.split_first_chunk()?;
    if u64::from_be_bytes(*word) & FLAG_CONTINUE != 0 {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    rest.get(..usize::from(*length))
}
