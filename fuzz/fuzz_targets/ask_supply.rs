//! Any question of a target is answered with pages of the batch that it names, or is none; any answer of a source is the pages that
//! were asked for, or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use vmferry_core::page::{Ask, Batch, BatchBuilder, ask};
use vmferry_fuzz::within;

const PAGE_BYTES: usize = 4096;
const PAGES: u8 = 5;

/// A batch of pages, each full of its number.
static BATCH: LazyLock<Batch> = LazyLock::new(|| {
    let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    stream.extend((u64::from(PAGES) * PAGE_BYTES as u64 | 0x04).to_be_bytes());
    stream.extend(b"\x01a");
    stream.extend((u64::from(PAGES) * PAGE_BYTES as u64).to_be_bytes());
    stream.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x02\0\0\0\x02");
    for page in 0..PAGES {
        let named = page == 0;
        let flags = if named { 0x08 } else { 0x28 };
        stream.extend((u64::from(page) * PAGE_BYTES as u64 | flags).to_be_bytes());
        stream.extend(if named { &b"\x01a"[..] } else { &[] });
        stream.extend([page; PAGE_BYTES]);
    }
    let mut builder = BatchBuilder::new();
    builder.spare()[..stream.len()].copy_from_slice(&stream);
    builder.filled(stream.len());
    builder.cut(0, 1, Vec::new()).expect("there is something to cut")
});

fuzz_target!(|data: &[u8]| within(4 << 20, || check(data)));

fn check(data: &[u8]) {
    let Some((way, payload)) = data.split_first() else {
        return;
    };
    match way % 3 {
        0 => question(payload),
        // Of this batch, which no fuzzer finds at once.
        1 => question(&[&0u64.to_be_bytes(), payload].concat()),
        _ => answer(payload),
    }
}

fn question(payload: &[u8]) {
    let Some(asked) = Ask::decode(payload) else {
        return;
    };
    assert_eq!(asked.encode(), payload);
    let Some(answer) = asked.answer(&BATCH) else {
        let is_of_batch = asked.seq == 0 && asked.pages.len() <= usize::from(PAGES);
        assert!(!is_of_batch || asked.pages.iter().any(|page| *page >= u16::from(PAGES)));
        return;
    };
    let supply = answer.expect("LZ4 takes anything");
    let (seq, contents) = ask::batch_of(&supply).expect("it is an answer");
    let contents = ask::contents(contents, asked.pages.len() * PAGE_BYTES).expect("it is LZ4");
    assert_eq!(seq, 0);
    for (page, content) in asked.pages.iter().zip(contents.chunks(PAGE_BYTES)) {
        assert!(content.iter().all(|byte| u16::from(*byte) == *page));
    }
}

fn answer(payload: &[u8]) {
    let Some((seq, contents)) = ask::batch_of(payload) else {
        assert!(payload.len() < 8);
        return;
    };
    let pages = seq as usize % 8;
    if let Ok(contents) = ask::contents(contents, pages * PAGE_BYTES) {
        assert_eq!(contents.len(), pages * PAGE_BYTES);
    }
}
