//! The journal's file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    marker::PhantomData,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::frame::{self, Frame, RECORD_BYTES_MAX};

const MAGIC: &[u8] = b"VMFERRY JOURNAL 1\n";

/// An append-only file of records of type `R`, open in one process only.
#[derive(Debug)]
pub struct Journal<R> {
    path: PathBuf,
    file: File,
    /// Where the next frame goes: behind the last one that is durable.
    end: u64,
    poisoned: bool,
    _lock: File,
    record: PhantomData<fn(R) -> R>,
}

/// A journal that was just opened.
#[derive(Debug)]
pub struct Opened<R> {
    /// Ready to append.
    pub journal: Journal<R>,
    /// All that was appended since the last compaction, oldest first.
    pub records: Vec<R>,
    /// Bytes of a last record whose write was interrupted, dropped now; nobody had been told that it was written.
    pub torn_bytes: u64,
}

/// Why a record is not in the journal, or the journal not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the journal {} is in use by another process; stop that agent first", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// It begins with something else.
    #[error("{} is not a vmferry journal; move it away or name another state directory", path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// A record that was durable once does not check.
    #[error(
        "the journal {} is damaged at byte {offset}, and records that were promised may be lost; \
         restore it from a copy, or find out by hand which host owns each VM before you move it away", path.display()
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where the first damaged record begins.
        offset: u64,
    },
    /// A record checks, but is not one that this version knows.
    #[error(
        "the record at byte {offset} of the journal {} is unknown ({reason}); use the vmferry that wrote it, or a newer one",
        path.display()
    )]
    Unknown {
        /// The journal.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What did not fit.
        reason: serde_json::Error,
    },
    /// The record cannot be written as JSON.
    #[error("not written: the record has no JSON form ({0})")]
    Encode(#[from] serde_json::Error),
    /// The record is too long.
    #[error("not written: the record is longer than {RECORD_BYTES_MAX} bytes")]
    TooLong,
    /// An earlier write failed, so that what is on the disk is not known.
    #[error("not written: an earlier write to the journal {} failed; see to the disk and restart the agent", path.display())]
    Poisoned {
        /// The journal.
        path: PathBuf,
    },
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// Opens the journal at `path`, makes it if there is none, and reads what it holds. Its folder must exist.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotAJournal`], [`Error::Damaged`], [`Error::Unknown`], [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Opened<R>, Error> {
        let path = path.into();
        let lock = lock(&path)?;
        if !path.try_exists().map_err(io_error("look for", &path))? {
            write_anew(&path, MAGIC)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error("read", &path))?;

        let (records, end) = replay(&path, &bytes)?;
        let torn_bytes = bytes.len() as u64 - end;
        if torn_bytes > 0 {
            file.set_len(end)
                .and_then(|()| file.sync_all())
                .map_err(io_error("truncate", &path))?;
        }
        let journal = Self {
            path,
            file,
            end,
            poisoned: false,
            _lock: lock,
            record: PhantomData,
        };
        Ok(Opened {
            journal,
            records,
            torn_bytes,
        })
    }

    /// Writes a record. When this returns `Ok`, it is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] leaves open whether the record will be there at the next start, so every later call fails with
    /// [`Error::Poisoned`]; [`Error::Encode`] and [`Error::TooLong`] wrote nothing.
    pub fn append(&mut self, record: &R) -> Result<(), Error> {
        self.refuse_if_poisoned()?;
        let frame = encode(record)?;
        self.poisoned = true;
        self.file
            .write_all_at(&frame, self.end)
            .and_then(|()| self.file.sync_data())
            .map_err(io_error("append to", &self.path))?;
        self.poisoned = false;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Replaces all records by `records`, at once: after a crash either the old ones or the new ones are there.
    ///
    /// # Errors
    /// As for [`Journal::append`].
    pub fn compact<'a>(&mut self, records: impl IntoIterator<Item = &'a R>) -> Result<(), Error>
    where
        R: 'a,
    {
        self.refuse_if_poisoned()?;
        let mut bytes = MAGIC.to_vec();
        for record in records {
            bytes.extend_from_slice(&encode(record)?);
        }
        self.poisoned = true;
        self.file = write_anew(&self.path, &bytes)?;
        self.poisoned = false;
        self.end = bytes.len() as u64;
        Ok(())
    }

    /// Bytes of the file; tells when to compact.
    pub fn file_bytes(&self) -> u64 {
        self.end
    }

    fn refuse_if_poisoned(&self) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned {
                path: self.path.clone(),
            });
        }
        Ok(())
    }
}

/// What the journal at `path` holds, oldest first, without opening it for writing: for tools, also while an agent has it open.
///
/// # Errors
/// [`Error::NotAJournal`], [`Error::Damaged`], [`Error::Unknown`], [`Error::Io`].
pub fn read<R: DeserializeOwned>(path: &Path) -> Result<Vec<R>, Error> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    replay(path, &bytes).map(|(records, _)| records)
}

fn encode<R: Serialize>(record: &R) -> Result<Vec<u8>, Error> {
    frame::encode(&serde_json::to_vec(record)?).ok_or(Error::TooLong)
}

/// The records in `bytes`, oldest first, and where the last whole one ends. `path` is what errors call the journal.
///
/// # Errors
/// [`Error::NotAJournal`], [`Error::Damaged`], [`Error::Unknown`].
pub fn replay<R: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(Vec<R>, u64), Error> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return Err(Error::NotAJournal { path: path.to_owned() });
    };
    let mut records = Vec::new();
    loop {
        let offset = (bytes.len() - rest.len()) as u64;
        if rest.is_empty() {
            return Ok((records, offset));
        }
        match frame::decode(rest) {
            Frame::Whole { payload, rest: behind } => {
                let record = serde_json::from_slice(payload).map_err(|reason| Error::Unknown {
                    path: path.to_owned(),
                    offset,
                    reason,
                })?;
                records.push(record);
                rest = behind;
            }
            Frame::Torn => return Ok((records, offset)),
            Frame::Damaged => {
                return Err(Error::Damaged {
                    path: path.to_owned(),
                    offset,
                });
            }
        }
    }
}

/// Writes a file so that under its name it is complete and durable, or as it was before.
fn write_anew(path: &Path, bytes: &[u8]) -> Result<File, Error> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft).map_err(io_error("create", &draft))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", &draft))?;
    fs::rename(&draft, path).map_err(io_error("rename into place", path))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", folder))?;
    Ok(file)
}

/// A file of its own, because the journal's is replaced by a compaction.
fn lock(path: &Path) -> Result<File, Error> {
    let lock_path = path.with_extension("lock");
    let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &lock_path)(source)),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
