//! The return path's messages, as QEMU writes them.

use vmferry_core::qemu::BlockName;
use vmferry_core::qemu::return_path::{Message, ReturnPath, ReturnPathError, pong, shut};

/// All messages in `bytes`, read one byte more at a time, pieces of bitmaps joined to their total length.
fn read(bytes: &[u8]) -> Result<Vec<String>, ReturnPathError> {
    let mut return_path = ReturnPath::new();
    let mut messages = Vec::new();
    let mut bitmap = 0;
    let mut front = 0;
    for end in 0..=bytes.len() {
        while let Some((taken, message)) = return_path.next(&bytes[front..end])? {
            front += taken;
            match message {
                Message::BitmapBytes(piece) => bitmap += piece.len(),
                Message::BitmapEnd => messages.push(format!("BitmapEnd after {bitmap}")),
                message => messages.push(format!("{message:?}")),
            }
        }
    }
    assert_eq!(front, bytes.len(), "bytes are left over");
    Ok(messages)
}

#[test]
fn captured_answers_are_read() {
    let bytes = b"\x00\x02\x00\x04\x00\x00\x00\x01\x00\x07\x00\x00\x00\x01\x00\x04\x00\x00\x00\x00";
    assert_eq!(read(bytes).unwrap(), ["Pong(1)", "SwitchoverAck", "Shut(0)"]);
}

#[test]
fn answers_are_written_as_qemu_writes_them() {
    assert_eq!(pong(1), *b"\x00\x02\x00\x04\x00\x00\x00\x01");
    assert_eq!(shut(0), *b"\x00\x01\x00\x04\x00\x00\x00\x00");
    assert_eq!(shut(0x0102_0304), *b"\x00\x01\x00\x04\x01\x02\x03\x04");
}

#[test]
fn requests_for_pages_are_read() {
    let bytes = [
        b"\x00\x03\x00\x13\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x10\x00\x06pc.ram".as_slice(),
        b"\x00\x04\x00\x0c\x00\x00\x00\x00\x00\x30\x00\x00\x00\x20\x00\x00",
    ]
    .concat();
    let mut return_path = ReturnPath::new();
    let block = BlockName::new(b"pc.ram");
    let first = Message::RequestPages {
        block,
        offset: 0x20_0000,
        bytes: 0x1000,
    };
    assert_eq!(return_path.next(&bytes), Ok(Some((23, first))));
    let second = Message::RequestPages {
        block: None,
        offset: 0x30_0000,
        bytes: 0x20_0000,
    };
    assert_eq!(return_path.next(&bytes[23..]), Ok(Some((16, second))));
}

#[test]
fn a_bitmap_is_read_with_its_uncounted_bytes() {
    let bytes = [
        b"\x00\x05\x00\x07\x06pc.ram".as_slice(),
        &24u64.to_be_bytes(),
        &[0xff; 24],
        &0x0123_4567_89ab_cdef_u64.to_be_bytes(),
        b"\x00\x06\x00\x04\x00\x00\x00\x01",
    ]
    .concat();
    let bitmap = r#"ReceivedBitmap { block: BlockName("pc.ram"), bytes: 24 }"#;
    assert_eq!(read(&bytes).unwrap(), [bitmap, "BitmapEnd after 24", "ResumeAck(1)"]);
}

#[test]
fn malformed_messages_are_errors_that_stay() {
    let length = |kind, bytes| ReturnPathError::Length { kind, bytes };
    let cases: [(&[u8], ReturnPathError); 8] = [
        (b"\x00\x00\x00\x00", ReturnPathError::UnknownType(0)),
        (b"\x00\x08\x00\x00", ReturnPathError::UnknownType(8)),
        (b"\x00\x01\x00\x05", length(1, 5)),
        (b"\x00\x04\x00\x0d", length(4, 13)),
        (b"\x00\x03\x02\x01", length(3, 513)),
        (b"\x00\x03\x00\x0e\0\0\0\0\0\0\0\0\0\0\0\0\x09a", length(3, 14)),
        (b"\x00\x05\x00\x01\x00", ReturnPathError::BlockName),
        (
            b"\x00\x05\x00\x02\x01a\xff\0\0\0\0\0\0\0",
            ReturnPathError::BitmapLength(0xff << 56),
        ),
    ];
    for (bytes, error) in cases {
        let mut return_path = ReturnPath::new();
        assert_eq!(return_path.next(bytes), Err(error.clone()));
        assert_eq!(return_path.next(bytes), Err(error));
    }
}

#[test]
fn a_bitmap_without_its_end_mark_is_an_error() {
    let bytes = [b"\x00\x05\x00\x02\x01a\0\0\0\0\0\0\0\x08".as_slice(), &[0; 16]].concat();
    assert_eq!(read(&bytes), Err(ReturnPathError::BitmapEnd));
}
