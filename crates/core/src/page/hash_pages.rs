//! The keyed BLAKE3 of many pages at once.
//!
//! BLAKE3 hashes as many chunks of 1 KiB side by side as the processor has room for, 16 with AVX-512, but only chunks of one
//! input: a page of 4 KiB has four, and leaves most of that room empty. Here the same chunk of 16 pages goes side by side.
//! The result is the standard one; what it costs is a column of the crate's example `encode_capture`.
//!
//! The functions for it are public in the crate, but not promised: its version is pinned, and a test compares with the
//! promised ones.

use blake3::{IncrementCounter, platform::Platform};

const CHUNK_BYTES: usize = 1024;
/// Pages side by side: the widest that any processor does.
const WIDTH: usize = 16;

/// Flags of the compression function, from BLAKE3's specification, table 3.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// What BLAKE3 calls a chaining value: a node of its tree, or the hash.
type Node = [u8; 32];

/// The keyed BLAKE3 of each page. Pages of one length, a power of two of at least two chunks, are hashed side by side, any
/// others one after another.
pub(super) fn hash_pages(key: &[u8; 32], pages: &[&[u8]]) -> Vec<Node> {
    let length = pages.first().map_or(0, |page| page.len());
    let alike = pages.iter().all(|page| page.len() == length);
    if !alike || !length.is_power_of_two() || length < 2 * CHUNK_BYTES {
        return pages
            .iter()
            .map(|page| *blake3::keyed_hash(key, page).as_bytes())
            .collect();
    }
    let hasher = Wide {
        platform: Platform::detect(),
        key: words(key),
    };
    let mut nodes = vec![[Node::default(); WIDTH]; length / CHUNK_BYTES];
    let mut hashes = Vec::with_capacity(pages.len());
    for pages in pages.chunks(WIDTH) {
        hasher.trees(pages, &mut nodes);
        hashes.extend_from_slice(&nodes[0][..pages.len()]);
    }
    hashes
}

struct Wide {
    platform: Platform,
    key: [u32; 8],
}

impl Wide {
    /// Hashes up to [`WIDTH`] pages; `nodes[0]` holds their hashes afterwards, and `nodes` a row for each chunk meanwhile.
    fn trees(&self, pages: &[&[u8]], nodes: &mut [[Node; WIDTH]]) {
        for (number, row) in nodes.iter_mut().enumerate() {
            let mut chunks = [&[0; CHUNK_BYTES]; WIDTH];
            for (chunk, page) in chunks.iter_mut().zip(pages) {
                let (all, _) = page.as_chunks();
                *chunk = &all[number];
            }
            let flags = (0, CHUNK_START, CHUNK_END);
            self.side_by_side(&chunks[..pages.len()], number as u64, flags, row);
        }
        let mut level = nodes.len();
        while level > 1 {
            level /= 2;
            let root = if level == 1 { ROOT } else { 0 };
            for parent in 0..level {
                let mut blocks = [[0; 64]; WIDTH];
                for (page, block) in blocks[..pages.len()].iter_mut().enumerate() {
                    block[..32].copy_from_slice(&nodes[2 * parent][page]);
                    block[32..].copy_from_slice(&nodes[2 * parent + 1][page]);
                }
                let blocks = blocks.each_ref();
                self.side_by_side(&blocks[..pages.len()], 0, (PARENT | root, 0, 0), &mut nodes[parent]);
            }
        }
    }

    /// One input from each page: `flags` are those of all blocks, and of the first and the last beside them.
    fn side_by_side<const N: usize>(
        &self,
        inputs: &[&[u8; N]],
        counter: u64,
        (flags, first, last): (u8, u8, u8),
        row: &mut [Node; WIDTH],
    ) {
        self.platform.hash_many(
            inputs,
            &self.key,
            counter,
            IncrementCounter::No,
            KEYED_HASH | flags,
            first,
            last,
            row[..inputs.len()].as_flattened_mut(),
        );
    }
}

fn words(key: &[u8; 32]) -> [u32; 8] {
    let (words, _) = key.as_chunks();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random bytes, the same each time.
    fn random(bytes: usize) -> Vec<u8> {
        let mut random = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        random
    }

    #[test]
    fn each_page_has_the_hash_that_it_has_alone() {
        let key = [7; 32];
        for page_bytes in [1024, 2048, 4096, 8192, 64 * 1024] {
            let content = random(35 * page_bytes);
            for count in [0, 1, 2, 15, 16, 17, 35] {
                let pages: Vec<&[u8]> = content.chunks(page_bytes).take(count).collect();
                let alone: Vec<Node> = pages
                    .iter()
                    .map(|page| *blake3::keyed_hash(&key, page).as_bytes())
                    .collect();
                assert_eq!(hash_pages(&key, &pages), alone, "{count} pages of {page_bytes} bytes");
            }
        }
    }

    #[test]
    fn pages_of_odd_lengths_are_hashed_too() {
        let content = random(20_000);
        let pages = [&content[..4096], &content[..100], &content[..0], &content[3..20_000]];
        let alone = pages.map(|page| *blake3::keyed_hash(&[1; 32], page).as_bytes());
        assert_eq!(hash_pages(&[1; 32], &pages), alone);
    }
}
