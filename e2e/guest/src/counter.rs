//! A counter that goes up once a millisecond: it shows that the guest runs, and that it never goes
//! back to an earlier state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The running counter.
pub(crate) struct Counter {
    count: Arc<AtomicU64>,
    started: Instant,
}

impl Counter {
    /// Starts counting.
    pub(crate) fn start() -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(1));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            count,
            started: Instant::now(),
        }
    }

    /// The count, and the guest's own clock beside it.
    pub(crate) fn answer(&self) -> Value {
        json!({
            "count": self.count.load(Ordering::Relaxed),
            "guest_ms": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}
