//! What must hold for every captured stream.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use vmferry_core::qemu::{Block, Item, Mark, Parser};

use crate::capture::{Capture, Kind};

/// Sizes of the pieces that the parser is shown more of, in turn: of all that a socket may give, and odd ones.
const PIECES: [usize; 7] = [1, 128 * 1024, 4095, 7, 32 * 1024, 4104, 513];

/// What each RAM record begins with.
const WORD_BYTES: usize = 8;

/// What was seen in a stream.
pub(crate) struct Report {
    pub(crate) blocks: Vec<Block>,
    /// Pages in an encoding of QEMU's own.
    pub(crate) foreign: u64,
    /// Pages that all blocks have together.
    pub(crate) listed_pages: u64,
    /// Pages sent at least once.
    pub(crate) distinct_pages: u64,
    pub(crate) postcopy_pages: u64,
}

/// Follows the stream in pieces; fails if what is written again differs, if the parser lost it, or if it saw other pages
/// than QEMU counted.
pub(crate) fn check(capture: &Capture) -> Result<Report> {
    let stream = &capture.stream;
    let mut parser = Parser::new();
    let (mut pages, mut zeros, mut foreign, mut postcopy_pages) = (0, 0, 0, 0);
    let mut delta_bytes = 0;
    let mut marks = Vec::new();
    let mut seen = HashSet::new();
    let mut written = Vec::new();
    let (mut front, mut read) = (0, 0);
    for piece in PIECES.into_iter().cycle() {
        while let Some((bytes, item)) = parser.next(&stream[front..read]) {
            let at = match &item {
                Item::Page(at, _) => {
                    pages += 1;
                    Some(at)
                }
                Item::Zero(at) => {
                    zeros += 1;
                    Some(at)
                }
                Item::Foreign(at, record) => {
                    foreign += 1;
                    delta_bytes += (record.len() - WORD_BYTES) as u64;
                    Some(at)
                }
                Item::Mark(mark) => {
                    marks.push(mark.clone());
                    None
                }
                Item::Bytes(_) => None,
            };
            if let Some(at) = at {
                seen.insert((at.block, at.offset));
                postcopy_pages += u64::from(marks.contains(&Mark::Postcopy));
            }
            written.clear();
            item.write(parser.blocks(), &mut written);
            ensure!(
                written == stream[front..front + bytes],
                "what is written differs from byte {front} on"
            );
            front += bytes;
        }
        if read == stream.len() {
            break;
        }
        read = stream.len().min(read + piece);
    }
    ensure!(
        front == stream.len(),
        "the parser waits for more behind byte {front} of {}",
        stream.len()
    );
    let expected: &[Mark] = match capture.kind {
        Kind::Postcopy => &[Mark::Blocks, Mark::Switchover, Mark::Postcopy, Mark::RamEnd],
        _ => &[Mark::Blocks, Mark::Switchover, Mark::RamEnd],
    };
    ensure!(marks == expected, "{marks:?}");
    let counted = (capture.pages, capture.zeros, capture.delta_bytes);
    ensure!(
        (pages, zeros, delta_bytes) == counted,
        "seen {:?}, QEMU counted {counted:?}",
        (pages, zeros, delta_bytes)
    );
    let page_bytes = parser.page_bytes() as u64;
    Ok(Report {
        blocks: parser.blocks().to_vec(),
        foreign,
        listed_pages: parser.blocks().iter().map(|block| block.bytes / page_bytes).sum(),
        distinct_pages: seen.len() as u64,
        postcopy_pages,
    })
}
