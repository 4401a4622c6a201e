//! One coder over one stream, through the shipped pipeline, in memory.

use crate::pages::Subject;
use rustix::time::{ClockId, clock_gettime};
use std::{collections::HashMap, error::Error, time::Duration};
use vmferry_core::{
    page::{
        Assembler, Batch, BatchBuilder, Coders, Decoder, Encoders, EncodingStats, FingerprintKey, Known, Op, Reach,
        ReadError, RunningDigest, choice::Cost, encode,
    },
    qemu::BlockId,
};

/// All pages stay referable.
const VERSIONS_BYTES_MAX: usize = 1 << 30;

/// What was measured of a coder.
pub(crate) struct Measured {
    pub(crate) cost: Cost,
    /// The part of QEMU's stream that had to be coded.
    pub(crate) content: f64,
    /// Everything else of the source and of the target, per byte of QEMU's stream.
    pub(crate) source_ns_per_byte: f64,
    pub(crate) target_ns_per_byte: f64,
}

/// The fastest of so many runs, each figure for itself.
pub(crate) fn measure(subject: &Subject, coder: u8, runs: usize) -> Result<Measured, Box<dyn Error>> {
    let mut best = run(subject, coder)?;
    for _ in 1..runs {
        let next = run(subject, coder)?;
        best.cost.encode_ns_per_byte = best.cost.encode_ns_per_byte.min(next.cost.encode_ns_per_byte);
        best.cost.decode_ns_per_byte = best.cost.decode_ns_per_byte.min(next.cost.decode_ns_per_byte);
        best.source_ns_per_byte = best.source_ns_per_byte.min(next.source_ns_per_byte);
        best.target_ns_per_byte = best.target_ns_per_byte.min(next.target_ns_per_byte);
    }
    Ok(best)
}

/// Adds the processor time that `work` takes to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = processor_time();
    let result = work();
    *total += processor_time() - start;
    result
}

/// What this thread has had: others on the machine don't count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn run(subject: &Subject, coder: u8) -> Result<Measured, Box<dyn Error>> {
    let key = FingerprintKey::new([7; 32]);
    let mut builder = BatchBuilder::new();
    let mut known = Known::new(Reach::All, VERSIONS_BYTES_MAX);
    let mut digest = RunningDigest::new(&key);
    let mut encoders = Encoders::new(Coders::auto());
    let mut decoder = Decoder::new(key.clone(), Coders::auto());
    let mut assembler = Assembler::new(key.clone());
    let mut memory: HashMap<(BlockId, u64), Vec<u8>> = HashMap::new();
    let (mut source, mut target, mut encoding, mut decoding) = Default::default();
    let (mut content_bytes, mut wire_bytes, mut stream_bytes) = (0, 0, 0);
    let (mut given, mut seq, mut payload, mut buffer) = (0, 0, Vec::new(), Vec::new());
    while given < subject.stream.len() {
        let spare = builder.spare();
        let bytes = spare.len().min(subject.stream.len() - given);
        spare[..bytes].copy_from_slice(&subject.stream[given..given + bytes]);
        given += bytes;
        timed(&mut source, || builder.filled(bytes));
        if given == subject.stream.len() {
            builder.end();
        }
        let Some(batch) = builder.cut(seq, 0, std::mem::take(&mut buffer)) else {
            continue;
        };
        seq += 1;
        let (classes, after) = timed(&mut source, || {
            let fingerprints = key.pages(&batch);
            let batch_digest = key.batch(&batch, &fingerprints);
            (
                known.classify(&batch, &fingerprints, &key.lines(&batch)),
                digest.extend(batch.stream().len(), batch_digest),
            )
        });
        payload.clear();
        let coded = timed(&mut encoding, || {
            let stats = &mut EncodingStats::default();
            encode(&batch, &classes, after, &mut encoders, coder, &mut payload, stats)
        })?;
        // What only prepares does not count.
        if given > subject.skip {
            content_bytes += coded.content_bytes;
            wire_bytes += coded.wire_bytes;
            stream_bytes += batch.stream().len() as u64;
        } else {
            (source, target, encoding, decoding) = Default::default();
        }
        buffer = batch.into_buffer();
        if let Some(spent) = assembler.spent() {
            decoder.recycle(spent);
        }
        let decoded = timed(&mut decoding, || decoder.decode(&payload))?;
        let read = &mut |block, offset, to: &mut [u8]| match memory.get(&(block, offset)) {
            Some(page) => {
                to.copy_from_slice(page);
                Ok(())
            }
            None => Err(ReadError("page never written".into())),
        };
        let built = timed(&mut target, || assembler.apply(decoded, read))?;
        load(&mut memory, &built);
    }
    let per = |time: Duration, bytes: u64| time.as_nanos() as f64 / (bytes as f64).max(1.0);
    Ok(Measured {
        cost: Cost {
            encode_ns_per_byte: per(encoding, content_bytes),
            decode_ns_per_byte: per(decoding, content_bytes),
            ratio: wire_bytes as f64 / (content_bytes as f64).max(1.0),
        },
        content: content_bytes as f64 / (stream_bytes as f64).max(1.0),
        source_ns_per_byte: per(source, stream_bytes),
        target_ns_per_byte: per(target, stream_bytes),
    })
}

fn load(memory: &mut HashMap<(BlockId, u64), Vec<u8>>, batch: &Batch) {
    for op in batch.ops() {
        if let Op::Page { at, start, .. } = op {
            memory.insert((at.block, at.offset), batch.page(*start).to_vec());
        }
    }
}
