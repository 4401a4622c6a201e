//! Any bytes are refused, or are an index of no more hashes than they have room for. The checksum, which no fuzzer guesses, is
//! put in place for half of the inputs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_content::IndexHeader;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if way % 2 == 0 {
        let (header, hashes) = bytes.split_at(bytes.len().min(120));
        let checksum = xxh3_64(&[hashes, header].concat());
        bytes.extend(checksum.to_le_bytes());
    }
    if let Ok(header) = IndexHeader::read(&mut &bytes[..], bytes.len() as u64) {
        assert_eq!(120 + 8 * header.blocks + 8, bytes.len() as u64);
    }
});
