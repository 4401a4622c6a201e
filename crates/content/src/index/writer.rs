//! An index while it is written.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3Default;

use super::{
    Index, IndexError, IndexHeader,
    file::{HEADER_BYTES, PIECE_BYTES},
};
use crate::{Identity, durable::Draft};

/// Writes an index as its source is read. Dropped before [`IndexWriter::finish`], it leaves nothing.
pub(super) struct IndexWriter {
    draft: Draft,
    /// The draft, by whole pieces: holes come a few hashes at a time.
    out: BufWriter<File>,
    path: PathBuf,
    /// Of what was added so far.
    header: IndexHeader,
    checksum: Xxh3Default,
}

impl IndexWriter {
    /// Begins an index of the source `identity` that is to be the file `path`.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub(super) fn create(path: &Path, identity: Identity) -> Result<Self, IndexError> {
        let draft = Draft::create(path).map_err(IndexError::io("create", path))?;
        let out = draft.file().try_clone().map_err(IndexError::io("create", path))?;
        let mut writer = Self {
            draft,
            out: BufWriter::with_capacity(PIECE_BYTES, out),
            path: path.to_owned(),
            header: IndexHeader {
                identity,
                digest: None,
                blocks: 0,
            },
            checksum: Xxh3Default::new(),
        };
        // Its place; what is in it is known at the end.
        writer.write(&[0; HEADER_BYTES])?;
        Ok(writer)
    }

    /// Blocks in it so far.
    pub(super) fn blocks(&self) -> u64 {
        self.header.blocks
    }

    /// Adds the hashes of the blocks that follow.
    ///
    /// # Errors
    /// [`IndexError::Io`]; then it can only be dropped.
    pub(super) fn add(&mut self, hashes: &[u64]) -> Result<(), IndexError> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        self.checksum.update(&bytes);
        self.header.blocks += hashes.len() as u64;
        self.write(&bytes)
    }

    /// Makes it the index in its file, durably, in the place of what was there.
    ///
    /// # Errors
    /// [`IndexError::Io`]; then what was there stays.
    pub(super) fn finish(mut self, digest: Option<[u8; 32]>) -> Result<Index, IndexError> {
        self.header.digest = digest;
        let header = self.header.encode();
        self.checksum.update(&header);
        self.write(&self.checksum.digest().to_le_bytes())?;
        let publish = || -> io::Result<_> {
            let file = self.out.into_inner()?;
            file.write_all_at(&header, 0)?;
            self.draft.publish(&self.path)?;
            Ok(file)
        };
        let file = publish().map_err(IndexError::io("write", &self.path))?;
        Ok(Index::new(self.header, file, self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.out.write_all(bytes).map_err(IndexError::io("write", &self.path))
    }
}
