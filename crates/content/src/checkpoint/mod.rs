//! Memory of a VM that an earlier migration left on this host, encrypted, within a quota.
//!
//! | module | what |
//! |---|---|
//! | [`folder`] | the checkpoints of a host, one for each VM |
//! | [`writer`] | a checkpoint while it is written |
//! | [`reader`] | a checkpoint as a source of content |
//! | [`key`] | the host's key, and what follows from it for a file |
//! | [`layout`] | where what stands in a file; `docs/content.md` draws it |
//!
//! A block is found by its content, wherever that is needed, and by where it was, for a page that changed since.

pub mod folder;
pub mod key;
pub mod layout;
pub mod reader;
pub mod writer;

pub use folder::CheckpointFolder;
pub use key::{HostKey, KeyError};
pub use reader::Checkpoint;
pub use writer::CheckpointWriter;

use std::{
    io,
    path::{Path, PathBuf},
};

use layout::HeaderError;

/// Why a checkpoint is not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("cannot {action} the checkpoint {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// All that is kept and the new one are more than the quota.
    #[error(
        "the checkpoint is not kept: it does not fit in the quota of {quota} bytes for all checkpoints of this host; \
         raise the quota to keep it"
    )]
    OverQuota {
        /// What all may have, bytes.
        quota: u64,
    },
    /// The content to add is no whole number of blocks.
    #[error("{0} bytes of memory are no whole number of blocks")]
    PartOfABlock(usize),
    /// An earlier call failed, so the checkpoint would not be whole.
    #[error("the checkpoint is not kept, as an earlier part of it could not be written")]
    Incomplete,
    /// What is in the file is of no use; it was removed.
    #[error("the checkpoint {} was removed: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: HeaderError,
    },
}

impl CheckpointError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
