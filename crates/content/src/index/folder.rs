//! The indexes of a host.

use std::{
    fs::{File, FileTimes},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use super::{Cancel, Index, IndexError, ScanError, ScanOptions, file::file_bytes, scan, spot_check::is_current};
use crate::{Blocks, Change, durable};

const EXTENSION: &str = "index";

/// A folder with an index for each source that was indexed here, named by the source's path or URI. When they grow beyond
/// what all may have, those go that were not used for longest.
#[derive(Debug)]
pub struct IndexFolder {
    folder: PathBuf,
    bytes_max: u64,
    /// Held while an index is brought up to date: one at a time has its room.
    changing: Mutex<()>,
}

impl IndexFolder {
    /// Opens it, and makes it if there is none. At most one process may use it. `bytes_max` is for all indexes together;
    /// each takes little more than 8 bytes for each block of its source.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn open(folder: impl Into<PathBuf>, bytes_max: u64) -> Result<Self, IndexError> {
        let folder = folder.into();
        durable::prepare_folder(&folder).map_err(IndexError::io("prepare the folder of", &folder))?;
        Ok(Self {
            folder,
            bytes_max,
            changing: Mutex::new(()),
        })
    }

    /// The index of `source` that is kept; `None` if there is none.
    ///
    /// # Errors
    /// [`IndexError::Io`], or [`IndexError::Unusable`] once: such a file is removed.
    pub fn load(&self, source: &str) -> Result<Option<Index>, IndexError> {
        let path = self.path(source);
        match Index::open(&path) {
            Ok(index) => {
                // Only its place in the order of use is lost if that fails.
                let _ =
                    File::open(&path).and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())));
                Ok(Some(index))
            }
            Err(IndexError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                if matches!(error, IndexError::Unusable { .. }) {
                    durable::remove(&path).map_err(IndexError::io("remove", &path))?;
                }
                Err(error)
            }
        }
    }

    /// An index of `source`, which is `content`, as of now or nearly so, with the digest if one is asked for: the one that is
    /// kept if it still serves ([what that costs](super)), else a new one, which is kept then. What is kept and cannot be used is
    /// replaced. It blocks its thread; `progress` is told the number of blocks that a new one has so far.
    ///
    /// # Errors
    /// [`ScanError`]; an index that was kept is so still.
    pub fn update(
        &self,
        source: &str,
        content: &dyn Blocks,
        options: &ScanOptions,
        cancel: &Cancel,
        progress: impl FnMut(u64),
    ) -> Result<Index, ScanError> {
        let bytes = file_bytes(content.blocks());
        if bytes > self.bytes_max {
            let bytes_max = self.bytes_max;
            return Err(IndexError::TooLarge { bytes, bytes_max }.into());
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // The scan replaces an index that is of no use.
        let kept = match self.load(source) {
            Err(IndexError::Unusable { .. }) => None,
            kept => kept?,
        };
        // What is kept of another source that stood at this path says nothing of this one.
        let mut earlier = None;
        if let Some(kept) = kept {
            let change = content.identity()?.since(&kept.header().identity);
            let serves = match change {
                _ if options.digest && kept.header().digest.is_none() => false,
                Change::Nothing => true,
                // A digest is of all that is there.
                Change::Content | Change::Unknown if options.digest => false,
                Change::Content | Change::Unknown => match is_current(content, &kept, options, cancel) {
                    Err(ScanError::Index(IndexError::Unusable { .. })) => false,
                    current => current?,
                },
                Change::Another => false,
            };
            if serves {
                return Ok(kept);
            }
            earlier = (change != Change::Another).then_some(kept);
        }
        let path = self.path(source);
        self.make_room(bytes, &path)
            .map_err(IndexError::io("make room for", &path))?;
        scan(content, earlier.as_ref(), &path, options, cancel, progress)
    }

    /// Removes the index of `source`, of which some of the hashes were found to be of no use.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn discard(&self, source: &str) -> Result<(), IndexError> {
        let path = self.path(source);
        durable::remove(&path).map_err(IndexError::io("remove", &path))
    }

    fn path(&self, source: &str) -> PathBuf {
        self.folder.join(durable::file_name(source, EXTENSION))
    }

    /// Removes what was used longest ago until `bytes` fit beside the rest. What `path` has is replaced, so it does not count.
    fn make_room(&self, bytes: u64, path: &Path) -> io::Result<()> {
        let mut others = durable::files(&self.folder)?;
        others.retain(|file| file.path != path);
        durable::remove_oldest(others, self.bytes_max.saturating_sub(bytes))?;
        Ok(())
    }
}
