//! What the link carries, measured where it shows whatever the slowest stage is: the target times what arrives on all lanes
//! while one waits for the rest of a frame. What had arrived before it looked tells nothing and is not counted.

use super::costs::Average;
use std::time::Duration;

/// Less says nothing: a frame's end that was late by a moment would look like a slow link.
const BYTES_MIN: u64 = 64 * 1024;

/// An estimate of the link's goodput.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    limit: f64,
    ns_per_byte: Average,
    /// Seen and too little to count yet.
    bytes: u64,
    time: Duration,
}

impl Link {
    /// Nothing is known but that no more than `limit` bytes a second may be sent.
    pub fn new(limit: Option<u64>) -> Link {
        Link {
            limit: limit.map_or(f64::INFINITY, |limit| limit as f64),
            ns_per_byte: Average::default(),
            bytes: 0,
            time: Duration::ZERO,
        }
    }

    /// So many bytes arrived in that time, in which the link was busy.
    pub fn carried(&mut self, bytes: u64, time: Duration) {
        // What the target says it saw is any number.
        self.bytes = self.bytes.saturating_add(bytes);
        self.time = self.time.saturating_add(time);
        if self.bytes >= BYTES_MIN {
            self.ns_per_byte.add(self.time.as_nanos() as f64 / self.bytes as f64);
            (self.bytes, self.time) = (0, Duration::ZERO);
        }
    }

    /// Bytes a second, the limit included; infinite before anything was seen, which stays so only while the target finds
    /// everything there when it looks.
    pub fn bytes_per_s(&self) -> f64 {
        let seen = match self.ns_per_byte.get() {
            Some(ns) => 1e9 / ns,
            None if self.bytes > 0 => self.bytes as f64 / self.time.as_secs_f64(),
            None => f64::INFINITY,
        };
        seen.min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_may_have_been_seen() {
        let mut link = Link::new(None);
        for (bytes, time) in [
            (1, Duration::ZERO),
            (u64::MAX, Duration::MAX),
            (u64::MAX, Duration::MAX),
        ] {
            link.carried(bytes, time);
            assert!(!link.bytes_per_s().is_nan());
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_link_is_infinite_until_something_was_seen_of_it() {
        let mut link = Link::new(None);
        assert_eq!(link.bytes_per_s(), f64::INFINITY);
        link.carried(1000, MS);
        assert_eq!(link.bytes_per_s(), 1e6, "a little is better than nothing");
        link.carried(BYTES_MIN * 3, 3 * MS);
        let seen = link.bytes_per_s();
        link.carried(1, 1000 * MS);
        assert_eq!(link.bytes_per_s(), seen, "and worse than enough");
    }

    #[test]
    fn what_is_seen_later_counts_for_more() {
        let mut link = Link::new(None);
        for bytes in [1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4] {
            link.carried(bytes * BYTES_MIN, MS);
        }
        let (slow, fast) = (BYTES_MIN as f64 * 1e3, BYTES_MIN as f64 * 4e3);
        assert!(link.bytes_per_s() > slow * 3.0 && link.bytes_per_s() < fast);
    }

    #[test]
    fn a_limit_holds_whatever_is_seen() {
        let mut link = Link::new(Some(300));
        assert_eq!(link.bytes_per_s(), 300.0);
        link.carried(1 << 20, MS);
        assert_eq!(link.bytes_per_s(), 300.0);
        link.carried(1 << 20, 20_000_000 * MS);
        assert!(link.bytes_per_s() < 300.0);
    }
}
