//! What crosses the wire for QEMU's stream, and for a page above all: batches, known content, LZ coders, and the checks
//! that make the target's stream the source's, byte for byte. No I/O and no threads: the data plane runs these on its own.
//!
//! | module | what |
//! |---|---|
//! | [`batch`] | a stretch of QEMU's stream, split into operations that refer to its bytes |
//! | [`builder`] | cuts the stream into batches in the very buffers it was read into |
//! | [`fingerprint`] | when two pages count as equal |
//! | `hash_pages` | BLAKE3 of many pages at once |
//! | [`known`] | what the target holds already |
//! | `places` | where each content was sent, for that |
//! | [`catalog`] | what stands in disks, images and checkpoints that the target reads for itself |
//! | [`block_table`] | where in one of those some content is |
//! | [`content`] | the blocks that those are made of |
//! | [`earlier`] | what the target tells of memory that it kept: where blocks were, and hashes of their pieces |
//! | [`ask`] | what the target did not find there |
//! | [`reading`] | whether it had better be sent the pages than read them |
//! | [`versions`] | what pages were last sent as, within a bound |
//! | [`lines`] | hashes of a page's lines, which tell what changed |
//! | [`choice`] | which coder a batch goes through, from what was measured |
//! | `delta` | a page as its difference to what the target holds |
//! | [`lz`] | the dictionary coders: LZ78, LZ4, Zstandard |
//! | `entropy` | which pages are not worth an LZ coder's time |
//! | [`payload`] | the layout of an encoded batch |
//! | [`mod@encode`], [`decode`] | a batch to a payload, and back except for the pages it only refers to |
//! | [`assemble`] | fills in the pages referred to, checks everything, gives out the stream |
//! | `ring` | the pages most recently given out |
//! | [`digest`] | the running digest over the stream |
//! | [`page_set`], `sparse` | sets and tables of pages that grow with the pages seen, not with the guest's size |
//! | [`stats`] | what each encoding carried and cost |
//!
//! The source's lanes take turns for [`Known::classify`] and [`RunningDigest::extend`], the target's for
//! [`Assembler::apply`], in the order of [`Batch::seq`]; everything else runs on all lanes at once:
//!
//! ```text
//! source  BatchBuilder ─▶ FingerprintKey::pages ─▶ │ Known::classify      │ ─▶ encode ─▶ wire
//!                         FingerprintKey::batch    │ RunningDigest::extend│
//! target  wire ─▶ Decoder::decode ─▶ │ Assembler::apply │ ─▶ Batch::stream ─▶ QEMU
//! ```

pub mod ask;
pub mod assemble;
pub mod batch;
pub mod block_table;
pub mod builder;
pub mod catalog;
pub mod choice;
pub mod content;
pub mod decode;
mod delta;
pub mod digest;
pub mod earlier;
pub mod encode;
mod entropy;
pub mod fingerprint;
mod hash_pages;
pub mod known;
pub mod lines;
pub mod lz;
pub mod page_set;
pub mod payload;
mod places;
pub mod reading;
mod ring;
mod sparse;
pub mod stats;
pub mod versions;

pub use ask::Ask;
pub use assemble::{AssembleError, Assembler, ReadError};
pub use batch::{Batch, Op};
pub use block_table::BlockTable;
pub use builder::BatchBuilder;
pub use catalog::Catalog;
pub use decode::{DecodeError, Decoded, Decoder, MEMORY_PART_MAX, Span};
pub use digest::{BatchDigest, RunningDigest, StreamDigest};
pub use earlier::{EarlierTable, KeptBlock, Place};
pub use encode::{Coded, encode};
pub use fingerprint::{Fingerprint, FingerprintKey};
pub use known::{Class, Known, Reach};
pub use lines::LineHashes;
pub use lz::{Codec, CodecSettings, Coders, Encoders, LzError};
pub use page_set::PageSet;
pub use reading::{Reading, Sending};
pub use ring::{RING_BATCHES, RING_MEMORY_BYTES_MAX};
pub use stats::EncodingStats;
