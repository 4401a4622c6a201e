//! Why a stream could not be followed any further.

use thiserror::Error;

use super::cursor::Stop;

/// Where and why the parser gave up. Nothing is wrong with the migration: the rest of the stream is passed on as it is,
/// only without vmferry's page encodings.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("from byte {position} of the stream on it is passed on as it is: {cause}")]
pub struct LostReason {
    /// Bytes of the stream before the first thing that could not be followed.
    pub position: u64,
    /// What it was.
    pub cause: LostCause,
}

/// What could not be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LostCause {
    /// Not `QEVM`, version 3.
    #[error("it does not begin with QEMU's header, version 3 (a recovered post-copy or a multifd channel has none)")]
    Header,
    /// A subsection of the configuration section that we do not know.
    #[error("the configuration has an unknown part, {0:?}")]
    Subsection(String),
    /// Page bits outside `limits`.
    #[error("guest pages of 2^{0} bytes are not supported")]
    PageBits(u32),
    /// A capability that lays the stream out in a way only a file can hold.
    #[error("capability `{0}` is on: turn it off to have pages encoded")]
    Capability(&'static str),
    /// A section type byte that cannot stand here.
    #[error("a section of type {0:#04x} came before the end of RAM")]
    SectionType(u8),
    /// A section that we do not know, before the end of RAM.
    #[error("device {0:?} sends its state in a form unknown to vmferry before the end of RAM")]
    UnknownSection(String),
    /// A PART or END of a section that was never started, or a second START.
    #[error("section {0} is continued without being started, or started twice")]
    SectionId(u32),
    /// More live sections than `LIVE_SECTIONS_MAX`.
    #[error("more devices than {0} send state while the guest runs")]
    TooManySections(usize),
    /// A footer with another section's id.
    #[error("section {section} ends with the footer of section {footer}")]
    Footer {
        /// The section that was open.
        section: u32,
        /// The id that its footer carried.
        footer: u32,
    },
    /// A command whose length is not the one that its number demands.
    #[error("command {command} has {bytes} bytes")]
    CommandLength {
        /// The command's number.
        command: u16,
        /// Length of its payload, bytes.
        bytes: u16,
    },
    /// COLO: the target keeps pages in a cache of its own, not in the guest's memory.
    #[error("COLO is on, whose target does not keep pages where they are sent")]
    Colo,
    /// RAM's state in another version than 4.
    #[error("RAM is sent in version {0}, not 4")]
    RamVersion(u32),
    /// The flags of a RAM record that do not exist on a socket, or not together.
    #[error("a RAM record has flags {0:#05x}")]
    RamFlags(u64),
    /// A block list that is malformed or beyond `limits`.
    #[error("RAM's block list is malformed, sent twice or too long")]
    BlockList,
    /// A record for a block that is not in the list, or outside its block.
    #[error("a RAM record is for a page that no listed block has")]
    Address,
    /// A ZERO record with another fill byte.
    #[error("a ZERO record fills its page with {0:#04x}")]
    FillByte(u8),
    /// An encoded page longer than QEMU's own limit, or in an unknown encoding.
    #[error("an XBZRLE or COMPRESS_PAGE record is malformed")]
    EncodedPage,
    /// A live handler's state that does not follow its grammar.
    #[error("the state of {0} is malformed")]
    Live(&'static str),
}

impl From<LostCause> for Stop<LostCause> {
    fn from(cause: LostCause) -> Self {
        Self::Malformed(cause)
    }
}
