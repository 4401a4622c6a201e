//! What the link carries. It shows only while the link is the slowest stage: the source's lanes wait to send, and the target's
//! lanes wait for data. At any other time what crosses is a lower bound.

use std::time::Duration;

/// What was seen over a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Its length.
    pub span: Duration,
    /// Bytes on the wire that the target acknowledged in it.
    pub wire_bytes: u64,
    /// The part of their time that the source's lanes waited to send, 0 to 1.
    pub source_waits: f64,
    /// The part of their time that the target's lanes waited for data, 0 to 1.
    pub target_waits: f64,
}

impl Window {
    /// Batches that it has to have seen.
    pub const BATCHES_MIN: u64 = 4;

    /// How long a window has to be that ends so long after the session began: short at first, so that a choice does not come
    /// late, and later long enough for bursts of acknowledgements not to matter.
    pub fn span_min(elapsed: Duration) -> Duration {
        (elapsed / 4).min(Duration::from_millis(100))
    }
}

/// Lanes that wait for this part of their time wait for the link: those of the source to send, those of the target to
/// receive.
const SOURCE_WAITS: f64 = 0.15;
const TARGET_WAITS: f64 = 0.15;

/// Weight of the latest window in which the link was the slowest stage.
const WEIGHT: f64 = 0.4;

/// How much faster than seen a link is taken to be that was never the slowest stage. Some windows too many with too light a
/// coder is what a wrong guess costs; a guess that is too careful would keep the heavy coder for ever, since the wire carries
/// little because of it.
const OPTIMISM: f64 = 8.0;

/// How much faster than proven a link is taken to be where nothing is lost by waiting for proof.
const SAFE: f64 = 1.5;

/// How fast the estimate rises while the link is not the slowest stage, per second: others may have left it.
const DRIFT: f64 = 0.05;

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
        if window.wire_bytes == 0 || span <= 0.0 {
            return;
        }
        let rate = window.wire_bytes as f64 / span;
        let slowest = window.source_waits >= SOURCE_WAITS && window.target_waits >= TARGET_WAITS;
        self.proven = self.proven.max(rate);
        self.estimate = Some(match self.estimate {
            Some(estimate) if slowest && self.was_slowest => estimate + WEIGHT * (rate - estimate),
            _ if slowest => rate,
            Some(estimate) if self.was_slowest => rate.max(estimate * (1.0 + DRIFT * span)),
            _ => OPTIMISM * self.proven,
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

    fn window(wire_bytes: u64, waits: f64) -> Window {
        Window {
            span: Duration::from_secs(1),
            wire_bytes,
            source_waits: waits,
            target_waits: waits,
        }
    }

    #[test]
    fn a_link_that_was_never_the_slowest_stage_is_taken_to_be_faster_than_seen() {
        let mut link = Link::new(None);
        for wire_bytes in [1000, 500, 4000] {
            link.observe(&window(wire_bytes, 0.0));
        }
        assert_eq!(link.bytes_per_s(), Some(4000.0 * OPTIMISM));
        assert!(!link.is_measured() && link.is_safe(5000.0) && !link.is_safe(7000.0));
        link.observe(&window(1000, 0.9));
        assert_eq!(
            link.bytes_per_s(),
            Some(1000.0),
            "a guess counts for nothing once it is measured"
        );
    }

    #[test]
    fn a_measured_link_is_not_forgotten_and_slowly_taken_to_be_faster() {
        let mut link = Link::new(None);
        link.observe(&window(1000, 0.9));
        link.observe(&window(10, 0.0));
        let after = link.bytes_per_s().unwrap();
        assert!(after > 1000.0 && after < 1100.0, "{after}");
        link.observe(&window(5000, 0.0));
        assert_eq!(link.bytes_per_s(), Some(5000.0), "it carried that much");
        link.observe(&window(2000, 0.9));
        assert_eq!(link.bytes_per_s(), Some(3800.0));
    }

    #[test]
    fn a_side_that_is_busy_is_not_taken_for_a_slow_link() {
        for (source_waits, target_waits) in [(0.9, 0.0), (0.0, 0.9)] {
            let mut link = Link::new(None);
            link.observe(&Window {
                source_waits,
                target_waits,
                ..window(1000, 0.0)
            });
            assert!(!link.is_measured());
        }
    }

    #[test]
    fn a_limit_holds_whatever_is_seen() {
        let mut link = Link::new(Some(300));
        assert_eq!(link.bytes_per_s(), None);
        link.observe(&window(1000, 0.0));
        assert_eq!(link.bytes_per_s(), Some(300.0));
    }
}
