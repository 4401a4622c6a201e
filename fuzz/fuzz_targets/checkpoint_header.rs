//! Any header is refused, or is of this host's key and of a file that has the room it needs. Checksum and authentication code,
//! which no fuzzer guesses, are put in place for some of the inputs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_content::{
    HostKey,
    checkpoint::layout::{HEADER_BYTES, Header},
};
use vmferry_fuzz::within;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| within(64 << 10, || check(data)));

fn check(data: &[u8]) {
    let Some((&[way, ref length @ ..], rest)) = data.split_first_chunk::<9>() else {
        return;
    };
    let Some((header, _)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let key = HostKey::new([7; 32]);
    let file_bytes = u64::from_le_bytes(*length);
    let mut encoded = *header;
    match way % 3 {
        0 => {
            let checksum = xxh3_64(&encoded[..HEADER_BYTES - 8]);
            encoded[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        }
        1 => {
            let (salt, rest) = header.split_first_chunk().expect("it is longer than a salt");
            let (blocks, _) = rest.split_first_chunk().expect("it is longer than a number");
            let whole = Header {
                salt: *salt,
                blocks: u64::from_le_bytes(*blocks),
            };
            encoded = whole.encode(&key);
        }
        _ => {}
    }
    if let Ok(header) = Header::decode(&encoded, file_bytes, &key) {
        assert_eq!(header.encode(&key), encoded);
        assert!(file_bytes / 4096 > header.blocks);
    }
}
