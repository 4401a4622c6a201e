//! Zstandard as one endless frame per lane: never ended, flushed after each batch, so that the window reaches back over
//! everything the lane sent.

use super::{CodecSettings, Decode, Encode, LzError};
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

pub(super) struct Encoder {
    context: CCtx<'static>,
}

impl Encoder {
    pub(super) fn new(settings: &CodecSettings) -> Result<Self, LzError> {
        let mut context = CCtx::try_create().ok_or(LzError::Zstd("no memory for an encoder"))?;
        for parameter in [
            CParameter::CompressionLevel(settings.level),
            CParameter::WindowLog(settings.window_log),
            // Every page is checked by its fingerprint, so the frame needs no checksum of its own.
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(zstd_error)?;
        }
        Ok(Self { context })
    }

    fn step(&mut self, plain: &[u8], directive: ZSTD_EndDirective, out: &mut Vec<u8>) -> Result<(), LzError> {
        let mut input = InBuffer::around(plain);
        loop {
            if out.capacity() - out.len() < MIN_SPARE_BYTES {
                out.reserve(OUT_STEP_BYTES);
            }
            let written = out.len();
            let mut output = OutBuffer::around_pos(out, written);
            let left = self
                .context
                .compress_stream2(&mut output, &mut input, directive)
                .map_err(zstd_error)?;
            let done = match directive {
                ZSTD_EndDirective::ZSTD_e_continue => input.pos() == plain.len(),
                _ => left == 0,
            };
            if done {
                return Ok(());
            }
        }
    }
}

/// How the output grows: by about one of Zstandard's blocks (128 KiB), and before it is too full to take anything.
const OUT_STEP_BYTES: usize = 136 * 1024;
const MIN_SPARE_BYTES: usize = 1024;

impl Encode for Encoder {
    fn encode(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError> {
        for piece in plain {
            self.step(piece, ZSTD_EndDirective::ZSTD_e_continue, out)?;
        }
        self.step(&[], ZSTD_EndDirective::ZSTD_e_flush, out)
    }
}

pub(super) struct Decoder {
    context: DCtx<'static>,
}

impl Decoder {
    pub(super) fn new(settings: &CodecSettings) -> Result<Self, LzError> {
        let mut context = DCtx::try_create().ok_or(LzError::Zstd("no memory for a decoder"))?;
        context
            .set_parameter(DParameter::WindowLogMax(settings.window_log))
            .map_err(zstd_error)?;
        Ok(Self { context })
    }
}

impl Decode for Decoder {
    fn decode(&mut self, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError> {
        let malformed = LzError::Malformed("zstd");
        let mut input = InBuffer::around(input);
        for piece in plain {
            let mut output = OutBuffer::around(&mut **piece);
            while output.pos() < output.capacity() {
                if !self.step(&mut output, &mut input)? {
                    return Err(malformed);
                }
            }
        }
        // Room for a byte that must not come: a sender that sends more is noticed, and what ends the flush is read.
        let mut more = [0];
        let mut output = OutBuffer::around(&mut more[..]);
        while self.step(&mut output, &mut input)? {}
        if output.pos() == 0 && input.pos() == input.src.len() {
            Ok(())
        } else {
            Err(malformed)
        }
    }
}

impl Decoder {
    /// Decodes as far as input and output go; says whether that was any way at all.
    fn step(&mut self, output: &mut OutBuffer<'_, [u8]>, input: &mut InBuffer<'_>) -> Result<bool, LzError> {
        let before = (input.pos(), output.pos());
        self.context.decompress_stream(output, input).map_err(zstd_error)?;
        Ok((input.pos(), output.pos()) != before)
    }
}

fn zstd_error(code: zstd_safe::ErrorCode) -> LzError {
    LzError::Zstd(zstd_safe::get_error_name(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Codec;

    #[test]
    fn contexts_take_no_more_memory_than_their_settings_say() {
        let plain = vec![7; 300_000];
        for level in 1..=19 {
            for window_log in [17, 19, 21, 23, 25, 27] {
                let settings = CodecSettings {
                    codec: Codec::Zstd,
                    level,
                    window_log,
                };
                let mut encoder = Encoder::new(&settings).unwrap();
                let mut coded = Vec::new();
                encoder.encode(&[&plain], &mut coded).unwrap();
                let (takes, most) = (encoder.context.sizeof() as u64, settings.encoder_bytes_max());
                assert!(takes <= most, "{settings}: {takes} > {most}");
                let mut decoder = Decoder::new(&settings).unwrap();
                decoder.decode(&coded, &mut [&mut vec![0; plain.len()]]).unwrap();
                let (takes, most) = (decoder.context.sizeof() as u64, settings.decoder_bytes_max());
                assert!(takes <= most, "{settings}, decoding: {takes} > {most}");
            }
        }
    }
}
