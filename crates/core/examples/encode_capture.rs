//! Takes a captured migration stream through the page pipeline in memory, checks that it comes out as it went in, and
//! prints what each encoding carried and what it cost.
//!
//! ```text
//! capture:  (QMP) migrate uri=exec:cat>capture.bin
//! run:      cargo run --release -p vmferry-core --example encode_capture -- capture.bin [codec [level window_log]]...
//! ```
//!
//! With no settings given it compares several. Lanes run one after the other, so that times are processor time of one core.

#![expect(
    clippy::disallowed_methods,
    reason = "it reads a file and measures; only the library must not"
)]

use std::{
    collections::HashMap,
    error::Error,
    time::{Duration, Instant},
};
use vmferry_core::{
    page::{
        Assembler, Batch, BatchBuilder, Codec, CodecSettings, Coders, Decoder, Encoders, EncodingStats, FingerprintKey,
        Known, Op, Reach, ReadError, RunningDigest, encode,
    },
    qemu::{BlockId, Item, Parser},
};

const LANES: usize = 2;
/// What a guest of 1 GiB has by default.
const VERSIONS_BYTES_MAX: usize = 128 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: encode_capture CAPTURE [CODEC [LEVEL WINDOW_LOG]]...")?;
    let stream = std::fs::read(path)?;
    let chosen = settings(&arguments.collect::<Vec<_>>())?;
    println!("{} bytes of stream, {LANES} lanes", stream.len());
    println!(
        "{:<20} {:>10} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "codec", "wire", "ratio", "parse s", "hash s", "turn s", "encode s", "decode s", "build s"
    );
    let baseline = multifd_zstd(&stream)?;
    println!(
        "{:<20} {:>10} {:>6.3} {:>8} {:>8} {:>8} {:>8.3} {:>8.3} {:>8}",
        "like multifd-zstd-1",
        baseline.wire_bytes,
        stream.len() as f64 / baseline.wire_bytes as f64,
        "",
        "",
        "",
        baseline.encode.as_secs_f64(),
        baseline.decode.as_secs_f64(),
        ""
    );
    let mut stats = EncodingStats::default();
    for settings in chosen {
        let run = ferry(&stream, &settings)?;
        let ratio = stream.len() as f64 / run.stats.wire_bytes() as f64;
        print!("{settings:<20} {:>10} {ratio:>6.3}", run.stats.wire_bytes());
        for time in [run.parse, run.hash, run.turn, run.encode, run.decode, run.build] {
            print!(" {:>8.3}", time.as_secs_f64());
        }
        println!();
        stats = run.stats;
    }
    println!("{}", serde_json::to_string_pretty(&stats)?);
    Ok(())
}

/// `codec` or `codec level window_log`, any number of times.
fn settings(arguments: &[String]) -> Result<Vec<CodecSettings>, Box<dyn Error>> {
    let mut chosen = Vec::new();
    let mut rest = arguments;
    while let Some((codec, behind)) = rest.split_first() {
        rest = behind;
        let mut settings = CodecSettings {
            codec: serde_json::from_value(codec.as_str().into())?,
            ..Default::default()
        };
        if let [level, window_log, behind @ ..] = rest
            && let Ok(level) = level.parse()
        {
            settings = CodecSettings {
                level,
                window_log: window_log.parse()?,
                ..settings
            };
            rest = behind;
        }
        chosen.push(settings);
    }
    if chosen.is_empty() {
        chosen = [Codec::Raw, Codec::Lz78, Codec::Lz4, Codec::Zstd]
            .map(|codec| CodecSettings {
                codec,
                ..Default::default()
            })
            .into();
    }
    Ok(chosen)
}

#[derive(Default)]
struct Run {
    stats: EncodingStats,
    parse: Duration,
    hash: Duration,
    turn: Duration,
    encode: Duration,
    decode: Duration,
    build: Duration,
}

/// Adds what `work` takes to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}

fn ferry(stream: &[u8], settings: &CodecSettings) -> Result<Run, Box<dyn Error>> {
    let key = FingerprintKey::new([7; 32]);
    let mut run = Run::default();
    let mut builder = BatchBuilder::new();
    let mut known = Known::new(Reach::All, VERSIONS_BYTES_MAX);
    let mut digest = RunningDigest::new(&key);
    let coders = Coders::new(vec![*settings])?;
    let mut encoders: Vec<_> = (0..LANES).map(|_| Encoders::new(coders.clone())).collect();
    let mut decoders: Vec<_> = (0..LANES).map(|_| Decoder::new(key.clone(), coders.clone())).collect();
    let mut assembler = Assembler::new(key.clone());
    let mut memory = Memory::default();
    let (mut given, mut got, mut seq) = (0, 0, 0u64);
    let mut buffer = Vec::new();
    let mut payload = Vec::new();
    while given < stream.len() {
        let spare = builder.spare();
        let bytes = spare.len().min(stream.len() - given);
        spare[..bytes].copy_from_slice(&stream[given..given + bytes]);
        given += bytes;
        timed(&mut run.parse, || builder.filled(bytes));
        if given == stream.len() {
            builder.end();
        }
        let Some(batch) = builder.cut(seq, 0, std::mem::take(&mut buffer)) else {
            continue;
        };
        let lane = seq as usize % LANES;
        seq += 1;

        let (fingerprints, lines) = timed(&mut run.hash, || (key.pages(&batch), key.lines(&batch)));
        let (classes, after) = timed(&mut run.turn, || {
            (
                known.classify(&batch, &fingerprints, &lines),
                digest.extend(batch.stream().len(), key.batch(&batch, &fingerprints)),
            )
        });
        payload.clear();
        timed(&mut run.encode, || {
            encode(
                &batch,
                &classes,
                after,
                &mut encoders[lane],
                0,
                &mut payload,
                &mut run.stats,
            )
        })?;
        buffer = batch.into_buffer();

        if let Some(spent) = assembler.spent() {
            decoders[lane].recycle(spent);
        }
        let decoded = timed(&mut run.decode, || decoders[lane].decode(&payload))?;
        let mut read = |block, offset, to: &mut [u8]| memory.read(block, offset, to);
        let built = timed(&mut run.build, || assembler.apply(decoded, &mut read))?;
        let bytes = built.stream();
        if stream.get(got..got + bytes.len()) != Some(bytes) {
            return Err(format!("batch {} came out changed", built.seq).into());
        }
        got += bytes.len();
        memory.load(&built);
    }
    if got != stream.len() {
        return Err("the stream came out cut short".into());
    }
    Ok(run)
}

struct Baseline {
    wire_bytes: u64,
    encode: Duration,
    decode: Duration,
}

/// What QEMU's multifd does with zstd at level 1: all pages but zero ones, 128 at a time, through a stream per channel with
/// a window of 512 KiB. Its packet headers (1344 bytes each) are counted.
fn multifd_zstd(stream: &[u8]) -> Result<Baseline, Box<dyn Error>> {
    const PACKET_BYTES: usize = 128 * 4096;
    const HEADER_BYTES: usize = 1344;
    let settings = CodecSettings {
        window_log: 19,
        ..CodecSettings::default()
    };
    let mut baseline = Baseline {
        wire_bytes: 0,
        encode: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let mut channels = Vec::new();
    for _ in 0..LANES {
        channels.push((settings.encoder()?, settings.decoder()?));
    }
    let (mut coded, mut back) = (Vec::new(), Vec::new());
    for (index, packet) in pages(stream).chunks(PACKET_BYTES).enumerate() {
        let (encoder, decoder) = &mut channels[index % LANES];
        coded.clear();
        back.resize(packet.len(), 0);
        timed(&mut baseline.encode, || encoder.encode(&[packet], &mut coded))?;
        timed(&mut baseline.decode, || decoder.decode(&coded, &mut [&mut back[..]]))?;
        baseline.wire_bytes += (HEADER_BYTES + coded.len()) as u64;
    }
    Ok(baseline)
}

/// The content of all PAGE records, joined.
fn pages(stream: &[u8]) -> Vec<u8> {
    let mut parser = Parser::new();
    let mut pages = Vec::new();
    let mut rest = stream;
    while let Some((bytes, item)) = parser.next(rest) {
        if let Item::Page(_, content) = item {
            pages.extend_from_slice(content);
        }
        rest = &rest[bytes..];
    }
    pages
}

/// The target guest's memory.
#[derive(Default)]
struct Memory {
    pages: HashMap<(BlockId, u64), Vec<u8>>,
}

impl Memory {
    fn load(&mut self, batch: &Batch) {
        for op in batch.ops() {
            if let Op::Page { at, start, .. } = op {
                let page = self.pages.entry((at.block, at.offset)).or_default();
                page.clear();
                page.extend_from_slice(batch.page(*start));
            }
        }
    }

    fn read(&self, block: BlockId, offset: u64, to: &mut [u8]) -> Result<(), ReadError> {
        let page = self.pages.get(&(block, offset));
        to.copy_from_slice(page.ok_or_else(|| ReadError("page never written".into()))?);
        Ok(())
    }
}
