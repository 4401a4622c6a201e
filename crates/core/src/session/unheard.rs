//! What one side of a connection has sent and the other has not said to have: kept, to be sent again over the next TCP
//! connection if this one breaks.

use crate::wire::frame::Kind;
use std::collections::VecDeque;
use std::sync::Arc;

/// A frame without its header, which says how much the sender has heard by then and so is made each time.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsaid {
    /// What it carries.
    pub kind: Kind,
    /// That.
    pub payload: Vec<u8>,
}

/// The peer says that it has frames which were not sent, or no longer has some that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer says that it has {heard} frames, which can be {from} to {to}")]
pub struct WrongCount {
    heard: u64,
    from: u64,
    to: u64,
}

/// The frames of one direction, from the first that the peer has not said to have.
#[derive(Debug, Default)]
pub struct Unheard {
    /// The first one's sequence number.
    first: u64,
    frames: VecDeque<Arc<Unsaid>>,
    bytes: usize,
}

impl Unheard {
    /// Takes a frame that is to be sent; returns its sequence number and the frame.
    pub fn push(&mut self, kind: Kind, payload: Vec<u8>) -> (u64, Arc<Unsaid>) {
        let frame = Arc::new(Unsaid { kind, payload });
        let sequence = self.next();
        self.bytes += frame.payload.len();
        self.frames.push_back(frame.clone());
        (sequence, frame)
    }

    /// The peer says that it has so many frames; `spent` is given the payloads of those that nobody else looks at.
    pub fn heard(&mut self, heard: u64, mut spent: impl FnMut(Vec<u8>)) -> Result<(), WrongCount> {
        let (from, to) = (self.first, self.next());
        if !self.can_go_on(heard) {
            return Err(WrongCount { heard, from, to });
        }
        for frame in self.frames.drain(..(heard - from) as usize) {
            self.bytes -= frame.payload.len();
            if let Some(frame) = Arc::into_inner(frame) {
                spent(frame.payload);
            }
        }
        self.first = heard;
        Ok(())
    }

    /// Whether a peer that has so many frames can go on with those that are kept.
    pub fn can_go_on(&self, heard: u64) -> bool {
        (self.first..=self.next()).contains(&heard)
    }

    /// The frames that the peer does not have, with their sequence numbers.
    pub fn frames(&self) -> impl Iterator<Item = (u64, Arc<Unsaid>)> {
        (self.first..).zip(self.frames.iter().cloned())
    }

    /// The sequence number of the next frame.
    pub fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Bytes of payload kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peer_has_what_was_sent_and_not_less_than_before() {
        let mut unheard = Unheard::default();
        for payload in [b"a", b"b", b"c"] {
            unheard.push(Kind::Data, payload.to_vec());
        }
        let nothing = |_| ();
        assert!(unheard.heard(4, nothing).is_err(), "never sent");
        assert_eq!(unheard.heard(2, nothing), Ok(()));
        assert_eq!(unheard.heard(2, nothing), Ok(()), "said again");
        assert!(unheard.heard(1, nothing).is_err(), "it had that one");
        assert_eq!((unheard.next(), unheard.bytes()), (3, 1));
    }

    proptest! {
        /// A TCP connection carries some of the frames and breaks, again and again: each arrives once and in order.
        #[test]
        fn every_frame_arrives_once_over_any_number_of_breaks(breaks in prop::collection::vec((0usize..5, 0usize..8), 1..30)) {
            let (mut unheard, mut arrived, mut sent) = (Unheard::default(), Vec::new(), 0u8);
            for (fresh, carried) in breaks {
                for _ in 0..fresh {
                    unheard.push(Kind::Data, vec![sent]);
                    sent += 1;
                }
                let due = arrived.len() as u64;
                let carries = unheard.frames().filter(|(sequence, _)| *sequence >= due).take(carried);
                arrived.extend(carries.map(|(_, frame)| frame.payload[0]));
                unheard.heard(arrived.len() as u64, |_| ()).unwrap();
            }
            prop_assert!(arrived.iter().copied().eq(0..arrived.len() as u8));
            prop_assert_eq!(unheard.frames().count() + arrived.len(), usize::from(sent));
            prop_assert_eq!(unheard.bytes(), unheard.frames().count());
        }
    }
}
