//! The LZ coders behind one small interface. Each lane has an encoder of each coder that it used, and the target a decoder
//! for it, for as long as the session lasts ([`coders`]): what one batch taught a coder serves the next that it codes.
//!
//! | codec | dictionary | for |
//! |---|---|---|
//! | [`Codec::Raw`] | none | links faster than the coders |
//! | [`Codec::Zstd`] | the last bytes of the lane's session, up to the window | slower links |
//! | [`Codec::Lz4`] | the last 64 KiB of the batch | links faster than Zstandard |
//! | [`Codec::Lz78`] | up to 65536 strings of the lane's session | the coder that the paper describes, as a baseline |
//!
//! # Why these defaults
//!
//! From a 1 GiB guest (Debian's cloud kernel under TCG, 267 MB of an ext4 disk in the page cache, Redis with a million keys
//! and 149 MB), captured while Redis was written to: 580 MB of stream through the crate's example `encode_capture`, which
//! runs two lanes one after the other. Bytes are exact; times are medians of five runs on a machine whose two cores had other
//! work as well (load 2 to 3), so compare them with each other only. The last row stands for QEMU's own best mode: every
//! page that is not zero, level 1, a window of 512 KiB a channel.
//!
//! | | MB on the wire | encoding | hashing and turn | decoding (with hashing) and building |
//! |---|---|---|---|---|
//! | zstd level 1, window 2^21 | 173.0 | 1.17 s | 0.16 s | 0.81 s |
//! | zstd level 2, window 2^21 | 166.2 | 1.61 s | 0.16 s | 0.74 s |
//! | zstd level 3, window 2^21 | 160.2 | 2.26 s | 0.17 s | 0.80 s |
//! | lz4 | 229.3 | 0.76 s | 0.16 s | 0.39 s |
//! | like multifd-zstd | 184.9 | 0.95 s | | 0.35 s |
//!
//! The times for hashing and decoding are from before pages were hashed side by side and decoded to where they belong.
//!
//! Level 1 sends 6.5 % fewer bytes than that mode for 1.6 times its processor time, sender and receiver together (1.4 in the
//! one run made on an idle machine); the difference is the fingerprints and rebuilding the stream. Higher levels send 4 and
//! 7 % less again and cost more than they are worth except on a slow link. LZ78 sent 222.4 MB, and took four times as long to
//! encode as level 1 in the idle run.
//!
//! The context lasts the session, so the window slides over all that a lane sends; but at level 1 the match table forgets
//! before a long window does: 2^19, 2^20, 2^21 and 2^22 sent the same 173.0 MB (within 0.1 %) and took 1.15, 1.28, 1.43 and
//! 1.32 s to encode in one run. Tables to suit make longer windows find more: 2^23, 2^25 and 2^27 bytes with 2^17, 2^18 and
//! 2^20 entries sent 3, 4 and 6 % less than 2^21 and took 1.5, 1.9 and 3.3 times as long, tried once each; long-distance
//! matching 1 to 3 % less for 1.9 to 2.7 times. What a session has seen farther back is found as whole pages, by
//! [`Known`](super::Known), at no such price. So 2^19 is the default, and `window_log` a setting.

pub mod coders;
mod lz4;
mod lz78;
mod raw;
#[cfg(test)]
mod tests;
mod zstd;

pub use coders::{Coders, Decoders, Encoders};

use serde::{Deserialize, Serialize};

/// The largest window a decoder agrees to hold: 128 MiB a lane, the most that Zstandard's own tools accept unasked.
pub const WINDOW_LOG_MAX: u32 = 27;

/// Memory of a small coder: the dictionary of LZ78, a batch for LZ4, the buffers of Zstandard's decoder.
const CODER_BYTES: u64 = 1 << 20;

/// An LZ coder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Bytes as they are.
    Raw,
    /// The paper's coder.
    Lz78,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard with a window that lasts the session.
    #[default]
    Zstd,
}

/// A coder and its settings; both sides have to use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecSettings {
    /// Which coder.
    pub codec: Codec,
    /// Zstandard's level, 1 to 19; the others have none.
    pub level: i32,
    /// log2 of the bytes that Zstandard looks back over, 17 to [`WINDOW_LOG_MAX`]. Each lane holds that much, and its
    /// decoder as much again.
    pub window_log: u32,
}

impl std::fmt::Display for CodecSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.codec {
            Codec::Raw => f.pad("raw"),
            Codec::Lz78 => f.pad("lz78"),
            Codec::Lz4 => f.pad("lz4"),
            Codec::Zstd => f.pad(&format!("zstd-{} w{}", self.level, self.window_log)),
        }
    }
}

impl Default for CodecSettings {
    fn default() -> Self {
        Self {
            codec: Codec::Zstd,
            level: 1,
            window_log: 19,
        }
    }
}

/// Why a coder could not go on. The session is over then, for the two sides' dictionaries have parted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LzError {
    /// The coder can't be set up so.
    #[error("codec settings out of range: {0}")]
    Settings(&'static str),
    /// The decoder can't make sense of its input.
    #[error("malformed {0} data: the link, or the sender, is broken")]
    Malformed(&'static str),
    /// Zstandard failed.
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

/// The sender's side of a coder.
pub trait Encode: Send {
    /// Appends to `out` what [`Decode::decode`] turns back into the concatenation of `plain`. All of it: nothing waits
    /// for the next call.
    fn encode(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError>;
}

/// The receiver's side of a coder.
pub trait Decode: Send {
    /// Fills the pieces of `plain`, one after another, or fails if `input` stands for more or for fewer bytes. `input` is
    /// what one call of [`Encode::encode`] wrote, and the calls come in the same order. The pieces are where the bytes
    /// belong in the end, so that nothing is copied once more.
    fn decode(&mut self, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError>;
}

/// Fills the pieces from `plain`, which is as long as they are together.
fn scatter(mut plain: &[u8], pieces: &mut [&mut [u8]]) {
    for piece in pieces {
        let (content, rest) = plain.split_at(piece.len());
        piece.copy_from_slice(content);
        plain = rest;
    }
}

impl CodecSettings {
    /// A fresh encoder.
    pub fn encoder(&self) -> Result<Box<dyn Encode>, LzError> {
        self.validate()?;
        Ok(match self.codec {
            Codec::Raw => Box::new(raw::Raw),
            Codec::Lz78 => Box::new(lz78::Encoder::new()),
            Codec::Lz4 => Box::new(lz4::Lz4::default()),
            Codec::Zstd => Box::new(zstd::Encoder::new(self)?),
        })
    }

    /// The decoder for a fresh encoder of the same settings.
    pub fn decoder(&self) -> Result<Box<dyn Decode>, LzError> {
        self.validate()?;
        Ok(match self.codec {
            Codec::Raw => Box::new(raw::Raw),
            Codec::Lz78 => Box::new(lz78::Decoder::new()),
            Codec::Lz4 => Box::new(lz4::Lz4::default()),
            Codec::Zstd => Box::new(zstd::Decoder::new(self)?),
        })
    }

    /// Memory that an encoder takes, bytes, at the most.
    pub fn encoder_bytes_max(&self) -> u64 {
        let mib = match (self.codec, self.level) {
            (Codec::Raw, _) => return 0,
            (Codec::Lz4 | Codec::Lz78, _) => return CODER_BYTES,
            // Match tables and buffers beside the window.
            (Codec::Zstd, ..=3) => 2,
            (Codec::Zstd, ..=9) => 11,
            (Codec::Zstd, ..=11) => 21,
            (Codec::Zstd, ..=15) => 65,
            (Codec::Zstd, _) => 82 + (1 << self.window_log >> 21),
        };
        (1 << self.window_log) + (mib << 20)
    }

    /// Memory that a decoder takes, bytes, at the most.
    pub fn decoder_bytes_max(&self) -> u64 {
        match self.codec {
            Codec::Raw => 0,
            Codec::Lz4 | Codec::Lz78 => CODER_BYTES,
            Codec::Zstd => (1 << self.window_log) + CODER_BYTES,
        }
    }

    fn validate(&self) -> Result<(), LzError> {
        if !(1..=19).contains(&self.level) {
            return Err(LzError::Settings("level must be 1 to 19"));
        }
        if !(17..=WINDOW_LOG_MAX).contains(&self.window_log) {
            return Err(LzError::Settings("window_log must be 17 to 27"));
        }
        Ok(())
    }
}
