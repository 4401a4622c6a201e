//! The payload of a data frame back to a batch, but for the pages that it only refers to.
//!
//! This part needs nothing but the lane's own payloads, so the target's lanes do it at the same time. It builds the stream
//! bytes with holes where [`Assembler`](super::Assembler) puts the pages referred to.

mod build;

use self::build::{Build, Layout};
use super::{
    batch::{Batch, Op},
    content::BLOCK_BYTES,
    delta,
    digest::StreamDigest,
    encode::Coded,
    fingerprint::{Fingerprint, FingerprintKey},
    lz::{Coders, Decoders, LzError},
    payload::Reader,
};
use crate::{
    limits::{BATCH_PLAIN_BYTES_MAX, PAGE_BYTES_MAX},
    qemu::{Block, BlockId},
    session::charge,
};
use std::ops::Range;

/// Blocks that are read without need to save another read: a disk takes about as long to find a block as to read so many.
const GAP_BLOCKS_MAX: u64 = 16;
/// Blocks that are read at once: all pages of a batch in one piece, and as much for gaps.
const SPAN_BLOCKS_MAX: u64 = 2 * (BATCH_PLAIN_BYTES_MAX / BLOCK_BYTES) as u64;

/// How many times what it [counts for](Decoded::charge) a batch may take in memory: its buffer may be four times as large as
/// its stream, and an operation on zero pages and a byte that is no page stand for ten bytes of the stream.
pub const MEMORY_PART_MAX: usize = 4 + 2 * size_of::<Op>() / 10 + 1;

/// Decodes one lane's payloads, in their order.
pub struct Decoder {
    key: FingerprintKey,
    lz: Decoders,
    /// For the next batch's stream.
    buffer: Vec<u8>,
    /// Whether a batch had the block list.
    is_listed: bool,
}

/// A batch with holes.
#[derive(Debug)]
pub struct Decoded {
    pub(super) batch: Batch,
    /// The running digest that the source had at the batch's end.
    pub(super) after: StreamDigest,
    /// Per page, in order: the fingerprint of its content, or where the content has to be taken from.
    pub(super) pages: Vec<Content>,
    /// What [`Content::Delta`] and [`Content::Block`] refer to.
    pub(super) deltas: Vec<u8>,
    coded: Coded,
}

/// A page of [`Decoded`].
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// It is in the stream bytes, and this is its fingerprint.
    Here(Fingerprint),
    /// It is what the target holds at that offset of that block.
    At(BlockId, u64),
    /// It is what the target holds at its own address, changed by this part of the differences.
    Delta(Range<usize>),
    /// It is a block of known content, changed by this part of the differences if there is one, or it has to be asked for; its
    /// fingerprint tells.
    Block {
        source: u16,
        block: u64,
        delta: Option<Range<usize>>,
        fingerprint: Fingerprint,
    },
}

/// What is wrong with a payload. The session is over then: frames have a checksum, so this is a sender that is broken or
/// lies, and the lane's dictionary is out of step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The payload ends too early, or what it holds makes no sense.
    #[error("malformed batch: {0}; source and target do not agree, start the migration again")]
    Malformed(&'static str),
    /// The batch stands for more than a batch may.
    #[error("a batch stands for more than {BATCH_PLAIN_BYTES_MAX} bytes")]
    TooLarge,
    /// The LZ section.
    #[error(transparent)]
    Lz(#[from] LzError),
}

impl Decoded {
    /// The stretches of known content that it refers to, each to be read and [filled in](Decoder::fill).
    pub fn spans(&self) -> Vec<Span> {
        let wanted = |(page, content): (u16, &Content)| match *content {
            Content::Block { source, block, .. } => Some(Wanted { source, block, page }),
            _ => None,
        };
        let mut all: Vec<Wanted> = (0..).zip(&self.pages).filter_map(wanted).collect();
        all.sort_unstable();
        let mut spans: Vec<Span> = Vec::new();
        for wanted in all {
            match spans.last_mut() {
                Some(span) if span.takes_in(&wanted) => span.wanted.push(wanted),
                _ => spans.push(Span { wanted: vec![wanted] }),
            }
        }
        spans
    }

    /// What its pages and other records were, and took, that crossed themselves.
    pub fn coded(&self) -> Coded {
        self.coded
    }

    /// Fills the hole of the page of that number, which begins at `start`, with what the block makes of it.
    fn fill(&mut self, number: usize, start: usize, block: &[u8]) {
        let page = &mut self.batch.stream[start..][..BLOCK_BYTES];
        page.copy_from_slice(block);
        if let Some(Content::Block { delta: Some(range), .. }) = self.pages.get(number) {
            // One that is no difference of a page changes nothing, and the fingerprint tells.
            delta::apply(&self.deltas[range.clone()], page);
        }
    }

    /// Whether what has this fingerprint is the page of that number, which is here then.
    fn settle(&mut self, number: usize, found: Fingerprint) -> bool {
        match self.pages.get_mut(number) {
            Some(page) if matches!(*page, Content::Block { fingerprint, .. } if fingerprint == found) => {
                *page = Content::Here(found);
                true
            }
            _ => false,
        }
    }

    /// The batch's place in the session's order: [`Assembler::apply`](super::Assembler::apply) wants them in it.
    pub fn seq(&self) -> u64 {
        self.batch.seq
    }

    /// What it [counts for](charge) while it waits, bytes.
    pub fn charge(&self) -> u64 {
        charge(self.batch.stream.len() as u64)
    }

    /// Memory that it takes, bytes. Operations take the most where each stands for as little of the stream as it can.
    pub fn memory_bytes(&self) -> usize {
        let blocks = self.batch.ops.iter().map(|op| match op {
            Op::Blocks(blocks) => {
                let names: usize = blocks.iter().map(|block| block.name.as_str().len()).sum();
                size_of_val::<[Block]>(blocks) + names
            }
            _ => 0,
        });
        size_of::<Self>()
            + self.batch.stream.capacity()
            + self.deltas.capacity()
            + self.batch.ops.capacity() * size_of::<Op>()
            + self.pages.capacity() * size_of::<Content>()
            + blocks.sum::<usize>()
    }
}

impl Decoder {
    /// A decoder for a lane of a session with these coders.
    pub fn new(key: FingerprintKey, coders: Coders) -> Self {
        Self {
            key,
            lz: Decoders::new(coders),
            buffer: Vec::new(),
            is_listed: false,
        }
    }

    /// Takes a buffer for the next batch, one that [`Assembler::spent`](super::Assembler::spent) gave: memory that is there
    /// already, where new memory would cost a page fault for every page of it.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }

    /// Decodes the lane's next payload.
    pub fn decode(&mut self, payload: &[u8]) -> Result<Decoded, DecodeError> {
        let mut reader = Reader::new(payload);
        let header = Header::read(&mut reader).ok_or(DecodeError::Malformed("short header"))?;
        if header.plain_bytes > BATCH_PLAIN_BYTES_MAX {
            return Err(DecodeError::TooLarge);
        }
        let page_bytes = 1usize.checked_shl(header.page_log2).unwrap_or(0);
        if page_bytes > PAGE_BYTES_MAX {
            return Err(DecodeError::Malformed("page size"));
        }
        let cut_short = DecodeError::Malformed("cut short");
        let (Some(operations), Some(lz)) = (reader.bytes(header.operations_bytes), reader.bytes(header.lz_bytes))
        else {
            return Err(cut_short);
        };
        if header.plain_bytes == 0 && !lz.is_empty() {
            return Err(DecodeError::Malformed("LZ section without content"));
        }
        let raw_bytes = reader.bytes_left();
        let buffer = std::mem::take(&mut self.buffer);
        let mut layout = Build::on(buffer, page_bytes, header.plain_bytes, reader).layout(Reader::new(operations))?;
        // The stream has one. Lists are long for the little that they count for, so no two may wait.
        let is_listed = layout.ops.iter().any(|op| matches!(op, Op::Blocks(_)));
        if is_listed && self.is_listed {
            return Err(DecodeError::Malformed("a second block list"));
        }
        self.is_listed |= is_listed;
        if !layout.plain.is_empty() {
            self.lz.decode(header.coder, lz, &mut layout.parts())?;
        }
        let Layout {
            stream,
            spare,
            deltas,
            ops,
            mut pages,
            ..
        } = layout;
        self.buffer = spare;
        let batch = Batch {
            seq: header.seq,
            round: header.round,
            stream,
            ops,
            page_bytes,
            postcopy: false,
            stopped: false,
        };
        self.fingerprint(&batch, &mut pages);
        Ok(Decoded {
            batch,
            after: header.after,
            pages,
            deltas,
            coded: Coded {
                content_bytes: (header.plain_bytes + raw_bytes) as u64,
                wire_bytes: (lz.len() + raw_bytes) as u64,
            },
        })
    }

    /// Fills in the pages of a span, whose blocks these are. Returns those that they do not have, by their number in the batch:
    /// they have to be [supplied](Self::supply) before the batch is assembled, as those of a span that can't be read.
    pub fn fill(&self, decoded: &mut Decoded, span: &Span, blocks: &[u8]) -> Vec<u16> {
        let starts = decoded.batch.starts();
        for wanted in &span.wanted {
            let block = (wanted.block - span.first()) as usize * BLOCK_BYTES;
            let number = usize::from(wanted.page);
            decoded.fill(number, starts[number], &blocks[block..][..BLOCK_BYTES]);
        }
        let page = |wanted: &Wanted| decoded.batch.page(starts[usize::from(wanted.page)]);
        let found = self.key.contents(&span.wanted.iter().map(page).collect::<Vec<_>>());
        let mut missing = span.pages();
        let mut found = found.into_iter();
        missing.retain(|page| !(found.next()).is_some_and(|found| decoded.settle(usize::from(*page), found)));
        missing
    }

    /// Fills in pages that were not found, in the order in which they were asked for.
    pub fn supply(&self, decoded: &mut Decoded, pages: &[u16], contents: &[u8]) -> Result<(), DecodeError> {
        let starts = decoded.batch.starts();
        let blocks: Vec<&[u8]> = contents.chunks(BLOCK_BYTES).collect();
        if contents.len() != pages.len() * BLOCK_BYTES {
            return Err(DecodeError::Malformed("other pages than were asked for"));
        }
        for ((number, block), got) in pages.iter().zip(&blocks).zip(self.key.contents(&blocks)) {
            let number = usize::from(*number);
            if !decoded.settle(number, got) {
                return Err(DecodeError::Malformed("a page that is not the one asked for"));
            }
            decoded.batch.stream[starts[number]..][..BLOCK_BYTES].copy_from_slice(block);
        }
        Ok(())
    }

    /// Fingerprints the pages that are here.
    fn fingerprint(&self, batch: &Batch, pages: &mut [Content]) {
        let contents: Vec<&[u8]> = batch
            .pages()
            .zip(pages.iter())
            .filter_map(|(content, page)| matches!(page, Content::Here(_)).then_some(content))
            .collect();
        let here = pages.iter_mut().filter_map(|page| match page {
            Content::Here(fingerprint) => Some(fingerprint),
            Content::At(..) | Content::Delta(..) | Content::Block { .. } => None,
        });
        for (page, fingerprint) in here.zip(self.key.contents(&contents)) {
            *page = fingerprint;
        }
    }
}

/// A stretch of blocks of one content source, some of which pages of a batch refer to.
#[derive(Clone, Debug)]
pub struct Span {
    /// Never empty, in order.
    wanted: Vec<Wanted>,
}

impl Span {
    /// The content source's number.
    pub fn source(&self) -> u16 {
        self.wanted[0].source
    }

    /// The first block.
    pub fn first(&self) -> u64 {
        self.wanted[0].block
    }

    /// How many there are, those between included: no more than a batch has pages, twice.
    pub fn blocks(&self) -> usize {
        (self.wanted[self.wanted.len() - 1].block - self.first()) as usize + 1
    }

    /// Whether reading that block as well, with what lies between, takes less time than reading it afterwards.
    fn takes_in(&self, next: &Wanted) -> bool {
        let last = self.wanted[self.wanted.len() - 1].block;
        self.source() == next.source
            && next.block - last <= GAP_BLOCKS_MAX
            && next.block - self.first() < SPAN_BLOCKS_MAX
    }

    /// The pages that refer to it, by their number in the batch.
    pub fn pages(&self) -> Vec<u16> {
        self.wanted.iter().map(|wanted| wanted.page).collect()
    }
}

/// A block that a page refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    source: u16,
    block: u64,
    /// The page's number in the batch.
    page: u16,
}

/// The fixed part in front.
struct Header {
    seq: u64,
    round: u32,
    after: StreamDigest,
    page_log2: u32,
    coder: u8,
    operations_bytes: usize,
    plain_bytes: usize,
    lz_bytes: usize,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            seq: reader.u64()?,
            round: reader.u32()?,
            after: StreamDigest {
                bytes: reader.u64()?,
                hash: reader.array()?,
            },
            page_log2: u32::from(reader.u8()?),
            coder: reader.u8()?,
            operations_bytes: reader.u32()? as usize,
            plain_bytes: reader.u32()? as usize,
            lz_bytes: reader.u32()? as usize,
        })
    }
}
