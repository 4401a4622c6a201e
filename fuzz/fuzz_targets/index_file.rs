//! Any bytes are refused, or are an index of no more hashes than they have room for. The checksum, which no fuzzer guesses, is
//! put in place for half of the inputs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_content::Index;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if way % 2 == 0 {
        let checksum = xxh3_64(&bytes).to_le_bytes();
        bytes.extend(checksum);
    }
    if let Ok(index) = Index::read_from(&mut &bytes[..], bytes.len() as u64) {
        assert_eq!(120 + 8 * index.hashes.len() + 8, bytes.len());
    }
});
