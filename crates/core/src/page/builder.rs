//! Cuts QEMU's stream into batches in the very buffers it was read into.

use super::batch::{Batch, Op};
use crate::{
    limits::{BATCH_BYTES, BATCH_BYTES_LEAST, PAGE_BYTES_MAX},
    qemu::{Item, Mark, PageAt, Parser},
};

/// What the parser asks for at once, bytes: no more is left of a record whose rest has not come.
const RECORD_BYTES_MAX: usize = PAGE_BYTES_MAX + 1024;

const _: () = assert!(RECORD_BYTES_MAX < BATCH_BYTES_LEAST, "a batch takes in whole records");

/// Reads go into [`spare`](Self::spare), [`filled`](Self::filled) says how much came, [`cut`](Self::cut) takes what there
/// is as a batch. When to cut is the caller's choice: when a batch [is full](Self::is_full), and whenever there is
/// nothing more to read just now, for QEMU must never be left waiting for bytes that lie here.
pub struct BatchBuilder {
    parser: Parser,
    buffer: Vec<u8>,
    /// Where a batch is full.
    batch_bytes: usize,
    filled: usize,
    parsed: usize,
    ops: Vec<Op>,
    postcopy: bool,
    stopped: bool,
}

impl BatchBuilder {
    /// A builder at the start of a stream.
    pub fn new() -> Self {
        Self {
            parser: Parser::new(),
            buffer: vec![0; BATCH_BYTES],
            batch_bytes: BATCH_BYTES,
            filled: 0,
            parsed: 0,
            ops: Vec::new(),
            postcopy: false,
            stopped: false,
        }
    }

    /// The stream's parser, for its block list, page size and position.
    pub fn parser(&self) -> &Parser {
        &self.parser
    }

    /// Batches are full at so many bytes from here on, [`BATCH_BYTES_LEAST`] to [`BATCH_BYTES`].
    pub fn set_batch_bytes(&mut self, bytes: usize) {
        self.batch_bytes = bytes.clamp(BATCH_BYTES_LEAST, BATCH_BYTES);
    }

    /// Where the next bytes of the stream go. Empty when the batch is full.
    pub fn spare(&mut self) -> &mut [u8] {
        let end = self.full_at().max(self.filled);
        &mut self.buffer[self.filled..end]
    }

    /// There is enough for a batch: cut it before reading on.
    pub fn is_full(&self) -> bool {
        self.filled >= self.full_at()
    }

    /// Where in the buffer the batch is full.
    fn full_at(&self) -> usize {
        self.batch_bytes.min(self.buffer.len())
    }

    /// Takes the first `bytes` of [`spare`](Self::spare) (at most all of it) as the next of the stream; returns the marks
    /// met in them.
    pub fn filled(&mut self, bytes: usize) -> Vec<Mark> {
        self.filled = (self.filled + bytes).min(self.buffer.len());
        let mut marks = Vec::new();
        while let Some((consumed, item)) = self.parser.next(&self.buffer[self.parsed..self.filled]) {
            let record = self.parsed;
            let end = record + consumed;
            self.parsed = end;
            match item {
                Item::Bytes(_) => push_bytes(&mut self.ops, record, end),
                Item::Page(at, content) => self.ops.push(Op::Page {
                    at,
                    record,
                    start: end - content.len(),
                }),
                Item::Zero(at) => push_zero(&mut self.ops, at, record, self.parser.page_bytes()),
                Item::Foreign(at, _) => self.ops.push(Op::Foreign {
                    block: at.block,
                    offset: at.offset,
                    range: record..end,
                }),
                Item::Mark(mark) => {
                    match mark {
                        Mark::Blocks => self.ops.push(Op::Blocks(self.parser.blocks().into())),
                        Mark::Postcopy => self.postcopy = true,
                        Mark::Switchover => self.stopped = true,
                        Mark::RamEnd | Mark::Lost(_) => {}
                    }
                    marks.push(mark);
                }
            }
        }
        marks
    }

    /// The stream has ended: what is left of a record that was cut short is passed on as it is.
    pub fn end(&mut self) {
        push_bytes(&mut self.ops, self.parsed, self.filled);
        self.parsed = self.filled;
    }

    /// Takes what has been parsed as a batch, and goes on in `fresh`, of any length (a buffer that was a batch's before
    /// costs nothing to prepare). The beginning of a record whose rest has not come moves there. `None`, and `fresh` is
    /// dropped, if there is nothing to cut.
    pub fn cut(&mut self, seq: u64, round: u32, mut fresh: Vec<u8>) -> Option<Batch> {
        if self.ops.is_empty() {
            return None;
        }
        // What a batch before left of it need not be cleared again.
        fresh.resize((self.batch_bytes + RECORD_BYTES_MAX).min(BATCH_BYTES), 0);
        let rest = self.filled - self.parsed;
        fresh[..rest].copy_from_slice(&self.buffer[self.parsed..self.filled]);
        let mut stream = std::mem::replace(&mut self.buffer, fresh);
        stream.truncate(self.parsed);
        self.filled = rest;
        self.parsed = 0;
        Some(Batch {
            seq,
            round,
            stream,
            ops: std::mem::take(&mut self.ops),
            page_bytes: self.parser.page_bytes(),
            postcopy: self.postcopy,
            stopped: self.stopped,
        })
    }
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

fn push_bytes(ops: &mut Vec<Op>, start: usize, end: usize) {
    match ops.last_mut() {
        Some(Op::Bytes(range)) => range.end = end,
        _ if start < end => ops.push(Op::Bytes(start..end)),
        _ => {}
    }
}

fn push_zero(ops: &mut Vec<Op>, at: PageAt, record: usize, page_bytes: usize) {
    if let Some(Op::Zero { at: first, pages, .. }) = ops.last_mut()
        && !at.named
        && first.block == at.block
        && first.offset + *pages * page_bytes as u64 == at.offset
    {
        *pages += 1;
    } else {
        ops.push(Op::Zero { at, record, pages: 1 });
    }
}
