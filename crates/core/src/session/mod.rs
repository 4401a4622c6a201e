//! Order and credit of a session's data lanes, and [what the target does](TargetLane) with a lane's frames.
//!
//! A batch goes over whichever lane is free, so batches arrive in any order between lanes and in order within one;
//! [`Reorder`] puts them back. A lane may have so many bytes of QEMU's stream on its way; [`LaneCredit`] counts them, [`Ack`]
//! gives them back when they are in the target guest's memory, or its QEMU has taken them. So a slow reader
//! anywhere (link, decoder, QEMU) slows the source's QEMU down, and what is buffered when the guest stops is bounded.
//!
//! A lane outlives its TCP connection: what the other side has not said to have is [kept](Unheard), and sent again over the
//! next.

mod lane;
mod unheard;

pub use lane::{LaneError, Next, TargetLane, Whole};
pub use unheard::{Unheard, Unsaid, WrongCount};

use crate::limits::{
    BATCH_BYTES, BATCH_BYTES_LEAST, BATCH_CHARGE_BYTES_MIN, BATCH_PLAIN_BYTES_MAX, LANE_BATCHES_MAX,
    LANE_CREDIT_BYTES_MAX,
};
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
    /// A bit for each content source that the target refuses to read from now on, the first one's the lowest: it takes longer
    /// than to be sent the pages.
    pub refused: u64,
}

impl Ack {
    /// Bytes of an encoded acknowledgement.
    pub const BYTES: usize = 72;
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
            self.refused,
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
            refused: next(),
        })
    }
}

/// An acknowledgement of something that was not sent, or of less than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target acknowledges {acked} {what} bytes of a lane after {before}, of {sent} sent")]
pub struct WrongAck {
    what: &'static str,
    acked: u64,
    before: u64,
    sent: u64,
}

/// What a batch of so many stream bytes counts for, bytes: on both sides, in a lane's credit and in all that is bounded by it.
pub fn charge(stream_bytes: u64) -> u64 {
    stream_bytes.max(BATCH_CHARGE_BYTES_MIN)
}

/// How much more than a lane's least delay may be on its way, as time: enough to ride out the jitter of threads and links,
/// and the longest that it adds to a blackout.
const SLACK: Duration = Duration::from_millis(30);

/// What a batch takes to cross, where it may be smaller than the largest: all lanes carry it together, as each has one at once.
const BATCH_TIME: Duration = Duration::from_millis(4);

/// On a link with a long delay there are about that many batches on their way on each lane, and no more the longer it is.
const BATCHES_PER_DELAY: u32 = 8;

/// The least time over which a lane's rate is measured. Acknowledgements come in bursts, as batches of other lanes are waited
/// for: from one to the next a lane would seem many times as fast as it is.
const RATE_SPAN: Duration = Duration::from_millis(50);

/// Weight of the latest measurement in a lane's rate: about the last three count.
const RATE_WEIGHT: f64 = 0.5;

/// The source's count of what one lane has on its way, and how much that may be: what the lane carries in its least delay
/// and a little more. A slow lane so gets little to hold when the guest stops, and a fast or long one enough to be full.
#[derive(Debug, Default)]
pub struct LaneCredit {
    sent: u64,
    /// Bytes of frames sent.
    wire_sent: u64,
    acked: Ack,
    /// When the last acknowledgement came.
    acked_at: Duration,
    /// When the present measurement of the rate began; later by the time that nothing was on its way.
    measured_from: Duration,
    /// What was acknowledged since.
    measured_bytes: u64,
    /// In the order in which they were sent.
    on_the_way: VecDeque<OnTheWay>,
    /// What those count for together.
    charged: u64,
    /// Stream bytes per second.
    rate: f64,
    delay_min: Option<Duration>,
}

/// A batch that is sent and not acknowledged.
#[derive(Debug)]
struct OnTheWay {
    /// The lane's sum of stream bytes behind it.
    end: u64,
    charge: u64,
    at: Duration,
}

impl LaneCredit {
    /// Whether a batch of `stream_bytes` may be sent now. One always may when nothing is on its way, so that no batch
    /// size can stall a lane for ever.
    pub fn allows(&self, stream_bytes: u64) -> bool {
        let charge = charge(stream_bytes);
        // Rounded up to whole batches: with fewer than a lane holds its rate would never show that it could hold more. And two
        // at the least, so that one is encoded while another crosses.
        let carries = self.carries_in(self.delay_min.unwrap_or_default() + SLACK);
        let may_have_more = self.on_the_way.len() < 2 || self.charged < carries.max(BATCH_BYTES_LEAST as u64);
        self.on_the_way.is_empty() || (may_have_more && self.charged + charge <= LANE_CREDIT_BYTES_MAX)
    }

    /// Whether everything that was sent is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.on_the_way.is_empty()
    }

    /// A batch is sent at `now` (time since any fixed moment), in a frame of so many bytes. To be said before it is: its
    /// acknowledgement may come at once.
    pub fn sent(&mut self, stream_bytes: u64, wire_bytes: u64, now: Duration) {
        if self.on_the_way.is_empty() {
            self.measured_from += now.saturating_sub(self.acked_at);
        }
        self.sent += stream_bytes;
        self.sent_beside(wire_bytes);
        let charge = charge(stream_bytes);
        self.charged += charge;
        self.on_the_way.push_back(OnTheWay {
            end: self.sent,
            charge,
            at: now,
        });
    }

    /// A frame of so many bytes is sent that is no batch. To be said before it is.
    pub fn sent_beside(&mut self, wire_bytes: u64) {
        self.wire_sent += wire_bytes;
    }

    /// An acknowledgement came at `now`. Returns the wire bytes that are newly known to have arrived.
    pub fn acknowledged(&mut self, ack: Ack, now: Duration) -> Result<u64, WrongAck> {
        let before = self.acked;
        for (what, acked, before, sent) in [
            ("stream", ack.stream_bytes, before.stream_bytes, self.sent),
            ("wire", ack.wire_bytes, before.wire_bytes, self.wire_sent),
        ] {
            if !(before..=sent).contains(&acked) {
                return Err(WrongAck {
                    what,
                    acked,
                    before,
                    sent,
                });
            }
        }
        let mut sent_at = None;
        while let Some(batch) = self.on_the_way.pop_front_if(|batch| batch.end <= ack.stream_bytes) {
            self.charged -= batch.charge;
            sent_at = Some(batch.at);
        }
        if let Some(sent_at) = sent_at {
            let delay = now.saturating_sub(sent_at);
            self.delay_min = Some(self.delay_min.map_or(delay, |least| least.min(delay)));
        }
        self.measured_bytes += ack.stream_bytes - before.stream_bytes;
        let span = now.saturating_sub(self.measured_from);
        if span >= RATE_SPAN {
            let rate = self.measured_bytes as f64 / span.as_secs_f64();
            let weight = if self.rate == 0.0 { 1.0 } else { RATE_WEIGHT };
            self.rate += weight * (rate - self.rate);
            (self.measured_from, self.measured_bytes) = (now, 0);
        }
        self.acked = ack;
        self.acked_at = now;
        Ok(ack.wire_bytes - before.wire_bytes)
    }

    /// What the batches count for that are sent and not acknowledged, bytes.
    #[cfg(test)]
    fn in_flight(&self) -> u64 {
        self.charged
    }

    /// What this lane adds to the size of batches, which all lanes share ([`batch_bytes`]): what it carries in a moment that is
    /// short beside a blackout and beside its own delay. 0 while its rate is not known.
    pub fn batch_share(&self) -> u64 {
        self.carries_in(BATCH_TIME.max(self.delay_min.unwrap_or_default() / BATCHES_PER_DELAY))
    }

    fn carries_in(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.rate) as u64
    }
}

/// Where to cut batches, bytes of stream, for lanes with these shares ([`LaneCredit::batch_share`]).
pub fn batch_bytes(shares: impl Iterator<Item = u64>) -> usize {
    (shares.sum::<u64>() as usize).clamp(BATCH_BYTES_LEAST, BATCH_BYTES)
}

/// Why an arriving batch can't take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReorderError {
    /// More waits than all lanes have credit for.
    #[error("the source sends more than it has credit for")]
    TooMuch,
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

/// How far ahead of the one that is due a batch may be, where so many lanes keep to their credit: what all of them may have on
/// their way, and one that each has in hand.
fn ahead_max(lanes: usize) -> u64 {
    lanes as u64 * (LANE_BATCHES_MAX + 1)
}

/// What the batches of a lane may count for that came and are not placed, bytes: its credit, and room for one more batch.
pub const WAITING_CHARGE_MAX: u64 = LANE_CREDIT_BYTES_MAX + BATCH_PLAIN_BYTES_MAX as u64;

/// Puts the batches of a session's lanes back in order. Holds no more of them than the lanes have credit for.
#[derive(Debug)]
pub struct Reorder<T> {
    due: u64,
    ahead_max: u64,
    /// Batches, and what each counts for.
    waiting: BTreeMap<u64, (u64, T)>,
    charged: u64,
    charge_max: u64,
}

impl<T> Reorder<T> {
    /// For a session of so many lanes, whose batches are numbered from 0.
    pub fn new(lanes: usize) -> Reorder<T> {
        Reorder {
            due: 0,
            ahead_max: ahead_max(lanes),
            waiting: BTreeMap::new(),
            charged: 0,
            charge_max: lanes as u64 * WAITING_CHARGE_MAX,
        }
    }

    /// Takes a batch that [counts for](charge) so many bytes.
    pub fn put(&mut self, number: u64, charge: u64, item: T) -> Result<(), ReorderError> {
        if number < self.due || self.waiting.contains_key(&number) {
            return Err(ReorderError::Repeated(number));
        }
        if number - self.due >= self.ahead_max {
            return Err(ReorderError::TooFarAhead {
                got: number,
                due: self.due,
            });
        }
        if charge > self.charge_max - self.charged {
            return Err(ReorderError::TooMuch);
        }
        self.charged += charge;
        self.waiting.insert(number, (charge, item));
        Ok(())
    }

    /// Gives the batch that is due, if it is there.
    pub fn take(&mut self) -> Option<T> {
        let (charge, item) = self.waiting.remove(&self.due)?;
        self.charged -= charge;
        self.due += 1;
        Some(item)
    }

    /// Batches that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What those that wait count for, bytes.
    pub fn charged(&self) -> u64 {
        self.charged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends batches as the credit allows over a lane that carries `rate` stream bytes a second and delays by `delay`, for
    /// ten seconds of virtual time, and acknowledges all that has arrived every `burst`; returns the bytes carried and the most
    /// that was on its way in the second half.
    fn carry(rate: u64, delay: Duration, burst: u32) -> (u64, u64) {
        let (mut lane, mut carried, mut most) = (LaneCredit::default(), 0, 0);
        let mut arrivals = VecDeque::new();
        let mut busy_until = Duration::ZERO;
        for ms in 0..10_000 {
            let now = MS * ms;
            let before = carried;
            while let Some((_, bytes)) = arrivals.pop_front_if(|(at, _)| *at <= now && ms % burst == 0) {
                carried += bytes;
            }
            if carried > before {
                let ack = Ack {
                    stream_bytes: carried,
                    wire_bytes: carried / 4,
                    ..Ack::default()
                };
                lane.acknowledged(ack, now).unwrap();
            }
            loop {
                let batch = batch_bytes([lane.batch_share()].into_iter()) as u64;
                if !lane.allows(batch) {
                    break;
                }
                lane.sent(batch, batch / 4 + 1, now);
                busy_until = busy_until.max(now) + Duration::from_secs_f64(batch as f64 / rate as f64);
                arrivals.push_back((busy_until + delay, batch));
            }
            if ms > 5_000 {
                most = most.max(lane.in_flight());
            }
        }
        (carried, most)
    }

    #[test]
    fn a_slow_lane_holds_little_and_is_still_full() {
        for (burst, most_ms) in [(1, 50), (10, 70)] {
            let (carried, most) = carry(20_000_000, MS, burst);
            assert!(carried > 195_000_000, "{carried}");
            assert!(most <= most_ms * 20_000, "{most}");
        }
    }

    #[test]
    fn a_fast_lane_and_a_long_one_get_what_fills_them() {
        let (carried, _) = carry(1_000_000_000, MS, 1);
        assert!(carried > 9_000_000_000, "{carried}");
        for burst in [1, 10] {
            let (carried, _) = carry(40_000_000, 50 * MS, burst);
            assert!(carried > 380_000_000, "{carried}");
        }
    }

    #[test]
    fn batches_are_small_on_slow_lanes_and_before_anything_is_known() {
        assert_eq!(batch_bytes([0, 0].into_iter()), BATCH_BYTES_LEAST);
        assert_eq!(batch_bytes([70_000, 70_000].into_iter()), 140_000);
        assert_eq!(batch_bytes([1, 0].into_iter()), BATCH_BYTES_LEAST);
        assert_eq!(batch_bytes([4_000_000].into_iter()), BATCH_BYTES);
    }

    #[test]
    fn only_what_was_sent_is_acknowledged_and_never_less_than_before() {
        let mut lane = LaneCredit::default();
        assert!(
            lane.allows(LANE_CREDIT_BYTES_MAX * 2),
            "the first batch is always allowed"
        );
        lane.sent(100, 10, MS);
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
        let wire = |wire_bytes| Ack {
            stream_bytes: 50,
            wire_bytes,
            ..Ack::default()
        };
        assert!(lane.acknowledged(wire(11), 3 * MS).is_err(), "more frames than sent");
        lane.sent_beside(5);
        assert_eq!(lane.acknowledged(wire(15), 3 * MS), Ok(12));
        assert_eq!(lane.in_flight(), BATCH_CHARGE_BYTES_MIN, "half of a batch is none");
    }

    #[test]
    fn batches_of_a_byte_use_up_the_credit_too() {
        let mut lane = LaneCredit::default();
        let mut sent = 0;
        while lane.allows(1) {
            lane.sent(1, 50, MS);
            sent += 1;
        }
        assert_eq!(sent, BATCH_BYTES_LEAST as u64 / BATCH_CHARGE_BYTES_MIN);
        assert!(sent <= LANE_BATCHES_MAX);
        let all = Ack {
            stream_bytes: sent,
            ..Ack::default()
        };
        lane.acknowledged(all, 2 * MS).unwrap();
        assert_eq!(lane.in_flight(), 0);
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
            refused: 9,
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
            let mut reorder = Reorder::new(1);
            let mut out = vec![];
            for number in order {
                reorder.put(number, 9, number).unwrap();
                prop_assert!(reorder.put(number, 9, number).is_err());
                while let Some(item) = reorder.take() {
                    out.push(item);
                }
            }
            prop_assert_eq!(out, (0..50).collect::<Vec<_>>());
            prop_assert!(reorder.is_empty() && reorder.charged() == 0);
        }
    }

    #[test]
    fn what_is_further_ahead_than_credit_allows_is_refused() {
        let mut reorder = Reorder::new(2);
        let most = ahead_max(2);
        assert_eq!(
            reorder.put(most, 512, ()),
            Err(ReorderError::TooFarAhead { got: most, due: 0 })
        );
        assert_eq!(
            reorder.put(u64::MAX, 512, ()),
            Err(ReorderError::TooFarAhead { got: u64::MAX, due: 0 })
        );
        assert_eq!(reorder.put(most - 1, 512, ()), Ok(()));
    }

    #[test]
    fn no_more_waits_than_lanes_have_credit_for_whatever_its_size() {
        for stream_bytes in [1, 1000, BATCH_PLAIN_BYTES_MAX as u64] {
            let (mut reorder, charge) = (Reorder::new(2), charge(stream_bytes));
            // The first never comes.
            let error = (1..).find_map(|number| reorder.put(number, charge, ()).err());
            assert!(
                matches!(
                    error,
                    Some(ReorderError::TooMuch | ReorderError::TooFarAhead { due: 0, .. })
                ),
                "{error:?}"
            );
            assert!(reorder.charged() <= 2 * WAITING_CHARGE_MAX);
            assert!(reorder.len() as u64 <= ahead_max(2));
            // What was waited for still is taken up.
            let all = reorder.len();
            reorder.put(0, 0, ()).unwrap();
            assert_eq!(std::iter::from_fn(|| reorder.take()).count(), all + 1);
            assert_eq!(reorder.charged(), 0);
        }
    }
}
