//! Any bytes on the return path are messages, an error that stays, or the beginning of a message, whatever the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::limits::{BLOCK_NAME_BYTES_MAX, RETURN_PATH_PAYLOAD_BYTES_MAX};
use vmferry_core::qemu::return_path::ReturnPath;
use vmferry_fuzz::within;

/// A message's head, its payload, and the length of a bitmap behind it.
const WAIT_BYTES_MAX: usize = 4 + RETURN_PATH_PAYLOAD_BYTES_MAX + BLOCK_NAME_BYTES_MAX + 8;

fuzz_target!(|data: &[u8]| within((64 << 10) + 2 * data.len(), || check(data)));

fn check(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let mut return_path = ReturnPath::new();
    let (mut front, mut read) = (0, 0);
    while read < bytes.len() {
        read = bytes.len().min(read + 1 + usize::from(*piece));
        loop {
            match return_path.next(&bytes[front..read]) {
                Ok(Some((taken, _))) => {
                    assert!(taken > 0);
                    front += taken;
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(return_path.next(&bytes[front..read]), Err(error));
                    return;
                }
            }
        }
        assert!(read - front < WAIT_BYTES_MAX, "it waits for more than a message");
    }
}
