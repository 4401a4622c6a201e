//! The RAM section: its records, its block list, and which block a record without a name belongs to.

use super::cursor::{Cursor, Stop};
use super::writer::{FLAG_CONTINUE, FLAG_PAGE, FLAG_XBZRLE, FLAG_ZERO, XBZRLE_ENCODING};
use super::{Block, BlockId, BlockName, LostCause, PageAt};
use crate::limits::{BLOCKS_MAX, GUEST_BYTES_MAX, PAGE_BYTES_MIN};

const FLAG_MEM_SIZE: u64 = 0x004;
const FLAG_EOS: u64 = 0x010;
const FLAG_COMPRESS_PAGE: u64 = 0x100;
const FLAG_MULTIFD_FLUSH: u64 = 0x200;

/// What QEMU's targets have unless the configuration says otherwise: all but a few legacy ones.
const PAGE_BYTES_DEFAULT: usize = 4096;

/// One record of the RAM section.
pub(super) enum Record<'a> {
    Page(PageAt, &'a [u8]),
    Zero(PageAt),
    /// A page in an encoding of QEMU's, with all of the record's bytes.
    Foreign(PageAt, &'a [u8]),
    /// The block list follows; its blocks have so many bytes together.
    BlockList(u64),
    /// A point where the target waits for the multifd channels.
    MultifdFlush,
    EndOfSection,
}

/// What the parser knows about RAM.
pub(super) struct Ram {
    pub(super) page_bytes: usize,
    pub(super) blocks: Vec<Block>,
    /// The block of the last page record: a CONTINUE record is about the same, also across sections.
    pub(super) previous: Option<BlockId>,
    /// The block list was begun.
    listed: bool,
    /// `x-ignore-shared` is on: every entry of the block list ends with a guest address.
    pub(super) ignore_shared: bool,
    /// POSTCOPY_ADVISE's union of page sizes: a block with huge pages says so in the block list.
    pub(super) page_sizes: Option<u64>,
}

impl Ram {
    pub(super) fn new() -> Self {
        Self {
            page_bytes: PAGE_BYTES_DEFAULT,
            blocks: Vec::new(),
            previous: None,
            listed: false,
            ignore_shared: false,
            page_sizes: None,
        }
    }

    /// Reads one record; changes nothing.
    pub(super) fn record<'a>(&self, input: &'a [u8]) -> Result<(usize, Record<'a>), Stop<LostCause>> {
        let mut cursor = Cursor::new(input);
        let word = cursor.u64()?;
        let flags = word & (self.page_bytes as u64 - 1);
        let offset = word - flags;
        let record = match flags & !FLAG_CONTINUE {
            FLAG_PAGE => {
                let at = self.address(flags, offset, &mut cursor)?;
                Record::Page(at, cursor.take(self.page_bytes)?)
            }
            FLAG_ZERO => {
                let at = self.address(flags, offset, &mut cursor)?;
                match cursor.u8()? {
                    0 => Record::Zero(at),
                    fill => return Err(LostCause::FillByte(fill).into()),
                }
            }
            FLAG_XBZRLE => {
                let at = self.address(flags, offset, &mut cursor)?;
                let encoding = cursor.u8()?;
                let bytes = usize::from(cursor.u16()?);
                if encoding != XBZRLE_ENCODING || bytes > self.page_bytes {
                    return Err(LostCause::EncodedPage.into());
                }
                cursor.take(bytes)?;
                Record::Foreign(at, whole(input, &cursor)?)
            }
            FLAG_COMPRESS_PAGE => {
                let at = self.address(flags, offset, &mut cursor)?;
                let bytes = cursor.u32()? as usize;
                if bytes > zlib_bytes_max(self.page_bytes) {
                    return Err(LostCause::EncodedPage.into());
                }
                cursor.take(bytes)?;
                Record::Foreign(at, whole(input, &cursor)?)
            }
            FLAG_MEM_SIZE if flags == FLAG_MEM_SIZE => Record::BlockList(offset),
            FLAG_EOS if word == FLAG_EOS => Record::EndOfSection,
            FLAG_MULTIFD_FLUSH if word == FLAG_MULTIFD_FLUSH => Record::MultifdFlush,
            _ => return Err(LostCause::RamFlags(flags).into()),
        };
        Ok((cursor.consumed(), record))
    }

    /// The page that a record is about: its block by name, or the one of the record before.
    fn address(&self, flags: u64, offset: u64, cursor: &mut Cursor<'_>) -> Result<PageAt, Stop<LostCause>> {
        let named = flags & FLAG_CONTINUE == 0;
        let block = if named {
            self.find(cursor.str8()?)
        } else {
            self.previous
        };
        let block = block.ok_or(LostCause::Address)?;
        let block_bytes = self.blocks.get(usize::from(block.0)).map_or(0, |block| block.bytes);
        // Both are multiples of the page size, so the whole page lies inside.
        if offset >= block_bytes {
            return Err(LostCause::Address.into());
        }
        Ok(PageAt { block, offset, named })
    }

    fn find(&self, name: &[u8]) -> Option<BlockId> {
        let index = self
            .blocks
            .iter()
            .position(|block| block.name.as_str().as_bytes() == name)?;
        u16::try_from(index).ok().map(BlockId)
    }

    /// Begins the block list, once, for `total` bytes.
    pub(super) fn begin_blocks(&mut self, total: u64) -> Result<(), LostCause> {
        if self.listed || total > GUEST_BYTES_MAX {
            return Err(LostCause::BlockList);
        }
        self.listed = true;
        Ok(())
    }

    /// Reads an entry of the block list and keeps it. `left` bytes of RAM are not listed yet; returns how many are left
    /// after it.
    pub(super) fn block(&mut self, left: u64, cursor: &mut Cursor<'_>) -> Result<u64, Stop<LostCause>> {
        let name = cursor.str8()?;
        let bytes = cursor.u64()?;
        let name = BlockName::new(name).ok_or(LostCause::BlockList)?;
        let left = left.checked_sub(bytes).ok_or(LostCause::BlockList)?;
        if bytes % self.page_bytes as u64 != 0
            || self.blocks.len() >= BLOCKS_MAX
            || self.blocks.iter().any(|block| block.name == name)
        {
            return Err(LostCause::BlockList.into());
        }
        if self.ignore_shared {
            cursor.u64()?;
        } else if let Some(page_sizes) = self.page_sizes
            && page_size_follows(page_sizes, left, cursor)?
        {
            cursor.u64()?;
        }
        self.blocks.push(Block { name, bytes });
        Ok(left)
    }
}

/// Whether the block's own page size stands here. QEMU writes it only for blocks with other pages than the host's, which
/// the stream does not say. But a size begins with a zero byte, as no name's length does, and behind the last block stands
/// a record's word, EOS or MULTIFD_FLUSH, which is smaller than any page.
fn page_size_follows(page_sizes: u64, left: u64, cursor: &Cursor<'_>) -> Result<bool, Stop<LostCause>> {
    if left > 0 {
        return Ok(cursor.peek().u8()? == 0);
    }
    let next = cursor.peek().u64()?;
    Ok(next >= PAGE_BYTES_MIN as u64 && next.is_power_of_two() && page_sizes & next != 0)
}

fn whole<'a>(input: &'a [u8], cursor: &Cursor<'_>) -> Result<&'a [u8], Stop<LostCause>> {
    input.get(..cursor.consumed()).ok_or(Stop::More)
}

/// zlib's bound for a compressed page, QEMU's limit for COMPRESS_PAGE.
fn zlib_bytes_max(page_bytes: usize) -> usize {
    page_bytes + (page_bytes >> 12) + (page_bytes >> 14) + 13
}
