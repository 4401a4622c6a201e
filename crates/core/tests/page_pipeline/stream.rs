//! Made-up streams of QEMU, and the batches that they are cut into.

use proptest::prelude::*;
use vmferry_core::{
    page::{Batch, BatchBuilder},
    qemu::{BlockId, BlockName, PageAt, RecordKind, record_header},
};

pub(crate) const PAGE: usize = 4096;
pub(crate) const BLOCKS: [(&str, u64); 3] = [("pc.ram", 256), ("0000:00:02.0/vga.vram", 16), ("pc.bios", 4)];

/// A record of a made-up migration.
#[derive(Clone, Debug)]
pub(crate) enum Record {
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
pub(crate) enum Content {
    Text(u8),
    Random(u8),
    Counter(u8),
    /// A random page of which a few lines are of this version.
    Edited(u8, u8),
    /// As it stands here.
    Bytes(Vec<u8>),
}

impl Content {
    pub(crate) fn bytes(&self) -> Vec<u8> {
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
pub(crate) struct StreamWriter {
    out: Vec<u8>,
    block: Option<usize>,
}

impl StreamWriter {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn end_section(&mut self) {
        self.out.extend(0x10u64.to_be_bytes());
        self.out.extend(b"\x7e\0\0\0\x02");
    }

    pub(crate) fn at(&mut self, block: usize, page: u64) -> (PageAt, BlockName) {
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

    pub(crate) fn record(&mut self, record: &Record) {
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

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.end_section();
        self.out.extend(b"\x03\0\0\0\x02");
        self.end_section();
        self.out.extend((0..5000u32).flat_map(|word| (word / 7).to_be_bytes()));
        self.out
    }
}

pub(crate) fn stream(records: &[Record]) -> Vec<u8> {
    let mut writer = StreamWriter::new();
    records.iter().for_each(|record| writer.record(record));
    writer.finish()
}

pub(crate) fn records() -> impl Strategy<Value = Vec<Record>> {
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

pub(crate) fn batches(stream: &[u8], reads: &[usize], batch_bytes: usize) -> Vec<Batch> {
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

/// A record of a page of the first block.
pub(crate) fn page(page: u64, content: Content) -> Record {
    Record::Page {
        block: 0,
        page,
        content,
    }
}
