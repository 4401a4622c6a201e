//! A captured stream as pages in rounds, which can be left out or moved, and written as a stream again.

use std::{collections::HashMap, error::Error, ops::Range};
use vmferry_core::qemu::{Block, BlockId, Item, Mark, PageAt, Parser, RecordKind, record_header};

/// A page of the guest: its block and its offset there, bytes.
pub(crate) type Page = (BlockId, u64);

/// A part of a stream.
#[derive(Clone)]
pub(crate) enum Piece {
    /// What is no page.
    Bytes(Range<usize>),
    /// A page, and where its content is; none if it is zero.
    Page(Page, Option<Range<usize>>),
}

/// A captured stream.
pub(crate) struct Capture {
    bytes: Vec<u8>,
    /// Of the block list.
    blocks: Vec<Block>,
    /// What it is made of, by round. While the last is sent the guest is stopped.
    pub(crate) rounds: Vec<Vec<Piece>>,
}

impl Capture {
    /// Splits a stream of QEMU.
    pub(crate) fn read(bytes: Vec<u8>) -> Result<Self, Box<dyn Error>> {
        let mut parser = Parser::new();
        let mut rounds = vec![Vec::new()];
        let mut order = Order::default();
        let mut at = 0;
        while let Some((length, item)) = parser.next(&bytes[at..]) {
            let end = at + length;
            let (page, content) = match item {
                Item::Page(page, content) => (page, Some(end - content.len()..end)),
                Item::Zero(page) => (page, None),
                Item::Foreign(..) => return Err("QEMU encoded pages itself: capture without xbzrle".into()),
                Item::Mark(Mark::Lost(reason)) => return Err(format!("not followed: {reason:?}").into()),
                Item::Mark(Mark::Switchover) => {
                    rounds.push(Vec::new());
                    order = Order::default();
                    continue;
                }
                Item::Mark(_) => continue,
                Item::Bytes(_) => {
                    push(&mut rounds, Piece::Bytes(at..end));
                    at = end;
                    continue;
                }
            };
            let page = (page.block, page.offset);
            if order.ends_before(page) {
                rounds.push(Vec::new());
            }
            push(&mut rounds, Piece::Page(page, content));
            at = end;
        }
        push(&mut rounds, Piece::Bytes(at..bytes.len()));
        let blocks = parser.blocks().to_vec();
        Ok(Self { bytes, blocks, rounds })
    }

    /// The guest's memory, bytes: the largest block, beside which the others are firmware.
    pub(crate) fn guest_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes).max().unwrap_or(0)
    }

    /// How many pages a round has.
    pub(crate) fn pages(&self, round: usize) -> usize {
        pages(&self.rounds[round]).count()
    }

    /// Bytes of the stream, by round, if it were of these pieces.
    pub(crate) fn write(&self, rounds: &[Vec<Piece>]) -> Vec<Vec<u8>> {
        let mut block = None;
        let mut write = |pieces: &Vec<Piece>| {
            let mut out = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Bytes(range) => out.extend_from_slice(&self.bytes[range.clone()]),
                    Piece::Page((of, offset), content) => {
                        let named = block.replace(*of) != Some(*of);
                        let at = PageAt {
                            block: *of,
                            offset: *offset,
                            named,
                        };
                        let kind = content.as_ref().map_or(RecordKind::Zero, |_| RecordKind::Page);
                        record_header(kind, &at, &self.blocks[usize::from(of.0)].name, &mut out);
                        out.extend_from_slice(&self.bytes[content.clone().unwrap_or_default()]);
                    }
                }
            }
            out
        };
        rounds.iter().map(&mut write).collect()
    }

    /// Checks that the target would hold the same if the stream were of these pieces.
    pub(crate) fn check_same_image(&self, rounds: &[Vec<Piece>]) -> Result<(), &'static str> {
        let same = self.image(rounds) == self.image(&self.rounds);
        same.then_some(()).ok_or("the target would hold something else")
    }

    fn image(&self, rounds: &[Vec<Piece>]) -> HashMap<Page, &[u8]> {
        let pages = rounds.iter().flatten().filter_map(|piece| match piece {
            Piece::Page(page, content) => Some((*page, &self.bytes[content.clone().unwrap_or_default()])),
            Piece::Bytes(_) => None,
        });
        pages.collect()
    }
}

/// The pages among these pieces, in order.
pub(crate) fn pages(pieces: &[Piece]) -> impl Iterator<Item = Page> {
    pieces.iter().filter_map(|piece| match piece {
        Piece::Page(page, _) => Some(*page),
        Piece::Bytes(_) => None,
    })
}

fn push(rounds: &mut [Vec<Piece>], piece: Piece) {
    if let Some(round) = rounds.last_mut() {
        round.push(piece);
    }
}

/// Finds where rounds begin. QEMU goes over the guest's pages in a circle, once a round: it looks anew for what is dirty when
/// it comes to where the round began, and goes on from where it is.
#[derive(Default)]
struct Order {
    /// The first page of the round, then the page before this one and whether the end of memory lies between the two.
    round: Option<(Page, (bool, Page))>,
}

impl Order {
    /// Whether the page is the first of another round.
    fn ends_before(&mut self, page: Page) -> bool {
        let Some((first, last)) = &mut self.round else {
            self.round = Some((page, (false, page)));
            return false;
        };
        let place = (page < *first, page);
        if place > *last {
            *last = place;
            return false;
        }
        self.round = Some((page, (false, page)));
        true
    }
}
