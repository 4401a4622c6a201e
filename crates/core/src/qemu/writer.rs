//! The record in front of a page, byte for byte as QEMU writes it.

use super::{Block, BlockName, Item, PageAt};

pub(super) const FLAG_ZERO: u64 = 0x002;
pub(super) const FLAG_PAGE: u64 = 0x008;
pub(crate) const FLAG_CONTINUE: u64 = 0x020;
pub(super) const FLAG_XBZRLE: u64 = 0x040;

pub(super) const XBZRLE_ENCODING: u8 = 1;

/// The two kinds of record that vmferry takes out of the stream and writes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// PAGE: the page's content follows the header.
    Page,
    /// ZERO: the header is the whole record.
    Zero,
}

/// Appends the bytes of a record up to the page's content: the word (offset and flags), the block's name if the record
/// carries it, and a ZERO record's fill byte. `name` is that of the block `at.block`.
pub fn record_header(kind: RecordKind, at: &PageAt, name: &BlockName, out: &mut Vec<u8>) {
    let kind_flag = match kind {
        RecordKind::Page => FLAG_PAGE,
        RecordKind::Zero => FLAG_ZERO,
    };
    let continue_flag = if at.named { 0 } else { FLAG_CONTINUE };
    out.extend_from_slice(&(at.offset | kind_flag | continue_flag).to_be_bytes());
    if at.named {
        push_name(name, out);
    }
    if kind == RecordKind::Zero {
        out.push(0);
    }
}

/// Appends a record that names a block for the CONTINUE records after it and changes nothing: an XBZRLE record without a
/// single difference, which QEMU loads whatever its capabilities. It stands in for a page's record when the page itself
/// takes another way to the target.
pub fn naming_record(name: &BlockName, out: &mut Vec<u8>) {
    out.extend_from_slice(&FLAG_XBZRLE.to_be_bytes());
    push_name(name, out);
    out.push(XBZRLE_ENCODING);
    out.extend_from_slice(&0u16.to_be_bytes());
}

fn push_name(name: &BlockName, out: &mut Vec<u8>) {
    let name = name.as_str().as_bytes();
    // A `BlockName` is at most 255 bytes long by construction.
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}

impl Item<'_> {
    /// Appends the item's bytes as they stood in the stream. `blocks` is the block table of the parser that gave the item.
    pub fn write(&self, blocks: &[Block], out: &mut Vec<u8>) {
        let mut header = |kind, at: &PageAt| {
            if let Some(block) = blocks.get(usize::from(at.block.0)) {
                record_header(kind, at, &block.name, out);
            }
        };
        match self {
            Item::Bytes(bytes) | Item::Foreign(_, bytes) => out.extend_from_slice(bytes),
            Item::Page(at, content) => {
                header(RecordKind::Page, at);
                out.extend_from_slice(content);
            }
            Item::Zero(at) => header(RecordKind::Zero, at),
            Item::Mark(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{
        BlockId,
        ram::{Ram, Record},
    };

    #[test]
    fn a_naming_record_is_one_about_its_block_that_changes_nothing() {
        let mut ram = Ram::new();
        for name in ["pc.ram", "vga.vram"] {
            let name = BlockName::new(name.as_bytes()).unwrap();
            ram.blocks.push(Block { name, bytes: 8192 });
        }
        let mut record = Vec::new();
        naming_record(&ram.blocks[1].name, &mut record);
        let Ok((bytes, Record::Foreign(at, whole))) = ram.record(&record) else {
            panic!("{record:?}");
        };
        assert_eq!((bytes, whole), (record.len(), &record[..]));
        let expected = PageAt {
            block: BlockId(1),
            offset: 0,
            named: true,
        };
        assert_eq!(at, expected);
        assert!(record.ends_with(&[XBZRLE_ENCODING, 0, 0]), "no difference");
    }
}
