//! The side that is connected to: greets whoever connects, and finds the connection that a peer takes up again.

use super::channel::Channel;
use super::greeting::Greeting;
use super::{ConnectionError, Receiver, Sender, directions};
use crate::threads::lock;
use crate::transport::Link;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use vmferry_core::wire::hello::{ConnectionId, Hello, HelloReply, VERSIONS, answer};

/// Knows the connections that peers have opened, for as long as they are used.
#[derive(Debug, Default)]
pub struct Acceptor {
    open: Mutex<HashMap<ConnectionId, Weak<Channel>>>,
}

impl Acceptor {
    /// Reads the hello of a peer that connected, and answers it as `host`, running `software`; its version is one that both
    /// speak afterwards. None if it takes a connection up again, which goes on. A new one ends with its TCP connection until it is
    /// given [patience](super::Handle::set_patience).
    pub fn accept(
        &self,
        link: Link,
        host: &str,
        software: &str,
    ) -> Result<Option<(Sender, Receiver, Hello)>, ConnectionError> {
        let mut greeting = Greeting::begin(link);
        let hello = greeting.hear()?;
        if let Err(error) = greeting.is_who_it_says(&hello.host) {
            let reason = error.to_string();
            let _ = greeting.reply(HelloReply::Unwelcome { reason });
            return Err(error);
        }
        let mut reply = answer(&hello, VERSIONS, host, software);
        let HelloReply::Welcome { heard, .. } = &mut reply else {
            greeting.reply(reply)?;
            return Err(ConnectionError::Closed);
        };
        if let Some(theirs) = hello.heard {
            let Some((channel, ours)) = self.take_up(hello.connection, greeting.host(), theirs) else {
                let reason = format!("{host} does not have this connection any more");
                greeting.reply(HelloReply::Unwelcome { reason })?;
                return Err(ConnectionError::Closed);
            };
            *heard = ours;
            channel.go_on(greeting.reply(reply)?, theirs);
            return Ok(None);
        }
        let channel = Channel::new(greeting.reply(reply)?, hello.connection.is_some(), None);
        if let Some(id) = hello.connection {
            let mut open = lock(&self.open);
            open.retain(|_, channel| channel.strong_count() > 0);
            // Drawn at random by whoever opened it: that one is there already is no accident.
            if open.contains_key(&id) {
                return Err(ConnectionError::Closed);
            }
            open.insert(id, Arc::downgrade(&channel));
        }
        let (sender, receiver) = directions(channel);
        Ok(Some((sender, receiver, hello)))
    }

    /// The connection of that host's that a peer takes up again that has so many of its frames, and how many this side has.
    fn take_up(&self, id: Option<ConnectionId>, host: Option<&str>, theirs: u64) -> Option<(Arc<Channel>, u64)> {
        let channel = lock(&self.open).get(&id?)?.upgrade()?;
        if channel.host() != host {
            return None;
        }
        let heard = channel.suspend(theirs)?;
        Some((channel, heard))
    }
}
