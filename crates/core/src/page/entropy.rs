//! Which pages are not worth an LZ coder's time.

/// Bytes sampled from a page: contiguous pieces, since a stride that divides a record's size would see one field only.
const PIECE_BYTES: usize = 64;
const PIECES: usize = 8;

/// Whether an LZ coder is likely to make the page smaller.
///
/// Counts pairs of equal bytes in a sample of 512. In random, encrypted or compressed data there are 511 ± 23 of them (512
/// × 511 / 2 pairs, each equal with probability 1/256); machine code, text, heaps and tables have from twice to fifty
/// times as many. A page within six standard deviations of random data is sent as it is.
pub(super) fn is_compressible(page: &[u8]) -> bool {
    let mut counts = [0u16; 256];
    let mut sampled = 0u32;
    let stride = (page.len() / PIECES).max(PIECE_BYTES);
    for piece in page.chunks(stride) {
        for byte in piece.iter().take(PIECE_BYTES) {
            counts[usize::from(*byte)] += 1;
            sampled += 1;
        }
    }
    // Twice the pairs, so that all is in integers.
    let equal: u32 = counts
        .iter()
        .map(|count| u32::from(*count) * u32::from(*count))
        .sum::<u32>()
        - sampled;
    let random = sampled * sampled.saturating_sub(1) / 256;
    equal > random + random / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_page(seed: u8) -> Vec<u8> {
        let mut page = vec![0; 4096];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut page);
        page
    }

    #[test]
    fn random_data_is_sent_as_it_is() {
        for seed in 0..200 {
            assert!(!is_compressible(&random_page(seed)), "seed {seed}");
        }
    }

    #[test]
    fn text_counters_and_pages_partly_random_are_coded() {
        let text: Vec<u8> = b"The quick brown fox jumps over the lazy dog. "
            .iter()
            .copied()
            .cycle()
            .take(4096)
            .collect();
        assert!(is_compressible(&text));
        let counters: Vec<u8> = (0u64..512).flat_map(|value| (value * 7919).to_le_bytes()).collect();
        assert!(is_compressible(&counters));
        let mut half = random_page(1);
        half[2048..].fill(0);
        assert!(is_compressible(&half));
    }

    #[test]
    fn pages_of_every_size_are_judged() {
        for length in [0, 1, 63, 1024, 65536] {
            assert!(!is_compressible(&vec![0; length.min(1)]) || length == 0);
            assert_eq!(is_compressible(&vec![0; length]), length > 1);
        }
    }
}
