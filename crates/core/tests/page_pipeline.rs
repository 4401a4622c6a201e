//! Whole streams through the page pipeline, from QEMU's bytes to QEMU's bytes: several lanes, batches decoded out of
//! order, every kind of record and reference, and payloads that were tampered with.

use proptest::prelude::*;
use std::{collections::HashMap, sync::Arc};
use vmferry_core::{
    page::{
        Ask, Assembler, Batch, BatchBuilder, BlockTable, Catalog, Codec, CodecSettings, Coders, Decoder, Encoders,
        EncodingStats, FingerprintKey, Known, RING_BATCHES, Reach, ReadError, RunningDigest, ask, content::block_hash,
        encode,
    },
    qemu::{BlockId, BlockName, PageAt, RecordKind, record_header},
};

const PAGE: usize = 4096;
const BLOCKS: [(&str, u64); 3] = [("pc.ram", 256), ("0000:00:02.0/vga.vram", 16), ("pc.bios", 4)];

/// A record of a made-up migration.
#[derive(Clone, Debug)]
enum Record {
    Page {
        block: usize,
        page: u64,
        content: Content,
    },
    Zero {
        block: usize,
        page: u64,
        run: u64,
    },
    /// A page that QEMU delta-coded itself.
    Xbzrle {
        block: usize,
        page: u64,
        delta: Vec<u8>,
    },
    /// The RAM section ends and the next begins.
    NextSection,
}

/// Few different contents, so that pages are often equal.
#[derive(Clone, Debug)]
enum Content {
    Text(u8),
    Random(u8),
    Counter(u8),
    /// A random page of which a few lines are of this version.
    Edited(u8, u8),
    /// As it stands here.
    Bytes(Vec<u8>),
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Content::Text(seed) => format!("line {seed} of a log that says little more than that\n")
                .into_bytes()
                .into_iter()
                .cycle()
                .take(PAGE)
                .collect(),
            Content::Random(seed) => {
                let mut page = vec![0; PAGE];
                blake3::Hasher::new().update(&[*seed]).finalize_xof().fill(&mut page);
                page
            }
            Content::Edited(seed, version) => {
                let mut page = Content::Random(*seed).bytes();
                for line in [0, usize::from(*version) % 64, 63] {
                    page[line * 64..][..8].fill(*version);
                }
                page
            }
            Content::Bytes(bytes) => bytes.clone(),
            Content::Counter(seed) => (0u64..512)
                .flat_map(|index| (index * 0x1_0003 + u64::from(*seed)).to_le_bytes())
                .collect(),
        }
    }
}

/// Writes the stream of a migration as QEMU would.
struct StreamWriter {
    out: Vec<u8>,
    block: Option<usize>,
}

impl StreamWriter {
    fn new() -> Self {
        let mut out = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0".to_vec();
        out.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        let total: u64 = BLOCKS.iter().map(|(_, pages)| pages * PAGE as u64).sum();
        out.extend((total | 0x04).to_be_bytes());
        for (name, pages) in BLOCKS {
            out.push(name.len() as u8);
            out.extend(name.as_bytes());
            out.extend((pages * PAGE as u64).to_be_bytes());
        }
        let mut writer = Self { out, block: None };
        writer.end_section();
        writer.out.extend(b"\x02\0\0\0\x02");
        writer
    }

    fn end_section(&mut self) {
        self.out.extend(0x10u64.to_be_bytes());
        self.out.extend(b"\x7e\0\0\0\x02");
    }

    fn at(&mut self, block: usize, page: u64) -> (PageAt, BlockName) {
        let named = self.block.replace(block) != Some(block);
        let name = BlockName::new(BLOCKS[block].0.as_bytes()).unwrap();
        (
            PageAt {
                block: BlockId(block as u16),
                offset: page * PAGE as u64,
                named,
            },
            name,
        )
    }

    fn record(&mut self, record: &Record) {
        match record {
            Record::Page { block, page, content } => {
                let (at, name) = self.at(*block, *page);
                record_header(RecordKind::Page, &at, &name, &mut self.out);
                self.out.extend(content.bytes());
            }
            Record::Zero { block, page, run } => {
                for page in *page..(*page + *run).min(BLOCKS[*block].1) {
                    let (at, name) = self.at(*block, page);
                    record_header(RecordKind::Zero, &at, &name, &mut self.out);
                }
            }
            Record::Xbzrle { block, page, delta } => {
                let (at, name) = self.at(*block, *page);
                let word = at.offset | 0x40 | if at.named { 0 } else { 0x20 };
                self.out.extend(word.to_be_bytes());
                if at.named {
                    self.out.push(name.as_str().len() as u8);
                    self.out.extend(name.as_str().as_bytes());
                }
                self.out.push(1);
                self.out.extend((delta.len() as u16).to_be_bytes());
                self.out.extend(delta);
            }
            Record::NextSection => {
                self.end_section();
                self.out.extend(b"\x02\0\0\0\x02");
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.end_section();
        self.out.extend(b"\x03\0\0\0\x02");
        self.end_section();
        self.out.extend((0..5000u32).flat_map(|word| (word / 7).to_be_bytes()));
        self.out
    }
}

fn stream(records: &[Record]) -> Vec<u8> {
    let mut writer = StreamWriter::new();
    records.iter().for_each(|record| writer.record(record));
    writer.finish()
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let place = (0..BLOCKS.len()).prop_flat_map(|block| (Just(block), 0..BLOCKS[block].1.min(40)));
    let content = prop_oneof![
        (0u8..12).prop_map(Content::Text),
        (0u8..12).prop_map(Content::Random),
        (0u8..12).prop_map(Content::Counter),
        (0u8..3, 0u8..100).prop_map(|(seed, version)| Content::Edited(seed, version)),
    ];
    let record = prop_oneof![
        8 => (place.clone(), content).prop_map(|((block, page), content)| Record::Page { block, page, content }),
        2 => (place.clone(), 1u64..40).prop_map(|((block, page), run)| Record::Zero { block, page, run }),
        1 => (place, prop::collection::vec(any::<u8>(), 1..200))
            .prop_map(|((block, page), delta)| Record::Xbzrle { block, page, delta }),
        1 => Just(Record::NextSection),
    ];
    prop::collection::vec(record, 1..250)
}

fn batches(stream: &[u8], reads: &[usize], batch_bytes: usize) -> Vec<Batch> {
    let mut builder = BatchBuilder::new();
    let mut batches = Vec::new();
    let mut reads = reads.iter().copied().cycle();
    let (mut rest, mut since_cut) = (stream, 0);
    while !rest.is_empty() {
        let bytes = reads.next().unwrap().min(rest.len()).min(builder.spare().len());
        builder.spare()[..bytes].copy_from_slice(&rest[..bytes]);
        builder.filled(bytes);
        (rest, since_cut) = (&rest[bytes..], since_cut + bytes);
        if rest.is_empty() {
            builder.end();
        }
        if builder.is_full() || since_cut >= batch_bytes || rest.is_empty() {
            since_cut = 0;
            batches.extend(builder.cut(batches.len() as u64, 7, Vec::new()));
        }
    }
    batches
}

fn key() -> FingerprintKey {
    FingerprintKey::new([7; 32])
}

/// Versions kept of all pages that a test has.
const OF_ALL: usize = 1000;

/// A disk with some of the contents that tests have, and the same disk as the target reads it: every third block was
/// rewritten since the source indexed it, and the last can't be read.
fn disk() -> Vec<Vec<u8>> {
    let pages = (0..6).map(Content::Text).chain((0..6).map(Content::Random));
    pages.map(|content| content.bytes()).collect()
}

fn read_disk(source: u16, block: u64, to: &mut [u8]) -> bool {
    let disk = disk();
    assert_eq!(source, 1);
    for (block, to) in (block..).zip(to.chunks_mut(PAGE)) {
        match disk.get(block as usize) {
            Some(_) if block % 3 == 0 => to.fill(block as u8),
            Some(content) if block < 11 => to.copy_from_slice(content),
            _ => return false,
        }
    }
    true
}

fn catalog() -> Catalog {
    let hashes: Vec<u64> = disk().iter().map(|block| block_hash(block)).collect();
    Catalog::new(vec![Arc::default(), BlockTable::new(&hashes, 100).into()])
}

/// The source's side of a session.
struct Source {
    known: Known,
    catalog: Catalog,
    digest: RunningDigest,
    lanes: Vec<Encoders>,
    coders: u64,
    stats: EncodingStats,
}

impl Source {
    fn new(reach: Reach, versions: usize, coders: Coders, lanes: usize) -> Self {
        Self {
            known: Known::new(reach, versions * (PAGE + 64)),
            catalog: Catalog::default(),
            digest: RunningDigest::new(&key()),
            coders: coders.len() as u64,
            lanes: (0..lanes).map(|_| Encoders::new(coders.clone())).collect(),
            stats: EncodingStats::default(),
        }
    }

    /// The batch's payload, for lane `seq % lanes`.
    fn payload(&mut self, batch: &Batch) -> Vec<u8> {
        let fingerprints = key().pages(batch);
        let mut classes = self.known.classify(batch, &fingerprints, &key().lines(batch));
        self.catalog.refer(batch, &fingerprints, &mut classes);
        let after = self
            .digest
            .extend(batch.stream().len(), key().batch(batch, &fingerprints));
        let lane = batch.seq as usize % self.lanes.len();
        let mut payload = Vec::new();
        encode(
            batch,
            &classes,
            after,
            &mut self.lanes[lane],
            // Any order in which every coder has its turn, more than once in a row at times.
            (batch.seq * 7 / 3 % self.coders) as u8,
            &mut payload,
            &mut self.stats,
        )
        .unwrap();
        payload
    }
}

/// A target guest's memory: the source's stream up to a lag, as QEMU's loader would have it.
#[derive(Default)]
struct Memory {
    pages: HashMap<(BlockId, u64), Vec<u8>>,
    not_loaded: Vec<Arc<Batch>>,
    lag: usize,
}

impl Memory {
    fn written(&mut self, batch: Arc<Batch>) {
        self.not_loaded.push(batch);
        while self.not_loaded.len() > self.lag {
            let batch = self.not_loaded.remove(0);
            for op in batch.ops() {
                if let vmferry_core::page::Op::Page { at, start, .. } = op {
                    self.pages.insert((at.block, at.offset), batch.page(*start).to_vec());
                }
            }
        }
    }

    fn read(&self, block: BlockId, offset: u64, to: &mut [u8]) -> Result<(), ReadError> {
        let page = self
            .pages
            .get(&(block, offset))
            .ok_or_else(|| ReadError("never loaded".into()))?;
        to.copy_from_slice(page);
        Ok(())
    }
}

fn only(codec: Codec) -> Coders {
    let settings = CodecSettings {
        codec,
        ..CodecSettings::default()
    };
    Coders::new(vec![settings]).unwrap()
}

/// Each coder alone, and all that are chosen from by turns.
fn coders() -> impl Strategy<Value = Coders> {
    let alone = [Codec::Raw, Codec::Lz4, Codec::Lz78, Codec::Zstd].map(only);
    prop_oneof![prop::sample::select(alone.to_vec()), Just(Coders::auto())]
}

/// Takes a stream through source and target; the lanes' payloads are decoded before any is assembled.
fn ferry(
    stream: &[u8],
    reads: &[usize],
    batch_bytes: usize,
    coders: Coders,
    lanes: usize,
    reach: Reach,
    versions: usize,
) -> EncodingStats {
    ferry_with(
        Catalog::default(),
        stream,
        reads,
        batch_bytes,
        coders,
        lanes,
        reach,
        versions,
    )
}

/// The same, with known content beside the stream.
#[allow(clippy::too_many_arguments, reason = "what a session can differ in")]
fn ferry_with(
    catalog: Catalog,
    stream: &[u8],
    reads: &[usize],
    batch_bytes: usize,
    coders: Coders,
    lanes: usize,
    reach: Reach,
    versions: usize,
) -> EncodingStats {
    let batches = batches(stream, reads, batch_bytes);
    let mut source = Source::new(reach, versions, coders.clone(), lanes);
    source.catalog = catalog;
    let payloads: Vec<_> = batches.iter().map(|batch| source.payload(batch)).collect();

    let mut decoded = HashMap::new();
    for lane in (0..lanes).rev() {
        let mut decoder = Decoder::new(key(), coders.clone());
        for payload in payloads.iter().skip(lane).step_by(lanes) {
            let mut batch = decoder.decode(payload).unwrap();
            let missing = decoder.find(&mut batch, &mut read_disk);
            if !missing.is_empty() {
                let ask = Ask {
                    seq: batch.seq(),
                    pages: missing,
                };
                let heard = Ask::decode(&ask.encode()).unwrap();
                let answer = heard.answer(&batches[batch.seq() as usize]).unwrap().unwrap();
                let (seq, contents) = ask::batch_of(&answer).unwrap();
                assert_eq!(seq, ask.seq);
                let contents = ask::contents(contents, ask.pages.len() * PAGE).unwrap();
                decoder.supply(&mut batch, &ask.pages, &contents).unwrap();
            }
            decoded.insert(batch.seq(), batch);
        }
    }
    let mut assembler = Assembler::new(key());
    let mut memory = Memory::default();
    let mut out = Vec::new();
    for batch in &batches {
        let read = &mut |block, offset, to: &mut [u8]| match reach {
            Reach::All => memory.read(block, offset, to),
            Reach::Batches(_) => Err(ReadError("a source with this reach must not refer so far back".into())),
        };
        let done = assembler.apply(decoded.remove(&batch.seq).unwrap(), read).unwrap();
        assert_eq!(done.ops(), batch.ops());
        out.extend_from_slice(done.stream());
        memory.written(done);
    }
    assert!(out == stream, "the stream was changed on its way");
    assert_eq!(assembler.digest(), source.digest.current());
    let payload_bytes: usize = payloads.iter().map(Vec::len).sum();
    assert_eq!(source.stats.wire_bytes(), payload_bytes as u64);
    source.stats
}

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
        ferry_with(catalog, &stream(&records), &reads, batch_bytes, coders, lanes, reach, versions);
    }

    #[test]
    fn any_bytes_arrive_as_they_were(bytes in prop::collection::vec(any::<u8>(), 0..20_000), batch_bytes in 1usize..3000) {
        ferry(&bytes, &[777], batch_bytes, only(Codec::Zstd), 2, Reach::All, OF_ALL);
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
    let page = |page: u64| Record::Page {
        block: 0,
        page: page % 200 + 50,
        content: Content::Random((page % 250) as u8),
    };
    (0..2400).map(page).collect()
}

#[test]
fn every_encoding_is_used_where_it_should_be() {
    let page = |page, content| Record::Page {
        block: 0,
        page,
        content,
    };
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
    let stats = ferry(
        &stream(&records),
        &[4096],
        1 << 20,
        only(Codec::Zstd),
        1,
        Reach::All,
        OF_ALL,
    );
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
fn what_stands_on_a_disk_is_referred_to_and_what_changed_there_is_asked_for() {
    let page = |page, content| Record::Page {
        block: 0,
        page,
        content,
    };
    // Blocks 4 and 5, in a run; 6, which was rewritten; 11, which can't be read; one that is on no disk.
    let records = [
        page(0, Content::Text(4)),
        page(1, Content::Text(5)),
        page(2, Content::Random(0)),
        page(3, Content::Random(5)),
        page(4, Content::Random(9)),
    ];
    let stats = ferry_with(
        catalog(),
        &stream(&records),
        &[4096],
        1 << 20,
        only(Codec::Zstd),
        1,
        Reach::All,
        0,
    );
    assert_eq!(
        (stats.content.pages, stats.raw.pages, stats.lz.pages),
        (4, 1, 0),
        "{stats:?}"
    );
    assert!(stats.content.wire_bytes < 4 * 16 + 30, "{stats:?}");
}

#[test]
fn a_page_supplied_that_is_another_is_refused() {
    let records = [Record::Page {
        block: 0,
        page: 0,
        content: Content::Text(0),
    }];
    let batch = batches(&stream(&records), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = catalog();
    let payload = source.payload(&batch);
    let mut decoder = Decoder::new(key(), only(Codec::Zstd));
    let mut decoded = decoder.decode(&payload).unwrap();
    assert_eq!(decoder.find(&mut decoded, &mut read_disk), [0], "block 0 was rewritten");
    let right = Content::Text(0).bytes();
    assert!(decoder.supply(&mut decoded, &[0], &Content::Text(1).bytes()).is_err());
    assert!(decoder.supply(&mut decoded, &[0], &[]).is_err());
    assert!(decoder.supply(&mut decoded, &[1], &right).is_err());
    let unresolved = Assembler::new(key()).apply(decoded, &mut |_, _, _| Ok(()));
    assert!(unresolved.is_err());
}

/// Two pages of one [`block_hash`], which anybody can make: its seed and the way to its secret are public.
///
/// In each of the first 16 stripes of 64 bytes XXH3 multiplies, for each 8-byte word, the two halves of the word's exclusive or
/// with the secret, and adds the product to the word's lane and the word itself to the lane beside. Where a word's lower half is
/// the secret's, the product is zero whatever the upper half is. Of two such words in one lane only the sum counts then.
fn colliding_pages() -> [Vec<u8>; 2] {
    const SEED: u64 = 0x7c15_0be3_92d4_a86f;
    // The beginning of XXH3's secret; a seed is added to every other of its words and subtracted from those between.
    let secret = [0xbe4b_a423_396c_feb8_u64, 0x1cad_21f7_2c81_017c];
    let secret = [secret[0].wrapping_add(SEED), secret[1].wrapping_sub(SEED)];
    let page = |upper: [u64; 2]| {
        let mut page = Content::Random(77).bytes();
        for (stripe, (secret, upper)) in page.chunks_exact_mut(64).zip(secret.into_iter().zip(upper)) {
            let word = upper << 32 | secret & u64::from(u32::MAX);
            stripe[..8].copy_from_slice(&word.to_le_bytes());
        }
        page
    };
    [page([5, 9]), page([4, 10])]
}

#[test]
fn a_block_that_has_the_hash_of_a_page_and_not_its_content_is_never_taken_for_it() {
    let [on_disk, in_guest] = colliding_pages();
    assert_eq!(block_hash(&on_disk), block_hash(&in_guest));
    assert_ne!(on_disk, in_guest);

    let record = Record::Page {
        block: 0,
        page: 3,
        content: Content::Bytes(in_guest.clone()),
    };
    let batch = batches(&stream(&[record]), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = Catalog::new(vec![BlockTable::new(&[block_hash(&on_disk)], 1).into()]);
    let payload = source.payload(&batch);
    assert_eq!(source.stats.content.pages, 1, "the page is taken for the block");

    for (disk, expected) in [(&in_guest, &[][..]), (&on_disk, &[0])] {
        let mut decoder = Decoder::new(key(), only(Codec::Zstd));
        let mut decoded = decoder.decode(&payload).unwrap();
        let missing = decoder.find(&mut decoded, &mut |source, block, to| {
            assert_eq!((source, block), (0, 0));
            to.copy_from_slice(disk);
            true
        });
        assert_eq!(missing, expected);
        if !missing.is_empty() {
            let answer = Ask {
                seq: 0,
                pages: missing.clone(),
            }
            .answer(&batch)
            .unwrap()
            .unwrap();
            let (_, contents) = ask::batch_of(&answer).unwrap();
            let contents = ask::contents(contents, PAGE).unwrap();
            decoder.supply(&mut decoded, &missing, &contents).unwrap();
        }
        let unread = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("nothing refers to memory".into()));
        let done = Assembler::new(key()).apply(decoded, unread).unwrap();
        assert!(done.stream() == batch.stream(), "the stream was changed on its way");
    }
}

#[test]
fn a_page_sent_long_ago_is_the_base_of_its_difference() {
    let edited = |version| Record::Page {
        block: 0,
        page: 0,
        content: Content::Edited(200, version),
    };
    let mut records = vec![edited(1), edited(2)];
    records.extend(filler());
    records.extend([edited(3), Record::NextSection, edited(4)]);
    let stats = ferry(
        &stream(&records),
        &[65536],
        1 << 20,
        only(Codec::Zstd),
        2,
        Reach::All,
        OF_ALL,
    );
    assert_eq!(stats.delta.pages, 3, "{stats:?}");
    let unreachable = Reach::Batches(RING_BATCHES);
    let stats = ferry(
        &stream(&records),
        &[65536],
        1 << 20,
        only(Codec::Zstd),
        2,
        unreachable,
        OF_ALL,
    );
    assert_eq!(stats.delta.pages, 0, "{stats:?}");
}

#[test]
fn pages_sent_long_ago_are_read_from_the_guests_memory() {
    let mut records = vec![Record::Page {
        block: 0,
        page: 0,
        content: Content::Text(200),
    }];
    records.extend(filler());
    records.push(Record::Page {
        block: 0,
        page: 1,
        content: Content::Text(200),
    });
    records.push(Record::Page {
        block: 0,
        page: 0,
        content: Content::Text(200),
    });
    let stats = ferry(
        &stream(&records),
        &[65536],
        1 << 20,
        only(Codec::Zstd),
        2,
        Reach::All,
        OF_ALL,
    );
    assert_eq!(stats.lz.pages, 1);
}

#[test]
fn a_target_that_cannot_read_its_guest_is_sent_old_pages_again() {
    let mut records = vec![Record::Page {
        block: 0,
        page: 0,
        content: Content::Text(200),
    }];
    records.extend(filler());
    records.push(Record::Page {
        block: 0,
        page: 1,
        content: Content::Text(200),
    });
    records.push(Record::Page {
        block: 0,
        page: 0,
        content: Content::Text(200),
    });
    let stats = ferry(
        &stream(&records),
        &[65536],
        1 << 20,
        only(Codec::Zstd),
        2,
        Reach::Batches(RING_BATCHES),
        OF_ALL,
    );
    assert_eq!(
        stats.lz.pages, 2,
        "once at first, once after the filler; the last is a copy of that"
    );
}

#[test]
fn a_page_overwritten_by_zeros_or_a_foreign_record_is_not_referred_to() {
    let text = |page| Record::Page {
        block: 0,
        page,
        content: Content::Text(9),
    };
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
        Record::Page {
            block: 0,
            page: 5,
            content: Content::Text(10),
        },
    ];
    for overwrite in overwrites {
        let before = if matches!(overwrite, Record::Page { .. }) { 3 } else { 2 };
        let stats = ferry(
            &stream(&[text(5), overwrite, text(6)]),
            &[4096],
            1 << 20,
            only(Codec::Lz4),
            1,
            Reach::All,
            OF_ALL,
        );
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
