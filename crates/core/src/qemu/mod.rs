//! QEMU's migration stream and its return path: incremental parsers and writers, without any I/O.
//!
//! | module | what |
//! |---|---|
//! | [`parser`] | the frame: header, sections, footers, the opaque device tail |
//! | `configuration` | the section after the header: page size, capabilities |
//! | `commands` | commands between sections |
//! | `ram` | the RAM section's records and block list |
//! | `live` | the other handlers that send state while the guest runs |
//! | `cursor` | reads from the front of the input, or says that it is too short |
//! | [`lost`] | why a stream could not be followed any further |
//! | [`writer`] | the record in front of a page, byte for byte as QEMU writes it |
//! | [`return_path`] | what the target QEMU answers |
//!
//! [`Parser::next`] splits the stream into [`Item`]s. Every byte of the stream is in exactly one item, in order:
//! [`Item::Bytes`] and [`Item::Foreign`] carry theirs, [`writer::record_header`] makes those of a page's record again. A
//! stream that cannot be followed is therefore never refused: from that byte on all of it is [`Item::Bytes`].

mod commands;
mod configuration;
mod cursor;
mod live;
pub mod lost;
pub mod parser;
mod ram;
pub mod return_path;
pub mod writer;

pub use lost::{LostCause, LostReason};
pub use parser::Parser;
pub(crate) use writer::FLAG_CONTINUE;
pub use writer::{RecordKind, naming_record, record_header};

use crate::limits::BLOCK_NAME_BYTES_MAX;

/// A RAM block by its index in the order of the stream's block list (the MEM_SIZE record), which
/// [`Parser::blocks`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u16);

/// A RAM block of the source, as the stream's block list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// QEMU's `idstr`, by which the target finds the block.
    pub name: BlockName,
    /// QEMU's `used_length`, bytes: a multiple of the page size.
    pub bytes: u64,
}

/// A RAM block's name: 1 to 255 bytes of UTF-8, so that it always fits behind the stream's one length byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlockName(Box<str>);

impl BlockName {
    /// Takes a name as it stands in a stream or a frame; `None` if it is empty, too long or not UTF-8.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > BLOCK_NAME_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(bytes).ok().map(|name| Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for BlockName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which page a record is about. [`Parser`] hands out only pages that lie within their block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageAt {
    /// The page's block.
    pub block: BlockId,
    /// Bytes from the start of the block: a multiple of the page size.
    pub offset: u64,
    /// The record carried the block's name; otherwise it had QEMU's CONTINUE flag, "the block of the record before".
    pub named: bool,
}

/// A piece of the stream, in the order of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// Bytes to pass on as they are.
    Bytes(&'a [u8]),
    /// A PAGE record: the page's content, [`Parser::page_bytes`] long. What stood in front of it is what
    /// [`writer::record_header`] makes.
    Page(PageAt, &'a [u8]),
    /// A ZERO record: the page is all zero.
    Zero(PageAt),
    /// A record that changes the page at the target to a content we do not know (XBZRLE, COMPRESS_PAGE): all bytes of the
    /// record, to pass on as they are.
    Foreign(PageAt, &'a [u8]),
    /// A point in the stream, zero bytes long.
    Mark(Mark),
}

/// A point in the stream that means something to whoever carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// [`Parser::blocks`] is complete; pages may follow.
    Blocks,
    /// The guest is stopped at the source: behind a SWITCHOVER_START command or the header of RAM's SECTION_END, whichever
    /// comes first. Machine types before 10.0 send only the second.
    Switchover,
    /// The post-copy switch began (a POSTCOPY_RAM_DISCARD or PACKAGED command): from here on pages must keep their order,
    /// and pages sent before may have been discarded at the target, so none may be referred to.
    Postcopy,
    /// All of RAM is behind us. What follows (device state, end mark, description) has no lengths and stays opaque, by
    /// nature: pass it on as it comes and never wait for more of it.
    RamEnd,
    /// The stream cannot be followed any further; all of the rest is [`Item::Bytes`].
    Lost(LostReason),
}
