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
    file::{HEADER_BYTES, PIECE_BYTES, checksum},
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
    /// Of each piece that is whole.
    checksums: Vec<u64>,
    /// Of the one that follows, and how many bytes it has so far.
    checksum: Xxh3Default,
    piece_bytes: usize,
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
            checksums: Vec::new(),
            checksum: Xxh3Default::new(),
            piece_bytes: 0,
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
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, behind) = rest.split_at(rest.len().min(PIECE_BYTES - self.piece_bytes));
            self.checksum.update(now);
            self.piece_bytes += now.len();
            if self.piece_bytes == PIECE_BYTES {
                self.end_piece();
            }
            rest = behind;
        }
        self.header.blocks += hashes.len() as u64;
        self.write(&bytes)
    }

    fn end_piece(&mut self) {
        if self.piece_bytes > 0 {
            self.checksums.push(self.checksum.digest());
            self.checksum.reset();
            self.piece_bytes = 0;
        }
    }

    /// Makes it the index in its file, durably, in the place of what was there.
    ///
    /// # Errors
    /// [`IndexError::Io`]; then what was there stays.
    pub(super) fn finish(mut self, digest: Option<[u8; 32]>) -> Result<Index, IndexError> {
        self.header.digest = digest;
        let header = self.header.encode();
        self.end_piece();
        let checksums: Vec<u8> = self
            .checksums
            .iter()
            .flat_map(|checksum| checksum.to_le_bytes())
            .collect();
        self.write(&checksums)?;
        self.write(&checksum(&header, &checksums).to_le_bytes())?;
        let publish = || -> io::Result<_> {
            let file = self.out.into_inner()?;
            file.write_all_at(&header, 0)?;
            self.draft.publish(&self.path)?;
            Ok(file)
        };
        let file = publish().map_err(IndexError::io("write", &self.path))?;
        Ok(Index::new(self.header, self.checksums, file, self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.out.write_all(bytes).map_err(IndexError::io("write", &self.path))
    }
}
