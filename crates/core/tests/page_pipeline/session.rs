//! Both sides of a session, joined.

use crate::stream::{BLOCKS, Content, PAGE, batches};
use proptest::prelude::*;
use std::{collections::HashMap, convert::Infallible, sync::Arc};
use vmferry_core::{
    page::{
        Ask, Assembler, Batch, Catalog, Codec, CodecSettings, Coders, Decoded, Decoder, Encoders, EncodingStats,
        FingerprintKey, KeptBlock, Known, Op, Place, Reach, ReadError, RunningDigest, ask,
        earlier::{pack, unpack},
        encode,
    },
    qemu::{Block, BlockId},
};

pub(crate) fn key() -> FingerprintKey {
    FingerprintKey::new([7; 32])
}

/// Versions kept of all pages that a test has.
pub(crate) const OF_ALL: usize = 1000;

/// A disk with some of the contents that tests have, and the same disk as the target reads it: every third block was
/// rewritten since the source indexed it, and the last can't be read.
pub(crate) fn disk() -> Vec<Vec<u8>> {
    let pages = (0..6).map(Content::Text).chain((0..6).map(Content::Random));
    pages.map(|content| content.bytes()).collect()
}

pub(crate) fn read_disk(source: u16, block: u64, to: &mut [u8]) -> bool {
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

/// Reads what the batch refers to; returns the pages that are not there.
pub(crate) fn find(
    decoder: &Decoder,
    decoded: &mut Decoded,
    read: &mut dyn FnMut(u16, u64, &mut [u8]) -> bool,
) -> Vec<u16> {
    let mut missing = Vec::new();
    for span in decoded.spans() {
        let mut blocks = vec![0; span.blocks() * PAGE];
        missing.extend(match read(span.source(), span.first(), &mut blocks) {
            true => decoder.fill(decoded, &span, &blocks),
            false => span.pages(),
        });
    }
    missing
}

/// What the source believes: that this is on the disk, and that each block is what the page of that number was before.
pub(crate) fn catalog() -> Catalog {
    let kept = |(number, block): (u64, &Vec<u8>)| KeptBlock::new(Place::new(BLOCKS[0].0, number * PAGE as u64), block);
    let kept: Vec<KeptBlock> = (0..).zip(&disk()).map(kept).collect();
    let read = |each: &mut dyn FnMut(&[KeptBlock])| {
        each(&kept);
        Ok::<_, Infallible>(())
    };
    let packed = pack(kept.len() as u64, 1000, read).unwrap().unwrap();
    let (table, earlier) = unpack(packed, usize::MAX);
    Catalog::new(vec![Arc::default(), table.into()]).with_earlier(1, earlier)
}

/// The source's side of a session.
pub(crate) struct Source {
    known: Known,
    blocks: Arc<[Block]>,
    pub(crate) catalog: Catalog,
    pub(crate) digest: RunningDigest,
    lanes: Vec<Encoders>,
    coders: u64,
    pub(crate) stats: EncodingStats,
}

impl Source {
    pub(crate) fn new(reach: Reach, versions: usize, coders: Coders, lanes: usize) -> Self {
        Self {
            known: Known::new(reach, versions * (PAGE + 64)),
            blocks: Arc::from([]),
            catalog: Catalog::default(),
            digest: RunningDigest::new(&key()),
            coders: coders.len() as u64,
            lanes: (0..lanes).map(|_| Encoders::new(coders.clone())).collect(),
            stats: EncodingStats::default(),
        }
    }

    /// The batch's payload, for lane `seq % lanes`.
    pub(crate) fn payload(&mut self, batch: &Batch) -> Vec<u8> {
        let fingerprints = key().pages(batch);
        let mut classes = self.known.classify(batch, &fingerprints, &key().lines(batch));
        let mut lists = batch.ops().iter().filter_map(|op| match op {
            Op::Blocks(blocks) => Some(blocks.clone()),
            _ => None,
        });
        self.blocks = lists.next().unwrap_or_else(|| self.blocks.clone());
        self.catalog.refer(batch, &self.blocks, &fingerprints, &mut classes);
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
pub(crate) struct Memory {
    pages: HashMap<(BlockId, u64), Vec<u8>>,
    not_loaded: Vec<Arc<Batch>>,
    lag: usize,
}

impl Memory {
    pub(crate) fn written(&mut self, batch: Arc<Batch>) {
        self.not_loaded.push(batch);
        while self.not_loaded.len() > self.lag {
            let batch = self.not_loaded.remove(0);
            for op in batch.ops() {
                if let Op::Page { at, start, .. } = op {
                    self.pages.insert((at.block, at.offset), batch.page(*start).to_vec());
                }
            }
        }
    }

    pub(crate) fn read(&self, block: BlockId, offset: u64, to: &mut [u8]) -> Result<(), ReadError> {
        let page = self
            .pages
            .get(&(block, offset))
            .ok_or_else(|| ReadError("never loaded".into()))?;
        to.copy_from_slice(page);
        Ok(())
    }
}

pub(crate) fn only(codec: Codec) -> Coders {
    let settings = CodecSettings {
        codec,
        ..CodecSettings::default()
    };
    Coders::new(vec![settings]).unwrap()
}

/// Each coder alone, and all that are chosen from by turns.
pub(crate) fn coders() -> impl Strategy<Value = Coders> {
    let alone = [Codec::Raw, Codec::Lz4, Codec::Lz78, Codec::Zstd].map(only);
    prop_oneof![prop::sample::select(alone.to_vec()), Just(Coders::auto())]
}

/// A session, and what one can differ in.
pub(crate) struct Session {
    /// What the source believes that [`disk`] has.
    pub(crate) catalog: Catalog,
    /// Bytes of the stream that are read at once, by turns.
    pub(crate) reads: Vec<usize>,
    /// After so many a batch is cut.
    pub(crate) batch_bytes: usize,
    pub(crate) coders: Coders,
    pub(crate) lanes: usize,
    pub(crate) reach: Reach,
    /// Pages whose versions there is memory for.
    pub(crate) versions: usize,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            catalog: Catalog::default(),
            reads: vec![65536],
            batch_bytes: 1 << 20,
            coders: only(Codec::Zstd),
            lanes: 2,
            reach: Reach::All,
            versions: OF_ALL,
        }
    }
}

impl Session {
    /// Takes a stream through source and target; the lanes' payloads are decoded before any is assembled.
    pub(crate) fn carry(self, stream: &[u8]) -> EncodingStats {
        let Self {
            catalog,
            reads,
            batch_bytes,
            coders,
            lanes,
            reach,
            versions,
        } = self;
        let batches = batches(stream, &reads, batch_bytes);
        let mut source = Source::new(reach, versions, coders.clone(), lanes);
        source.catalog = catalog;
        let payloads: Vec<_> = batches.iter().map(|batch| source.payload(batch)).collect();

        let mut decoded = HashMap::new();
        for lane in (0..lanes).rev() {
            let mut decoder = Decoder::new(key(), coders.clone());
            for payload in payloads.iter().skip(lane).step_by(lanes) {
                let mut batch = decoder.decode(payload).unwrap();
                let missing = find(&decoder, &mut batch, &mut read_disk);
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
}
