//! Payloads that no honest source writes: each is refused, by the part that can know it is wrong.

use vmferry_core::{
    limits::{BATCH_PLAIN_BYTES_MAX, DATA_FRAME_BYTES_MAX},
    page::{
        AssembleError, Assembler, CodecSettings, Coders, DecodeError, Decoder, FingerprintKey, MEMORY_PART_MAX,
        ReadError,
        payload::{FOLLOWS, Kind, NAMED},
    },
    qemu::BlockId,
};

const PAGE_LOG2: u8 = 12;

/// A payload with these operations and raw pages, and an LZ section that stands for `plain`.
fn payload(page_log2: u8, operations: &[u8], plain: &[u8], raw: &[u8]) -> Vec<u8> {
    let mut lz = Vec::new();
    if !plain.is_empty() {
        CodecSettings::default()
            .encoder()
            .unwrap()
            .encode(&[plain], &mut lz)
            .unwrap();
    }
    let mut payload = vec![0; 8 + 4 + 8 + 16];
    payload.push(page_log2);
    payload.push(0);
    for length in [operations.len(), plain.len(), lz.len()] {
        payload.extend((length as u32).to_be_bytes());
    }
    [&payload, operations, &lz, raw].concat()
}

fn decoder() -> Decoder {
    Decoder::new(FingerprintKey::new([7; 32]), Coders::default())
}

fn decode_error(payload: &[u8]) -> DecodeError {
    decoder().decode(payload).expect_err("a crafted payload was taken")
}

/// One block of 16 pages, then `operations`.
fn with_blocks(operations: &[u8]) -> Vec<u8> {
    let blocks = [&[Kind::Blocks as u8, 1, 3][..], b"ram", &[0x80, 0x80, 0x04]].concat();
    [&blocks, operations].concat()
}

fn assemble(payload: &[u8]) -> AssembleError {
    let decoded = decoder()
        .decode(payload)
        .expect("the lane alone cannot see what is wrong with it");
    let mut assembler = Assembler::new(FingerprintKey::new([7; 32]));
    let read = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("no guest here".into()));
    assembler
        .apply(decoded, read)
        .expect_err("a crafted batch was given out")
}

#[test]
fn a_run_longer_than_a_batch_is_refused_before_it_is_built() {
    let mut operations = vec![Kind::Zero as u8, 0, 0];
    operations.extend([0xff; 9]);
    operations.push(1);
    assert_eq!(
        decode_error(&payload(PAGE_LOG2, &operations, &[], &[])),
        DecodeError::TooLarge
    );
    // Each run is within its own bound, all together are not.
    let operations = [Kind::Same as u8, 0, 0, 100].repeat(2);
    assert_eq!(
        decode_error(&payload(PAGE_LOG2, &operations, &[], &[])),
        DecodeError::TooLarge
    );
}

#[test]
fn an_lz_section_larger_than_a_batch_is_refused_before_it_is_decoded() {
    let mut claimed = payload(PAGE_LOG2, &[], &[], &[]);
    claimed[42..46].copy_from_slice(&(BATCH_PLAIN_BYTES_MAX as u32 + 1).to_be_bytes());
    assert_eq!(decode_error(&claimed), DecodeError::TooLarge);
}

#[test]
fn malformed_operations_are_refused() {
    const TOO_FAR: [u8; 12] = [
        Kind::Raw as u8,
        0,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0x7f,
        1,
    ];
    /// What is wrong, operations, LZ section, raw pages.
    type Case = (&'static str, &'static [u8], &'static [u8], &'static [u8]);
    let cases: &[Case] = &[
        ("unknown bits", &[0x80], &[], &[]),
        (
            "an address that follows none",
            &[Kind::Zero as u8 | FOLLOWS, 1],
            &[],
            &[],
        ),
        ("an empty run", &[Kind::Zero as u8, 0, 0, 0], &[], &[]),
        ("an empty name", &[Kind::Zero as u8 | NAMED, 0, 0, 0, 1], &[], &[]),
        (
            "a name that is cut short",
            &[Kind::Zero as u8 | NAMED, 9, b'x'],
            &[],
            &[],
        ),
        (
            "a block beyond 16 bits",
            &[Kind::Zero as u8, 0x80, 0x80, 4, 0, 1],
            &[],
            &[],
        ),
        ("a page beyond any guest", &TOO_FAR, &[], &[0; 4096]),
        (
            "fewer raw pages than said",
            &[Kind::Raw as u8, 0, 0, 2],
            &[],
            &[0; 4096],
        ),
        ("more raw pages than said", &[Kind::Raw as u8, 0, 0, 1], &[], &[0; 8192]),
        ("fewer bytes than said", &[Kind::Bytes as u8, 9], b"short", &[]),
        ("more bytes than said", &[Kind::Bytes as u8, 2], b"short", &[]),
        (
            "bytes in two pieces",
            &[Kind::Bytes as u8, 2, Kind::Bytes as u8, 3],
            b"short",
            &[],
        ),
        ("nothing", &[], &[], &[]),
        ("no bytes", &[Kind::Bytes as u8, 0], &[], &[]),
        (
            "a foreign record that is none",
            &[Kind::Foreign as u8, 0, 0, 8],
            b"a record",
            &[],
        ),
        (
            "a named foreign record",
            &[Kind::Foreign as u8 | NAMED, 1, b'x', 0, 0, 5],
            b"short",
            &[],
        ),
    ];
    for (what, operations, plain, raw) in cases {
        let error = decode_error(&payload(PAGE_LOG2, operations, plain, raw));
        assert!(matches!(error, DecodeError::Malformed(_)), "{what}: {error}");
    }
}

#[test]
fn a_block_list_alone_is_a_batch_of_nothing() {
    let error = decode_error(&payload(PAGE_LOG2, &with_blocks(&[]), &[], &[]));
    assert_eq!(error, DecodeError::Malformed("a batch of nothing"));
}

#[test]
fn a_lane_has_one_block_list() {
    let list = with_blocks(&[Kind::Zero as u8, 0, 0, 1]);
    let mut decoder = decoder();
    assert!(decoder.decode(&payload(PAGE_LOG2, &list, &[], &[])).is_ok());
    let between = payload(PAGE_LOG2, &[Kind::Zero as u8, 0, 0, 1], &[], &[]);
    assert!(decoder.decode(&between).is_ok());
    let again = decoder.decode(&payload(PAGE_LOG2, &list, &[], &[]));
    assert_eq!(again.unwrap_err(), DecodeError::Malformed("a second block list"));
}

#[test]
fn what_a_batch_takes_is_bounded_by_what_it_counts_for() {
    let full = payload(PAGE_LOG2, &[Kind::Raw as u8, 0, 0, 100], &[], &[7; 409_600]);
    let small = payload(PAGE_LOG2, &[Kind::Zero as u8, 0, 0, 1], &[], &[]);
    let one = BATCH_PLAIN_BYTES_MAX / 10;
    let many = payload(
        PAGE_LOG2,
        &[&[Kind::Bytes as u8, 1, Kind::Zero as u8, 0, 0, 1][..]]
            .concat()
            .repeat(one),
        &vec![7; one],
        &[],
    );
    let mut decoder = decoder();
    // The buffer of a whole batch goes round and is not given to a small one.
    let mut buffer = Vec::with_capacity(BATCH_PLAIN_BYTES_MAX);
    for payload in [&full, &small, &small, &many] {
        decoder.recycle(std::mem::take(&mut buffer));
        let decoded = decoder.decode(payload).unwrap();
        let (takes, counts) = (decoded.memory_bytes(), decoded.charge());
        assert!(takes <= MEMORY_PART_MAX * counts as usize, "{takes} bytes for {counts}");
        buffer = Vec::with_capacity(BATCH_PLAIN_BYTES_MAX);
    }
}

#[test]
fn a_guest_larger_than_the_one_agreed_on_is_refused() {
    let blocks = payload(PAGE_LOG2, &with_blocks(&[Kind::Zero as u8, 0, 0, 1]), &[], &[]);
    let read = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("no guest here".into()));
    let mut assembled = |guest_bytes_max| {
        Assembler::new(FingerprintKey::new([7; 32]))
            .with_guest_bytes_max(guest_bytes_max)
            .apply(decoder().decode(&blocks).unwrap(), read)
            .unwrap_err()
    };
    let (bytes, max) = (16 * 4096, 16 * 4096 - 1);
    assert_eq!(assembled(max), AssembleError::TooLarge { bytes, max });
    assert_eq!(assembled(bytes), AssembleError::Block, "it goes on to the record");
}

#[test]
fn page_sizes_that_no_guest_has_are_refused() {
    for page_log2 in [0, 9, 17, 31, 63, 64, 255] {
        let error = decode_error(&payload(page_log2, &[Kind::Zero as u8, 0, 0, 1], &[], &[]));
        assert!(matches!(error, DecodeError::Malformed(_)), "{page_log2}: {error}");
    }
}

#[test]
fn truncated_payloads_are_refused() {
    let whole = payload(PAGE_LOG2, &[Kind::Raw as u8, 0, 0, 1], &[], &[7; 4096]);
    assert!(decoder().decode(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(decoder().decode(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn pages_before_the_block_list_are_refused() {
    let error = assemble(&payload(PAGE_LOG2, &[Kind::Zero as u8, 0, 0, 1], &[], &[]));
    assert_eq!(error, AssembleError::Blocks);
}

#[test]
fn a_second_block_list_is_refused() {
    let twice = with_blocks(&with_blocks(&[]));
    assert!(matches!(
        decode_error(&payload(PAGE_LOG2, &twice, &[], &[])),
        DecodeError::Malformed(_)
    ));
}

#[test]
fn pages_outside_their_block_and_references_to_such_are_refused() {
    let cases: [&[u8]; 4] = [
        &[Kind::Zero as u8, 0, 15, 2],
        &[Kind::Zero as u8, 1, 0, 1],
        &[Kind::Copy as u8 | NAMED, 3, b'r', b'a', b'm', 0, 0, 1, 0, 16],
        &[Kind::Copy as u8 | NAMED, 3, b'r', b'a', b'm', 0, 0, 1, 7, 0],
    ];
    for operations in cases {
        let error = assemble(&payload(PAGE_LOG2, &with_blocks(operations), &[], &[]));
        assert!(
            matches!(error, AssembleError::NoSuchPage { .. }),
            "{operations:?}: {error}"
        );
    }
}

#[test]
fn a_page_for_another_block_than_its_record_names_is_refused() {
    for operations in [
        &[Kind::Zero as u8 | NAMED, 3, b'r', b'o', b'm', 0, 0, 1][..],
        // The first record of a stream has to name its block.
        &[Kind::Zero as u8, 0, 0, 1],
    ] {
        let error = assemble(&payload(PAGE_LOG2, &with_blocks(operations), &[], &[]));
        assert_eq!(error, AssembleError::Block, "{operations:?}");
    }
}

#[test]
fn block_lists_that_no_guest_has_are_refused() {
    let twice = [&[Kind::Blocks as u8, 2][..], b"\x03ram\x00", b"\x03ram\x00"].concat();
    for (page_log2, operations) in [(PAGE_LOG2, twice), (0, with_blocks(&[Kind::Zero as u8, 0, 0, 1]))] {
        let error = decode_error(&payload(page_log2, &operations, &[], &[]));
        assert!(matches!(error, DecodeError::Malformed(_)), "{error}");
    }
}

#[test]
fn raw_pages_and_bytes_together_are_held_to_the_bound() {
    let pages = BATCH_PLAIN_BYTES_MAX / 4200;
    let bytes = vec![7; 100_000];
    let mut operations = vec![Kind::Raw as u8, 0, 0, pages as u8 | 0x80, (pages >> 7) as u8];
    operations.extend([Kind::Bytes as u8, 0xa0, 0x8d, 0x06]);
    let error = decode_error(&payload(PAGE_LOG2, &operations, &bytes, &vec![1; pages * 4096]));
    assert_eq!(error, DecodeError::TooLarge);
}

#[test]
fn differences_that_fit_no_page_are_refused() {
    let named = [Kind::Delta as u8 | NAMED, 3, b'r', b'a', b'm', 0, 3, 1];
    // Lines are said to be two, and are one; or are said not at all.
    let two = [&named[..], &[2]].concat();
    let section = [&1u128.to_be_bytes()[..], &[7; 32]].concat();
    let error = decode_error(&payload(PAGE_LOG2, &with_blocks(&two), &section, &[]));
    assert!(matches!(error, DecodeError::Malformed(_)), "{error}");
    let error = decode_error(&payload(PAGE_LOG2, &with_blocks(&named), &[], &[]));
    assert!(matches!(error, DecodeError::Malformed(_)), "{error}");
    // No line is no difference, and a page has 128.
    for (lines, bytes) in [(0, 16), (129, 16 + 129 * 32)] {
        let said = with_blocks(&[&named[..], &[lines]].concat());
        let error = decode_error(&payload(PAGE_LOG2, &said, &vec![7; bytes], &[]));
        assert!(matches!(error, DecodeError::Malformed(_)), "{lines}: {error}");
    }
    // The bits say three lines, the bytes are of one. Its base is looked for first: sent as a zero page, it is read.
    let one = [&named[..], &[1]].concat();
    let section = [&7u128.to_be_bytes()[..], &[7; 32]].concat();
    let decoded = decoder()
        .decode(&payload(PAGE_LOG2, &with_blocks(&one), &section, &[]))
        .unwrap();
    let mut assembler = Assembler::new(FingerprintKey::new([7; 32]));
    let read = &mut |_: BlockId, _: u64, _: &mut [u8]| Ok(());
    assert_eq!(assembler.apply(decoded, read).unwrap_err(), AssembleError::Delta);
}

#[test]
fn a_reference_to_what_was_never_sent_is_read_and_refused() {
    let never_sent = with_blocks(&[Kind::Same as u8 | NAMED, 3, b'r', b'a', b'm', 0, 3, 1]);
    assert!(matches!(
        assemble(&payload(PAGE_LOG2, &never_sent, &[], &[])),
        AssembleError::Read(_)
    ));
}

#[test]
fn content_that_the_digest_does_not_cover_is_refused() {
    let forged = with_blocks(&[Kind::Raw as u8 | NAMED, 3, b'r', b'a', b'm', 0, 3, 1]);
    let error = assemble(&payload(PAGE_LOG2, &forged, &[], &[7; 4096]));
    assert!(matches!(error, AssembleError::Differs { .. }));
}

#[test]
fn the_largest_batch_fits_its_frame() {
    // All raw, and the longest description that a stream can cause: a record without content for every 9 bytes.
    let operations_bytes = BATCH_PLAIN_BYTES_MAX / 9 * 16;
    assert!(operations_bytes <= DATA_FRAME_BYTES_MAX, "{operations_bytes}");
}
