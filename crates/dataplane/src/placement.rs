//! Pages straight into the target guest's memory. QEMU is given what is left of the stream: section headers, block list,
//! device state.
//!
//! It saves the way through a socket and QEMU's one loading thread, and it leaves zero pages alone where the memory was never
//! touched: QEMU's loader looks at each of them, and so has the kernel map it.
//!
//! All pages take the same way, since QEMU loads in its own time: of two versions of a page the earlier one must not arrive
//! later, nor may a page be looked up that still lies in a socket. The one change of ways is that pages go through QEMU from
//! some batch on. QEMU therefore is told of every block that the stream turns to: a record without a name belongs to the
//! block of the record before.

use crate::guest_memory::GuestMemory;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use vmferry_core::limits::PAGE_BYTES_MAX;
use vmferry_core::page::{Batch, Op, PageSet};
use vmferry_core::qemu::{Block, BlockId, PageAt, naming_record};

static ZEROS: [u8; PAGE_BYTES_MAX] = [0; PAGE_BYTES_MAX];

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

    /// Writes the next batch's pages, and returns what of its stream QEMU has to load.
    pub(crate) fn place<'a>(&mut self, memory: &GuestMemory, batch: &'a Batch) -> io::Result<Cow<'a, [u8]>> {
        // QEMU's record of the pages that it has, by which it asks for the others in post-copy, knows of none placed here.
        // Nor can a difference to a page be passed on and the page's next version be placed.
        if batch.is_postcopy() {
            self.not_direct = Some("post-copy began".to_owned());
        } else if batch.ops().iter().any(|op| matches!(op, Op::Foreign { .. })) {
            self.not_direct = Some("the source's QEMU encodes pages itself (capability xbzrle or compress)".to_owned());
        }
        if self.not_direct.is_some() {
            return Ok(batch.stream().into());
        }
        let page_bytes = batch.page_bytes() as u64;
        let mut rest = Vec::new();
        let mut pages: Vec<(BlockId, u64, &[u8])> = Vec::new();
        for op in batch.ops() {
            match op {
                Op::Blocks(_) | Op::Foreign { .. } => {}
                Op::Bytes(range) => rest.extend_from_slice(&batch.stream()[range.clone()]),
                Op::Page { at, start, .. } => {
                    self.name(at, &mut rest);
                    let page = at.offset / page_bytes;
                    self.held.insert(at.block, page..page + 1);
                    pages.push((at.block, at.offset, batch.page(*start)));
                }
                Op::Zero { at, pages: run, .. } => {
                    self.name(at, &mut rest);
                    let first = at.offset / page_bytes;
                    for page in (first..first + run).filter(|page| self.held.contains(at.block, *page)) {
                        pages.push((at.block, page * page_bytes, &ZEROS[..batch.page_bytes()]));
                    }
                }
            }
        }
        memory.write(&pages)?;
        self.placed_bytes += pages.len() as u64 * page_bytes;
        Ok(rest.into())
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
