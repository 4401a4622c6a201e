//! Datagrams at a steady interval: whoever receives them sees how long the guest was silent.
//!
//! A datagram is three 64-bit little-endian numbers: a counter from 0, the guest's monotonic clock
//! in nanoseconds since the first tick, and the longest gap between two ticks that the guest's own
//! clock has seen, in nanoseconds. The last tells a guest that was busy from one that was stopped.

use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Holds the flag that ends the sender that runs, if one does.
#[derive(Default)]
pub(crate) struct Ticks {
    running: Mutex<Option<Arc<AtomicBool>>>,
}

impl Ticks {
    /// Starts sending to `host:port`; a sender that ran before is ended.
    pub(crate) fn start(&self, host: &str, port: u16, interval: Duration) -> Result<Value> {
        ensure!(!interval.is_zero(), "the interval must be at least 1 us");
        let target = (host, port).to_socket_addrs()?.next().context("no such address")?;
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(target)?;
        let run = Arc::new(AtomicBool::new(true));
        self.replace(Some(Arc::clone(&run)));
        thread::spawn(move || send(&socket, interval, &run));
        Ok(json!({}))
    }

    /// Ends the sender.
    pub(crate) fn stop(&self) -> Value {
        self.replace(None);
        json!({})
    }

    fn replace(&self, next: Option<Arc<AtomicBool>>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = running.take() {
            previous.store(false, Ordering::Relaxed);
        }
        *running = next;
    }
}

fn send(socket: &UdpSocket, interval: Duration, run: &AtomicBool) {
    let started = Instant::now();
    let mut last = started;
    let mut due = started;
    let mut gap_max = Duration::ZERO;
    let mut count: u64 = 0;
    while run.load(Ordering::Relaxed) {
        let now = Instant::now();
        gap_max = gap_max.max(now - last);
        last = now;
        let mut datagram = [0u8; 24];
        let fields = [count, nanos(now - started), nanos(gap_max)];
        for (slot, field) in datagram.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        // A host that answers "port unreachable" makes one send fail; the next may pass.
        let _ = socket.send(&datagram);
        count += 1;
        // After a pause, go on at the interval: a burst to catch up would hide the gap.
        due = (due + interval).max(now);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
