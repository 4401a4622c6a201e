//! Streams that cannot be followed are lost at the right byte, for the right reason, and passed on.

use vmferry_core::qemu::{LostCause, Mark};

use crate::stream::{Event, PAGE, RAM, Stream, follow, started, str8, subsection};

/// The parser gives up at byte `position` for `cause`, and passes everything on.
fn assert_lost(stream: &Stream, position: usize, cause: &LostCause) {
    for pieces in [&[1usize][..], &[usize::MAX >> 1]] {
        let followed = follow(&stream.bytes, pieces);
        let Some((at, Event::Mark(Mark::Lost(reason)))) = followed.events.last() else {
            panic!("not lost: {:?}", followed.events);
        };
        assert_eq!(
            (*at, reason.position, &reason.cause),
            (position as u64, position as u64, cause)
        );
        assert!(followed.parser.is_opaque());
        assert!(followed.written == stream.bytes);
    }
}

#[test]
fn what_is_no_stream_is_lost_at_its_first_byte() {
    for bytes in [
        b"\x11\x22\x33\x44\x00".as_slice(),
        b"QEVM\0\0\0\x02",
        b"\x08\x00\x0a\x00\x07\x06pc.ram",
    ] {
        let mut stream = Stream::without_configuration();
        stream.bytes = bytes.to_vec();
        assert_lost(&stream, 0, &LostCause::Header);
    }
}

#[test]
fn what_cannot_be_followed_is_lost_where_it_begins() {
    type Write = fn(&mut Stream);
    let cases: [(Write, LostCause); 16] = [
        (|s| s.zero(0, 0, None), LostCause::Address),
        (|s| s.zero(0, 16 * PAGE, Some("pc.ram")), LostCause::Address),
        (|s| s.zero(0, !(PAGE - 1), Some("pc.ram")), LostCause::Address),
        (|s| s.zero(0, 0, Some("pc.rum")), LostCause::Address),
        (|s| s.word(0, 0x080), LostCause::RamFlags(0x080)),
        (|s| s.word(0, 0x001), LostCause::RamFlags(0x001)),
        (|s| s.word(0, 0x00a), LostCause::RamFlags(0x00a)),
        (|s| s.word(PAGE, 0x010), LostCause::RamFlags(0x010)),
        (|s| s.word(PAGE, 0x004), LostCause::BlockList),
        (|s| s.put(b"\0\0\0\0\0\0\0\x02\x06pc.ram\x01"), LostCause::FillByte(1)),
        (
            |s| s.put(b"\0\0\0\0\0\0\0\x40\x06pc.ram\x02\0\x01"),
            LostCause::EncodedPage,
        ),
        (
            |s| s.put(b"\0\0\0\0\0\0\0\x40\x06pc.ram\x01\x10\x01"),
            LostCause::EncodedPage,
        ),
        (
            |s| s.put(b"\0\0\0\0\0\0\x01\x00\x06pc.ram\0\0\x10\x0f"),
            LostCause::EncodedPage,
        ),
        (
            |s| s.put(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x09"),
            LostCause::Footer {
                section: RAM,
                footer: 9,
            },
        ),
        (|s| s.put(b"\0\0\0\0\0\0\0\x10\x02\0\0\0\x09"), LostCause::SectionId(9)),
        (|s| s.put(b"\0\0\0\0\0\0\0\x10\x00"), LostCause::SectionType(0)),
    ];
    for (write, cause) in cases {
        let mut stream = started();
        stream.part(RAM);
        let mut position = stream.bytes.len();
        // Behind an end of section, it is what follows that is wrong.
        write(&mut stream);
        if stream.bytes[position..].starts_with(b"\0\0\0\0\0\0\0\x10") {
            position += 8;
        }
        stream.put(b"whatever follows");
        assert_lost(&stream, position, &cause);
    }
}

#[test]
fn a_device_that_sends_its_state_early_in_an_unknown_form_is_lost() {
    let mut stream = started();
    let position = stream.bytes.len();
    stream.full(9, "new-device", 1);
    stream.put(b"state");
    assert_lost(&stream, position, &LostCause::UnknownSection("new-device".into()));
}

#[test]
fn block_lists_beyond_all_limits_are_lost() {
    let too_large = (1u64 << 46) + PAGE;
    let mut stream = Stream::new(&[]);
    stream.start(RAM, "ram", 4);
    let position = stream.bytes.len();
    stream.word(too_large, 0x004);
    assert_lost(&stream, position, &LostCause::BlockList);

    // Entries of no bytes would never make up the total.
    let mut stream = Stream::new(&[]);
    stream.start(RAM, "ram", 4);
    stream.word(PAGE, 0x004);
    for index in 0..1024 {
        stream.put(&str8(&format!("block{index}")));
        stream.put(&0u64.to_be_bytes());
    }
    let position = stream.bytes.len();
    stream.put(&str8("one-too-many"));
    stream.put(&0u64.to_be_bytes());
    assert_lost(&stream, position, &LostCause::BlockList);
}

#[test]
fn capabilities_that_only_a_file_can_hold_are_lost() {
    let mut stream = Stream::new(&[]);
    stream.put(&subsection("configuration/capabilities", &1u32.to_be_bytes()));
    let position = stream.bytes.len();
    stream.put(&str8("mapped-ram"));
    assert_lost(&stream, position, &LostCause::Capability("mapped-ram"));
}

#[test]
fn why_a_stream_was_lost_is_said_in_a_sentence() {
    let mut stream = Stream::without_configuration();
    stream.put(&[0x99]);
    let followed = follow(&stream.bytes, &[100]);
    let Some((_, Event::Mark(Mark::Lost(reason)))) = followed.events.first() else {
        panic!("not lost")
    };
    assert_eq!(
        reason.to_string(),
        "from byte 8 of the stream on it is passed on as it is: a section of type 0x99 came before the end of RAM"
    );
}
