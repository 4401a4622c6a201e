//! Known content: blocks of 4096 bytes, and the short hash that they are found by.

/// Bytes of a block: a page of every guest whose pages are looked up.
pub const BLOCK_BYTES: usize = 4096;

/// Chosen by lot; every host's indexes use it.
const SEED: u64 = 0x5f3c_91e7_28ad_d04b;

/// The hash that a block is found by: XXH3-64, and 0 for zeros only. Anybody can make blocks that collide; whoever finds one
/// by its hash has to compare it with a page's fingerprint.
pub fn block_hash(block: &[u8]) -> u64 {
    if block.iter().all(|byte| *byte == 0) {
        return 0;
    }
    xxhash_rust::xxh3::xxh3_64_with_seed(block, SEED).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_hash_to_zero() {
        assert_eq!(block_hash(&[0; BLOCK_BYTES]), 0);
        let mut block = [0; BLOCK_BYTES];
        block[BLOCK_BYTES - 1] = 1;
        let hash = block_hash(&block);
        block[0] = 1;
        assert!(hash != 0 && block_hash(&block) != hash);
    }
}
