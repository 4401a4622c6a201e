//! Whole streams through the page pipeline, from QEMU's bytes to QEMU's bytes: several lanes, batches decoded out of
//! order, every kind of record and reference, and payloads that were tampered with.

mod known_content;
mod session;
mod stream;

use proptest::prelude::*;
use session::{Memory, OF_ALL, Session, Source, catalog, coders, key, only};
use stream::{Content, Record, batches, page, records, stream};
use vmferry_core::{
    page::{Assembler, BatchBuilder, Catalog, Codec, Decoder, FingerprintKey, RING_BATCHES, Reach, ReadError},
    qemu::BlockId,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_stream_arrives_as_it_was(
        records in records(),
        reads in prop::collection::vec(1usize..200_000, 1..5),
        batch_bytes in 1000usize..300_000,
        coders in coders(),
        lanes in 1usize..4,
        reach in prop_oneof![3 => Just(Reach::All), 1 => Just(Reach::Batches(0)), 1 => Just(Reach::Batches(RING_BATCHES))],
        versions in prop_oneof![Just(0), Just(5), Just(OF_ALL)],
        with_disk: bool,
    ) {
        let catalog = if with_disk { catalog() } else { Catalog::default() };
        Session { catalog, reads, batch_bytes, coders, lanes, reach, versions }.carry(&stream(&records));
    }

    #[test]
    fn any_bytes_arrive_as_they_were(bytes in prop::collection::vec(any::<u8>(), 0..20_000), batch_bytes in 1usize..3000) {
        Session { reads: vec![777], batch_bytes, ..Session::default() }.carry(&bytes);
    }

    #[test]
    fn a_changed_payload_is_an_error_and_never_another_stream(
        records in records(),
        coders in coders(),
        position in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let batches = batches(&stream(&records), &[50_000], 60_000);
        let mut source = Source::new(Reach::All, OF_ALL, coders.clone(), 1);
        let mut payloads: Vec<_> = batches.iter().map(|batch| source.payload(batch)).collect();
        let mut target = position.index(payloads.iter().map(Vec::len).sum());
        for payload in &mut payloads {
            if target < payload.len() {
                payload[target] ^= flip;
                break;
            }
            target -= payload.len();
        }
        let mut decoder = Decoder::new(key(), coders);
        let mut assembler = Assembler::new(key());
        let mut memory = Memory::default();
        for (batch, payload) in batches.iter().zip(&payloads) {
            let Ok(decoded) = decoder.decode(payload) else { break };
            let read = &mut |block, offset, to: &mut [u8]| memory.read(block, offset, to);
            let Ok(done) = assembler.apply(decoded, read) else { break };
            prop_assert!(done.stream() == batch.stream(), "a changed payload gave another stream");
            memory.written(done);
        }
    }
}

/// As many distinct pages as push everything before them out of the target's ring.
fn filler() -> Vec<Record> {
    (0..2400)
        .map(|number: u64| page(number % 200 + 50, Content::Random((number % 250) as u8)))
        .collect()
}

#[test]
fn every_encoding_is_used_where_it_should_be() {
    let records = [
        page(0, Content::Text(1)),
        page(1, Content::Random(1)),
        page(2, Content::Text(1)),
        page(3, Content::Random(1)),
        page(0, Content::Text(1)),
        Record::Zero {
            block: 1,
            page: 0,
            run: 16,
        },
        Record::Xbzrle {
            block: 0,
            page: 2,
            delta: vec![1, 2, 3],
        },
        page(4, Content::Text(1)),
        page(5, Content::Edited(1, 1)),
        page(5, Content::Edited(1, 2)),
        page(5, Content::Edited(1, 3)),
        page(5, Content::Edited(1, 4)),
    ];
    let stats = Session {
        reads: vec![4096],
        lanes: 1,
        ..Session::default()
    }
    .carry(&stream(&records));
    let tallies = [
        stats.zero,
        stats.same,
        stats.copy,
        stats.delta,
        stats.lz,
        stats.raw,
        stats.foreign,
    ];
    assert_eq!(tallies.map(|tally| tally.pages), [16, 1, 3, 3, 1, 2, 1]);
    assert!(
        stats.lz.wire_bytes < 400
            && stats.copy.wire_bytes < 40
            && stats.delta.wire_bytes < 300
            && stats.zero.wire_bytes < 40,
        "{stats:?}"
    );
}

#[test]
fn a_page_sent_long_ago_is_the_base_of_its_difference() {
    let edited = |version| page(0, Content::Edited(200, version));
    let mut records = vec![edited(1), edited(2)];
    records.extend(filler());
    records.extend([edited(3), Record::NextSection, edited(4)]);
    let stats = Session::default().carry(&stream(&records));
    assert_eq!(stats.delta.pages, 3, "{stats:?}");
    let unreachable = Reach::Batches(RING_BATCHES);
    let stats = Session {
        reach: unreachable,
        ..Session::default()
    }
    .carry(&stream(&records));
    assert_eq!(stats.delta.pages, 0, "{stats:?}");
}

#[test]
fn pages_sent_long_ago_are_read_from_the_guests_memory() {
    let mut records = vec![page(0, Content::Text(200))];
    records.extend(filler());
    records.push(page(1, Content::Text(200)));
    records.push(page(0, Content::Text(200)));
    let stats = Session::default().carry(&stream(&records));
    assert_eq!(stats.lz.pages, 1);
}

#[test]
fn a_target_that_cannot_read_its_guest_is_sent_old_pages_again() {
    let mut records = vec![page(0, Content::Text(200))];
    records.extend(filler());
    records.push(page(1, Content::Text(200)));
    records.push(page(0, Content::Text(200)));
    let stats = Session {
        reach: Reach::Batches(RING_BATCHES),
        ..Session::default()
    }
    .carry(&stream(&records));
    assert_eq!(
        stats.lz.pages, 2,
        "once at first, once after the filler; the last is a copy of that"
    );
}

#[test]
fn a_page_overwritten_by_zeros_or_a_foreign_record_is_not_referred_to() {
    let text = |number| page(number, Content::Text(9));
    let overwrites = [
        Record::Zero {
            block: 0,
            page: 5,
            run: 1,
        },
        Record::Xbzrle {
            block: 0,
            page: 5,
            delta: vec![0, 1, 9],
        },
        page(5, Content::Text(10)),
    ];
    for overwrite in overwrites {
        let before = if matches!(overwrite, Record::Page { .. }) { 3 } else { 2 };
        let stats = Session {
            reads: vec![4096],
            coders: only(Codec::Lz4),
            lanes: 1,
            ..Session::default()
        }
        .carry(&stream(&[text(5), overwrite, text(6)]));
        assert_eq!((stats.lz.pages, stats.copy.pages), (before, 0));
    }
}

#[test]
fn a_batch_out_of_order_or_twice_is_refused() {
    let batches = batches(&stream(&filler()), &[65536], 1 << 19);
    let mut source = Source::new(Reach::All, OF_ALL, only(Codec::Zstd), 1);
    let payloads: Vec<_> = batches.iter().map(|batch| source.payload(batch)).collect();
    let mut decoder = Decoder::new(key(), only(Codec::Zstd));
    let mut assembler = Assembler::new(key());
    let first = decoder.decode(&payloads[0]).unwrap();
    let second = decoder.decode(&payloads[1]).unwrap();
    let never = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("not here".into()));
    assert!(assembler.apply(second, never).is_err());
    assert!(assembler.apply(first, never).is_ok());
    let again = Decoder::new(key(), only(Codec::Zstd)).decode(&payloads[0]).unwrap();
    assert!(assembler.apply(again, never).is_err());
}

#[test]
fn a_session_with_another_key_is_refused() {
    let batches = batches(&stream(&filler()[..20]), &[65536], 1 << 19);
    let payload = Source::new(Reach::All, OF_ALL, only(Codec::Zstd), 1).payload(&batches[0]);
    let other = FingerprintKey::new([8; 32]);
    let decoded = Decoder::new(other.clone(), only(Codec::Zstd)).decode(&payload).unwrap();
    let never = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("not here".into()));
    assert!(Assembler::new(other).apply(decoded, never).is_err());
}

#[test]
fn buffers_go_round_without_leaking_into_the_next_batch() {
    let stream = stream(&filler()[..400]);
    let mut builder = BatchBuilder::new();
    let (mut rest, mut out, mut pool) = (&stream[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let bytes = rest.len().min(100_003).min(builder.spare().len());
        builder.spare()[..bytes].copy_from_slice(&rest[..bytes]);
        builder.filled(bytes);
        rest = &rest[bytes..];
        if let Some(batch) = builder.cut(0, 0, pool.pop().unwrap_or_default()) {
            out.extend_from_slice(batch.stream());
            pool.push(batch.into_buffer());
        }
    }
    assert_eq!(pool.len(), 1);
    assert!(out == stream);
}
