//! Content that a host holds already, so that a page which equals some of it need not be sent: disks and their backing files,
//! images, NBD exports, and memory that an earlier migration left.
//!
//! ```text
//! source: image ─▶ scan ─▶ Index: a weak hash of each block      looks a page up ─▶ "block 7 of that image, fingerprint f"
//! target: Blocks::read(7) ─▶ fingerprint it ─▶ f: here is the page; another one: ask for it
//! ```
//!
//! An index only guesses where a page may stand. The target reads the block itself, past the page cache, and compares, so an
//! index that is stale, damaged or made up costs bytes and never a wrong page.
//!
//! | module | what |
//! |---|---|
//! | [`blocks`] | what all sources of content have in common |
//! | [`image`] | files and block devices |
//! | `aligned` | memory that a read past the page cache can fill |
//! | [`nbd`] | exports of NBD servers |
//! | [`identity`] | whether a source is still what it was |
//! | [`index`] | a hash of each block: built in the background, kept in files |
//! | [`checkpoint`] | memory that an earlier migration left, encrypted |
//! | `durable` | files that are there whole or not at all |

mod aligned;
pub mod blocks;
pub mod checkpoint;
mod durable;
pub mod identity;
pub mod image;
pub mod index;
pub mod nbd;

pub use blocks::{BLOCK_BYTES, Blocks};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointFolder, CheckpointWriter, HostKey, KeyError};
pub use identity::{Change, Identity};
pub use image::ImageFile;
pub use index::{Cancel, Index, IndexError, IndexFolder, IndexHeader, ScanError, ScanOptions};
pub use nbd::{NbdExport, NbdServer, NbdUri};
