//! Streams made by hand, one for each thing that can stand in a stream, are followed to the end of RAM.

use vmferry_core::qemu::{BlockId, Item, Mark, PageAt, Parser};

use crate::stream::{BLOCKS, Event, PAGE, RAM, Stream, follow, started, str8, subsection};

fn content(seed: u8) -> Vec<u8> {
    (0..PAGE).map(|index| (index as u8).wrapping_mul(seed)).collect()
}

/// Ends the stream as every precopy ends.
fn finish(stream: &mut Stream) {
    stream.end(RAM);
    stream.page(0, 5 * PAGE, Some("pc.ram"), &content(9));
    stream.end_of_ram(b"\x04device state of any form\x00\x06\x00\x00\x00\x02{}");
}

/// The stream is seen as it was written, and written as it was read, whatever the pieces it comes in.
fn assert_followed(stream: &Stream) {
    for pieces in [&[1usize][..], &[7], &[4095, 1], &[4105], &[usize::MAX >> 1]] {
        let followed = follow(&stream.bytes, pieces);
        assert_eq!(followed.events, stream.events, "in pieces of {pieces:?}");
        assert!(
            followed.written == stream.bytes,
            "written differs, in pieces of {pieces:?}"
        );
    }
}

#[test]
fn a_captured_precopy_stream_is_followed() {
    let mut stream = Stream::new(&[]);
    stream.put(b"\x08\x00\x01\x00\x00"); // OPEN_RETURN_PATH
    stream.put(b"\x08\x00\x02\x00\x04\x00\x00\x00\x01"); // PING 1
    stream.put(b"\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04");
    stream.put(b"\x00\x00\x00\x00\x10\x00\x00\x04\x06pc.ram\x00\x00\x00\x00\x10\x00\x00\x00");
    stream.event(Event::Mark(Mark::Blocks));
    stream.put(b"\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    stream.put(b"\x02\x00\x00\x00\x02");
    let first = PageAt {
        block: BlockId(0),
        offset: 0,
        named: true,
    };
    stream.event(Event::Page(first));
    stream.put(b"\x00\x00\x00\x00\x00\x00\x00\x08\x06pc.ram");
    stream.put(&content(3));
    stream.event(Event::Zero(PageAt {
        block: BlockId(0),
        offset: PAGE,
        named: false,
    }));
    stream.put(b"\x00\x00\x00\x00\x00\x00\x10\x22\x00");
    stream.put(b"\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    stream.put(b"\x08\x00\x0b\x00\x00");
    stream.event(Event::Mark(Mark::Switchover));
    stream.put(b"\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    stream.event(Event::Mark(Mark::RamEnd));
    stream.put(b"\x04\x00\x00\x00\x00\x05timer");
    assert_followed(&stream);

    let followed = follow(&stream.bytes, &[1000]);
    let blocks: Vec<_> = followed
        .parser
        .blocks()
        .iter()
        .map(|b| (b.name.as_str(), b.bytes))
        .collect();
    assert_eq!(blocks, [("pc.ram", 256 << 20)]);
}

#[test]
fn everything_up_to_the_next_mark_is_one_item() {
    let stream = started();
    let blocks_at = stream.events[0].0 as usize;
    let mut parser = Parser::new();
    assert_eq!(
        parser.next(&stream.bytes),
        Some((blocks_at, Item::Bytes(&stream.bytes[..blocks_at])))
    );
}

#[test]
fn a_page_is_handed_out_without_copying() {
    let mut stream = started();
    stream.part(RAM);
    stream.page(0, 0, Some("pc.ram"), &content(3));
    let mut parser = Parser::new();
    let mut front = 0;
    while let Some((bytes, item)) = parser.next(&stream.bytes[front..]) {
        if let Item::Page(_, page) = item {
            assert_eq!(page, content(3));
            assert_eq!(page.as_ptr_range().end, stream.bytes.as_ptr_range().end);
            return;
        }
        front += bytes;
    }
    panic!("no page was found");
}

#[test]
fn pages_of_every_kind_are_followed() {
    let mut stream = started();
    stream.part(RAM);
    stream.page(0, 0, Some("pc.ram"), &content(1));
    stream.page(0, 15 * PAGE, None, &content(2));
    stream.zero(1, PAGE, Some("/rom@etc/acpi/tables"));
    stream.zero(1, 0, None);
    stream.multifd_flush();
    stream.xbzrle(0, PAGE, Some("pc.ram"), &[0, 2, 7, 7]);
    stream.xbzrle(0, 2 * PAGE, None, &content(5));
    stream.compressed(2, 0, Some("pc.bios"), &content(6)[..100]);
    stream.compressed(2, 0, None, &[content(7), vec![1; 14]].concat());
    stream.end_of_ram_section();
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn a_record_without_a_name_is_about_the_block_of_an_earlier_section() {
    let mut stream = started();
    stream.part(RAM);
    stream.zero(1, PAGE, Some("/rom@etc/acpi/tables"));
    stream.end_of_ram_section();
    stream.command(2, &[0, 0, 0, 1]);
    stream.part(RAM);
    stream.page(1, 0, None, &content(1));
    stream.end_of_ram_section();
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn streams_of_old_machine_types_have_neither_configuration_nor_footers() {
    let mut stream = Stream::without_configuration();
    stream.footers = false;
    stream.start_ram(PAGE, &BLOCKS);
    stream.part(RAM);
    stream.page(0, 0, Some("pc.ram"), &content(1));
    stream.end_of_ram_section();
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn the_configuration_settles_the_page_size() {
    let mut stream = Stream::new(&[
        subsection("configuration/target-page-bits", &16u32.to_be_bytes()),
        subsection(
            "configuration/capabilities",
            &[&[0, 0, 0, 1], str8("x-colo").as_slice()].concat(),
        ),
        subsection("configuration/uuid", &[7; 16]),
    ]);
    stream.start_ram(1 << 16, &[("mach-virt.ram", 4)]);
    stream.part(RAM);
    stream.page(0, 3 << 16, Some("mach-virt.ram"), &vec![1; 1 << 16]);
    stream.end_of_ram_section();
    assert_followed(&stream);
    assert_eq!(follow(&stream.bytes, &[100]).parser.page_bytes(), 1 << 16);
}

#[test]
fn a_block_list_with_guest_addresses_is_followed() {
    let capabilities = [&[0, 0, 0, 1], str8("x-ignore-shared").as_slice()].concat();
    let mut stream = Stream::new(&[subsection("configuration/capabilities", &capabilities)]);
    stream.start(RAM, "ram", 4);
    stream.word(3 * PAGE, 0x004);
    for (name, pages, address) in [("pc.ram", 2, 0), ("pc.bios", 1, 0xfffc_0000u64)] {
        stream.put(&str8(name));
        stream.put(&(pages * PAGE).to_be_bytes());
        stream.put(&address.to_be_bytes());
    }
    stream.event(Event::Mark(Mark::Blocks));
    stream.end_of_ram_section();
    finish_with_zero(&mut stream);
    assert_followed(&stream);
}

fn finish_with_zero(stream: &mut Stream) {
    stream.end(RAM);
    stream.zero(0, 0, Some("pc.ram"));
    stream.end_of_ram(b"tail");
}

#[test]
fn a_block_list_with_page_sizes_of_huge_blocks_is_followed() {
    const HUGE: u64 = 2 << 20;
    // The last block with and without a size of its own, and a sync point of multifd behind the list or not.
    for (last_is_huge, flush) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut stream = Stream::new(&[]);
        stream.command(3, &[(HUGE | PAGE).to_be_bytes(), PAGE.to_be_bytes()].concat());
        stream.start(RAM, "ram", 4);
        stream.word(3 * HUGE + PAGE, 0x004);
        for (name, bytes, huge) in [
            ("pc.ram", 2 * HUGE, true),
            ("pc.bios", PAGE, false),
            ("m1", HUGE, last_is_huge),
        ] {
            stream.put(&str8(name));
            stream.put(&bytes.to_be_bytes());
            if huge {
                stream.put(&HUGE.to_be_bytes());
            }
        }
        stream.event(Event::Mark(Mark::Blocks));
        if flush {
            stream.multifd_flush();
        }
        stream.end_of_ram_section();
        finish_with_zero(&mut stream);
        assert_followed(&stream);
    }
}

#[test]
fn a_postcopy_stream_is_followed_past_the_switch() {
    let mut stream = Stream::new(&[]);
    stream.command(3, &[PAGE.to_be_bytes(), PAGE.to_be_bytes()].concat());
    stream.start_ram(PAGE, &BLOCKS);
    stream.part(RAM);
    stream.page(0, 0, Some("pc.ram"), &content(1));
    stream.end_of_ram_section();
    stream.switchover_start();
    stream.discard(&[&[0], str8("pc.ram").as_slice(), &[0; 17]].concat());
    stream.discard(&[&[0], str8("pc.bios").as_slice(), &[0; 17]].concat());
    stream.command(2, &[0, 0, 0, 2]);
    stream.packaged(b"\x08\x00\x04\x00\x00 any device state \x08\x00\x05\x00\x00");
    stream.command(2, &[0, 0, 0, 4]);
    stream.part(RAM);
    stream.page(0, 0, Some("pc.ram"), &content(2));
    stream.end_of_ram_section();
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn unknown_commands_are_passed_on_by_their_length() {
    let mut stream = Stream::new(&[]);
    stream.command(0x7777, &[1; 300]);
    stream.command(3, &[]);
    stream.start_ram(PAGE, &BLOCKS);
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn dirty_bitmaps_are_followed() {
    let mut stream = started();
    stream.start(3, "dirty-bitmap", 1);
    stream.put(&[&[0x1c], str8("node0").as_slice(), &str8("bitmap0"), &[0, 1, 0, 0, 3]].concat());
    stream.put(&[0x01]);
    stream.footer(3);
    stream.part(RAM);
    stream.zero(0, 0, Some("pc.ram"));
    stream.end_of_ram_section();
    stream.part(3);
    stream.put(&[&[0x40], [7; 8].as_slice(), &[8; 4], &5000u64.to_be_bytes(), &[9; 5000]].concat());
    stream.put(&[&[0x42], [7; 8].as_slice(), &[8; 4]].concat());
    stream.put(&[0x20, 0x01]);
    stream.footer(3);
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn vfio_devices_are_followed() {
    const TAG: u64 = 0xffff_ffff_ef10_0000;
    let mut stream = started();
    stream.start(41, "0000:00:04.0/vfio", 1);
    stream.word(TAG, 3);
    stream.word(TAG, 1);
    stream.footer(41);
    stream.part(41);
    stream.word(TAG, 4);
    stream.put(&[3000u64.to_be_bytes().as_slice(), &[5; 3000]].concat());
    stream.word(TAG, 5);
    stream.footer(41);
    stream.part(RAM);
    stream.zero(0, 0, Some("pc.ram"));
    stream.end_of_ram_section();
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn block_migration_of_old_versions_is_followed() {
    let mut stream = Stream::new(&[]);
    stream.start(1, "block", 1);
    stream.word(0, 0x02);
    stream.footer(1);
    stream.start_ram(PAGE, &BLOCKS);
    stream.part(1);
    stream.word(0x200, 0x01);
    stream.put(&str8("virtio0"));
    stream.put(&vec![3; 1 << 20]);
    stream.word(0x400, 0x09);
    stream.put(&str8("virtio0"));
    stream.word(50 << 9, 0x04);
    stream.word(0, 0x02);
    stream.footer(1);
    stream.end(1);
    stream.word(0, 0x02);
    stream.footer(1);
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn hash_page_tables_of_powerpc_are_followed() {
    let mut stream = started();
    stream.start(3, "spapr/htab", 1);
    stream.put(&24u32.to_be_bytes());
    stream.footer(3);
    stream.part(3);
    stream.put(&[[0; 4].as_slice(), &[0, 0, 0, 9, 0, 2, 0, 1], &[6; 32], &[0; 8]].concat());
    stream.footer(3);
    stream.part(3);
    stream.put(&[0xff; 4]);
    stream.footer(3);
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn storage_attributes_of_s390x_are_followed() {
    let mut stream = started();
    stream.start(3, "s390-storage_attributes", 0);
    stream.word(0, 0x01);
    stream.footer(3);
    stream.part(3);
    stream.word(0x7000, 0x02);
    stream.put(&[300u64.to_be_bytes().as_slice(), &[6; 300]].concat());
    stream.word(0, 0x08);
    stream.word(0, 0x01);
    stream.footer(3);
    finish(&mut stream);
    assert_followed(&stream);
}

#[test]
fn virtio_mem_is_followed() {
    let mut stream = started();
    stream.full(9, "0000:00:05.0/virtio-mem-device-early", 1);
    for field in [0x1_0000_0000u64, 1 << 30, 2 << 20] {
        stream.put(&field.to_be_bytes());
    }
    stream.put(&[0; 4]);
    stream.put(&(128u64 << 20).to_be_bytes());
    stream.put(&[0xa5; 64]); // 512 blocks, a bit each
    stream.footer(9);
    finish(&mut stream);
    assert_followed(&stream);
}
