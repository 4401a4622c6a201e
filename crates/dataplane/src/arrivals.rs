//! How fast data arrives, seen where it does: while a lane waits for the rest of a frame, the link is at work. What was there
//! when the lane looked came at an unknown time, so it is not counted, and a busy target is not taken for a slow link.

use crate::processors;
use crate::threads::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Of all lanes of a session.
#[derive(Debug)]
pub(crate) struct Arrivals(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Lanes that wait at present, and since when it is that many.
    waiting: u32,
    since: Instant,
    seen: Seen,
    /// Time that lanes waited, one by one, and the part of it in which they could have run and had no processor.
    watched: Duration,
    delayed: Duration,
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    /// Time in which at least one lane waited.
    pub(crate) time: Duration,
}

impl Seen {
    /// Becomes `now`, if that is more, and says by how much. Acknowledgements of several lanes overtake one another, so it may be
    /// less.
    pub(crate) fn grow(&mut self, now: Seen) -> Seen {
        if now.bytes <= self.bytes {
            return Seen::default();
        }
        let before = std::mem::replace(self, now);
        Seen {
            bytes: now.bytes - before.bytes,
            time: now.time.saturating_sub(before.time),
        }
    }
}

impl Arrivals {
    pub(crate) fn new() -> Arrivals {
        Arrivals(Mutex::new(State {
            waiting: 0,
            since: Instant::now(),
            seen: Seen::default(),
            watched: Duration::ZERO,
            delayed: Duration::ZERO,
        }))
    }

    /// `read` waits for so many bytes that are not here yet.
    pub(crate) fn watch<T>(&self, missing: u64, read: impl FnOnce() -> T) -> T {
        if missing == 0 {
            return read();
        }
        let delay = processors::delay_of_this_thread();
        let began = lock(&self.0).waiting(1);
        let result = read();
        let delay = processors::delay_of_this_thread().saturating_sub(delay);
        let mut state = lock(&self.0);
        let ended = state.waiting(-1);
        state.watched += ended - began;
        state.delayed += delay.min(ended - began);
        state.seen.bytes += missing;
        result
    }

    /// Whether a lane waits at present.
    #[cfg(test)]
    pub(crate) fn are_awaited(&self) -> bool {
        lock(&self.0).waiting > 0
    }

    /// What was seen so far, less the time that waiting for processors took.
    pub(crate) fn seen(&self) -> Seen {
        let state = lock(&self.0);
        let delayed = state.delayed.as_secs_f64() / state.watched.as_secs_f64().max(f64::MIN_POSITIVE);
        Seen {
            time: state.seen.time.mul_f64(1.0 - delayed),
            ..state.seen
        }
    }
}

impl State {
    /// So many more lanes wait from now on.
    fn waiting(&mut self, more: i32) -> Instant {
        let now = Instant::now();
        if self.waiting > 0 {
            self.seen.time += now - self.since;
        }
        self.waiting = self.waiting.saturating_add_signed(more);
        self.since = now;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_wait_at_the_same_time_share_the_time_and_add_their_bytes() {
        let arrivals = Arrivals::new();
        let began = Instant::now();
        // One lane's wait lies within the other's.
        arrivals.watch(100, || arrivals.watch(50, || ()));
        let most = began.elapsed();
        let seen = arrivals.seen();
        assert_eq!(seen.bytes, 150);
        assert!(!seen.time.is_zero() && seen.time <= most, "{seen:?} of {most:?}");
    }

    #[test]
    fn what_was_said_later_and_is_less_counts_for_nothing() {
        let seen = |bytes, ms| Seen {
            bytes,
            time: Duration::from_millis(ms),
        };
        let mut all = Seen::default();
        assert_eq!(all.grow(seen(0, 0)), Seen::default());
        assert_eq!(all.grow(seen(300, 3)), seen(300, 3));
        for overtaken in [seen(0, 0), seen(200, 2), seen(300, 9)] {
            assert_eq!((all.grow(overtaken), all), (Seen::default(), seen(300, 3)));
        }
        assert_eq!(all.grow(seen(500, 1)), seen(200, 0));
    }

    #[test]
    fn what_is_here_already_says_nothing() {
        let arrivals = Arrivals::new();
        assert_eq!(arrivals.watch(0, || 7), 7);
        assert_eq!(arrivals.seen(), Seen::default());
    }
}
