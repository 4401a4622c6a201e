//! Arbitrary payloads of data frames: refused or assembled, but never a panic, and never more than a batch may be.
//!
//! The first byte chooses the coder, then each payload follows its length (u16, big-endian).
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::{
    limits::BATCH_PLAIN_BYTES_MAX,
    page::{Assembler, Codec, CodecSettings, Decoder, FingerprintKey},
    qemu::BlockId,
};

fuzz_target!(|input: &[u8]| {
    let Some((codec, mut payloads)) = input.split_first() else {
        return;
    };
    let codec = match codec % 3 {
        0 => Codec::Zstd,
        1 => Codec::Lz4,
        _ => Codec::Lz78,
    };
    let settings = CodecSettings {
        codec,
        ..CodecSettings::default()
    };
    let key = FingerprintKey::new([0; 32]);
    let mut decoder = Decoder::new(key.clone(), &settings).expect("default settings are in range");
    let mut assembler = Assembler::new(key);
    while let Some((length, rest)) = payloads.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        payloads = rest;
        let Ok(mut decoded) = decoder.decode(payload) else {
            return;
        };
        let missing = decoder.find(&mut decoded, &mut |_, _, blocks| {
            blocks.fill(1);
            true
        });
        if decoder.supply(&mut decoded, &missing, &vec![2; missing.len() * 4096]).is_err() {
            return;
        }
        let memory = &mut |_: BlockId, _: u64, page: &mut [u8]| {
            page.fill(1);
            Ok(())
        };
        let Ok(batch) = assembler.apply(decoded, memory) else {
            return;
        };
        assert!(batch.stream().len() <= BATCH_PLAIN_BYTES_MAX);
    }
});
