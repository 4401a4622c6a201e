//! A limit on the bytes per second that all lanes together send.

use crate::threads::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How far the schedule may lie in the past: an idle link may catch up this much, no more.
const BURST: Duration = Duration::from_millis(10);

/// The schedule of an outgoing link.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Pace {
        Pace {
            bytes_per_s: bytes_per_s.max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Books the time that `bytes` take and waits until they may go.
    pub(crate) fn wait(&self, bytes: u64) {
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let start = {
            let mut free_at = lock(&self.free_at);
            let start = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
            *free_at = start + takes;
            start
        };
        // Time itself is what is awaited here, there is no event for it.
        std::thread::sleep(start.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_booked_one_after_another() {
        let pace = Pace::new(1_000_000);
        let before = Instant::now();
        for _ in 0..5 {
            pace.wait(10_000);
        }
        // Five bookings of 10 ms: the fifth may start 40 ms after the first, less the burst. A slow machine waits longer.
        assert!(before.elapsed() >= Duration::from_millis(30) - Duration::from_micros(1));
    }
}
