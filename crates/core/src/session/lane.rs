//! What the target does with a lane's frames until a batch is whole: decode it, find the known content that it refers to,
//! and ask for what is not there.

use super::WAITING_CHARGE_MAX;
use crate::page::content::BLOCK_BYTES;
use crate::page::{Ask, DecodeError, Decoded, Decoder, LzError, ask};
use crate::wire::frame::HEADER_BYTES;
use std::collections::HashMap;

/// One lane. `T` is what the caller notes of each batch.
pub struct TargetLane<T> {
    decoder: Decoder,
    /// Batches of which pages were asked for. The lane goes on meanwhile.
    incomplete: HashMap<u64, Incomplete<T>>,
    /// What those count for, bytes.
    charged: u64,
}

struct Incomplete<T> {
    whole: Whole<T>,
    pages: Vec<u16>,
}

/// A batch that can be assembled.
#[derive(Debug)]
pub struct Whole<T> {
    /// The batch.
    pub decoded: Decoded,
    /// Bytes of the frames that carried it.
    pub wire_bytes: u64,
    /// What the caller noted when it was decoded.
    pub note: T,
}

/// What is to be done after a frame of data.
#[derive(Debug)]
pub enum Next<T> {
    /// This can be assembled in its turn.
    Complete(Whole<T>),
    /// Pages are missing: ask the source.
    Ask(Ask),
}

/// Why a lane can't go on: its source is broken or lies.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LaneError {
    /// A batch that is none, or pages that are not those asked for.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Pages that can't be decoded.
    #[error(transparent)]
    Lz(#[from] LzError),
    /// More batches that lack pages than the lane has credit for.
    #[error("the source sends more than it has credit for")]
    TooMuch,
    /// A batch of that number lacks pages already.
    #[error("batch {0} came twice")]
    Repeated(u64),
    /// Pages that nobody asked for.
    #[error("the source supplies what was not asked for")]
    Unasked,
}

impl<T> TargetLane<T> {
    /// A lane at its beginning.
    pub fn new(decoder: Decoder) -> Self {
        Self {
            decoder,
            incomplete: HashMap::new(),
            charged: 0,
        }
    }

    /// [`Decoder::recycle`].
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.decoder.recycle(buffer);
    }

    /// Takes the payload of a `Data` frame. `find` fills in what refers to known content ([`Decoded::spans`]) and returns the
    /// pages that are not there; `note` is called once the batch is decoded.
    pub fn data(
        &mut self,
        payload: &[u8],
        find: impl FnOnce(&Decoder, &mut Decoded) -> Vec<u16>,
        note: impl FnOnce() -> T,
    ) -> Result<Next<T>, LaneError> {
        let decoded = self.decoder.decode(payload)?;
        let mut whole = Whole {
            decoded,
            wire_bytes: (HEADER_BYTES + payload.len()) as u64,
            note: note(),
        };
        let pages = find(&self.decoder, &mut whole.decoded);
        if pages.is_empty() {
            return Ok(Next::Complete(whole));
        }
        let (seq, charge) = (whole.decoded.seq(), whole.decoded.charge());
        if self.incomplete.contains_key(&seq) {
            return Err(LaneError::Repeated(seq));
        }
        if self.charged + charge > WAITING_CHARGE_MAX {
            return Err(LaneError::TooMuch);
        }
        self.charged += charge;
        let ask = Ask {
            seq,
            pages: pages.clone(),
        };
        self.incomplete.insert(seq, Incomplete { whole, pages });
        Ok(Next::Ask(ask))
    }

    /// Takes the payload of a `Supply` frame, which makes a batch whole.
    pub fn supply(&mut self, payload: &[u8]) -> Result<Whole<T>, LaneError> {
        let (seq, contents) = ask::batch_of(payload).ok_or(LaneError::Unasked)?;
        let Incomplete { mut whole, pages } = self.incomplete.remove(&seq).ok_or(LaneError::Unasked)?;
        self.charged -= whole.decoded.charge();
        let contents = ask::contents(contents, pages.len() * BLOCK_BYTES)?;
        self.decoder.supply(&mut whole.decoded, &pages, &contents)?;
        whole.wire_bytes += (HEADER_BYTES + payload.len()) as u64;
        Ok(whole)
    }

    /// What the batches count for that lack pages, bytes.
    pub fn charged(&self) -> u64 {
        self.charged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Coders, FingerprintKey, Span, payload};

    fn lane() -> TargetLane<()> {
        TargetLane::new(Decoder::new(FingerprintKey::new([7; 32]), Coders::default()))
    }

    /// A batch of one page that stands in known content, as the target would read it: zeros.
    fn referring(seq: u64) -> Vec<u8> {
        let mut payload = seq.to_be_bytes().to_vec();
        payload.extend([0; 4 + 8 + 16]);
        payload.extend([12, 0]);
        let operation = [&[payload::Kind::Content as u8, 0, 0, 1, 0, 5][..], &[7; 16]].concat();
        for length in [operation.len(), 0, 0] {
            payload.extend((length as u32).to_be_bytes());
        }
        [payload, operation].concat()
    }

    fn asked(lane: &mut TargetLane<()>, seq: u64) -> Result<Next<()>, LaneError> {
        let none = |_: &Decoder, decoded: &mut Decoded| decoded.spans().iter().flat_map(Span::pages).collect();
        lane.data(&referring(seq), none, || ())
    }

    #[test]
    fn a_source_that_never_supplies_does_not_fill_the_memory() {
        let mut lane = lane();
        let error = (0..).find_map(|seq| asked(&mut lane, seq).err());
        assert_eq!(error, Some(LaneError::TooMuch));
        assert!(lane.charged() <= WAITING_CHARGE_MAX && lane.incomplete.len() < 1200);
    }

    #[test]
    fn a_batch_is_asked_for_once_and_supplied_once() {
        let mut lane = lane();
        assert!(matches!(asked(&mut lane, 3), Ok(Next::Ask(Ask { seq: 3, .. }))));
        assert_eq!(asked(&mut lane, 3).unwrap_err(), LaneError::Repeated(3));
        let supply = |seq: u64| [&seq.to_be_bytes()[..], &[0], &[1; BLOCK_BYTES]].concat();
        assert_eq!(lane.supply(&[]).unwrap_err(), LaneError::Unasked);
        assert_eq!(lane.supply(&supply(4)).unwrap_err(), LaneError::Unasked);
        let other_page = lane.supply(&supply(3)).unwrap_err();
        assert!(matches!(other_page, LaneError::Decode(_)), "{other_page}");
        assert_eq!(lane.supply(&supply(3)).unwrap_err(), LaneError::Unasked);
        assert_eq!(lane.charged(), 0);
    }

    #[test]
    fn pages_that_take_more_than_was_asked_for_are_refused() {
        let mut lane = lane();
        asked(&mut lane, 0).unwrap();
        // Sixteen megabytes in a few kilobytes.
        let mut bomb = 0u64.to_be_bytes().to_vec();
        let lz4 = crate::page::CodecSettings {
            codec: crate::page::Codec::Lz4,
            ..Default::default()
        };
        let zeros = vec![0; 16 << 20];
        lz4.encoder().unwrap().encode(&[&zeros], &mut bomb).unwrap();
        assert!(bomb.len() < 1 << 17);
        assert!(matches!(lane.supply(&bomb), Err(LaneError::Lz(_))));
    }
}
