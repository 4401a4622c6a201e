//! The layout of an encoded batch, the payload of a data frame.
//!
//! ```text
//! offset size
//!      0    8  sequence number of the batch
//!      8    4  pre-copy round
//!     12    8  bytes of QEMU's stream up to the end of the batch
//!     20   16  running digest there
//!     36    1  log2 of the page size
//!     37    1  which of the session's coders the LZ section went through
//!     38    4  length of the operations, bytes
//!     42    4  length of the LZ section once decoded, bytes
//!     46    4  length of the LZ section, bytes
//!     50       operations, then LZ section, then raw pages to the end
//! ```
//!
//! Integers are big-endian. An operation is a tag byte and what its kind needs; `n` is a varint (seven bits a byte, low
//! part first, at most ten bytes):
//!
//! | kind | operation | then |
//! |---|---|---|
//! | 0 | bytes of the stream, from the LZ section | n bytes |
//! | 1 | the block list | n blocks, each: u8 name length, name, n bytes |
//! | 2 | zero records | address, n pages |
//! | 3 | pages from the LZ section | address, n pages |
//! | 4 | raw pages | address, n pages |
//! | 5 | pages that the target holds at that address | address, n pages |
//! | 6 | pages that the target holds elsewhere | address, n pages, n block and n page of the first of them |
//! | 7 | a foreign record, from the LZ section | address, n bytes |
//! | 8 | pages by lines that replace those that the target holds at that address, from the LZ section | address, n pages, for each a byte: lines replaced |
//! | 9 | pages that stand as blocks in known content | address, n pages, n content source and n block of the first of them, for each 16 bytes: fingerprint |
//! | 10 | pages by lines that replace those of blocks in known content, from the LZ section | as 9, and behind each fingerprint a byte: lines replaced |
//!
//! The kind is the tag's lower four bits. The bit [`NAMED`] says that the (first) record carries the name of its block,
//! which then follows the tag (u8 length, name). The bit [`FOLLOWS`] says that the address is the page behind the operation
//! before; without it the address follows: n block, n page. A run's pages are neighbours, and so are the pages copied from.

use crate::qemu::BlockName;

/// Bytes in front of the operations.
pub const HEADER_BYTES: usize = 50;
/// Tag bit: the record carries its block's name.
pub const NAMED: u8 = 0x10;
/// Tag bit: the page behind the operation before.
pub const FOLLOWS: u8 = 0x20;
const KIND_BITS: u8 = 0x0f;

/// What an operation of the payload is; the lower bits of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of the stream.
    Bytes = 0,
    /// The block list.
    Blocks = 1,
    /// Zero records.
    Zero = 2,
    /// Pages in the LZ section.
    Lz = 3,
    /// Pages as they are.
    Raw = 4,
    /// Pages that the target holds at the same address.
    Same = 5,
    /// Pages that the target holds at another address.
    Copy = 6,
    /// A record whose meaning we don't know.
    Foreign = 7,
    /// Pages by the lines that differ from what the target holds at the same address.
    Delta = 8,
    /// Pages that stand as blocks in known content.
    Content = 9,
    /// Pages by the lines that differ from blocks of known content.
    Patch = 10,
}

impl Kind {
    /// Splits a tag into its kind and its flags; `None` if it means nothing.
    pub(super) fn from_tag(tag: u8) -> Option<(Self, u8)> {
        let kind = match tag & KIND_BITS {
            0 => Self::Bytes,
            1 => Self::Blocks,
            2 => Self::Zero,
            3 => Self::Lz,
            4 => Self::Raw,
            5 => Self::Same,
            6 => Self::Copy,
            7 => Self::Foreign,
            8 => Self::Delta,
            9 => Self::Content,
            10 => Self::Patch,
            _ => return None,
        };
        let flags = tag & !KIND_BITS;
        let allowed = match kind {
            Self::Bytes | Self::Blocks => 0,
            _ => NAMED | FOLLOWS,
        };
        (flags & !allowed == 0).then_some((kind, flags))
    }
}

pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a payload's parts from the front; each read is `None` if the input is too short or malformed.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    input: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.input.is_empty()
    }

    /// Bytes left.
    pub(super) fn bytes_left(&self) -> usize {
        self.input.len()
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.input.split_at_checked(length)?;
        self.input = rest;
        Some(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.input.split_first_chunk::<N>()?;
        self.input = rest;
        Some(*bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn name(&mut self) -> Option<BlockName> {
        let length = self.u8()?;
        BlockName::new(self.bytes(usize::from(length))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_overlong_ones_are_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.varint(), Some(value));
            assert!(reader.is_empty());
        }
        assert_eq!(Reader::new(&[0x80; 9]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 11]).varint(), None);
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varint(),
            None
        );
    }

    #[test]
    fn tags_with_meaningless_bits_are_refused() {
        assert_eq!(
            Kind::from_tag(Kind::Copy as u8 | NAMED | FOLLOWS),
            Some((Kind::Copy, NAMED | FOLLOWS))
        );
        assert_eq!(Kind::from_tag(Kind::Bytes as u8 | NAMED), None);
        assert_eq!(Kind::from_tag(0x40), None);
        assert_eq!(Kind::from_tag(11), None);
    }
}
