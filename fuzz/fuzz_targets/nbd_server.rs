//! Whatever an NBD server says, it is refused, or an export of the size that it told, of which is read what came. And a URI of an
//! export prints as one that means the same: journals and peers hold what was printed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};
use vmferry_content::{NbdUri, nbd::connection::Connection};
use vmferry_fuzz::within;

/// The longest reply to an option, and little else.
const MEMORY_BYTES_MAX: usize = 128 << 10;

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const EXPORT_BYTES: u64 = 1 << 20;

/// What comes from the server, however it is asked.
struct Server<'a>(&'a [u8]);

impl Read for Server<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Server<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let says = match way % 4 {
        0 => bytes.to_vec(),
        1 => [GREETING, bytes].concat(),
        2 => [GREETING, &replies(bytes)].concat(),
        _ => return uri(bytes),
    };
    within(MEMORY_BYTES_MAX, || {
        let Ok(mut connection) = Connection::over(Server(&says), "export") else {
            return;
        };
        let mut buffer = [0; 512];
        for offset in (0..connection.bytes()).step_by(buffer.len()).take(64) {
            if connection.read_exact_at(&mut buffer, offset).is_err() {
                return;
            }
            assert!(says.windows(buffer.len()).any(|said| said == buffer));
        }
    });
});

/// Replies to options with their magic numbers, an honest one among them, and answers to reads behind these.
fn replies(bytes: &[u8]) -> Vec<u8> {
    let mut replies = Vec::new();
    let reply = |kind: u32, payload: &[u8]| {
        let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        for word in [7, kind, payload.len() as u32] {
            reply.extend(word.to_be_bytes());
        }
        reply.extend(payload);
        reply
    };
    let mut rest = bytes;
    let mut handle = 0u64;
    while let Some(([kind, length], behind)) = rest.split_first_chunk() {
        let (payload, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        match kind % 8 {
            0 => replies.extend(reply(3, &[&[0; 2][..], &EXPORT_BYTES.to_be_bytes(), &[0; 2]].concat())),
            1 => replies.extend(reply(1, &[])),
            2 => replies.extend(reply(3, payload)),
            3 => replies.extend(reply(1 << 31 | u32::from(*length), payload)),
            4 => replies.extend(reply(u32::from(*length), payload)),
            5 => replies.extend(payload),
            error => {
                // An answer to the next read: good, or an error.
                handle += 1;
                replies.extend(0x6744_6698u32.to_be_bytes());
                replies.extend(u32::from(error - 6).to_be_bytes());
                replies.extend(handle.to_be_bytes());
                replies.extend(vec![*length; 512 * usize::from(7 - error)]);
            }
        }
    }
    replies
}

fn uri(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(uri) = text.parse::<NbdUri>() {
        let printed = uri.to_string();
        assert_eq!(printed.parse(), Ok(uri), "{printed}");
    }
}
