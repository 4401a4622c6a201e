//! What the link carries. It shows only while the link is the slowest stage: batches queue on their way and the target waits
//! for data. At any other time what crosses is a lower bound.

use std::time::Duration;

/// What was seen over a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Its length.
    pub span: Duration,
    /// Bytes that the target acknowledged in it, a second.
    pub bytes_per_s: f64,
    /// The same, in the part of the time in which there was always a batch on its way.
    pub busy_bytes_per_s: Option<f64>,
    /// How many batches queued on their way, on average.
    pub queue: f64,
    /// The part of their time that the target's lanes waited for data, 0 to 1.
    pub target_waits: f64,
}

/// A target that waits for this part of its time is not the slowest stage.
const WAITS: f64 = 0.2;

/// The link may be the slowest stage if so many batches queue on average. One that is not has hardly any.
const QUEUE: f64 = 0.5;

/// What acknowledgements tell of the way between the encoders and them, in the order in which batches arrive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    /// The least that any batch took.
    least: Option<f64>,
    /// When the last one arrived.
    last: Option<f64>,
    seen: SinceClose,
}

#[derive(Clone, Copy, Debug, Default)]
struct SinceClose {
    batches: u64,
    wire_bytes: u64,
    delays: f64,
    /// Time in which there was a batch on the way at every moment, and bytes that arrived in it.
    busy: f64,
    busy_bytes: u64,
}

impl Arrivals {
    /// A batch arrived at `now` (time since any fixed moment), so long after it was encoded.
    pub fn add(&mut self, now: Duration, delay: Duration, wire_bytes: u64) {
        let (now, delay) = (now.as_secs_f64(), delay.as_secs_f64());
        self.least = Some(self.least.map_or(delay, |least| least.min(delay)));
        self.seen.batches += 1;
        self.seen.wire_bytes += wire_bytes;
        self.seen.delays += delay;
        if let Some(since) = self.last.map(|last| now - last)
            && delay >= since
        {
            // It was on its way since before the last one arrived.
            self.seen.busy += since;
            self.seen.busy_bytes += wire_bytes;
        }
        self.last = Some(now);
    }

    /// Batches since the last window.
    pub fn batches(&self) -> u64 {
        self.seen.batches
    }

    /// Ends a window of this length, in which the target's lanes waited for data for this part of their time.
    pub fn close(&mut self, span: Duration, target_waits: f64) -> Window {
        let seen = std::mem::take(&mut self.seen);
        let longer = seen.delays - seen.batches as f64 * self.least.unwrap_or_default();
        let seconds = span.as_secs_f64().max(f64::MIN_POSITIVE);
        Window {
            span,
            bytes_per_s: seen.wire_bytes as f64 / seconds,
            busy_bytes_per_s: (seen.busy > 0.0).then(|| seen.busy_bytes as f64 / seen.busy),
            // Little's law: the rate of batches, times what they took longer than the fastest one.
            queue: longer / seconds,
            target_waits,
        }
    }
}

/// Weight of the latest window in which the link was the slowest stage.
const WEIGHT: f64 = 0.5;

/// How much faster than seen a link is taken to be that was never the slowest stage. One window too many with too light a
/// coder is what a wrong guess costs; a guess that is too careful would keep the heavy coder for ever, since the wire carries
/// little because of it.
const OPTIMISM: f64 = 8.0;

/// How much faster than proven a link is taken to be where nothing is lost by waiting for proof.
const SAFE: f64 = 1.5;

/// A link that carries more than this part of its estimate and is not the slowest stage was estimated too low: by how much is
/// found out step by step.
const DOUBTFUL: f64 = 0.9;
const DOUBT: f64 = 1.25;

/// How fast the estimate rises while the link is not the slowest stage, per second: others may have left it.
const DRIFT: f64 = 0.02;

/// An estimate of the link's goodput.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    limit: f64,
    estimate: Option<f64>,
    /// The most that ever crossed, bytes a second.
    proven: f64,
    was_slowest: bool,
}

impl Link {
    /// Nothing is known but that no more than `limit` bytes a second may be sent.
    pub fn new(limit: Option<u64>) -> Link {
        Link {
            limit: limit.map_or(f64::INFINITY, |limit| limit as f64),
            estimate: None,
            proven: 0.0,
            was_slowest: false,
        }
    }

    /// Learns from a stretch of time.
    pub fn observe(&mut self, window: &Window) {
        let span = window.span.as_secs_f64();
        if window.bytes_per_s <= 0.0 {
            return;
        }
        let slowest = window.queue >= QUEUE && window.target_waits >= WAITS;
        let rate = match window.busy_bytes_per_s {
            Some(busy) if slowest => busy,
            _ => window.bytes_per_s,
        };
        self.proven = self.proven.max(rate);
        self.estimate = Some(match self.estimate {
            Some(estimate) if slowest && self.was_slowest => estimate + WEIGHT * (rate - estimate),
            _ if slowest => rate,
            // What crossed did cross.
            // It carries about as much as it was taken to, and is not the slowest stage: it can carry more.
            Some(estimate) if self.was_slowest && rate > DOUBTFUL * estimate => DOUBT * rate.max(estimate),
            Some(estimate) if self.was_slowest => estimate * (1.0 + DRIFT * span),
            Some(guess) => OPTIMISM * rate.max(guess),
            None => OPTIMISM * rate,
        });
        self.was_slowest |= slowest;
    }

    /// Bytes a second, the limit included; `None` before the first observation.
    pub fn bytes_per_s(&self) -> Option<f64> {
        Some(self.estimate?.min(self.limit))
    }

    /// Whether so many bytes a second are no great risk: the link was measured, or carried nearly that much before.
    pub fn is_safe(&self, bytes_per_s: f64) -> bool {
        self.was_slowest || bytes_per_s <= SAFE * self.proven
    }

    /// Whether it was measured, which takes that it was the slowest stage at some time; otherwise it is a guess.
    pub fn is_measured(&self) -> bool {
        self.was_slowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bytes_per_s: f64, waits: f64) -> Window {
        Window {
            span: Duration::from_secs(1),
            bytes_per_s,
            busy_bytes_per_s: None,
            queue: waits,
            target_waits: waits,
        }
    }

    #[test]
    fn a_link_that_was_never_the_slowest_stage_is_guessed_upwards_without_end() {
        let mut link = Link::new(None);
        let mut before = 0.0;
        for _ in 0..5 {
            link.observe(&window(1000.0, 0.0));
            assert!(link.bytes_per_s().unwrap() >= before * OPTIMISM);
            before = link.bytes_per_s().unwrap();
        }
        assert!(!link.is_measured());
        link.observe(&window(1000.0, 0.9));
        assert_eq!(
            link.bytes_per_s(),
            Some(1000.0),
            "a guess counts for nothing once it is measured"
        );
    }

    #[test]
    fn a_measured_link_is_not_forgotten_and_slowly_taken_to_be_faster() {
        let mut link = Link::new(None);
        link.observe(&window(1000.0, 0.9));
        link.observe(&window(10.0, 0.0));
        let after = link.bytes_per_s().unwrap();
        assert!(after > 1000.0 && after < 1100.0, "{after}");
        link.observe(&window(5000.0, 0.0));
        assert_eq!(
            link.bytes_per_s(),
            Some(6250.0),
            "it carried that much, and was not the slowest stage"
        );
        link.observe(&window(2000.0, 0.9));
        assert_eq!(link.bytes_per_s(), Some(4125.0));
    }

    #[test]
    fn a_target_that_is_busy_is_not_taken_for_a_slow_link() {
        let mut link = Link::new(None);
        let mut busy = window(1000.0, 0.9);
        busy.target_waits = 0.0;
        link.observe(&busy);
        assert!(!link.is_measured());
    }

    #[test]
    fn a_limit_holds_whatever_is_seen() {
        let mut link = Link::new(Some(300));
        assert_eq!(link.bytes_per_s(), None);
        link.observe(&window(1000.0, 0.0));
        assert_eq!(link.bytes_per_s(), Some(300.0));
    }
}
