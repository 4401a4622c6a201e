//! What happens on this host, for everyone who listens.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::broadcast::{self, error::RecvError};

use crate::api::types::{Event, EventKind};

/// Events kept for a listener that reads slowly; after that it is told how many it missed.
const EVENTS_KEPT: usize = 1024;

/// Where events are published.
#[derive(Debug)]
pub struct EventBus {
    sender: broadcast::Sender<Event>,
    next_seq: AtomicU64,
}

/// Hears the events published since it was made.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Event>,
    last_seq: u64,
}

impl EventBus {
    /// A bus without listeners.
    pub fn new() -> Self {
        EventBus {
            sender: broadcast::Sender::new(EVENTS_KEPT),
            next_seq: AtomicU64::new(1),
        }
    }

    /// Tells every listener, and the log.
    pub fn publish(&self, kind: EventKind) {
        tracing::info!(event = ?kind);
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        // Fails when nobody listens, which is fine.
        let _ = self.sender.send(event(seq, kind));
    }

    /// A listener to what follows.
    pub fn listen(&self) -> Listener {
        Listener {
            receiver: self.sender.subscribe(),
            last_seq: 0,
        }
    }
}

impl Default for EventBus {
    fn default() -> Self {
        EventBus::new()
    }
}

impl Listener {
    /// The next event; `None` when there will be no more. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => {
                self.last_seq = event.seq;
                Some(event)
            }
            Err(RecvError::Lagged(events)) => Some(event(self.last_seq, EventKind::Missed { events })),
            Err(RecvError::Closed) => None,
        }
    }
}

fn event(seq: u64, kind: EventKind) -> Event {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Event {
        seq,
        at_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_what_it_missed_and_goes_on() {
        let bus = EventBus::new();
        let mut listener = bus.listen();
        let gone = |vm: usize| EventKind::VmGone {
            vm: vm.to_string(),
            reason: String::new(),
        };
        (0..EVENTS_KEPT + 3).for_each(|vm| bus.publish(gone(vm)));
        assert_eq!(listener.next().await.unwrap().kind, EventKind::Missed { events: 3 });
        assert_eq!(listener.next().await.unwrap().kind, gone(3));
    }
}
