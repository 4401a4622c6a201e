//! Pages whose content stands outside both guests, in blocks that the target can read: disks, images, checkpoints.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a block: the page of most guests, and the unit in which disks are read past the page cache.
pub const BLOCK_BYTES: usize = 4096;

/// Chosen once and at random. Indexes on disks hold hashes under it, so another seed is another version of their files.
const BLOCK_HASH_SEED: u64 = 0x7c15_0be3_92d4_a86f;

/// The weak hash under which a block of content is looked for: XXH3-64 under a fixed seed. 0 stands for a block without
/// content, all of whose bytes are zero, and for no other.
///
/// Whoever can choose both of two contents can give them one hash, so a match is only a guess at where to look.
pub fn block_hash(block: &[u8]) -> u64 {
    if is_zero(block) {
        return 0;
    }
    part_hash(block).max(1)
}

/// The same hash of a part of a block, zeros or not.
pub(super) fn part_hash(part: &[u8]) -> u64 {
    xxh3_64_with_seed(part, BLOCK_HASH_SEED)
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<64>();
    // Most content differs from zero in the first words, so this ends early where there is any.
    words.iter().all(|word| word == &[0; 64]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_have_the_hash_0() {
        assert_eq!(block_hash(&[]), 0);
        assert_eq!(block_hash(&[0; 4096]), 0);
        assert_eq!(block_hash(&[0; 77]), 0);
        for place in [0, 63, 64, 2048, 4095] {
            let mut block = [0; 4096];
            block[place] = 1;
            assert_ne!(block_hash(&block), 0, "a 1 at {place}");
        }
    }

    /// Index files keep these hashes over versions of this program.
    #[test]
    fn the_hash_stays_what_it_is() {
        assert_eq!(block_hash(b"a block"), 0xc3e2_8fc2_aff0_ad92);
        assert_eq!(block_hash(&[0x5a; 4096]), 0xb9bd_d640_e527_e64a);
    }
}
