//! Where what stands in a checkpoint's file.

use vmferry_core::page::{KeptBlock, Place, earlier::Pieces};
use xxhash_rust::xxh3::xxh3_64;

use super::key::{HostKey, KEY_BYTES, TAG_BYTES};
use crate::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"vmfmemry";
/// One more for each change of the layout, the cipher or the hash.
const VERSION: u32 = 3;
/// Bytes of the header that say something. It takes a block of the file.
pub const HEADER_BYTES: usize = 96;
/// Bytes of it that the authentication code covers, and that the checksum covers.
const FIELDS_BYTES: usize = 56;
const CHECKED_BYTES: usize = 88;
/// Blocks in a group, which is followed by their tags and records.
pub(super) const GROUP_BLOCKS: u64 = 4096;
/// Bytes of a record: what is known of a block.
pub(super) const RECORD_BYTES: usize = 32;

/// Why bytes are not the header of a checkpoint of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They begin with something else.
    #[error("it is another kind of file")]
    NotACheckpoint,
    /// Another version of vmferry wrote it.
    #[error("it has version {found}, and this vmferry reads {VERSION}")]
    OtherVersion {
        /// What it says.
        found: u32,
    },
    /// Not what was written.
    #[error("it is damaged")]
    Damaged,
    /// Bytes of the file are missing, or there are more than there should be.
    #[error("it has {found} bytes and should have {expected}")]
    OtherLength {
        /// Bytes that there should be.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// It was encrypted with another key.
    #[error("it was encrypted with another key than this host's")]
    OtherKey,
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Drawn for this file.
    pub salt: [u8; KEY_BYTES],
    /// Blocks in it.
    pub blocks: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self, key: &HostKey) -> [u8; HEADER_BYTES] {
        let mut encoded = [0; HEADER_BYTES];
        encoded[..8].copy_from_slice(&MAGIC);
        encoded[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // Four bytes of zeros keep the rest at multiples of eight.
        encoded[16..48].copy_from_slice(&self.salt);
        encoded[48..FIELDS_BYTES].copy_from_slice(&self.blocks.to_le_bytes());
        let code = blake3::keyed_hash(&key.header_key(&self.salt), &encoded[..FIELDS_BYTES]);
        encoded[FIELDS_BYTES..CHECKED_BYTES].copy_from_slice(code.as_bytes());
        let checksum = xxh3_64(&encoded[..CHECKED_BYTES]);
        encoded[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        encoded
    }

    /// Reads the header of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(encoded: &[u8; HEADER_BYTES], file_bytes: u64, key: &HostKey) -> Result<Self, HeaderError> {
        let mut rest = &encoded[..];
        if take(&mut rest) != MAGIC {
            return Err(HeaderError::NotACheckpoint);
        }
        let version = u32::from_le_bytes(take(&mut rest));
        if version != VERSION {
            return Err(HeaderError::OtherVersion { found: version });
        }
        let _padding: [u8; 4] = take(&mut rest);
        let header = Self {
            salt: take(&mut rest),
            blocks: u64::from_le_bytes(take(&mut rest)),
        };
        let code = blake3::Hash::from_bytes(take(&mut rest));
        let checksum = u64::from_le_bytes(take(&mut rest));
        if checksum != xxh3_64(&encoded[..CHECKED_BYTES]) {
            return Err(HeaderError::Damaged);
        }
        let expected = header.file_bytes();
        // No file has as many bytes as where the sum ends.
        if file_bytes != expected || expected == u64::MAX {
            return Err(HeaderError::OtherLength {
                expected,
                found: file_bytes,
            });
        }
        if code != blake3::keyed_hash(&key.header_key(&header.salt), &encoded[..FIELDS_BYTES]) {
            return Err(HeaderError::OtherKey);
        }
        Ok(header)
    }

    /// Groups of blocks. The last may have fewer than [`GROUP_BLOCKS`].
    pub(super) fn groups(&self) -> u64 {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    /// Blocks of a group.
    pub(super) fn blocks_of(&self, group: u64) -> u64 {
        GROUP_BLOCKS.min(self.blocks.saturating_sub(group * GROUP_BLOCKS))
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        file_bytes(self.blocks)
    }
}

/// Bytes behind a group of so many blocks: a tag and a record for each, and the records' tag.
const fn tail_bytes(blocks: u64) -> u64 {
    blocks * (TAG_BYTES + RECORD_BYTES) as u64 + TAG_BYTES as u64
}

/// Bytes of a group in which nothing is missing, which end where a block could begin.
const GROUP_BYTES: u64 =
    GROUP_BLOCKS * BLOCK_BYTES as u64 + tail_bytes(GROUP_BLOCKS).next_multiple_of(BLOCK_BYTES as u64);

/// Bytes of the file of a checkpoint of `blocks` blocks.
pub(super) fn file_bytes(blocks: u64) -> u64 {
    let (groups, rest) = (blocks / GROUP_BLOCKS, blocks % GROUP_BLOCKS);
    let last = match rest {
        0 => 0,
        rest => rest * BLOCK_BYTES as u64 + tail_bytes(rest),
    };
    group_offset(groups).saturating_add(last)
}

fn group_offset(group: u64) -> u64 {
    // The header takes a block.
    group.saturating_mul(GROUP_BYTES).saturating_add(BLOCK_BYTES as u64)
}

/// Where a block stands: at a multiple of [`BLOCK_BYTES`].
pub(super) fn block_offset(block: u64) -> u64 {
    let ahead = block % GROUP_BLOCKS * BLOCK_BYTES as u64;
    group_offset(block / GROUP_BLOCKS).saturating_add(ahead)
}

/// Where the tags of a group of so many blocks stand. Its records follow, and the records' tag.
pub(super) fn tags_offset(group: u64, blocks: u64) -> u64 {
    group_offset(group).saturating_add(blocks * BLOCK_BYTES as u64)
}

/// A record's bytes: the hash, the place, hashes of the pieces.
pub(super) fn encode_record(block: &KeptBlock) -> [u8; RECORD_BYTES] {
    let mut encoded = [0; RECORD_BYTES];
    encoded[..8].copy_from_slice(&block.hash.to_le_bytes());
    encoded[8..16].copy_from_slice(&block.place.0.to_le_bytes());
    encoded[16..].copy_from_slice(&block.pieces.0);
    encoded
}

/// Reads a record.
pub(super) fn decode_record(encoded: &[u8; RECORD_BYTES]) -> KeptBlock {
    let mut rest = &encoded[..];
    KeptBlock {
        hash: u64::from_le_bytes(take(&mut rest)),
        place: Place(u64::from_le_bytes(take(&mut rest))),
        pieces: Pieces(take(&mut rest)),
    }
}

/// The next `N` bytes of a header or record, which has as many.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    rest.split_off(..N)
        .and_then(|taken| taken.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of such a file end where numbers do.
    #[test]
    fn more_blocks_than_any_file_has_are_refused() {
        let key = HostKey::new([7; KEY_BYTES]);
        for blocks in [u64::MAX, u64::MAX / 4096, 0x5a5a_5a5a_5a5a_5a5a] {
            let encoded = Header {
                salt: [1; KEY_BYTES],
                blocks,
            }
            .encode(&key);
            for bytes in [0, 8192, i64::MAX as u64, u64::MAX] {
                let told = Header::decode(&encoded, bytes, &key);
                assert!(matches!(told, Err(HeaderError::OtherLength { found, .. }) if found == bytes));
            }
        }
    }
}
