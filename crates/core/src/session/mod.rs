//! Order and credit of a session's data lanes.
//!
//! A batch goes over whichever lane is free, so batches arrive in any order between lanes and in order within one;
//! [`Reorder`] puts them back. A lane may have so many bytes of QEMU's stream on its way; [`LaneCredit`] counts them, [`Ack`]
//! gives them back when they are in the target guest's memory, or its QEMU has taken them. So a slow reader
//! anywhere (link, decoder, QEMU) slows the source's QEMU down, and what is buffered when the guest stops is bounded.
//!
//! A lane that breaks ends the session. Frames are numbered and acknowledgements cumulative, which is what a lane that is
//! replaced needs to know what to send again.

use crate::limits::{LANE_CREDIT_BYTES_MAX, LANE_CREDIT_BYTES_MIN};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Target to source, on a data lane: cumulative counts since the lane was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Bytes of QEMU's stream, from this lane's batches, that are placed or that the target's QEMU has taken.
    pub stream_bytes: u64,
    /// Bytes of frames received on this lane, for the source's measure of goodput.
    pub wire_bytes: u64,
    /// Processor time of decoding this lane's batches, nanoseconds.
    pub decode_ns: u64,
    /// Processor time of everything else that was done for them, nanoseconds.
    pub place_ns: u64,
    /// Bytes that arrived while at least one lane waited for the rest of a frame, on all lanes of the session.
    pub seen_bytes: u64,
    /// How long at least one lane waited, nanoseconds.
    pub seen_ns: u64,
    /// Thousandths of processors that the target's host has for this at present; 0 if it does not know.
    pub cores_milli: u64,
    /// Tells hosts apart: both sides are on one if the source's is the same; 0 if it does not know.
    pub host: u64,
}

impl Ack {
    /// Bytes of an encoded acknowledgement.
    pub const BYTES: usize = 64;
    /// Bytes of the part that every version writes.
    const BYTES_MIN: usize = 16;

    /// The payload of an `Ack` frame.
    pub fn encode(self) -> [u8; Ack::BYTES] {
        let fields = [
            self.stream_bytes,
            self.wire_bytes,
            self.decode_ns,
            self.place_ns,
            self.seen_bytes,
            self.seen_ns,
            self.cores_milli,
            self.host,
        ];
        let mut bytes = [0; Ack::BYTES];
        bytes.copy_from_slice(fields.map(u64::to_be_bytes).as_flattened());
        bytes
    }

    /// Reads it back; `None` if it is shorter than the two counts that matter. Figures that are missing are 0.
    pub fn decode(payload: &[u8]) -> Option<Ack> {
        if payload.len() < Ack::BYTES_MIN {
            return None;
        }
        let mut fields = payload.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        let mut next = || fields.next().unwrap_or(0);
        Some(Ack {
            stream_bytes: next(),
            wire_bytes: next(),
            decode_ns: next(),
            place_ns: next(),
            seen_bytes: next(),
            seen_ns: next(),
            cores_milli: next(),
            host: next(),
        })
    }
}

/// An acknowledgement of something that was not sent, or of less than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target acknowledges {acked} stream bytes of a lane after {before}, of {sent} sent")]
pub struct WrongAck {
    acked: u64,
    before: u64,
    sent: u64,
}

/// How much more than a lane's least delay may be on its way, as time: enough to ride out the jitter of threads and links,
/// and the longest that it adds to a blackout.
const SLACK: Duration = Duration::from_millis(30);

/// Weight of the latest measurement in a lane's rate: about the last ten count.
const RATE_WEIGHT: f64 = 0.2;

/// The source's count of what one lane has on its way, and how much that may be: what the lane carries in its least delay
/// and a little more. A slow lane so gets little to hold when the guest stops, and a fast or long one enough to be full.
#[derive(Debug, Default)]
pub struct LaneCredit {
    sent: u64,
    acked: Ack,
    acked_at: Option<Duration>,
    /// Batches on their way: the lane's sum of stream bytes behind each, and when it was sent.
    on_the_way: VecDeque<(u64, Duration)>,
    /// Stream bytes per second.
    rate: f64,
    delay_min: Option<Duration>,
}

impl LaneCredit {
    /// Whether a batch of `stream_bytes` may be sent now. One always may when nothing is on its way, so that no batch
    /// size can stall a lane for ever.
    pub fn allows(&self, stream_bytes: u64) -> bool {
        self.in_flight() == 0 || self.in_flight() + stream_bytes <= self.window()
    }

    /// A batch was sent at `now` (time since any fixed moment).
    pub fn sent(&mut self, stream_bytes: u64, now: Duration) {
        self.sent += stream_bytes;
        self.on_the_way.push_back((self.sent, now));
    }

    /// An acknowledgement came at `now`. Returns the wire bytes that are newly known to have arrived.
    pub fn acknowledged(&mut self, ack: Ack, now: Duration) -> Result<u64, WrongAck> {
        let before = self.acked;
        if ack.stream_bytes > self.sent || ack.stream_bytes < before.stream_bytes || ack.wire_bytes < before.wire_bytes
        {
            return Err(WrongAck {
                acked: ack.stream_bytes,
                before: before.stream_bytes,
                sent: self.sent,
            });
        }
        let mut sent_at = None;
        while let Some(&(sum, at)) = self.on_the_way.front()
            && sum <= ack.stream_bytes
        {
            self.on_the_way.pop_front();
            sent_at = Some(at);
        }
        if let Some(sent_at) = sent_at {
            let delay = now.saturating_sub(sent_at);
            self.delay_min = Some(self.delay_min.map_or(delay, |least| least.min(delay)));
            // Between two acknowledgements the lane may also have had nothing to carry: count no such pause.
            let since = self.acked_at.map_or(sent_at, |at| at.max(sent_at.min(now)));
            let span = now.saturating_sub(since.min(now)).as_secs_f64();
            if span > 0.0 {
                let rate = (ack.stream_bytes - before.stream_bytes) as f64 / span;
                self.rate += RATE_WEIGHT * (rate - self.rate);
            }
        }
        self.acked = ack;
        self.acked_at = Some(now);
        Ok(ack.wire_bytes - before.wire_bytes)
    }

    /// Stream bytes sent and not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.acked.stream_bytes
    }

    fn window(&self) -> u64 {
        let holds = (self.delay_min.unwrap_or_default() + SLACK).as_secs_f64() * self.rate;
        (holds as u64).clamp(LANE_CREDIT_BYTES_MIN, LANE_CREDIT_BYTES_MAX)
    }
}

/// Why an arriving batch can't take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReorderError {
    /// The same number came before.
    #[error("batch {0} came twice")]
    Repeated(u64),
    /// It is further ahead than all credit of all lanes allows: the batch that is missing will never come.
    #[error("batch {got} came while batch {due} is missing, which is further ahead than any lane may be")]
    TooFarAhead {
        /// The number that came.
        got: u64,
        /// The number that is due.
        due: u64,
    },
}

/// Puts numbered items back in order. Holds at most a window of them.
#[derive(Debug)]
pub struct Reorder<T> {
    due: u64,
    window: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Reorder<T> {
    /// For items numbered from 0, never more than `window` ahead of the one that is due.
    pub fn new(window: u64) -> Reorder<T> {
        Reorder {
            due: 0,
            window,
            waiting: BTreeMap::new(),
        }
    }

    /// Takes an item.
    pub fn put(&mut self, number: u64, item: T) -> Result<(), ReorderError> {
        if number < self.due || self.waiting.contains_key(&number) {
            return Err(ReorderError::Repeated(number));
        }
        if number - self.due >= self.window {
            return Err(ReorderError::TooFarAhead {
                got: number,
                due: self.due,
            });
        }
        self.waiting.insert(number, item);
        Ok(())
    }

    /// Gives the item that is due, if it is there.
    pub fn take(&mut self) -> Option<T> {
        let item = self.waiting.remove(&self.due)?;
        self.due += 1;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends batches as the credit allows over a lane that carries `rate` stream bytes a second and delays by `delay`, for
    /// ten seconds of virtual time; returns the bytes carried and the most that was on its way in the second half.
    fn carry(rate: u64, delay: Duration) -> (u64, u64) {
        const BATCH: u64 = 512 * 1024;
        let (mut lane, mut carried, mut most) = (LaneCredit::default(), 0, 0);
        let mut arrivals = VecDeque::new();
        let mut busy_until = Duration::ZERO;
        for ms in 0..10_000 {
            let now = MS * ms;
            while arrivals.front().is_some_and(|&at| at <= now) {
                arrivals.pop_front();
                carried += BATCH;
                lane.acknowledged(
                    Ack {
                        stream_bytes: carried,
                        wire_bytes: carried / 4,
                        ..Ack::default()
                    },
                    now,
                )
                .unwrap();
            }
            while lane.allows(BATCH) {
                lane.sent(BATCH, now);
                busy_until = busy_until.max(now) + Duration::from_secs_f64(BATCH as f64 / rate as f64);
                arrivals.push_back(busy_until + delay);
            }
            if ms > 5_000 {
                most = most.max(lane.in_flight());
            }
        }
        (carried, most)
    }

    #[test]
    fn a_slow_lane_holds_little_and_is_still_full() {
        let (carried, most) = carry(25_000_000, MS);
        assert!(carried > 240_000_000, "{carried}");
        assert!(most <= LANE_CREDIT_BYTES_MIN, "{most}");
    }

    #[test]
    fn a_fast_lane_and_a_long_one_get_what_fills_them() {
        let (carried, _) = carry(1_000_000_000, MS);
        assert!(carried > 9_000_000_000, "{carried}");
        let (carried, _) = carry(40_000_000, 50 * MS);
        assert!(carried > 350_000_000, "{carried}");
    }

    #[test]
    fn only_what_was_sent_is_acknowledged_and_never_less_than_before() {
        let mut lane = LaneCredit::default();
        assert!(
            lane.allows(LANE_CREDIT_BYTES_MAX * 2),
            "the first batch is always allowed"
        );
        lane.sent(100, MS);
        assert_eq!(
            lane.acknowledged(
                Ack {
                    stream_bytes: 50,
                    wire_bytes: 3,
                    ..Ack::default()
                },
                2 * MS
            ),
            Ok(3)
        );
        assert!(
            lane.acknowledged(
                Ack {
                    stream_bytes: 49,
                    wire_bytes: 3,
                    ..Ack::default()
                },
                3 * MS
            )
            .is_err(),
            "less than before"
        );
        assert!(
            lane.acknowledged(
                Ack {
                    stream_bytes: 101,
                    wire_bytes: 3,
                    ..Ack::default()
                },
                3 * MS
            )
            .is_err(),
            "more than sent"
        );
        assert_eq!(lane.in_flight(), 50);
    }

    #[test]
    fn acknowledgements_survive_their_encoding() {
        let ack = Ack {
            stream_bytes: 1 << 40 | 7,
            wire_bytes: u64::MAX,
            decode_ns: 3,
            place_ns: 4,
            seen_bytes: 5,
            seen_ns: 6,
            cores_milli: 7,
            host: 8,
        };
        assert_eq!(Ack::decode(&ack.encode()), Some(ack));
        assert_eq!(Ack::decode(&[0; 15]), None);
        let counts = Ack {
            stream_bytes: ack.stream_bytes,
            wire_bytes: ack.wire_bytes,
            ..Ack::default()
        };
        assert_eq!(Ack::decode(&ack.encode()[..16]), Some(counts), "figures may be missing");
    }

    proptest! {
        #[test]
        fn items_come_out_in_order_however_they_arrive(order in Just((0..50u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut reorder = Reorder::new(50);
            let mut out = vec![];
            for number in order {
                reorder.put(number, number).unwrap();
                prop_assert!(reorder.put(number, number).is_err());
                while let Some(item) = reorder.take() {
                    out.push(item);
                }
            }
            prop_assert_eq!(out, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_gap_wider_than_the_window_is_an_error() {
        let mut reorder = Reorder::new(2);
        assert_eq!(reorder.put(2, ()), Err(ReorderError::TooFarAhead { got: 2, due: 0 }));
        assert_eq!(reorder.put(1, ()), Ok(()));
    }
}
