//! What the target asks for because it is not where the source thought it to be, and the answer.
//!
//! ```text
//! ask     offset size                      supply  offset size
//!              0    8  batch                            0    8  batch
//!              8   2n  pages, by their number           8       their contents, LZ4
//!                      in the batch
//! ```
//!
//! Integers are big-endian.

use super::{
    batch::Batch,
    lz::{Codec, CodecSettings, LzError},
};
use crate::limits::{BATCH_PLAIN_BYTES_MAX, PAGE_BYTES_MIN};

/// Pages in a batch, at the most.
const PAGES_MAX: usize = BATCH_PLAIN_BYTES_MAX / PAGE_BYTES_MIN;
/// Bytes of an encoded [`Ask`], at the most.
pub const ASK_BYTES_MAX: usize = 8 + 2 * PAGES_MAX;

/// Pages of a batch that the target did not find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The batch.
    pub seq: u64,
    /// The pages, by their number in the batch.
    pub pages: Vec<u16>,
}

impl Ask {
    /// The payload of an `Ask` frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = self.seq.to_be_bytes().to_vec();
        payload.extend(self.pages.iter().flat_map(|page| page.to_be_bytes()));
        payload
    }

    /// Reads it back; `None` if it is none.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (seq, pages) = payload.split_first_chunk()?;
        let (pages, rest) = pages.as_chunks();
        (rest.is_empty() && !pages.is_empty()).then(|| Self {
            seq: u64::from_be_bytes(*seq),
            pages: pages.iter().map(|page| u16::from_be_bytes(*page)).collect(),
        })
    }

    /// The payload of the `Supply` frame that answers; `None` if `batch` has no such pages.
    pub fn answer(&self, batch: &Batch) -> Option<Result<Vec<u8>, LzError>> {
        let all: Vec<&[u8]> = batch.pages().collect();
        let pages: Option<Vec<&[u8]>> = self
            .pages
            .iter()
            .map(|page| all.get(usize::from(*page)).copied())
            .collect();
        let pages = pages.filter(|_| batch.seq == self.seq && self.pages.len() <= all.len())?;
        let mut payload = self.seq.to_be_bytes().to_vec();
        let encoded = lz4().encoder().and_then(|mut coder| coder.encode(&pages, &mut payload));
        Some(encoded.map(|()| payload))
    }
}

/// Splits a `Supply` frame's payload into the batch and the pages' contents; `None` if it is none.
pub fn batch_of(supply: &[u8]) -> Option<(u64, &[u8])> {
    let (seq, contents) = supply.split_first_chunk()?;
    Some((u64::from_be_bytes(*seq), contents))
}

/// Decodes the contents of so many bytes in all.
pub fn contents(encoded: &[u8], bytes: usize) -> Result<Vec<u8>, LzError> {
    let mut contents = vec![0; bytes];
    lz4().decoder()?.decode(encoded, &mut [&mut contents])?;
    Ok(contents)
}

/// Without a dictionary that other payloads would have to be in step with.
fn lz4() -> CodecSettings {
    CodecSettings {
        codec: Codec::Lz4,
        ..CodecSettings::default()
    }
}
