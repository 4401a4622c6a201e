//! A batch to the payload of a data frame.

use super::{
    batch::{Batch, Op},
    delta,
    digest::StreamDigest,
    entropy::is_compressible,
    known::Class,
    lz::{Encoders, LzError},
    payload::{FOLLOWS, HEADER_BYTES, Kind, NAMED, put_varint},
    stats::{EncodingStats, Tally},
};
use crate::qemu::{BlockId, PageAt};
use std::ops::Range;

/// Appends the batch's payload to `out`, and what it cost to `stats`.
///
/// `classes` are the batch's, in order ([`Known::classify`](super::Known::classify)), `after` is the running digest at its
/// end, `encoders` those of the lane that will carry it: a lane's payloads must cross in the order of
/// these calls. `coder` is the number of the one to use. Where that is [`Codec::Raw`](super::Codec::Raw), pages cross as they
/// are without a look at whether they would shrink. The layout is [`payload`](super::payload)'s.
pub fn encode(
    batch: &Batch,
    classes: &[Class],
    after: StreamDigest,
    encoders: &mut Encoders,
    coder: u8,
    out: &mut Vec<u8>,
    stats: &mut EncodingStats,
) -> Result<Coded, LzError> {
    let start = out.len();
    out.extend_from_slice(&batch.seq.to_be_bytes());
    out.extend_from_slice(&batch.round.to_be_bytes());
    out.extend_from_slice(&after.bytes.to_be_bytes());
    out.extend_from_slice(&after.hash);
    out.push(batch.page_bytes().max(1).ilog2() as u8);
    out.push(coder);
    let lengths_at = out.len();
    out.resize(start + HEADER_BYTES, 0);

    let mut cost = EncodingStats {
        other_wire_bytes: HEADER_BYTES as u64,
        ..EncodingStats::default()
    };
    let deltas = Deltas::of(batch, classes);
    let Sections {
        lz: plain,
        raw,
        foreign_bytes,
        patch_bytes,
    } = operations(batch, classes, &deltas, encoders.is_raw(coder), out, &mut cost);
    let operations_bytes = out.len() - start - HEADER_BYTES;

    let plain_bytes: usize = plain.iter().map(|piece| piece.len()).sum();
    let lz_start = out.len();
    if plain_bytes > 0 {
        encoders.encode(coder, &plain, out)?;
    }
    let lz_bytes = out.len() - lz_start;
    let raw_bytes: usize = raw.iter().map(|page| page.len()).sum();
    for page in raw {
        out.extend_from_slice(page);
    }

    // A batch is at most half a MiB, so these are far below 4 GiB.
    let lengths = [operations_bytes, plain_bytes, lz_bytes].map(|length| (length as u32).to_be_bytes());
    out[lengths_at..start + HEADER_BYTES].copy_from_slice(lengths.as_flattened());

    // Charge the LZ section to what is in it, by length.
    let share = |plain_part: u64| {
        (plain_part * lz_bytes as u64)
            .checked_div(plain_bytes as u64)
            .unwrap_or(0)
    };
    let pages_share = share(cost.lz.pages * batch.page_bytes() as u64);
    let patch_share = share(patch_bytes as u64);
    let delta_share = share((deltas.bytes.len() - patch_bytes) as u64);
    let foreign_share = share(foreign_bytes as u64);
    cost.lz.wire_bytes += pages_share;
    cost.delta.wire_bytes += delta_share;
    cost.patch.wire_bytes += patch_share;
    cost.foreign.wire_bytes += foreign_share;
    cost.other_wire_bytes += lz_bytes as u64 - pages_share - delta_share - patch_share - foreign_share;
    *stats += cost;
    Ok(Coded {
        content_bytes: (plain_bytes + raw_bytes) as u64,
        wire_bytes: (lz_bytes + raw_bytes) as u64,
    })
}

/// What there was to send of a batch besides references and zero runs, and what was sent for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coded {
    /// Bytes of pages, differences and other records before coding.
    pub content_bytes: u64,
    /// The same on the wire.
    pub wire_bytes: u64,
}

/// The differences of those pages of a batch that cross so.
struct Deltas {
    bytes: Vec<u8>,
    of_pages: Vec<Option<OfPage>>,
}

/// One page's difference.
struct OfPage {
    /// Where in the bytes of all.
    range: Range<usize>,
    /// How many lines it has.
    lines: u8,
}

impl Deltas {
    fn of(batch: &Batch, classes: &[Class]) -> Self {
        let mut deltas = Self {
            bytes: Vec::new(),
            of_pages: Vec::with_capacity(classes.len()),
        };
        for (now, class) in batch.pages().zip(classes) {
            let start = deltas.bytes.len();
            let lines = match class {
                Class::New { changed } | Class::Content { changed, .. } => {
                    changed.and_then(|changed| delta::lines(changed, now, &mut deltas.bytes))
                }
                _ => None,
            };
            let range = start..deltas.bytes.len();
            deltas.of_pages.push(lines.map(|lines| OfPage { range, lines }));
        }
        deltas
    }
}

/// What stands behind the operations.
struct Sections<'a> {
    lz: Vec<&'a [u8]>,
    raw: Vec<&'a [u8]>,
    /// Bytes in `lz` that are foreign records.
    foreign_bytes: usize,
    /// Bytes in `lz` that are differences to known content.
    patch_bytes: usize,
}

fn operations<'a>(
    batch: &'a Batch,
    classes: &[Class],
    deltas: &'a Deltas,
    as_they_are: bool,
    out: &mut Vec<u8>,
    cost: &mut EncodingStats,
) -> Sections<'a> {
    let mut writer = Writer {
        out,
        cost,
        page_bytes: batch.page_bytes() as u64,
        run: None,
        next: None,
    };
    let mut sections = Sections {
        lz: Vec::with_capacity(batch.ops().len()),
        raw: Vec::new(),
        foreign_bytes: 0,
        patch_bytes: 0,
    };
    let (mut classes, mut of_pages) = (classes.iter(), deltas.of_pages.iter());
    for op in batch.ops() {
        match op {
            Op::Bytes(range) => {
                sections.lz.push(&batch.stream()[range.clone()]);
                writer.bytes(range.len());
            }
            Op::Blocks(blocks) => writer.blocks(blocks),
            Op::Zero { at, record, pages } => {
                writer.pages(Run {
                    kind: Kind::Zero,
                    at: *at,
                    name: batch.name(at, *record),
                    pages: *pages,
                    from: None,
                    each: Vec::new(),
                });
            }
            Op::Page { at, record, start } => {
                let content = batch.page(*start);
                let delta = of_pages.next().and_then(Option::as_ref);
                let class = classes.next();
                let (kind, from) = match (class, delta) {
                    (Some(Class::Same), _) => (Kind::Same, None),
                    (Some(Class::Copy { block, page }), _) => (Kind::Copy, Some((block.0, *page))),
                    (Some(Class::Content { source, block, .. }), Some(_)) => (Kind::Patch, Some((*source, *block))),
                    (Some(Class::Content { source, block, .. }), None) => (Kind::Content, Some((*source, *block))),
                    (Some(Class::New { .. }) | None, Some(_)) => (Kind::Delta, None),
                    (Some(Class::New { .. }) | None, None) if !as_they_are && is_compressible(content) => {
                        (Kind::Lz, None)
                    }
                    (Some(Class::New { .. }) | None, None) => (Kind::Raw, None),
                };
                let mut each = Vec::new();
                if let Some(Class::Content { fingerprint, .. }) = class {
                    each.extend_from_slice(&fingerprint.0);
                }
                if let Some(delta) = delta {
                    sections.lz.push(&deltas.bytes[delta.range.clone()]);
                    each.push(delta.lines);
                }
                match kind {
                    Kind::Lz => sections.lz.push(content),
                    Kind::Raw => sections.raw.push(content),
                    Kind::Patch => sections.patch_bytes += delta.map_or(0, |delta| delta.range.len()),
                    _ => {}
                }
                writer.pages(Run {
                    kind,
                    at: *at,
                    name: batch.name(at, *record),
                    pages: 1,
                    from,
                    each,
                });
            }
            Op::Foreign { block, offset, range } => {
                sections.lz.push(&batch.stream()[range.clone()]);
                sections.foreign_bytes += range.len();
                writer.foreign(*block, *offset, range.len());
            }
        }
    }
    writer.close();
    sections
}

/// Neighbouring pages that cross in the same way.
struct Run<'a> {
    kind: Kind,
    at: PageAt,
    name: &'a [u8],
    pages: u64,
    /// Where the first page's content is: block of the guest or content source, and the number there.
    from: Option<(u16, u64)>,
    /// What is said of each page: its fingerprint, how many lines changed, or both.
    each: Vec<u8>,
}

impl Run<'_> {
    /// Whether `next` goes on where this run ends.
    fn goes_on_with(&self, next: &Run<'_>, page_bytes: u64) -> bool {
        self.kind == next.kind
            && !next.at.named
            && self.at.block == next.at.block
            && self.at.offset + self.pages * page_bytes == next.at.offset
            && self.from.map(|(of, number)| (of, number + self.pages)) == next.from
    }
}

/// Writes operations, joining pages into runs.
struct Writer<'a, 'b> {
    out: &'a mut Vec<u8>,
    cost: &'a mut EncodingStats,
    page_bytes: u64,
    run: Option<Run<'b>>,
    /// The page behind the last operation that had an address.
    next: Option<(BlockId, u64)>,
}

impl<'b> Writer<'_, 'b> {
    fn pages(&mut self, run: Run<'b>) {
        match &mut self.run {
            Some(open) if open.goes_on_with(&run, self.page_bytes) => {
                open.pages += run.pages;
                open.each.extend(run.each);
            }
            _ => {
                self.close();
                self.run = Some(run);
            }
        }
    }

    fn bytes(&mut self, length: usize) {
        self.close();
        let start = self.out.len();
        self.out.push(Kind::Bytes as u8);
        put_varint(length as u64, self.out);
        self.cost.other_bytes += length as u64;
        self.cost.other_wire_bytes += (self.out.len() - start) as u64;
    }

    fn blocks(&mut self, blocks: &[crate::qemu::Block]) {
        self.close();
        let start = self.out.len();
        self.out.push(Kind::Blocks as u8);
        put_varint(blocks.len() as u64, self.out);
        for block in blocks {
            put_name(block.name.as_str().as_bytes(), self.out);
            put_varint(block.bytes, self.out);
        }
        self.cost.other_wire_bytes += (self.out.len() - start) as u64;
    }

    fn foreign(&mut self, block: BlockId, offset: u64, length: usize) {
        self.close();
        let start = self.out.len();
        // The record is passed on whole, its block's name with it.
        self.address(Kind::Foreign, block, offset, &[], 1);
        put_varint(length as u64, self.out);
        self.cost.foreign += Tally {
            pages: 1,
            wire_bytes: (self.out.len() - start) as u64,
        };
    }

    /// Writes the run that is open, if one is.
    fn close(&mut self) {
        let Some(run) = self.run.take() else { return };
        let start = self.out.len();
        self.address(run.kind, run.at.block, run.at.offset, run.name, run.pages);
        put_varint(run.pages, self.out);
        if let Some((of, number)) = run.from {
            put_varint(u64::from(of), self.out);
            put_varint(number, self.out);
        }
        self.out.extend(&run.each);
        let tally = match run.kind {
            Kind::Zero => &mut self.cost.zero,
            Kind::Same => &mut self.cost.same,
            Kind::Copy => &mut self.cost.copy,
            Kind::Content => &mut self.cost.content,
            Kind::Patch => &mut self.cost.patch,
            Kind::Raw => &mut self.cost.raw,
            Kind::Delta => &mut self.cost.delta,
            _ => &mut self.cost.lz,
        };
        *tally += Tally {
            pages: run.pages,
            wire_bytes: (self.out.len() - start) as u64,
        };
        if run.kind == Kind::Raw {
            tally.wire_bytes += run.pages * self.page_bytes;
        }
    }

    /// The tag, the name if there is one, and the address.
    fn address(&mut self, kind: Kind, block: BlockId, offset: u64, name: &[u8], pages: u64) {
        let page = offset / self.page_bytes;
        let follows = self.next == Some((block, page));
        let mut tag = kind as u8;
        if !name.is_empty() {
            tag |= NAMED;
        }
        if follows {
            tag |= FOLLOWS;
        }
        self.out.push(tag);
        if !name.is_empty() {
            put_name(name, self.out);
        }
        if !follows {
            put_varint(u64::from(block.0), self.out);
            put_varint(page, self.out);
        }
        self.next = Some((block, page + pages));
    }
}

fn put_name(name: &[u8], out: &mut Vec<u8>) {
    // Names come from the stream, where they stand behind one length byte as well.
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}
