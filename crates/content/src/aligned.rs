//! Memory that a read past the page cache can fill.

use crate::BLOCK_BYTES;

/// A buffer that begins at a multiple of [`BLOCK_BYTES`], which satisfies every disk. It lies within a larger allocation,
/// since the standard library aligns no allocation that can be had without `unsafe`.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// `length` bytes of zeros.
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + BLOCK_BYTES];
        // The standard library permits `align_offset` to give up; then the buffer is not aligned, and a read says so.
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { memory, start, length }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}

/// Whether a read past the page cache can fill `buffer` itself.
pub(crate) fn is_aligned(buffer: &[u8]) -> bool {
    buffer.as_ptr().align_offset(BLOCK_BYTES) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_aligned() {
        for length in [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert!(is_aligned(buffer.bytes()));
            assert_eq!(buffer.bytes().len(), length);
        }
    }
}
