//! A hash of each block of a source, built in the background and kept in files.
//!
//! | module | what |
//! |---|---|
//! | [`scan`](mod@scan) | reads a source and hashes its blocks |
//! | `spot_check` | whether an index is current, from a few blocks |
//! | `reader` | reads for both, in the background |
//! | [`file`](mod@file), `writer` | an index in a file, whole and while it is written |
//! | [`folder`] | the indexes of a host, within a size, each brought up to date when it is asked for |
//!
//! The index of 1 TiB has 2 GiB, so none is ever in memory as a whole: hashes go to the file as blocks are read, and come from
//! it as far as they are wanted.
//!
//! # What bringing up to date costs
//!
//! A source that tells that it was not written to ([`Change::Nothing`](crate::Change)) costs one `stat`. Of any other of 64 MiB or more, 1024 blocks are read that nobody can foresee. If more than one in 32 of those that
//! hold something changed, it is read again as far as it is allocated, at the pace that the operator allows, and hashed; that
//! is as long as the first time, and meanwhile the earlier index serves. An image's digest says of every block what it holds,
//! so an image that was written to is read again at once.
//!
//! QEMU could tell which blocks a guest wrote since the last scan, by a dirty bitmap that it exports over NBD. That was not
//! taken: the bitmap has to be added to the running QEMU and is lost with it unless the image is qcow2; it knows nothing of
//! writes by others; it has to be read and cleared at one instant, or writes between are missed; and it makes each write of
//! the guest dearer all the time, to save background reads now and then. What a stale entry costs is one fingerprint and one
//! more request for a page, so an index that is some hours old is nearly as good.

pub mod file;
pub mod folder;
mod reader;
pub mod scan;
mod spot_check;
mod writer;

pub use file::{Index, IndexError, IndexHeader, Unusable};
pub use folder::IndexFolder;
pub use scan::{Cancel, ScanError, ScanOptions, in_background, scan};
