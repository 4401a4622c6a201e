//! Arbitrary frames on the lanes of a session, as its target takes them: in any order, of any kind, also such batches as no fuzzer
//! would put together. Whatever comes is refused or bounded, in bytes and in number.
//!
//! Each frame is a byte that says of what kind it is, on which lane, and how often it comes, a byte for the batch's number, and a
//! payload behind its length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::{
    limits::{BATCH_PLAIN_BYTES_MAX, LANE_BATCHES_MAX, LANE_CREDIT_BYTES_MAX},
    page::{Assembler, Coders, Decoded, Decoder, FingerprintKey, MEMORY_PART_MAX, Span, content::BLOCK_BYTES, payload},
    qemu::BlockId,
    session::{LaneError, Next, Reorder, TargetLane, Whole},
};
use vmferry_fuzz::within;

const LANES: usize = 2;
const CHARGE_MAX: u64 = LANE_CREDIT_BYTES_MAX + BATCH_PLAIN_BYTES_MAX as u64;

/// Batches that one frame of the input stands for, at the most; halved as often as it says.
const IN_A_ROW_MAX: u64 = 128;

struct Session {
    lanes: [TargetLane<usize>; LANES],
    reorder: Reorder<Decoded>,
    assembler: Assembler,
}

fuzz_target!(|input: &[u8]| within(256 << 20, || check(input)));

fn check(input: &[u8]) {
    let mut frames = input;
    let key = FingerprintKey::new([0; 32]);
    let mut session = Session {
        lanes: std::array::from_fn(|_| TargetLane::new(Decoder::new(key.clone(), Coders::auto()))),
        reorder: Reorder::new(LANES),
        assembler: Assembler::new(key).with_guest_bytes_max(1 << 30),
    };
    while let Some(([what, seq, length], rest)) = frames.split_first_chunk() {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        frames = rest;
        // Often many in a row, which is how memory is filled.
        for again in 0..(IN_A_ROW_MAX >> (what >> 4)).max(1) {
            if session
                .frame(*what, u64::from(*seq) * IN_A_ROW_MAX + again, payload)
                .is_none()
            {
                return;
            }
        }
    }
}

impl Session {
    /// Takes a frame; `None` if that ends the session.
    fn frame(&mut self, what: u8, seq: u64, payload: &[u8]) -> Option<()> {
        let number = usize::from(what & 1);
        let lane = &mut self.lanes[number];
        let numbered = [&seq.to_be_bytes(), payload].concat();
        // Every second content source can be read, and each holds its number.
        let find = |decoder: &Decoder, decoded: &mut Decoded| {
            let spans = decoded.spans();
            let missing = |span: &Span| match span.source() % 2 {
                0 => decoder.fill(decoded, span, &vec![span.source() as u8; span.blocks() * BLOCK_BYTES]),
                _ => span.pages(),
            };
            spans.iter().flat_map(missing).collect()
        };
        let next = match what >> 1 & 7 {
            0 => lane.data(payload, find, || number),
            1 => lane.data(&numbered, find, || number),
            2 => lane.data(&batch(seq, payload, &[]), find, || number),
            3 => lane.data(&batch(seq, &referring(payload), &[]), find, || number),
            4 => lane.data(
                &batch(seq, &[payload::Kind::Raw as u8, 0, 0, 1], &[7; BLOCK_BYTES]),
                find,
                || number,
            ),
            5 => lane.supply(payload).map(Next::Complete),
            6 => lane.supply(&numbered).map(Next::Complete),
            _ => lane
                .supply(&[&seq.to_be_bytes()[..], &[0], &[7; BLOCK_BYTES]].concat())
                .map(Next::Complete),
        };
        self.heard(number, next)
    }

    fn heard(&mut self, lane: usize, next: Result<Next<usize>, LaneError>) -> Option<()> {
        match next.ok()? {
            Next::Ask(ask) => assert!(!ask.pages.is_empty()),
            Next::Complete(Whole { decoded, note, .. }) => {
                assert_eq!(note, lane);
                let charge = decoded.charge();
                let memory_bytes = decoded.memory_bytes();
                // The one block list that a lane has is beside.
                assert!(memory_bytes as u64 <= MEMORY_PART_MAX as u64 * charge + (1 << 20));
                self.reorder.put(decoded.seq(), charge, decoded).ok()?;
            }
        }
        assert!(self.lanes.iter().all(|lane| lane.charged() <= CHARGE_MAX));
        assert!(self.reorder.charged() <= LANES as u64 * CHARGE_MAX);
        assert!(self.reorder.len() as u64 <= LANES as u64 * (LANE_BATCHES_MAX + 1));
        while let Some(decoded) = self.reorder.take() {
            let memory = &mut |_: BlockId, _: u64, page: &mut [u8]| {
                page.fill(1);
                Ok(())
            };
            let batch = self.assembler.apply(decoded, memory).ok()?;
            assert!((1..=BATCH_PLAIN_BYTES_MAX).contains(&batch.stream().len()));
        }
        Some(())
    }
}

/// A batch of pages of 4 KiB with these operations and raw pages.
fn batch(seq: u64, operations: &[u8], raw: &[u8]) -> Vec<u8> {
    let mut payload = [&seq.to_be_bytes()[..], &[0; 28], &[12, 0]].concat();
    for length in [operations.len() as u32, 0, 0] {
        payload.extend(length.to_be_bytes());
    }
    [&payload, operations, raw].concat()
}

/// A page of known content for each byte, which says in which.
fn referring(sources: &[u8]) -> Vec<u8> {
    let page = |source: &u8| {
        [
            &[payload::Kind::Content as u8, 0, 0, 1, source % 64, 5][..],
            &[*source; 16],
        ]
        .concat()
    };
    sources.iter().flat_map(page).collect()
}
