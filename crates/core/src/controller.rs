//! When to stop the guest: each time QEMU has said how much is left, predict the blackout if it stopped now, and stop when
//! that fits what the user allows.
//!
//! QEMU's own estimate counts uncompressed bytes at the speed of the socket it writes to. Here the pages that are left
//! cost what such pages cost encoded, at the speed with which the target acknowledges, plus what no page count shows: the
//! bytes on their way, the device state, the messages of the commit.

use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;

/// Over which time goodput and the cost of pages are measured.
const WINDOW: Duration = Duration::from_secs(3);
/// The least time that a measurement of goodput may span: shorter ones measure bursts.
const SPAN_MIN: Duration = Duration::from_millis(200);

/// What does not depend on pages, until it has been measured: device state of an ordinary machine, its loading, and the
/// journal's two records.
const FIXED: Duration = Duration::from_millis(40);
/// Messages that cross in sequence between the guest's stop and its start: the last batch, `Prepared`, `Commit`.
const ROUND_TRIPS: u32 = 2;

/// What the user allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest predicted blackout at which the guest is stopped.
    pub max_downtime: Duration,
    /// The longest that pre-copy may take before the attempt is given up; none waits for ever.
    pub timeout: Option<Duration>,
}

/// What is known at one moment of pre-copy. Counters are cumulative since the stream was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Since the stream was opened.
    pub at: Duration,
    /// QEMU's round, from 1 (`dirty-sync-count`).
    pub round: u64,
    /// Bytes of pages that QEMU still has to send of this round (`ram.remaining`).
    pub remaining_bytes: u64,
    /// Bytes of pages that the guest dirties per second (`ram.dirty-pages-rate` × page size), 0 before the second round.
    pub dirty_bytes_per_s: u64,
    /// Bytes of QEMU's stream read.
    pub stream_bytes: u64,
    /// Wire bytes that these became.
    pub wire_bytes: u64,
    /// Wire bytes that the target has acknowledged.
    pub acknowledged_bytes: u64,
    /// Bytes of QEMU's stream that the target has placed or its QEMU has taken; the rest of `stream_bytes` is on its way.
    pub taken_bytes: u64,
    /// The control lane's round trip.
    pub round_trip: Duration,
}

/// What the controller expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Forecast {
    /// The blackout if the guest were stopped now; none while goodput is unknown.
    pub blackout: Option<Duration>,
    /// Until the guest can be stopped within its limit; none while it does not converge or nothing is known.
    pub time_left: Option<Duration>,
    /// Wire bytes per second that arrive.
    pub goodput_bytes_per_s: u64,
    /// Wire bytes per byte of a page that is sent again.
    pub cost: f64,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Go on copying.
    Continue,
    /// Let QEMU stop the guest.
    Stop,
    /// It does not converge within the time allowed: the sentence says dirty rate and link rate.
    GiveUp(String),
}

/// Decides for one attempt.
#[derive(Debug)]
pub struct Controller {
    limits: Limits,
    samples: VecDeque<Sample>,
    round: u64,
    round_began: Duration,
    first_round: Option<Sample>,
    goodput_max: u64,
}

impl Controller {
    /// For an attempt with these limits.
    pub fn new(limits: Limits) -> Controller {
        Controller {
            limits,
            samples: VecDeque::new(),
            round: 0,
            round_began: Duration::ZERO,
            first_round: None,
            goodput_max: 0,
        }
    }

    /// Takes a sample, forecasts and decides.
    pub fn observe(&mut self, sample: Sample) -> (Decision, Forecast) {
        if sample.round != self.round {
            self.round = sample.round;
            self.round_began = sample.at;
            if sample.round == 2 {
                self.first_round = Some(sample);
            }
        }
        while self
            .samples
            .front()
            .is_some_and(|oldest| sample.at.saturating_sub(oldest.at) > WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        let forecast = self.forecast(&sample);
        (self.decide(&sample, &forecast), forecast)
    }

    fn decide(&self, sample: &Sample, forecast: &Forecast) -> Decision {
        // In the first round QEMU has not yet looked at what the guest dirtied meanwhile, so nothing is known of it.
        let dirt_is_known = sample.round >= 2;
        let fits = |blackout| blackout <= self.limits.max_downtime;
        if dirt_is_known && forecast.blackout.is_some_and(fits) {
            return Decision::Stop;
        }
        match self.expired(sample.at) {
            Some(_) => Decision::GiveUp(self.why_not(sample, forecast)),
            None => Decision::Continue,
        }
    }

    /// Whether the attempt is to be given up without a further sample, because the source's QEMU does not answer: why, if
    /// its time is up.
    pub fn overdue(&self, at: Duration) -> Option<String> {
        let timeout = self.expired(at)?;
        Some(format!(
            "the time allowed, {:.0} s, is up, and the source's QEMU does not say how far it is",
            timeout.as_secs_f64()
        ))
    }

    /// The time allowed, if it is up.
    fn expired(&self, at: Duration) -> Option<Duration> {
        self.limits.timeout.filter(|timeout| at >= *timeout)
    }

    fn forecast(&mut self, sample: &Sample) -> Forecast {
        let goodput = self.goodput();
        let cost = self.cost(sample);
        let on_its_way = sample.stream_bytes.saturating_sub(sample.taken_bytes);
        // What was dirtied since the round began is not in `remaining` and will be in the final pass. A guest that
        // writes the same pages over and over dirties fewer than its rate says, never more than its memory.
        let since = sample.at.saturating_sub(self.round_began);
        let dirtied = sample.dirty_bytes_per_s as f64 * since.as_secs_f64();
        let wire = (sample.remaining_bytes as f64 + dirtied + on_its_way as f64) * cost;
        let blackout = (goodput > 0).then(|| seconds(wire / goodput as f64) + FIXED + sample.round_trip * ROUND_TRIPS);
        let time_left = blackout.and_then(|blackout| self.time_left(blackout, goodput, cost, sample));
        Forecast {
            blackout,
            time_left,
            goodput_bytes_per_s: goodput,
            cost,
        }
    }

    /// Bytes per second that arrive, the best over the last windows: a round of few pages keeps no link busy, and says
    /// nothing about what the link can do.
    fn goodput(&mut self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let span = last.at.saturating_sub(first.at);
        if span >= SPAN_MIN {
            let rate = (last.acknowledged_bytes - first.acknowledged_bytes.min(last.acknowledged_bytes)) as f64
                / span.as_secs_f64();
            // Forget an old best slowly (a factor of two in some thirty samples), so that a link that got slower is seen.
            self.goodput_max = (rate as u64).max(self.goodput_max - self.goodput_max / 40);
        }
        self.goodput_max
    }

    /// Wire bytes per stream byte: of the pages sent again once there were some, until then of all. Pages that a guest
    /// dirties again may compress far better or worse than the bulk.
    fn cost(&self, sample: &Sample) -> f64 {
        let ratio = |wire: u64, stream: u64| (stream > 1 << 20).then(|| wire as f64 / stream as f64);
        let again = self.first_round.and_then(|first| {
            let from = self
                .samples
                .front()
                .filter(|oldest| oldest.at >= first.at)
                .unwrap_or(&first);
            ratio(
                sample.wire_bytes - from.wire_bytes,
                sample.stream_bytes - from.stream_bytes,
            )
            .or_else(|| {
                ratio(
                    sample.wire_bytes - first.wire_bytes,
                    sample.stream_bytes - first.stream_bytes,
                )
            })
        });
        again
            .or_else(|| ratio(sample.wire_bytes, sample.stream_bytes))
            .unwrap_or(1.0)
    }

    /// How long until the blackout fits, at the present rates; none if the guest writes as fast as the link carries.
    fn time_left(&self, blackout: Duration, goodput: u64, cost: f64, sample: &Sample) -> Option<Duration> {
        let shrinks = goodput as f64 - sample.dirty_bytes_per_s as f64 * cost;
        let excess = blackout.saturating_sub(self.limits.max_downtime).as_secs_f64() * goodput as f64;
        (shrinks > 0.0).then(|| seconds(excess / shrinks))
    }

    fn why_not(&self, sample: &Sample, forecast: &Forecast) -> String {
        let mb = |bytes: f64| bytes / 1e6;
        let dirty = sample.dirty_bytes_per_s as f64;
        format!(
            "the guest does not converge: after {:.0} s it dirties {:.1} MB/s, which encode to {:.1} MB/s, and the link \
             carries {:.1} MB/s; stopping now would take {} ms, over the {} ms allowed. Raise --max-downtime or --timeout, \
             give it more bandwidth, or have the guest write less",
            sample.at.as_secs_f64(),
            mb(dirty),
            mb(dirty * forecast.cost),
            mb(forecast.goodput_bytes_per_s as f64),
            forecast.blackout.map_or_else(
                || "an unknown number of".to_owned(),
                |blackout| blackout.as_millis().to_string()
            ),
            self.limits.max_downtime.as_millis(),
        )
    }
}

/// A duration from computed seconds, at most a year: rates near zero give numbers that no duration holds.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 3.15e7))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn a_qemu_that_says_nothing_is_given_up_when_the_time_is_up() {
        let limits = |timeout| Limits {
            max_downtime: Duration::from_millis(300),
            timeout,
        };
        let minute = Duration::from_secs(60);
        let controller = Controller::new(limits(Some(minute)));
        assert_eq!(controller.overdue(minute - Duration::from_millis(1)), None);
        assert!(controller.overdue(minute).unwrap().contains("60 s"));
        assert_eq!(Controller::new(limits(None)).overdue(minute), None);
    }

    /// A guest of `memory` bytes that dirties `dirty` bytes per second (of at most `hot` distinct ones), a link of `link`
    /// bytes per second, and pages that cost `cost` of themselves; sampled every 100 ms of virtual time.
    fn run(memory: u64, dirty: u64, hot: u64, link: u64, cost: f64, limits: Limits) -> (Decision, Sample, Duration) {
        let mut controller = Controller::new(limits);
        let (mut remaining, mut since_sync) = (memory as f64, 0.0);
        let mut sample = Sample {
            round: 1,
            ..Sample::default()
        };
        loop {
            sample.at += Duration::from_millis(100);
            let sent = (link as f64 * 0.1 / cost).min(remaining);
            remaining -= sent;
            since_sync = (since_sync + dirty as f64 * 0.1).min(hot as f64);
            sample.stream_bytes += sent as u64;
            sample.wire_bytes += (sent * cost) as u64;
            sample.acknowledged_bytes = sample.wire_bytes;
            sample.taken_bytes = sample.stream_bytes;
            if remaining < 1.0 {
                sample.round += 1;
                remaining = since_sync;
                since_sync = 0.0;
                sample.dirty_bytes_per_s = dirty;
            }
            sample.remaining_bytes = remaining as u64;
            let (decision, _) = controller.observe(sample);
            if decision != Decision::Continue {
                let left = (remaining + since_sync) * cost / link as f64;
                return (decision, sample, Duration::from_secs_f64(left));
            }
            assert!(sample.at < Duration::from_secs(3600), "it neither stops nor gives up");
        }
    }

    fn limits(ms: u64) -> Limits {
        Limits {
            max_downtime: Duration::from_millis(ms),
            timeout: Some(Duration::from_secs(120)),
        }
    }

    #[test]
    fn it_stops_only_when_what_is_left_fits_the_limit() {
        for (dirty, hot, link, cost) in [
            (0, 0, 125 * MB, 0.3),
            (20 * MB, 50 * MB, 125 * MB, 0.5),
            (5 * MB, 5 * MB, 12 * MB, 0.2),
        ] {
            let (decision, sample, left) = run(1000 * MB, dirty, hot, link, cost, limits(300));
            assert_eq!(decision, Decision::Stop, "{sample:?}");
            assert!(left <= Duration::from_millis(300), "{left:?} left at {sample:?}");
        }
    }

    #[test]
    fn pages_that_encode_well_converge_where_their_plain_size_would_not() {
        let (decision, ..) = run(500 * MB, 30 * MB, 64 * MB, 12 * MB, 0.05, limits(300));
        assert_eq!(decision, Decision::Stop);
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_is_given_up_with_both_rates() {
        let (decision, ..) = run(200 * MB, 80 * MB, 150 * MB, 12 * MB, 0.9, limits(300));
        let Decision::GiveUp(why) = decision else {
            panic!("{decision:?}")
        };
        assert!(
            why.contains("dirties 80.0 MB/s") && why.contains("carries 12.0 MB/s"),
            "{why}"
        );
    }

    #[test]
    fn without_a_measured_goodput_it_neither_predicts_nor_stops() {
        let mut controller = Controller::new(limits(300));
        let (decision, forecast) = controller.observe(Sample {
            round: 1,
            remaining_bytes: 1,
            ..Sample::default()
        });
        assert_eq!((decision, forecast.blackout), (Decision::Continue, None));
    }
}
