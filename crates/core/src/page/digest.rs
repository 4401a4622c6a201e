//! The running digest: proof that the target was given the source's stream, byte for byte.
//!
//! Each batch has a digest over its stream bytes, in which every page is replaced by its fingerprint (a hash of a hash
//! binds the content as firmly, and the fingerprints are there already). Digests are computed on all lanes at once; only
//! the chain that joins them runs in order, over 64 bytes a batch.

use super::{
    batch::{Batch, Op},
    fingerprint::{Fingerprint, FingerprintKey, truncated},
};

/// The digest of one batch alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchDigest([u8; 16]);

/// The digest of QEMU's stream from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StreamDigest {
    /// Bytes of the stream it covers.
    pub bytes: u64,
    /// Keyed BLAKE3, first 16 bytes.
    pub hash: [u8; 16],
}

/// Extends a [`StreamDigest`] batch by batch, in order.
#[derive(Clone, Debug)]
pub struct RunningDigest {
    key: [u8; 32],
    current: StreamDigest,
}

impl FingerprintKey {
    /// The digest of a batch whose pages have these fingerprints, in order.
    pub fn batch(&self, batch: &Batch, fingerprints: &[Fingerprint]) -> BatchDigest {
        let mut hasher = blake3::Hasher::new_keyed(&self.derived("batch digest"));
        let mut hashed = 0;
        let mut fingerprints = fingerprints.iter();
        for op in batch.ops() {
            match op {
                Op::Page { start, .. } => {
                    hasher.update(&batch.stream()[hashed..*start]);
                    // Where the page stands, so that no other split into pages and bytes hashes to the same.
                    hasher.update(&(*start as u64).to_be_bytes());
                    hasher.update(&fingerprints.next().copied().unwrap_or_default().0);
                    hashed = start + batch.page_bytes();
                }
                Op::Blocks(blocks) => {
                    // The list tells the target what the block numbers of its memory are: bind it too.
                    for block in blocks.iter() {
                        hasher.update(block.name.as_str().as_bytes());
                        hasher.update(&block.bytes.to_be_bytes());
                    }
                }
                Op::Bytes(_) | Op::Zero { .. } | Op::Foreign { .. } => {}
            }
        }
        hasher.update(&batch.stream()[hashed..]);
        BatchDigest(truncated(hasher.finalize().as_bytes()))
    }
}

impl RunningDigest {
    /// The digest of an empty stream.
    pub fn new(key: &FingerprintKey) -> Self {
        Self {
            key: key.derived("running digest"),
            current: StreamDigest::default(),
        }
    }

    /// The digest up to here.
    pub fn current(&self) -> StreamDigest {
        self.current
    }

    /// Adds the next batch: its stream's length in bytes, and its digest.
    pub fn extend(&mut self, stream_bytes: usize, digest: BatchDigest) -> StreamDigest {
        let bytes = self.current.bytes.saturating_add(stream_bytes as u64);
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher
            .update(&self.current.hash)
            .update(&bytes.to_be_bytes())
            .update(&digest.0);
        self.current = StreamDigest {
            bytes,
            hash: truncated(hasher.finalize().as_bytes()),
        };
        self.current
    }
}
