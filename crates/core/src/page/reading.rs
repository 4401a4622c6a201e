//! Whether the target does well to read known content, or had better be sent the pages.
//!
//! Reading holds a lane up, and so would the page itself, for as long as it takes to cross. What a content source has cost is
//! the one less the other, summed up over its reads. The target reads no more from one that has cost too much, and asks for
//! the pages that were referred to it meanwhile: by then that is what takes less time.

use super::{catalog::CONTENT_SOURCES_MAX, content::BLOCK_BYTES, encode::Coded};
use std::time::Duration;

/// What a content source may cost each lane, on average over all. Of what it saved before, as much counts: who was fast for an
/// hour may not be slow for another.
const COST_MAX: Duration = Duration::from_millis(250);
/// How much longer a single read may last than sending its pages. The kernel lets reads of a busy disk wait for half a second
/// before they go first, so a disk that is only busy keeps within it.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The same while the guest stands still: about what a round trip adds to sending.
const WAIT_MAX_STOPPED: Duration = Duration::from_millis(20);

/// What coding and decoding take for each byte of a page, nanoseconds: about what Zstandard at level 1 took on the machine of
/// `choice/recorded.json`. Where the link is fast, this is what a page costs that is sent.
const CODING_NS_PER_BYTE: u64 = 4;
/// What a link is taken to carry before anything was seen to arrive, bytes per second: 1 Gb/s. What arrives more slowly is seen.
const LINK_ASSUMED: f64 = 125e6;
/// Bytes that were seen to arrive, or were coded, as of which they weigh more than what is assumed.
const ASSUMED_BYTES: f64 = 64.0 * 1024.0;

/// What is known of sending.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// Lanes of the session, which share the link.
    pub lanes: u32,
    /// Bytes that were seen to arrive, on any lane.
    pub seen_bytes: u64,
    /// How long they were looked at.
    pub seen: Duration,
    /// The most that the source sends, bytes per second, if there is a limit.
    pub bandwidth: Option<u64>,
    /// All pages that crossed themselves.
    pub coded: Coded,
}

impl Sending {
    /// How long a page would take a lane, with all other lanes at it as well.
    pub fn time_per_page(&self) -> Duration {
        let of = |measured: u64, assumed: f64| measured as f64 + assumed;
        let seen = self.seen.as_secs_f64() + ASSUMED_BYTES / LINK_ASSUMED;
        let limit = self.bandwidth.map_or(f64::INFINITY, |limit| limit.max(1) as f64);
        let link = (of(self.seen_bytes, ASSUMED_BYTES) / seen).min(limit);
        // A page is not made larger by a coder: those that would be cross as they are.
        let ratio = of(self.coded.wire_bytes, ASSUMED_BYTES) / of(self.coded.content_bytes, ASSUMED_BYTES);
        let crossing = BLOCK_BYTES as f64 * ratio.min(1.0) / link;
        Duration::from_nanos(CODING_NS_PER_BYTE * BLOCK_BYTES as u64)
            + Duration::from_secs_f64(crossing * f64::from(self.lanes.max(1)))
    }
}

/// What reading has cost the lanes of a session, by content source.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Nanoseconds of all lanes together beyond what sending would have taken; below 0 where less.
    costs: [i64; CONTENT_SOURCES_MAX],
    cost_max: i64,
    refused: u64,
}

impl Reading {
    /// Of a session with so many lanes.
    pub fn new(lanes: u32) -> Self {
        Self {
            costs: [0; CONTENT_SOURCES_MAX],
            cost_max: nanoseconds(COST_MAX.saturating_mul(lanes.max(1))),
            refused: 0,
        }
    }

    /// A lane's read took `time` and found what would have taken `sending` to send.
    pub fn took(&mut self, source: u16, time: Duration, sending: Duration) {
        let Some(cost) = self.costs.get_mut(usize::from(source)) else {
            return;
        };
        let excess = nanoseconds(time) - nanoseconds(sending);
        *cost = cost.saturating_add(excess).max(-self.cost_max);
        if *cost > self.cost_max {
            self.refuse(source);
        }
    }

    /// A read lasted as long as it may and is not waited for any more.
    pub fn refuse(&mut self, source: u16) {
        self.refused |= 1u64.checked_shl(u32::from(source)).unwrap_or(0);
    }

    /// Whether to ask for pages rather than to read them from this content source.
    pub fn is_refused(&self, source: u16) -> bool {
        (self.refused.checked_shr(u32::from(source))).is_some_and(|refused| refused & 1 == 1)
    }

    /// A bit for each content source that is refused, the first one's the lowest.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// How long to wait for a read of pages that would take `sending` to send, before its content source is refused.
pub fn wait_max(sending: Duration, guest_is_stopped: bool) -> Duration {
    sending.saturating_add(if guest_is_stopped { WAIT_MAX_STOPPED } else { WAIT_MAX })
}

/// Far less than what would overflow a difference.
fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).map_or(i64::MAX / 4, |time| time.min(i64::MAX / 4))
}

const _: () = assert!(
    CONTENT_SOURCES_MAX <= u64::BITS as usize,
    "a bit for each content source"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_page_takes_what_the_link_and_the_coder_make_of_it() {
        let mib = 1 << 20;
        // 10 MB/s, at which half of a page crosses in 0.2 ms.
        let slow = Sending {
            lanes: 1,
            seen_bytes: 100 * mib,
            seen: MS * (100 * mib / 10_000) as u32,
            bandwidth: None,
            coded: Coded {
                content_bytes: 100 * mib,
                wire_bytes: 50 * mib,
            },
        };
        let half = slow.time_per_page();
        assert!((215..230).contains(&half.as_micros()), "{half:?}");
        let four = Sending { lanes: 4, ..slow }.time_per_page();
        assert!((820..860).contains(&four.as_micros()), "{four:?}");
        let limited = Sending {
            bandwidth: Some(1_000_000),
            ..slow
        };
        assert!((2000..2200).contains(&limited.time_per_page().as_micros()));

        // On the fastest link it takes the coders' time still.
        let fast = Sending {
            seen: Duration::ZERO,
            ..slow
        };
        assert!((16..20).contains(&fast.time_per_page().as_micros()), "{fast:?}");
        // Of which nothing was seen yet.
        let unknown = Sending::default().time_per_page();
        assert!((45..55).contains(&unknown.as_micros()), "{unknown:?}");
    }

    #[test]
    fn a_source_is_refused_at_its_bound_and_others_are_not() {
        let mut reading = Reading::new(4);
        reading.took(3, 1000 * MS, Duration::ZERO);
        assert_eq!(reading.refused(), 0);
        reading.took(3, MS, Duration::ZERO);
        assert_eq!(reading.refused(), 1 << 3);
        assert!(reading.is_refused(3) && !reading.is_refused(2) && !reading.is_refused(64));
        for number in [64, u16::MAX] {
            reading.took(number, Duration::MAX, Duration::ZERO);
            reading.refuse(number);
        }
        assert_eq!(reading.refused(), 1 << 3);
        reading.refuse(63);
        assert_eq!(reading.refused(), 1 << 3 | 1 << 63);
    }

    #[test]
    fn what_was_saved_counts_up_to_a_bound() {
        let mut reading = Reading::new(1);
        reading.took(0, MS, 3600 * 1000 * MS);
        reading.took(0, 500 * MS, Duration::ZERO);
        assert_eq!(reading.refused(), 0);
        reading.took(0, MS, Duration::ZERO);
        assert_eq!(reading.refused(), 1);
    }

    #[test]
    fn a_stopped_guest_waits_less() {
        assert!(wait_max(MS, true) < wait_max(MS, false));
        assert_eq!(wait_max(Duration::MAX, false), Duration::MAX);
    }

    /// Reads: content source, milliseconds that it took, and that sending would have taken.
    fn reads() -> impl Strategy<Value = Vec<(u16, u32, u32)>> {
        prop::collection::vec((0..3u16, 0..300u32, 0..300u32), 0..100)
    }

    proptest! {
        #[test]
        fn only_a_source_slower_than_sending_by_the_bound_is_refused(reads in reads(), lanes in 1..4u32) {
            let bound = i64::from(lanes) * 250;
            let mut reading = Reading::new(lanes);
            for (source, time, sending) in &reads {
                reading.took(*source, MS * *time, MS * *sending);
            }
            for source in 0..4 {
                let of_source = reads.iter().filter(|read| read.0 == source);
                let excess: Vec<i64> = of_source.map(|read| i64::from(read.1) - i64::from(read.2)).collect();
                // The most by which it was slower over any stretch of its reads.
                let (mut ending_here, mut most) = (0, 0);
                for excess in excess {
                    ending_here = (ending_here + excess).max(0);
                    most = ending_here.max(most);
                }
                if reading.is_refused(source) {
                    prop_assert!(most > bound, "{most} {bound}");
                } else {
                    prop_assert!(most <= 2 * bound, "{most} {bound}");
                }
            }
        }
    }
}
