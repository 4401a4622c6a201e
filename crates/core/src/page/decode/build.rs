//! Lays a batch's stream bytes out from its operations.

use super::{
    super::{
        batch::Op,
        catalog::CONTENT_SOURCES_MAX,
        content::BLOCK_BYTES,
        delta,
        fingerprint::Fingerprint,
        payload::{FOLLOWS, Kind, NAMED, Reader},
    },
    Content, DecodeError,
};
use crate::{
    limits::{BATCH_PLAIN_BYTES_MAX, BLOCKS_MAX, GUEST_BYTES_MAX, PAGE_BYTES_MIN},
    qemu::{Block, BlockId, BlockName, PageAt, RecordKind, record_header},
};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// What the operations of a batch make of it.
pub(super) struct Layout {
    /// The stream's bytes, with holes for what is not here yet.
    pub(super) stream: Vec<u8>,
    /// The buffer that was given, if it was too large for these.
    pub(super) spare: Vec<u8>,
    /// Room for the differences.
    pub(super) deltas: Vec<u8>,
    /// Where the LZ section's bytes belong, in order.
    pub(super) plain: Vec<Plain>,
    pub(super) ops: Vec<Op>,
    /// Fingerprints are still to be computed.
    pub(super) pages: Vec<Content>,
}

impl Layout {
    /// The places for the LZ section's bytes, in order; the ranges are in order, too.
    pub(super) fn parts(&mut self) -> Vec<&mut [u8]> {
        let mut parts = Vec::with_capacity(self.plain.len());
        let (mut stream, mut deltas, mut passed) = (&mut self.stream[..], &mut self.deltas[..], 0);
        for part in &self.plain {
            match part {
                Plain::Stream(range) => {
                    let (_, from) = stream.split_at_mut(range.start - passed);
                    let (part, behind) = from.split_at_mut(range.len());
                    parts.push(part);
                    (stream, passed) = (behind, range.end);
                }
                Plain::Delta(bytes) => {
                    let (part, behind) = deltas.split_at_mut(*bytes);
                    parts.push(part);
                    deltas = behind;
                }
            }
        }
        parts
    }
}

/// Where a part of the LZ section belongs.
pub(super) enum Plain {
    /// There in the stream.
    Stream(Range<usize>),
    /// Behind the differences before it, so many bytes.
    Delta(usize),
}

/// How many times as large as its bytes a batch's buffer may be.
const CAPACITY_PART_MAX: usize = 4;

/// A buffer that is written from front to back, some parts of it later. What it held before is not cleared, so every part
/// that is left out has to be filled before anybody reads it.
struct Canvas {
    bytes: Vec<u8>,
    end: usize,
}

impl Canvas {
    /// Writes over what `bytes` holds.
    fn on(bytes: Vec<u8>) -> Self {
        Self { bytes, end: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        let range = self.leave_out(bytes.len());
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Leaves out so many bytes, for later.
    fn leave_out(&mut self, length: usize) -> Range<usize> {
        let start = self.end;
        self.end += length;
        if self.bytes.len() < self.end {
            self.bytes.resize(self.end, 0);
        }
        start..self.end
    }

    /// What was written, and the buffer it was written on if that is much larger. A batch counts for its bytes wherever it waits
    /// or is kept, so it must not hold on to the memory of a whole one.
    fn into_bytes(mut self) -> (Vec<u8>, Vec<u8>) {
        if self.bytes.capacity() > self.end.saturating_mul(CAPACITY_PART_MAX) {
            return (self.bytes[..self.end].to_vec(), self.bytes);
        }
        self.bytes.truncate(self.end);
        (self.bytes, Vec::new())
    }
}

/// Bytes of the stream that every record takes: its word, and one more.
const RECORD_BYTES_MIN: usize = 9;

/// Lines of a page: more can't have changed, and where none has there is no difference.
const LINES_MAX: u8 = delta::LINES as u8;

/// What `record_header` is given for a record without a name, which it then leaves out.
static NO_NAME: LazyLock<BlockName> = LazyLock::new(|| BlockName::new(b"-").expect("one byte of ASCII is a name"));

/// Lays a batch's stream bytes out from its operations.
pub(super) struct Build<'a> {
    page_bytes: usize,
    /// Bytes of the LZ section that no operation has used so far.
    plain_left: usize,
    raw: Reader<'a>,
    /// The page behind the last operation that had an address.
    next: Option<(BlockId, u64)>,
    stream: Canvas,
    /// Where the LZ section's bytes belong, in order.
    plain: Vec<Plain>,
    /// Room for the differences.
    deltas: Vec<u8>,
    ops: Vec<Op>,
    /// Fingerprints are still to be computed.
    pages: Vec<Content>,
    /// The record header that is being written.
    record: Vec<u8>,
}

/// Where a page has its content from.
#[derive(Clone, Copy)]
enum Whence {
    /// What the target holds at that offset of that block.
    At(BlockId, u64),
    /// That block of that content source.
    Block(u16, u64),
    /// The same, and a difference.
    Patch(u16, u64),
    /// What the target holds at the page's address, and a difference.
    Delta,
    Raw,
    Lz,
}

impl Whence {
    /// The same for the page so many pages farther on in a run.
    fn ahead(self, pages: u64, page_bytes: usize) -> Self {
        match self {
            Self::At(block, offset) => Self::At(block, offset + pages * page_bytes as u64),
            Self::Block(source, block) => Self::Block(source, block + pages),
            Self::Patch(source, block) => Self::Patch(source, block + pages),
            other => other,
        }
    }
}

/// The address part of an operation on pages.
struct Address {
    at: PageAt,
    name: Option<BlockName>,
}

impl<'a> Build<'a> {
    /// For a batch with so many bytes in its LZ section, whose raw pages stand in `raw`. Writes over what `buffer` holds.
    pub(super) fn on(buffer: Vec<u8>, page_bytes: usize, plain_bytes: usize, raw: Reader<'a>) -> Self {
        Self {
            page_bytes,
            plain_left: plain_bytes,
            raw,
            next: None,
            stream: Canvas::on(buffer),
            plain: Vec::new(),
            deltas: Vec::new(),
            ops: Vec::new(),
            pages: Vec::new(),
            record: Vec::new(),
        }
    }

    /// Follows the operations.
    pub(super) fn layout(mut self, operations: Reader<'_>) -> Result<Layout, DecodeError> {
        self.operations(operations)?;
        if self.plain_left > 0 || !self.raw.is_empty() {
            return Err(DecodeError::Malformed("content that no operation uses"));
        }
        // It would wait, be kept and be acknowledged like any other, at no cost to its sender.
        if self.stream.end == 0 {
            return Err(DecodeError::Malformed("a batch of nothing"));
        }
        // These wait with the batch; they grew by doubling.
        self.ops.shrink_to_fit();
        self.pages.shrink_to_fit();
        self.deltas.shrink_to_fit();
        let (stream, spare) = self.stream.into_bytes();
        Ok(Layout {
            stream,
            spare,
            deltas: self.deltas,
            plain: self.plain,
            ops: self.ops,
            pages: self.pages,
        })
    }

    fn operations(&mut self, mut from: Reader<'_>) -> Result<(), DecodeError> {
        while !from.is_empty() {
            self.operation(&mut from)?;
        }
        Ok(())
    }

    fn operation(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let tag = from.u8().and_then(Kind::from_tag);
        let (kind, flags) = tag.ok_or(DecodeError::Malformed("operation"))?;
        match kind {
            Kind::Bytes => self.bytes(from),
            Kind::Blocks => self.blocks(from),
            Kind::Foreign => self.foreign(from, flags),
            Kind::Zero | Kind::Lz | Kind::Raw | Kind::Same | Kind::Copy | Kind::Delta | Kind::Content | Kind::Patch => {
                self.run(from, kind, flags)
            }
        }
    }

    fn bytes(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        if let Some(Op::Bytes(_)) = self.ops.last() {
            return Err(DecodeError::Malformed("bytes in two pieces"));
        }
        let range = self.verbatim(from)?;
        self.ops.push(Op::Bytes(range));
        Ok(())
    }

    fn blocks(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        if self.ops.iter().any(|op| matches!(op, Op::Blocks(_))) {
            return Err(DecodeError::Malformed("two block lists"));
        }
        if self.page_bytes < PAGE_BYTES_MIN {
            return Err(DecodeError::Malformed("blocks without a page size"));
        }
        let list = (|| {
            let count = usize::try_from(from.varint()?)
                .ok()
                .filter(|count| *count <= BLOCKS_MAX)?;
            let mut blocks = Vec::with_capacity(count);
            for _ in 0..count {
                let name = from.name()?;
                let bytes = from.varint().filter(|bytes| *bytes <= GUEST_BYTES_MAX)?;
                if blocks.iter().any(|block: &Block| block.name == name) {
                    return None;
                }
                blocks.push(Block { name, bytes });
            }
            Some(Arc::from(blocks))
        })();
        self.ops
            .push(Op::Blocks(list.ok_or(DecodeError::Malformed("block list"))?));
        Ok(())
    }

    fn foreign(&mut self, from: &mut Reader<'_>, flags: u8) -> Result<(), DecodeError> {
        if flags & NAMED != 0 {
            return Err(DecodeError::Malformed("name beside a foreign record"));
        }
        let PageAt { block, offset, .. } = self.address(from, flags, 1)?.at;
        let range = self.verbatim(from)?;
        // An operation takes more memory than a few bytes of the stream.
        if range.len() < RECORD_BYTES_MIN {
            return Err(DecodeError::Malformed("foreign record"));
        }
        self.ops.push(Op::Foreign { block, offset, range });
        Ok(())
    }

    /// A length, and that many bytes of the LZ section into the stream.
    fn verbatim(&mut self, from: &mut Reader<'_>) -> Result<Range<usize>, DecodeError> {
        let length = from
            .varint()
            .filter(|length| *length > 0)
            .and_then(|length| usize::try_from(length).ok());
        let range = length
            .and_then(|length| self.lz_bytes(length))
            .ok_or(DecodeError::Malformed("bytes"))?;
        self.check_size()?;
        Ok(range)
    }

    /// Room in the stream for the LZ section's next bytes; `None` if it has fewer left.
    fn lz_bytes(&mut self, length: usize) -> Option<Range<usize>> {
        self.plain_left = self.plain_left.checked_sub(length)?;
        let range = self.stream.leave_out(length);
        self.plain.push(Plain::Stream(range.clone()));
        Some(range)
    }

    /// Room for the LZ section's next bytes among the differences, of as many lines as are said; `None` if it has fewer left.
    fn delta(&mut self, each: &mut Reader<'_>) -> Option<Range<usize>> {
        let lines = each.u8().filter(|lines| (1..=LINES_MAX).contains(lines))?;
        let length = delta::bytes(lines, self.page_bytes);
        self.plain_left = self.plain_left.checked_sub(length)?;
        self.plain.push(Plain::Delta(length));
        let start = self.deltas.len();
        self.deltas.resize(start + length, 0);
        Some(start..start + length)
    }

    /// Writes a record up to its content; returns where it begins.
    fn record(&mut self, kind: RecordKind, at: &PageAt, name: &BlockName) -> usize {
        let start = self.stream.end;
        self.record.clear();
        record_header(kind, at, name, &mut self.record);
        self.stream.write(&self.record);
        start
    }

    fn run(&mut self, from: &mut Reader<'_>, kind: Kind, flags: u8) -> Result<(), DecodeError> {
        // The count stands behind the address, whose end it decides; read it before the address moves on.
        let Address { at, name } = self.address(from, flags, 0)?;
        let pages = from
            .varint()
            .filter(|pages| *pages > 0)
            .ok_or(DecodeError::Malformed("empty run"))?;
        // That bounds the count before anything is done for it.
        if pages > (BATCH_PLAIN_BYTES_MAX / RECORD_BYTES_MIN) as u64 {
            return Err(DecodeError::TooLarge);
        }
        self.end_at(&at, pages)?;
        let whence = self.whence(kind, &at, from, pages)?;
        // What is said of each page stands behind the run, one after another.
        let each_bytes = match kind {
            Kind::Delta => 1,
            Kind::Content => size_of::<Fingerprint>(),
            Kind::Patch => size_of::<Fingerprint>() + 1,
            _ => 0,
        };
        let each = from.bytes(pages as usize * each_bytes);
        let mut each = Reader::new(each.ok_or(DecodeError::Malformed("fewer pages than said"))?);
        if kind == Kind::Zero {
            let record = self.stream.end;
            self.ops.push(Op::Zero { at, record, pages });
        }
        for page in 0..pages {
            let ahead = page * self.page_bytes as u64;
            let at = PageAt {
                block: at.block,
                offset: at.offset + ahead,
                named: at.named && page == 0,
            };
            let name = name.as_ref().unwrap_or(&NO_NAME);
            if kind == Kind::Zero {
                self.record(RecordKind::Zero, &at, name);
                self.check_size()?;
            } else {
                self.page(at, name, whence.ahead(page, self.page_bytes), &mut each)?;
            }
        }
        Ok(())
    }

    /// Where the run's first page has its content from.
    fn whence(&self, kind: Kind, at: &PageAt, from: &mut Reader<'_>, pages: u64) -> Result<Whence, DecodeError> {
        Ok(match kind {
            Kind::Same => Whence::At(at.block, at.offset),
            Kind::Copy => {
                let (block, page) = place(from).ok_or(DecodeError::Malformed("page to copy"))?;
                Whence::At(block, self.offset(page, pages)?)
            }
            Kind::Content | Kind::Patch => {
                if self.page_bytes != BLOCK_BYTES {
                    return Err(DecodeError::Malformed("known content for pages of another size"));
                }
                let (source, block) = place(from)
                    .filter(|(source, _)| usize::from(source.0) < CONTENT_SOURCES_MAX)
                    .ok_or(DecodeError::Malformed("known content"))?;
                self.offset(block, pages)?;
                match kind {
                    Kind::Patch => Whence::Patch(source.0, block),
                    _ => Whence::Block(source.0, block),
                }
            }
            Kind::Delta => Whence::Delta,
            Kind::Raw => Whence::Raw,
            _ => Whence::Lz,
        })
    }

    fn page(&mut self, at: PageAt, name: &BlockName, whence: Whence, each: &mut Reader<'_>) -> Result<(), DecodeError> {
        let record = self.record(RecordKind::Page, &at, name);
        let start = self.stream.end;
        let content = self.content(whence, each);
        self.pages
            .push(content.ok_or(DecodeError::Malformed("fewer pages than said"))?);
        self.ops.push(Op::Page { at, record, start });
        self.check_size()
    }

    /// Room for a page's content, or the content; `None` if the payload has less.
    fn content(&mut self, whence: Whence, each: &mut Reader<'_>) -> Option<Content> {
        let content = match whence {
            Whence::Raw => {
                self.stream.write(self.raw.bytes(self.page_bytes)?);
                return Some(Content::Here(Fingerprint::default()));
            }
            Whence::Lz => {
                self.lz_bytes(self.page_bytes)?;
                return Some(Content::Here(Fingerprint::default()));
            }
            Whence::At(block, offset) => Content::At(block, offset),
            Whence::Block(source, block) => Content::Block {
                source,
                block,
                fingerprint: Fingerprint(each.array()?),
                delta: None,
            },
            Whence::Patch(source, block) => Content::Block {
                source,
                block,
                fingerprint: Fingerprint(each.array()?),
                delta: Some(self.delta(each)?),
            },
            Whence::Delta => Content::Delta(self.delta(each)?),
        };
        self.stream.leave_out(self.page_bytes);
        Some(content)
    }

    /// What [`encode`](super::encode()) wrote in front of an operation on `pages` pages: name and address.
    fn address(&mut self, from: &mut Reader<'_>, flags: u8, pages: u64) -> Result<Address, DecodeError> {
        if self.page_bytes < PAGE_BYTES_MIN {
            return Err(DecodeError::Malformed("pages without a page size"));
        }
        let mut name = None;
        if flags & NAMED != 0 {
            name = Some(from.name().ok_or(DecodeError::Malformed("block name"))?);
        }
        let (block, page) = if flags & FOLLOWS != 0 {
            self.next.ok_or(DecodeError::Malformed("address that follows none"))?
        } else {
            place(from).ok_or(DecodeError::Malformed("address"))?
        };
        let offset = self.offset(page, pages)?;
        let at = PageAt {
            block,
            offset,
            named: name.is_some(),
        };
        self.next = Some((block, page + pages));
        Ok(Address { at, name })
    }

    fn end_at(&mut self, at: &PageAt, pages: u64) -> Result<(), DecodeError> {
        let page = at.offset / self.page_bytes as u64;
        self.offset(page, pages)?;
        self.next = Some((at.block, page + pages));
        Ok(())
    }

    /// Where the page begins, bytes, if so many pages from it on lie within the largest guest.
    fn offset(&self, page: u64, pages: u64) -> Result<u64, DecodeError> {
        let page_bytes = self.page_bytes as u64;
        let end = page.checked_add(pages).and_then(|end| end.checked_mul(page_bytes));
        end.filter(|end| *end <= GUEST_BYTES_MAX)
            .ok_or(DecodeError::Malformed("page beyond the largest guest"))?;
        Ok(page * page_bytes)
    }

    fn check_size(&self) -> Result<(), DecodeError> {
        if self.stream.end > BATCH_PLAIN_BYTES_MAX {
            return Err(DecodeError::TooLarge);
        }
        Ok(())
    }
}

fn place(from: &mut Reader<'_>) -> Option<(BlockId, u64)> {
    let block = u16::try_from(from.varint()?).ok()?;
    Some((BlockId(block), from.varint()?))
}
