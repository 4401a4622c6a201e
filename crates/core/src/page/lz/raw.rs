//! No coding at all: the section is the plain bytes.

use super::{Decode, Encode, LzError, scatter};

pub(super) struct Raw;

impl Encode for Raw {
    fn encode(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError> {
        for piece in plain {
            out.extend_from_slice(piece);
        }
        Ok(())
    }
}

impl Decode for Raw {
    fn decode(&mut self, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError> {
        if input.len() != plain.iter().map(|piece| piece.len()).sum::<usize>() {
            return Err(LzError::Malformed("raw"));
        }
        scatter(input, plain);
        Ok(())
    }
}
