//! Any bytes, in pieces of any size, are given back as they came, whatever the stream parser makes of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::qemu::Parser;
use vmferry_fuzz::within;

/// A stream up to its first RAM section, so that the fuzzer need not find all this by itself: 1 KiB pages, two blocks.
const STARTED: &[u8] = b"QEVM\0\0\0\x03\
    \x07\0\0\0\x02pc\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0a\
    \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\0\x01\x04\x04\x01a\0\0\0\0\0\x01\0\0\x01b\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

fuzz_target!(|data: &[u8]| within((256 << 10) + 8 * data.len(), || check(data)));

fn check(data: &[u8]) {
    let Some(([start, pieces @ ..], rest)) = data.split_first_chunk::<5>() else {
        return;
    };
    let stream = match start % 4 {
        0 => rest.to_vec(),
        1 => [&STARTED[..8], rest].concat(),
        2 => [STARTED, rest].concat(),
        _ => [STARTED, b"\x02\0\0\0\x02", rest].concat(),
    };
    let mut parser = Parser::new();
    let mut written = Vec::new();
    let (mut front, mut read) = (0, 0);
    for piece in pieces.iter().cycle() {
        while let Some((bytes, item)) = parser.next(&stream[front..read]) {
            item.write(parser.blocks(), &mut written);
            front += bytes;
            assert_eq!(parser.position(), front as u64);
        }
        assert!(
            read - front < parser.page_bytes() + 1024,
            "it waits for more than a page and 1 KiB"
        );
        if read == stream.len() {
            break;
        }
        // A piece of 0 is all there is.
        read = if *piece == 0 {
            stream.len()
        } else {
            stream.len().min(read + usize::from(*piece))
        };
    }
    written.extend_from_slice(&stream[front..]);
    assert!(written == stream);
}
