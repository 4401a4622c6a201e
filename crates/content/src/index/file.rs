//! An index in a file. `docs/content.md` draws it byte by byte.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::Identity;

const MAGIC: [u8; 8] = *b"vmfindex";
/// One more for each change of the layout or of the hash.
const VERSION: u32 = 3;
const FLAG_DIGEST: u32 = 1;
pub(super) const HEADER_BYTES: usize = 120;
const HASH_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 8;
/// Bytes of hashes that have a checksum together, and are read or written at once.
pub(super) const PIECE_BYTES: usize = 64 * 1024;
/// Hashes in them.
const PIECE_BLOCKS: u64 = (PIECE_BYTES / HASH_BYTES) as u64;

/// Why an index is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The system refused.
    #[error("cannot {action} the index {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What is in the file is of no use.
    #[error("the index {} is of no use, build it anew: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Unusable,
    },
    /// It is larger than all indexes together may be.
    #[error("an index of {bytes} bytes does not fit in {bytes_max}; allow the indexes more, or leave this source out")]
    TooLarge {
        /// What it has.
        bytes: u64,
        /// What all may have.
        bytes_max: u64,
    },
}

/// Why bytes are no index.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// They cannot be read.
    #[error("it cannot be read ({0})")]
    Read(#[from] io::Error),
    /// They begin with something else.
    #[error("it is another kind of file")]
    NotAnIndex,
    /// Another version of vmferry wrote it.
    #[error("it has version {found}, and this vmferry reads {VERSION}")]
    OtherVersion {
        /// What it says.
        found: u32,
    },
    /// Bytes are missing, or there are more than there should be.
    #[error("it has {found} bytes and should have {expected}")]
    OtherLength {
        /// Bytes that there should be.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error("it is damaged")]
    Damaged,
}

impl IndexError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// A weak hash of each block of a source, as it was found at some time. The hashes stay in the file, in pieces: whether one is
/// what was written is seen when it is read.
#[derive(Debug)]
pub struct Index {
    header: IndexHeader,
    /// Of each piece.
    checksums: Vec<u64>,
    file: File,
    path: PathBuf,
}

impl Index {
    /// Opens the index in the file `path`, and reads all but the hashes. Whether it is of the source that is there now, its
    /// identity tells.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let file = File::open(path).map_err(IndexError::io("open", path))?;
        let bytes = file.metadata().map_err(IndexError::io("look at", path))?.len();
        let (header, checksums) = IndexHeader::read(&mut &file, bytes).map_err(|reason| IndexError::Unusable {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self::new(header, checksums, file, path.to_owned()))
    }

    pub(super) fn new(header: IndexHeader, checksums: Vec<u64>, file: File, path: PathBuf) -> Self {
        Self {
            header,
            checksums,
            file,
            path,
        }
    }

    /// What it says of its source.
    pub fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// [`block_hash`](vmferry_core::page::content::block_hash) of these blocks, as far as there are so many: 0 for one that is
    /// all zero, a hole, or could not be read.
    ///
    /// # Errors
    /// [`IndexError::Io`]; [`IndexError::Unusable`], if what it has of them is not what was written.
    pub fn hashes(&self, blocks: Range<u64>) -> Result<Vec<u64>, IndexError> {
        let start = blocks.start.min(self.header.blocks);
        let end = blocks.end.min(self.header.blocks).max(start);
        let mut hashes = Vec::with_capacity((end - start) as usize);
        let mut bytes = vec![0; PIECE_BYTES];
        for number in start / PIECE_BLOCKS..end.div_ceil(PIECE_BLOCKS) {
            let first = number * PIECE_BLOCKS;
            let count = PIECE_BLOCKS.min(self.header.blocks - first);
            let piece = &mut bytes[..count as usize * HASH_BYTES];
            self.file
                .read_exact_at(piece, file_offset(first))
                .map_err(IndexError::io("read", &self.path))?;
            if self.checksums.get(number as usize) != Some(&xxh3_64(piece)) {
                return Err(IndexError::Unusable {
                    path: self.path.clone(),
                    reason: Unusable::Damaged,
                });
            }
            let wanted = start.max(first) - first..end.min(first + count) - first;
            let (all, _) = piece.as_chunks();
            let wanted = &all[wanted.start as usize..wanted.end as usize];
            hashes.extend(wanted.iter().map(|hash| u64::from_le_bytes(*hash)));
        }
        Ok(hashes)
    }
}

/// Where the hash of a block stands in the file.
fn file_offset(block: u64) -> u64 {
    block
        .saturating_mul(HASH_BYTES as u64)
        .saturating_add(HEADER_BYTES as u64)
}

/// Bytes of the file of an index of `blocks` blocks.
pub(super) fn file_bytes(blocks: u64) -> u64 {
    file_offset(blocks).saturating_add((blocks.div_ceil(PIECE_BLOCKS) + 1) * CHECKSUM_BYTES as u64)
}

/// The checksum of everything but the hashes: of the checksums of their pieces, and of the header.
pub(super) fn checksum(header: &[u8; HEADER_BYTES], checksums: &[u8]) -> u64 {
    let mut checksum = Xxh3Default::new();
    checksum.update(checksums);
    checksum.update(header);
    checksum.digest()
}

/// What an index says of its source as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexHeader {
    /// The source, as it was before the first block was read.
    pub identity: Identity,
    /// BLAKE3 of all whole blocks, if that was asked for, and only if the source stayed as it was while it was read: two
    /// hosts whose digests are equal have the same image.
    pub digest: Option<[u8; 32]>,
    /// Its blocks.
    pub blocks: u64,
}

impl IndexHeader {
    /// Reads an index of `bytes` bytes but for its hashes, and checks that it is what was written. Returns the checksums of the
    /// pieces of its hashes, too.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn read(reader: &mut (impl Read + Seek), bytes: u64) -> Result<(Self, Vec<u64>), Unusable> {
        if bytes < MAGIC.len() as u64 {
            return Err(Unusable::NotAnIndex);
        }
        let mut encoded = [0; HEADER_BYTES];
        let (magic, rest) = encoded.split_at_mut(MAGIC.len());
        reader.read_exact(magic)?;
        if magic != MAGIC {
            return Err(Unusable::NotAnIndex);
        }
        let of_length = |expected| match bytes == expected {
            true => Ok(()),
            false => Err(Unusable::OtherLength { expected, found: bytes }),
        };
        if bytes < file_bytes(0) {
            of_length(file_bytes(0))?;
        }
        reader.read_exact(rest)?;
        let header = Self::decode(&encoded)?;
        of_length(file_bytes(header.blocks))?;
        reader.seek(SeekFrom::Start(file_offset(header.blocks)))?;
        let missing = bytes.saturating_sub(file_offset(header.blocks));
        let mut checksums = Vec::new();
        // Not allocated before it is there.
        if reader.take(missing).read_to_end(&mut checksums)? as u64 != missing {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let (checksums, written) = checksums.split_last_chunk().ok_or(Unusable::Damaged)?;
        if checksum(&encoded, checksums) != u64::from_le_bytes(*written) {
            return Err(Unusable::Damaged);
        }
        let (checksums, _) = checksums.as_chunks();
        let checksums = checksums.iter().map(|checksum| u64::from_le_bytes(*checksum));
        Ok((header, checksums.collect()))
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let flags = if self.digest.is_some() { FLAG_DIGEST } else { 0 };
        let mut encoded = [0; HEADER_BYTES];
        encoded[..8].copy_from_slice(&MAGIC);
        encoded[8..12].copy_from_slice(&VERSION.to_le_bytes());
        encoded[12..16].copy_from_slice(&flags.to_le_bytes());
        encoded[16..80].copy_from_slice(&self.identity.encode());
        encoded[80..88].copy_from_slice(&self.blocks.to_le_bytes());
        encoded[88..].copy_from_slice(&self.digest.unwrap_or_default());
        encoded
    }

    fn decode(encoded: &[u8; HEADER_BYTES]) -> Result<Self, Unusable> {
        let mut rest = &encoded[MAGIC.len()..];
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(Unusable::OtherVersion { found: version });
        }
        let flags = u32::from_le_bytes(take(&mut rest)?);
        let identity = Identity::decode(&take(&mut rest)?).ok_or(Unusable::Damaged)?;
        let blocks = u64::from_le_bytes(take(&mut rest)?);
        let digest = take(&mut rest)?;
        Ok(Self {
            identity,
            digest: (flags & FLAG_DIGEST != 0).then_some(digest),
            blocks,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Unusable> {
    let (taken, behind) = rest.split_first_chunk().ok_or(Unusable::Damaged)?;
    *rest = behind;
    Ok(*taken)
}

#[cfg(test)]
mod tests;
