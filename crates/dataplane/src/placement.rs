//! Pages straight into the target guest's memory. QEMU is given what is left of the stream: section headers, block list,
//! device state.
//!
//! [`Placers`](crate::placers::Placers) do the writing.
//!
//! It saves the way through a socket and QEMU's one loading thread, and it leaves zero pages alone where the memory was never
//! touched: QEMU's loader looks at each of them, and so has the kernel map it.
//!
//! All pages take the same way, since QEMU loads in its own time: of two versions of a page the earlier one must not arrive
//! later, nor may a page be looked up that still lies in a socket. The one change of ways is that pages go through QEMU from
//! some batch on. QEMU therefore is told of every block that the stream turns to: a record without a name belongs to the
//! block of the record before.

use crate::guest_memory::GuestMemory;
use crate::placers::Write;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use vmferry_core::page::{Batch, Op, PageSet};
use vmferry_core::qemu::{Block, BlockId, PageAt, naming_record};

/// Which way the pages take, and which of them hold something in the guest's memory.
#[derive(Debug)]
pub(crate) struct Placement {
    blocks: Arc<[Block]>,
    /// Why pages go through QEMU, if they do.
    not_direct: Option<String>,
    held: PageSet,
    placed_bytes: u64,
}

impl Placement {
    /// For a guest with these blocks, before any page came. If anything is unclear about a block, or one can't be written,
    /// all pages go through QEMU.
    pub(crate) fn new(memory: &GuestMemory, blocks: &Arc<[Block]>, page_bytes: usize) -> Placement {
        let held = (0..).map(BlockId).zip(&**blocks).try_fold(
            PageSet::default(),
            |mut held, (number, block)| -> io::Result<PageSet> {
                memory.check_writable(number, block.bytes)?;
                for range in memory.held(number)? {
                    let page_bytes = page_bytes.max(1) as u64;
                    held.insert(number, range.start / page_bytes..range.end.div_ceil(page_bytes));
                }
                Ok(held)
            },
        );
        Placement {
            blocks: blocks.clone(),
            not_direct: held.as_ref().err().map(ToString::to_string),
            held: held.unwrap_or_default(),
            placed_bytes: 0,
        }
    }

    /// Which of the next batch's pages to write, and what of its stream QEMU has to load after that.
    pub(crate) fn plan<'a>(&mut self, batch: &'a Batch) -> (Vec<Write>, Cow<'a, [u8]>) {
        // A difference to a page can't be passed on and the page's next version be placed.
        if batch.ops().iter().any(|op| matches!(op, Op::Foreign { .. })) {
            self.not_direct = Some("the source's QEMU encodes pages itself (capability xbzrle or compress)".to_owned());
        }
        if self.not_direct.is_some() {
            return (Vec::new(), batch.stream().into());
        }
        let page_bytes = batch.page_bytes() as u64;
        let mut rest = Vec::new();
        let mut writes: Vec<Write> = Vec::new();
        for op in batch.ops() {
            match op {
                Op::Blocks(_) | Op::Foreign { .. } => {}
                Op::Bytes(range) => rest.extend_from_slice(&batch.stream()[range.clone()]),
                Op::Page { at, start, .. } => {
                    self.name(at, &mut rest);
                    let page = at.offset / page_bytes;
                    self.held.insert(at.block, page..page + 1);
                    writes.push(Write {
                        block: at.block,
                        offset: at.offset,
                        start: Some(*start),
                    });
                }
                Op::Zero { at, pages: run, .. } => {
                    self.name(at, &mut rest);
                    let first = at.offset / page_bytes;
                    for page in (first..first + run).filter(|page| self.held.contains(at.block, *page)) {
                        writes.push(Write {
                            block: at.block,
                            offset: page * page_bytes,
                            start: None,
                        });
                    }
                }
            }
        }
        self.placed_bytes += writes.len() as u64 * page_bytes;
        (writes, rest.into())
    }

    /// Bytes of pages written so far, and why it is not all of them.
    pub(crate) fn placed(&self) -> (u64, Option<String>) {
        (self.placed_bytes, self.not_direct.clone())
    }

    /// Tells QEMU of the block that a placed record turned to.
    fn name(&self, at: &PageAt, rest: &mut Vec<u8>) {
        if let (true, Some(block)) = (at.named, self.blocks.get(usize::from(at.block.0))) {
            naming_record(&block.name, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::HostBlock;
    use crate::placers::Placers;
    use std::hint::black_box;
    use vmferry_core::page::BatchBuilder;
    use vmferry_core::qemu::{BlockName, Item, Parser};

    const PAGE: usize = 4096;
    const PAGES: usize = 64;
    const HEADER: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0";
    const END: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

    /// The memory of this very process: as far as the kernel is concerned, a guest's.
    fn memory_of(blocks: &[&[u8]]) -> GuestMemory {
        let host = blocks.iter().zip(["a", "b"]).map(|(block, name)| HostBlock {
            name: name.to_owned(),
            address: block.as_ptr().addr() as u64,
            bytes: block.len() as u64,
        });
        GuestMemory::open(std::process::id(), host.collect()).unwrap()
    }

    fn block(name: &str) -> Block {
        Block {
            name: BlockName::new(name.as_bytes()).unwrap(),
            bytes: (PAGES * PAGE) as u64,
        }
    }

    fn record(stream: &mut Vec<u8>, page: u64, flags: u64, name: &str, rest: &[u8]) {
        stream.extend_from_slice(&((page * PAGE as u64) | flags).to_be_bytes());
        if flags & 0x20 == 0 {
            stream.push(name.len() as u8);
            stream.extend_from_slice(name.as_bytes());
        }
        stream.extend_from_slice(rest);
    }

    /// Has a batch's pages written; returns what is left for QEMU.
    fn place(placement: &mut Placement, memory: &Arc<GuestMemory>, batch: Batch) -> Vec<u8> {
        let batch = Arc::new(batch);
        let (writes, rest) = placement.plan(&batch);
        let (placers, threads) = Placers::new(3);
        let mut parts = placers.start(memory, &batch, writes);
        let placed = placers.placed.clone();
        std::thread::scope(|scope| {
            for placer in threads {
                scope.spawn(|| placer.run());
            }
            while parts > 0 {
                assert_eq!(placed.recv().unwrap().unwrap().seq, batch.seq);
                parts -= 1;
            }
            drop(placers);
        });
        rest.into_owned()
    }

    /// A stream of two blocks up to its first page.
    fn setup() -> Vec<u8> {
        let mut stream = [HEADER, b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"].concat();
        let bytes = (PAGES * PAGE) as u64;
        stream.extend_from_slice(&((2 * bytes) | 0x04).to_be_bytes());
        for name in ["a", "b"] {
            stream.push(1);
            stream.extend_from_slice(name.as_bytes());
            stream.extend_from_slice(&bytes.to_be_bytes());
        }
        stream.extend_from_slice(END);
        stream.extend_from_slice(b"\x02\0\0\0\x02");
        stream
    }

    fn batch(builder: &mut BatchBuilder, seq: u64, stream: &[u8]) -> Batch {
        builder.spare()[..stream.len()].copy_from_slice(stream);
        builder.filled(stream.len());
        builder.cut(seq, 0, Vec::new()).unwrap()
    }

    #[test]
    fn pages_are_written_and_qemu_is_told_of_their_blocks_only() {
        let (a, b) = (vec![7; PAGES * PAGE], vec![7; PAGES * PAGE]);
        let mut memory = memory_of(&[&a, &b]);
        let blocks: Arc<[Block]> = [block("a"), block("b")].into();
        memory.set_blocks(&blocks);
        let mut placement = Placement::new(&memory, &blocks, PAGE);

        let mut stream = setup();
        record(&mut stream, 3, 0x08, "a", &[1; PAGE]);
        record(&mut stream, 4, 0x28, "", &[2; PAGE]);
        record(&mut stream, 3, 0x08, "a", &[3; PAGE]);
        record(&mut stream, 5, 0x02, "b", &[0]);
        record(&mut stream, 6, 0x28, "", &[4; PAGE]);
        stream.extend_from_slice(END);
        let mut builder = BatchBuilder::new();
        let memory = Arc::new(memory);
        let rest = place(&mut placement, &memory, batch(&mut builder, 0, &stream));
        let pages = |block: &[u8], pages: std::ops::Range<usize>| {
            black_box(block)[pages.start * PAGE..pages.end * PAGE].to_vec()
        };
        assert_eq!(pages(&a, 3..5), [[3; PAGE], [2; PAGE]].concat());
        assert_eq!(pages(&b, 5..7), [[0; PAGE], [4; PAGE]].concat());
        assert_eq!(pages(&a, 0..3), [7; 3 * PAGE], "nothing else is touched");
        assert_eq!(placement.placed(), (5 * PAGE as u64, None));
        assert!(rest.len() < stream.len() - 4 * PAGE);
        let mut parser = Parser::new();
        let mut at = 0;
        let mut named = Vec::new();
        while let Some((bytes, item)) = parser.next(&rest[at..]) {
            at += bytes;
            match item {
                Item::Foreign(page, _) => named.push(page.block),
                Item::Page(..) | Item::Zero(_) => panic!("{item:?}"),
                Item::Bytes(_) | Item::Mark(_) => {}
            }
        }
        assert_eq!(named, [BlockId(0), BlockId(0), BlockId(1)]);

        // A page that QEMU encoded, and all after it, go through QEMU.
        let mut stream = b"\x02\0\0\0\x02".to_vec();
        record(&mut stream, 3, 0x40, "a", b"\x01\0\x02ab");
        record(&mut stream, 4, 0x28, "", &[9; PAGE]);
        let rest = place(&mut placement, &memory, batch(&mut builder, 1, &stream));
        assert!(rest == stream && pages(&a, 4..5) == [2; PAGE]);
        assert!(placement.placed().1.unwrap().contains("xbzrle"));
    }

    #[test]
    fn memory_that_was_never_touched_is_not_written_with_zeros() {
        // So large that the allocator maps it for itself, untouched.
        let a = vec![0; 4096 * PAGE];
        let mut memory = memory_of(&[&a]);
        memory.set_blocks(&[Block {
            bytes: a.len() as u64,
            ..block("a")
        }]);
        let held = memory.held(BlockId(0)).unwrap();
        assert!(
            held.iter().map(|range| range.end - range.start).sum::<u64>() < a.len() as u64 / 2,
            "{held:?}"
        );
        let middle = 2048 * PAGE as u64;
        memory.write(&[(BlockId(0), middle, &[1; PAGE])]).unwrap();
        let held = memory.held(BlockId(0)).unwrap();
        assert!(held.iter().any(|range| range.contains(&middle)), "{held:?}");
        assert_eq!(black_box(&a)[2048 * PAGE], 1);
    }

    #[test]
    fn a_block_without_room_for_the_sources_has_qemu_load_everything() {
        let a = vec![7; PAGES * PAGE / 2];
        let mut memory = memory_of(&[&a]);
        let blocks: Arc<[Block]> = [block("a")].into();
        memory.set_blocks(&blocks);
        let mut placement = Placement::new(&memory, &blocks, PAGE);
        let stream = setup();
        let batch = batch(&mut BatchBuilder::new(), 0, &stream);
        assert_eq!(place(&mut placement, &Arc::new(memory), batch), stream);
        assert!(placement.placed().1.unwrap().contains("room"));
    }
}
