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
    fn decode(&mut self, input: &[u8], plain_bytes: usize, out: &mut Vec<u8>) -> Result<(), LzError> {
        let start = out.len();
        // One byte more than expected, to notice a sender that sends more; not `resize`, which would first zero it all.
        out.reserve(plain_bytes + 1);
        let mut input_left = InBuffer::around(input);
        let mut output = OutBuffer::around_pos(out, start);
        loop {
            let before = (input_left.pos(), output.pos());
            self.context
                .decompress_stream(&mut output, &mut input_left)
                .map_err(zstd_error)?;
            if (input_left.pos(), output.pos()) == before {
                break;
            }
        }
        let produced = output.pos() - start;
        if produced != plain_bytes || input_left.pos() != input.len() {
            return Err(LzError::Malformed("zstd"));
        }
        Ok(())
    }
}

fn zstd_error(code: zstd_safe::ErrorCode) -> LzError {
    LzError::Zstd(zstd_safe::get_error_name(code))
}
