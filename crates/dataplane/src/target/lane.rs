//! What the target does with a lane's frames until a batch is whole: decode it, find the known content that it refers to,
//! and ask for what is not there.

use super::reads::Reads;
use crate::coding::{DecodeMeter, Spent};
use std::collections::HashMap;
use vmferry_core::limits::{BATCH_PLAIN_BYTES_MAX, LANE_CREDIT_BYTES_MAX};
use vmferry_core::page::content::BLOCK_BYTES;
use vmferry_core::page::{Ask, Decoded, Decoder, ask};
use vmferry_core::wire::frame::HEADER_BYTES;

/// One lane.
pub(crate) struct Lane {
    pub(crate) decoder: Decoder,
    /// Batches of which pages were asked for. The lane goes on meanwhile.
    incomplete: HashMap<u64, Incomplete>,
    incomplete_bytes: u64,
}

struct Incomplete {
    whole: Whole,
    pages: Vec<u16>,
}

/// A batch that can be assembled.
pub(crate) struct Whole {
    pub(crate) decoded: Decoded,
    /// Bytes of the frames that carried it.
    pub(crate) wire_bytes: u64,
    /// What it has cost so far.
    pub(crate) spent: Spent,
}

/// What is to be done after a frame of data.
pub(crate) enum Next {
    Complete(Whole),
    Ask(Ask),
}

impl Lane {
    pub(crate) fn new(decoder: Decoder) -> Self {
        Self {
            decoder,
            incomplete: HashMap::new(),
            incomplete_bytes: 0,
        }
    }

    /// Takes a `Data` frame.
    pub(crate) fn data(
        &mut self,
        payload: &[u8],
        reads: &mut Reads,
        meter: Option<DecodeMeter>,
    ) -> Result<Next, String> {
        let decoded = self.decoder.decode(payload).map_err(|error| error.to_string())?;
        let mut whole = Whole {
            decoded,
            wire_bytes: (HEADER_BYTES + payload.len()) as u64,
            spent: meter.map(DecodeMeter::decoded).unwrap_or_default(),
        };
        let pages = reads.find(&self.decoder, &mut whole.decoded)?;
        if pages.is_empty() {
            return Ok(Next::Complete(whole));
        }
        self.incomplete_bytes += whole.decoded.stream_bytes();
        if self.incomplete_bytes > LANE_CREDIT_BYTES_MAX + BATCH_PLAIN_BYTES_MAX as u64 {
            return Err("the source sends more than it has credit for".to_owned());
        }
        let seq = whole.decoded.seq();
        let ask = Ask {
            seq,
            pages: pages.clone(),
        };
        if self.incomplete.insert(seq, Incomplete { whole, pages }).is_some() {
            return Err(format!("batch {seq} came twice"));
        }
        Ok(Next::Ask(ask))
    }

    /// Takes a `Supply` frame, which makes a batch whole.
    pub(crate) fn supply(&mut self, payload: &[u8]) -> Result<Whole, String> {
        let unasked = || "the source supplies what was not asked for".to_owned();
        let (seq, contents) = ask::batch_of(payload).ok_or_else(unasked)?;
        let Incomplete { mut whole, pages } = self.incomplete.remove(&seq).ok_or_else(unasked)?;
        self.incomplete_bytes -= whole.decoded.stream_bytes();
        let contents = ask::contents(contents, pages.len() * BLOCK_BYTES).map_err(|error| error.to_string())?;
        let supplied = self.decoder.supply(&mut whole.decoded, &pages, &contents);
        supplied.map_err(|error| error.to_string())?;
        whole.wire_bytes += (HEADER_BYTES + payload.len()) as u64;
        Ok(whole)
    }
}
