//! Any bytes are refused, or are an index of no more hashes than they have room for. The checksum, which no fuzzer guesses, is
//! put in place for half of the inputs: there the bytes are a header and checksums, and hashes of zeros are put between.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use vmferry_content::IndexHeader;
use vmferry_fuzz::within;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| within((64 << 10) + 16 * data.len(), || check(data)));

fn check(data: &[u8]) {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if way % 2 == 0 {
        let (header, checksums) = bytes.split_at(bytes.len().min(120));
        let checksum = xxh3_64(&[checksums, header].concat());
        let hashes = vec![0; 8 * usize::from(way / 2)];
        bytes = [header, &hashes, checksums, &checksum.to_le_bytes()].concat();
    }
    if let Ok((header, checksums)) = IndexHeader::read(&mut Cursor::new(&bytes), bytes.len() as u64) {
        assert_eq!(
            120 + 8 * (header.blocks + checksums.len() as u64 + 1),
            bytes.len() as u64
        );
    }
}
