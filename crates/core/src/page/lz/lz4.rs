//! LZ4, one block per batch: a batch is eight times LZ4's 64 KiB window, so a window kept over batches would gain little.
//!
//! One byte first: [`STORED`] or [`BLOCK`].

use super::{Decode, Encode, LzError, scatter};
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

const STORED: u8 = 0;
const BLOCK: u8 = 1;

/// Both sides: neither keeps anything from batch to batch but the memory it worked in.
#[derive(Default)]
pub(super) struct Lz4 {
    /// Matches look back over the whole block, so it is decoded in one piece.
    block: Vec<u8>,
}

impl Encode for Lz4 {
    fn encode(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError> {
        let plain = plain.concat();
        let start = out.len();
        out.push(BLOCK);
        out.resize(start + 1 + get_maximum_output_size(plain.len()), 0);
        match compress_into(&plain, &mut out[start + 1..]) {
            Ok(length) if length < plain.len() => out.truncate(start + 1 + length),
            _ => {
                out.truncate(start);
                out.push(STORED);
                out.extend_from_slice(&plain);
            }
        }
        Ok(())
    }
}

impl Decode for Lz4 {
    fn decode(&mut self, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError> {
        let malformed = LzError::Malformed("lz4");
        let plain_bytes = plain.iter().map(|piece| piece.len()).sum();
        match input.split_first() {
            Some((&STORED, stored)) if stored.len() == plain_bytes => scatter(stored, plain),
            Some((&BLOCK, block)) => {
                self.block.resize(plain_bytes, 0);
                match decompress_into(block, &mut self.block) {
                    Ok(length) if length == plain_bytes => scatter(&self.block, plain),
                    _ => return Err(malformed),
                }
            }
            _ => return Err(malformed),
        }
        Ok(())
    }
}
