//! An index in a file. `docs/content.md` draws it byte by byte.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3Default;

use super::Index;
use crate::{Identity, durable::Draft, identity::IDENTITY_BYTES};

const MAGIC: [u8; 8] = *b"vmfindex";
/// One more for each change of the layout or of the hash.
const VERSION: u32 = 1;
const FLAG_DIGEST: u32 = 1;
const HEADER_BYTES: usize = 120;
const CHECKSUM_BYTES: u64 = 8;
/// Hashes read or written at once.
const PIECE_HASHES: u64 = 8192;

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

impl Index {
    /// Writes it so that the file `path` is this index afterwards, or what it was before.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), IndexError> {
        let draft = Draft::create(path).map_err(IndexError::io("create", path))?;
        let mut writer = BufWriter::new(draft.file());
        self.write(&mut writer)
            .and_then(|()| writer.flush())
            .map_err(IndexError::io("write", path))?;
        drop(writer);
        draft.publish(path).map_err(IndexError::io("write", path))
    }

    fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let header = Header {
            flags: if self.digest.is_some() { FLAG_DIGEST } else { 0 },
            identity: self.identity.encode(),
            blocks: self.hashes.len() as u64,
            digest: self.digest.unwrap_or_default(),
        }
        .encode();
        let mut checksum = Xxh3Default::new();
        checksum.update(&header);
        writer.write_all(&header)?;
        for hashes in self.hashes.chunks(PIECE_HASHES as usize) {
            let piece: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            checksum.update(&piece);
            writer.write_all(&piece)?;
        }
        writer.write_all(&checksum.digest().to_le_bytes())
    }

    /// Reads the index in the file `path`. Whether it is of the source that is there now, its identity tells.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn load(path: &Path) -> Result<Self, IndexError> {
        let file = File::open(path).map_err(IndexError::io("open", path))?;
        let bytes = file.metadata().map_err(IndexError::io("look at", path))?.len();
        Self::read_from(&mut BufReader::new(file), bytes).map_err(|reason| IndexError::Unusable {
            path: path.to_owned(),
            reason,
        })
    }

    /// Reads an index of `bytes` bytes in all, and never takes more memory than that.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn read_from(reader: &mut impl Read, bytes: u64) -> Result<Self, Unusable> {
        let mut magic = [0; 8];
        if bytes < MAGIC.len() as u64 {
            return Err(Unusable::NotAnIndex);
        }
        reader.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(Unusable::NotAnIndex);
        }
        let least = file_bytes(0);
        if bytes < least {
            return Err(Unusable::OtherLength {
                expected: least,
                found: bytes,
            });
        }
        let mut rest = [0; HEADER_BYTES - MAGIC.len()];
        reader.read_exact(&mut rest)?;
        let mut checksum = Xxh3Default::new();
        checksum.update(&magic);
        checksum.update(&rest);
        let header = Header::decode(&rest)?;
        let expected = file_bytes(header.blocks);
        // No file has as many bytes as where the sum ends.
        if bytes != expected || expected == u64::MAX {
            return Err(Unusable::OtherLength { expected, found: bytes });
        }
        let mut hashes = Vec::with_capacity(header.blocks as usize);
        while (hashes.len() as u64) < header.blocks {
            let count = PIECE_HASHES.min(header.blocks - hashes.len() as u64);
            let mut piece = vec![0; 8 * count as usize];
            reader.read_exact(&mut piece)?;
            checksum.update(&piece);
            hashes.extend(piece.as_chunks().0.iter().map(|hash| u64::from_le_bytes(*hash)));
        }
        let mut written = [0; CHECKSUM_BYTES as usize];
        reader.read_exact(&mut written)?;
        if checksum.digest() != u64::from_le_bytes(written) {
            return Err(Unusable::Damaged);
        }
        Ok(Self {
            identity: Identity::decode(&header.identity).ok_or(Unusable::Damaged)?,
            digest: (header.flags & FLAG_DIGEST != 0).then_some(header.digest),
            hashes,
        })
    }
}

/// Bytes of the file of an index of `blocks` blocks.
pub(super) fn file_bytes(blocks: u64) -> u64 {
    blocks
        .saturating_mul(8)
        .saturating_add(HEADER_BYTES as u64 + CHECKSUM_BYTES)
}

/// What stands before the hashes, behind the magic bytes.
struct Header {
    flags: u32,
    identity: [u8; IDENTITY_BYTES],
    blocks: u64,
    digest: [u8; 32],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut encoded = [0; HEADER_BYTES];
        encoded[..8].copy_from_slice(&MAGIC);
        encoded[8..12].copy_from_slice(&VERSION.to_le_bytes());
        encoded[12..16].copy_from_slice(&self.flags.to_le_bytes());
        encoded[16..80].copy_from_slice(&self.identity);
        encoded[80..88].copy_from_slice(&self.blocks.to_le_bytes());
        encoded[88..].copy_from_slice(&self.digest);
        encoded
    }

    fn decode(bytes: &[u8; HEADER_BYTES - MAGIC.len()]) -> Result<Self, Unusable> {
        let mut rest = &bytes[..];
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(Unusable::OtherVersion { found: version });
        }
        Ok(Self {
            flags: u32::from_le_bytes(take(&mut rest)?),
            identity: take(&mut rest)?,
            blocks: u64::from_le_bytes(take(&mut rest)?),
            digest: take(&mut rest)?,
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
