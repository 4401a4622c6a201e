//! When two pages count as equal.
//!
//! A guest chooses the content of its own pages, so it could prepare two pages that any unkeyed or short hash confuses,
//! and have one replaced by the other. A 128-bit BLAKE3 under a key that the source draws for each session leaves it
//! nothing to prepare.

use super::{batch::Batch, hash_pages::hash_pages};

/// A session's key, drawn at random by the source and told to the target under the session's protection.
#[derive(Clone)]
pub struct FingerprintKey([u8; 32]);

/// The identity of a page's content within a session: the first 16 bytes of its keyed BLAKE3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl FingerprintKey {
    /// Takes 32 bytes from a cryptographic random source.
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The fingerprints of pages with these contents.
    pub(super) fn contents(&self, contents: &[&[u8]]) -> Vec<Fingerprint> {
        hash_pages(&self.0, contents)
            .iter()
            .map(|hash| Fingerprint(truncated(hash)))
            .collect()
    }

    /// The fingerprints of a batch's pages, in order: one per [`Op::Page`](super::Op::Page).
    pub fn pages(&self, batch: &Batch) -> Vec<Fingerprint> {
        self.contents(&batch.pages().collect::<Vec<_>>())
    }

    /// A key for another purpose, so that no two uses of the session's key can be played against each other.
    pub(super) fn derived(&self, purpose: &str) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, purpose.as_bytes()).as_bytes()
    }
}

impl std::fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FingerprintKey(..)")
    }
}

/// The first half of a hash.
pub(super) fn truncated(hash: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|index| hash[index])
}
