//! Arbitrary payloads of data frames: refused or assembled, but never a panic, and never more than a batch may be.
//!
//! All coders are there; each payload names its own. Each payload follows its length (u16, big-endian).
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::{
    limits::BATCH_PLAIN_BYTES_MAX,
    page::{Assembler, Codec, CodecSettings, Coders, Decoder, FingerprintKey},
    qemu::BlockId,
};
use vmferry_fuzz::within;

fuzz_target!(|input: &[u8]| within(64 << 20, || check(input)));

fn check(input: &[u8]) {
    let mut payloads = input;
    let mut coders = Vec::from(Coders::auto());
    coders.push(CodecSettings {
        codec: Codec::Lz78,
        ..CodecSettings::default()
    });
    let coders = Coders::new(coders).expect("the coders of a choice and one more are in range");
    let key = FingerprintKey::new([0; 32]);
    let mut decoder = Decoder::new(key.clone(), coders);
    let mut assembler = Assembler::new(key);
    while let Some((length, rest)) = payloads.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        payloads = rest;
        let Ok(mut decoded) = decoder.decode(payload) else {
            return;
        };
        let mut missing = Vec::new();
        for span in decoded.spans() {
            let blocks = vec![1; span.blocks() * 4096];
            missing.extend(decoder.fill(&mut decoded, &span, &blocks));
        }
        if decoder
            .supply(&mut decoded, &missing, &vec![2; missing.len() * 4096])
            .is_err()
        {
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
}
