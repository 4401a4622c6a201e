//! The checkpoints of a host, one for each VM.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Checkpoint, CheckpointError, CheckpointWriter, HostKey};
use crate::durable::{self, Draft};

const EXTENSION: &str = "memory";

/// A folder with at most one checkpoint for each VM. When they would have more bytes than the quota, the oldest go first.
#[derive(Debug, Clone)]
pub struct CheckpointFolder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    key: HostKey,
    quota: u64,
    /// Held while files grow, appear and go.
    changing: Mutex<()>,
}

impl CheckpointFolder {
    /// Opens it, makes it if there is none, and removes what was left unfinished in it. At most one process may use it.
    /// `quota` is in bytes, for all files together, those being written too.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn open(folder: impl Into<PathBuf>, key: HostKey, quota: u64) -> Result<Self, CheckpointError> {
        let folder = folder.into();
        durable::prepare_folder(&folder).map_err(CheckpointError::io("prepare the folder of", &folder))?;
        Ok(Self(Arc::new(Inner {
            folder,
            key,
            quota,
            changing: Mutex::new(()),
        })))
    }

    /// Begins a checkpoint of the VM `vm`. It takes the place of an earlier one when it is finished.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn begin(&self, vm: &str) -> Result<CheckpointWriter, CheckpointError> {
        CheckpointWriter::create(self.clone(), self.path(vm), &self.0.key)
    }

    /// The checkpoint of the VM `vm`; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Unusable`] once: such a file is removed; [`CheckpointError::Io`].
    pub fn checkpoint(&self, vm: &str) -> Result<Option<Checkpoint>, CheckpointError> {
        let path = self.path(vm);
        match Checkpoint::open(&path, &self.0.key) {
            Err(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                if matches!(error, CheckpointError::Unusable { .. }) {
                    self.remove(vm)?;
                }
                Err(error)
            }
            Ok(checkpoint) => Ok(Some(checkpoint)),
        }
    }

    /// Removes the checkpoint of the VM `vm`, if there is one. Who reads it can go on.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn remove(&self, vm: &str) -> Result<(), CheckpointError> {
        let path = self.path(vm);
        durable::remove(&path).map_err(CheckpointError::io("remove", &path))
    }

    fn path(&self, vm: &str) -> PathBuf {
        self.0.folder.join(durable::file_name(vm, EXTENSION))
    }

    /// Gives the file `draft`, which becomes `path`, a length of `bytes`, for which others make room.
    pub(super) fn grow(&self, draft: &Draft, path: &Path, bytes: u64) -> Result<(), CheckpointError> {
        let Inner {
            folder,
            quota,
            changing,
            ..
        } = &*self.0;
        let io_error = |error| CheckpointError::io("make room for", path)(error);
        if bytes > *quota {
            return Err(CheckpointError::OverQuota { quota: *quota });
        }
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = durable::files(folder).map_err(io_error)?;
        others.retain(|file| file.path != draft.path());
        // What it is to replace goes when it is there, and not to make room for it.
        let (replaced, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|file| file.path == path);
        let replaced: u64 = replaced.iter().map(|file| file.bytes).sum();
        let Some(room) = (quota - bytes).checked_sub(replaced) else {
            return Err(CheckpointError::OverQuota { quota: *quota });
        };
        if durable::remove_oldest(others, room).map_err(io_error)? > room {
            return Err(CheckpointError::OverQuota { quota: *quota });
        }
        draft.file().set_len(bytes).map_err(io_error)
    }
}
