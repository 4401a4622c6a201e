//! The payload of a data frame back to a batch, but for the pages that it only refers to.
//!
//! This part needs nothing but the lane's own payloads, so the target's lanes do it at the same time. It builds the stream
//! bytes with holes where [`Assembler`](super::Assembler) puts the pages referred to.

use super::{
    batch::{Batch, Op},
    digest::StreamDigest,
    fingerprint::{Fingerprint, FingerprintKey},
    lz::{CodecSettings, Decode, LzError},
    payload::{FOLLOWS, Kind, NAMED, Reader},
};
use crate::{
    limits::{BATCH_PLAIN_BYTES_MAX, BLOCKS_MAX, GUEST_BYTES_MAX, PAGE_BYTES_MAX, PAGE_BYTES_MIN},
    qemu::{Block, BlockId, BlockName, PageAt, RecordKind, record_header},
};
use std::sync::{Arc, LazyLock};

/// Decodes one lane's payloads, in their order.
pub struct Decoder {
    key: FingerprintKey,
    lz: Box<dyn Decode>,
    plain: Vec<u8>,
    /// For the next batch's stream.
    buffer: Vec<u8>,
}

/// A batch with holes.
#[derive(Debug)]
pub struct Decoded {
    pub(super) batch: Batch,
    /// The running digest that the source had at the batch's end.
    pub(super) after: StreamDigest,
    /// Per page, in order: the fingerprint of its content, or where the content has to be taken from.
    pub(super) pages: Vec<Content>,
}

/// A page of [`Decoded`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// It is in the stream bytes, and this is its fingerprint.
    Here(Fingerprint),
    /// It is what the target holds at that offset of that block.
    At(BlockId, u64),
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
    /// The batch's place in the session's order: [`Assembler::apply`](super::Assembler::apply) wants them in it.
    pub fn seq(&self) -> u64 {
        self.batch.seq
    }

    /// Bytes of the stream that it stands for, and about what it takes in memory.
    pub fn stream_bytes(&self) -> u64 {
        self.batch.stream.len() as u64
    }
}

impl Decoder {
    /// A decoder for a lane whose encoder has these settings.
    pub fn new(key: FingerprintKey, settings: &CodecSettings) -> Result<Self, LzError> {
        Ok(Self {
            key,
            lz: settings.decoder()?,
            plain: Vec::new(),
            buffer: Vec::new(),
        })
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
        self.plain.clear();
        if header.plain_bytes > 0 {
            self.lz.decode(lz, header.plain_bytes, &mut self.plain)?;
        } else if !lz.is_empty() {
            return Err(DecodeError::Malformed("LZ section without content"));
        }
        // What most batches stand for: the content, and a record of 8 bytes for each page of it.
        let content_bytes = (self.plain.len() + reader.len()).min(BATCH_PLAIN_BYTES_MAX);
        let expected_bytes = content_bytes + content_bytes / 256;
        let mut build = Build {
            key: &self.key,
            page_bytes,
            plain: Reader::new(&self.plain),
            raw: reader,
            next: None,
            stream: emptied(std::mem::take(&mut self.buffer), expected_bytes),
            ops: Vec::new(),
            pages: Vec::new(),
        };
        build.operations(Reader::new(operations))?;
        if !build.plain.is_empty() || !build.raw.is_empty() {
            return Err(DecodeError::Malformed("content that no operation uses"));
        }
        let batch = Batch {
            seq: header.seq,
            round: header.round,
            stream: build.stream,
            ops: build.ops,
            page_bytes,
            postcopy: false,
        };
        Ok(Decoded {
            batch,
            after: header.after,
            pages: build.pages,
        })
    }
}

/// An empty buffer with room for so many bytes.
fn emptied(mut buffer: Vec<u8>, bytes: usize) -> Vec<u8> {
    buffer.clear();
    buffer.reserve(bytes);
    buffer
}

/// The fixed part in front.
struct Header {
    seq: u64,
    round: u32,
    after: StreamDigest,
    page_log2: u32,
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
            operations_bytes: reader.u32()? as usize,
            plain_bytes: reader.u32()? as usize,
            lz_bytes: reader.u32()? as usize,
        })
    }
}

/// What `record_header` is given for a record without a name, which it then leaves out.
static NO_NAME: LazyLock<BlockName> = LazyLock::new(|| BlockName::new(b"-").expect("one byte of ASCII is a name"));

/// Builds a batch's stream bytes from its operations.
struct Build<'a> {
    key: &'a FingerprintKey,
    page_bytes: usize,
    plain: Reader<'a>,
    raw: Reader<'a>,
    /// The page behind the last operation that had an address.
    next: Option<(BlockId, u64)>,
    stream: Vec<u8>,
    ops: Vec<Op>,
    pages: Vec<Content>,
}

/// The address part of an operation on pages.
struct Address {
    at: PageAt,
    name: Option<BlockName>,
}

impl Build<'_> {
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
            Kind::Zero | Kind::Lz | Kind::Raw | Kind::Same | Kind::Copy => self.run(from, kind, flags),
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
        let list = (|| {
            let count = usize::try_from(from.varint()?)
                .ok()
                .filter(|count| *count <= BLOCKS_MAX)?;
            let mut blocks = Vec::with_capacity(count);
            for _ in 0..count {
                let name = from.name()?;
                let bytes = from.varint().filter(|bytes| *bytes <= GUEST_BYTES_MAX)?;
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
        self.ops.push(Op::Foreign { block, offset, range });
        Ok(())
    }

    /// A length, and that many bytes of the LZ section into the stream.
    fn verbatim(&mut self, from: &mut Reader<'_>) -> Result<std::ops::Range<usize>, DecodeError> {
        let length = from
            .varint()
            .filter(|length| *length > 0)
            .and_then(|length| usize::try_from(length).ok());
        let bytes = length
            .and_then(|length| self.plain.bytes(length))
            .ok_or(DecodeError::Malformed("bytes"))?;
        let start = self.stream.len();
        self.stream.extend_from_slice(bytes);
        self.check_size()?;
        Ok(start..self.stream.len())
    }

    fn run(&mut self, from: &mut Reader<'_>, kind: Kind, flags: u8) -> Result<(), DecodeError> {
        // The count stands behind the address, whose end it decides; read it before the address moves on.
        let Address { at, name } = self.address(from, flags, 0)?;
        let pages = from
            .varint()
            .filter(|pages| *pages > 0)
            .ok_or(DecodeError::Malformed("empty run"))?;
        // Every record takes at least 9 bytes of stream, which bounds the count before anything is done for it.
        if pages > (BATCH_PLAIN_BYTES_MAX / 9) as u64 {
            return Err(DecodeError::TooLarge);
        }
        self.end_at(&at, pages)?;
        let source = match kind {
            Kind::Same => Some((at.block, at.offset)),
            Kind::Copy => Some(self.copied_from(from, pages)?),
            _ => None,
        };
        if kind == Kind::Zero {
            let record = self.stream.len();
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
                record_header(RecordKind::Zero, &at, name, &mut self.stream);
                self.check_size()?;
            } else {
                self.page(kind, at, name, source.map(|(block, offset)| (block, offset + ahead)))?;
            }
        }
        Ok(())
    }

    fn page(
        &mut self,
        kind: Kind,
        at: PageAt,
        name: &BlockName,
        source: Option<(BlockId, u64)>,
    ) -> Result<(), DecodeError> {
        let record = self.stream.len();
        record_header(RecordKind::Page, &at, name, &mut self.stream);
        let start = self.stream.len();
        if let Some((block, offset)) = source {
            self.pages.push(Content::At(block, offset));
            self.stream.resize(start + self.page_bytes, 0);
        } else {
            let section = if kind == Kind::Raw {
                &mut self.raw
            } else {
                &mut self.plain
            };
            let content = section
                .bytes(self.page_bytes)
                .ok_or(DecodeError::Malformed("fewer pages than said"))?;
            self.pages.push(Content::Here(self.key.page(content)));
            self.stream.extend_from_slice(content);
        }
        self.ops.push(Op::Page { at, record, start });
        self.check_size()
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

    fn copied_from(&self, from: &mut Reader<'_>, pages: u64) -> Result<(BlockId, u64), DecodeError> {
        let (block, page) = place(from).ok_or(DecodeError::Malformed("page to copy"))?;
        Ok((block, self.offset(page, pages)?))
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
        if self.stream.len() > BATCH_PLAIN_BYTES_MAX {
            return Err(DecodeError::TooLarge);
        }
        Ok(())
    }
}

fn place(from: &mut Reader<'_>) -> Option<(BlockId, u64)> {
    let block = u16::try_from(from.varint()?).ok()?;
    Some((BlockId(block), from.varint()?))
}
