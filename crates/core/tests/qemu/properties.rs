//! The stream parser and the return path on generated, mutated and random input.

use crate::stream::{Event, RAM, Stream, follow};
use proptest::collection::vec;
use proptest::prelude::*;
use vmferry_core::qemu::Mark;
use vmferry_core::qemu::return_path::ReturnPath;

const PAGE_BITS: u32 = 10;
const PAGE: u64 = 1 << PAGE_BITS;
const BLOCKS: [(&str, u64); 4] = [("pc.ram", 64), ("m0", 8), ("0000:00:02.0/vga.vram", 4), ("pc.bios", 1)];
const BITMAPS: u32 = 77;
/// RAM's SECTION_END as `write` leaves it: its header, EOS and footer.
const LAST_SECTION_BYTES: usize = 5 + 8 + 5;

/// What QEMU may do next.
#[derive(Debug, Clone)]
enum Act {
    Page {
        block: u16,
        page: u64,
        named: bool,
        content: Vec<u8>,
    },
    Zero {
        block: u16,
        page: u64,
        named: bool,
    },
    Xbzrle {
        block: u16,
        page: u64,
        delta: Vec<u8>,
    },
    Compressed {
        block: u16,
        page: u64,
        zlib: Vec<u8>,
    },
    MultifdFlush,
    NextSection,
    Command {
        command: u16,
        payload: Vec<u8>,
    },
    Bitmap {
        bits: Vec<u8>,
    },
    SwitchoverStart,
    Discard {
        payload: Vec<u8>,
    },
    Packaged {
        package: Vec<u8>,
    },
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn page_of_a_block() -> impl Strategy<Value = (u16, u64)> {
    (0..BLOCKS.len() as u16).prop_flat_map(|block| (Just(block), 0..BLOCKS[usize::from(block)].1))
}

fn act() -> impl Strategy<Value = Act> {
    let content = vec(any::<u8>(), PAGE as usize);
    prop_oneof![
        4 => (page_of_a_block(), any::<bool>(), content)
            .prop_map(|((block, page), named, content)| Act::Page { block, page, named, content }),
        8 => (page_of_a_block(), any::<bool>())
            .prop_map(|((block, page), named)| Act::Zero { block, page, named }),
        1 => (page_of_a_block(), bytes(PAGE as usize))
            .prop_map(|((block, page), delta)| Act::Xbzrle { block, page, delta }),
        1 => (page_of_a_block(), bytes(PAGE as usize))
            .prop_map(|((block, page), zlib)| Act::Compressed { block, page, zlib }),
        1 => Just(Act::MultifdFlush),
        4 => Just(Act::NextSection),
        // Numbers that no QEMU uses, so that the length alone says where the command ends.
        1 => (12..u16::MAX, bytes(300)).prop_map(|(command, payload)| Act::Command { command, payload }),
        1 => bytes(2000).prop_map(|bits| Act::Bitmap { bits }),
        1 => Just(Act::SwitchoverStart),
        1 => bytes(200).prop_map(|payload| Act::Discard { payload }),
        1 => bytes(2000).prop_map(|package| Act::Packaged { package }),
    ]
}

fn write(footers: bool, acts: &[Act], tail: &[u8]) -> Stream {
    let page_bits = [
        b"\x05\x1econfiguration/target-page-bits\0\0\0\x01".as_slice(),
        &PAGE_BITS.to_be_bytes(),
    ]
    .concat();
    let mut stream = Stream::new(&[page_bits]);
    stream.footers = footers;
    stream.start_ram(PAGE, &BLOCKS);
    stream.start(BITMAPS, "dirty-bitmap", 1);
    stream.put(&[0x01]);
    stream.footer(BITMAPS);
    let mut previous = None;
    // The name that a record of `block` carries: it must if another block's record came before.
    let mut name = |block: u16, named: bool| {
        let named = named || previous != Some(block);
        previous = Some(block);
        named.then_some(BLOCKS[usize::from(block)].0)
    };
    stream.part(RAM);
    for act in acts {
        match act {
            Act::Page {
                block,
                page,
                named,
                content,
            } => {
                stream.page(*block, page * PAGE, name(*block, *named), content);
            }
            Act::Zero { block, page, named } => stream.zero(*block, page * PAGE, name(*block, *named)),
            Act::Xbzrle { block, page, delta } => {
                stream.xbzrle(*block, page * PAGE, name(*block, false), delta);
            }
            Act::Compressed { block, page, zlib } => {
                stream.compressed(*block, page * PAGE, name(*block, false), zlib);
            }
            Act::MultifdFlush => stream.multifd_flush(),
            between => {
                stream.end_of_ram_section();
                between_sections(&mut stream, between);
                stream.part(RAM);
            }
        }
    }
    stream.end_of_ram_section();
    stream.end(RAM);
    stream.end_of_ram(tail);
    stream
}

fn between_sections(stream: &mut Stream, act: &Act) {
    match act {
        Act::Command { command, payload } => stream.command(*command, payload),
        Act::Bitmap { bits } => {
            stream.part(BITMAPS);
            stream.put(&[0x41, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9]);
            stream.put(&(bits.len() as u64).to_be_bytes());
            stream.put(bits);
            stream.footer(BITMAPS);
        }
        Act::SwitchoverStart => stream.switchover_start(),
        Act::Discard { payload } => stream.discard(payload),
        Act::Packaged { package } => stream.packaged(package),
        _ => {}
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1usize..40, 1usize..3000, Just(1 << 20)], 1..20)
}

/// A tail that does not begin like a footer: without footers, nothing would tell it from one.
fn tail() -> impl Strategy<Value = Vec<u8>> {
    bytes(3000).prop_map(|rest| [&[0x04], rest.as_slice()].concat())
}

proptest! {
    #[test]
    fn a_valid_stream_is_seen_as_it_was_written(
        footers: bool,
        acts in vec(act(), 0..60),
        tail in tail(),
        pieces in pieces(),
    ) {
        let stream = write(footers, &acts, &tail);
        let followed = follow(&stream.bytes, &pieces);
        prop_assert_eq!(&followed.events, &stream.events);
        prop_assert!(followed.written == stream.bytes);
        prop_assert!(followed.parser.is_opaque());
    }

    #[test]
    fn a_damaged_stream_is_passed_on_byte_for_byte(
        footers: bool,
        acts in vec(act(), 0..30),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        pieces in pieces(),
    ) {
        let mut bytes = write(footers, &acts, b"\x04tail").bytes;
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let followed = follow(&bytes, &pieces);
        prop_assert!(followed.written == bytes);
    }

    #[test]
    fn random_bytes_where_a_section_should_be_are_passed_on(random in bytes(4000), pieces in pieces()) {
        let mut bytes = write(true, &[], b"").bytes;
        bytes.truncate(bytes.len() - LAST_SECTION_BYTES);
        bytes.extend(random);
        let followed = follow(&bytes, &pieces);
        prop_assert!(followed.written == bytes);
    }

    #[test]
    fn the_pieces_a_stream_comes_in_change_nothing(random in bytes(600), pieces in pieces()) {
        let bytes = [b"QEVM\0\0\0\x03".as_slice(), &random].concat();
        let whole = follow(&bytes, &[bytes.len()]);
        let cut = follow(&bytes, &pieces);
        prop_assert_eq!(whole.events, cut.events);
    }

    #[test]
    fn a_lost_stream_is_lost_once(acts in vec(act(), 0..10), random in bytes(600), pieces in pieces()) {
        let mut bytes = write(true, &acts, b"").bytes;
        bytes.truncate(bytes.len() - LAST_SECTION_BYTES);
        bytes.push(0x06);
        bytes.extend(random);
        let lost = |(_, event): &&crate::stream::At| matches!(event, Event::Mark(Mark::Lost(_)));
        let followed = follow(&bytes, &pieces);
        prop_assert_eq!(followed.events.iter().filter(lost).count(), 1);
        prop_assert!(followed.events.last().as_ref().is_some_and(lost));
    }

    #[test]
    fn random_bytes_on_the_return_path_end_in_an_error_or_a_wait(
        kinds in vec((0u16..9, 0u16..20, bytes(40)), 0..20),
    ) {
        let bytes: Vec<u8> = kinds
            .iter()
            .flat_map(|(kind, len, rest)| [&kind.to_be_bytes(), &len.to_be_bytes(), rest.as_slice()].concat())
            .collect();
        let mut return_path = ReturnPath::new();
        let mut front = 0;
        while let Ok(Some((taken, _))) = return_path.next(&bytes[front..]) {
            prop_assert!(taken > 0);
            front += taken;
        }
    }
}
