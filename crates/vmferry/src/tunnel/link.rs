//! What joins the two ends of one connection that a tunnel carries: messages, and a heartbeat, so that a link that breaks
//! is noticed on both sides.
//!
//! Both ends agree on the end: who sees it says `over`, closes its QEMU's socket, and waits for the other's `over`; who hears
//! it closes its own, and answers. So nobody takes an end for a broken link, nor waits for a link that nobody needs.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vmferry_core::limits::{HEARTBEAT, LINK_SILENCE};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::tunnel::Message;
use vmferry_dataplane::connection::{ConnectionError, Handle, Receiver, Sender};

use crate::migrate::peers::lock;

/// The sending half. Whoever drops it lets the connection go.
pub(super) struct Link {
    sender: Arc<Mutex<Sender>>,
    handle: Handle,
    /// What of the end was said here.
    over: Mutex<Over>,
    /// Its heartbeat ends with it.
    _beats: mpsc::Sender<()>,
}

#[derive(Default)]
struct Over {
    is_said: bool,
    is_heard: bool,
    failed: Option<String>,
}

/// What comes over a link.
pub(super) enum Heard<'a> {
    /// A message, other than a heartbeat.
    Message(Message),
    /// Another frame.
    Frame(Kind, &'a [u8]),
}

impl Link {
    /// Over a connection whose hellos are exchanged. A link that breaks is waited for so long.
    pub(super) fn start(sender: Sender, patience: Duration) -> io::Result<Link> {
        let handle = sender.handle();
        handle.set_patience(patience);
        handle.set_silence(Some(LINK_SILENCE))?;
        let sender = Arc::new(Mutex::new(sender));
        let (beats, ended) = mpsc::channel::<()>();
        let beating = sender.clone();
        thread::Builder::new().name("heartbeat".into()).spawn(move || {
            while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                if say(&beating, &Message::Heartbeat).is_err() {
                    return;
                }
            }
        })?;
        Ok(Link {
            sender,
            handle,
            over: Mutex::default(),
            _beats: beats,
        })
    }

    /// The host that the certificate of the other end names; none without TLS.
    pub(super) fn host(&self) -> Option<String> {
        lock(&self.sender).host().map(str::to_owned)
    }

    /// From now on a link that breaks is waited for so long.
    pub(super) fn set_patience(&self, patience: Duration) {
        self.handle.set_patience(patience);
    }

    /// Says it; returns its bytes on the wire.
    pub(super) fn say(&self, message: &Message) -> Result<u64, String> {
        say(&self.sender, message).map_err(|error| error.to_string())
    }

    /// Sends a frame; returns its bytes on the wire.
    pub(super) fn send(&self, kind: Kind, payload: Vec<u8>) -> Result<u64, String> {
        lock(&self.sender)
            .send(kind, payload)
            .map_err(|error| error.to_string())
    }

    /// Says that it is over, if nobody has said so: for this reason, or because all is done.
    pub(super) fn end(&self, failed: Option<String>) {
        let mut over = lock(&self.over);
        if !over.is_said && !over.is_heard {
            over.is_said = true;
            over.failed.clone_from(&failed);
            // Fails where the link is gone, which is an end, too.
            let _ = say(&self.sender, &Message::Over { failed });
        }
    }

    /// Hears one thing that the other end says about the connection itself; none once it is over.
    pub(super) fn next<T>(&self, receiver: &mut Receiver, take: impl FnOnce(Heard<'_>) -> T) -> Option<T> {
        loop {
            match receiver.receive() {
                Ok((Kind::Message, payload)) => match Message::read(payload) {
                    Ok(Message::Heartbeat | Message::Unknown) => {}
                    Ok(Message::Over { failed }) => {
                        self.hear_over(failed);
                        return None;
                    }
                    // What was on its way is of no use any more.
                    Ok(_) if self.is_over() => {}
                    Ok(message) => return Some(take(Heard::Message(message))),
                    Err(error) => {
                        self.end(Some(format!("a message that can't be read: {error}")));
                        return None;
                    }
                },
                Ok(_) if self.is_over() => {}
                Ok((kind, payload)) => return Some(take(Heard::Frame(kind, payload))),
                Err(error) => {
                    self.lost(&error);
                    return None;
                }
            }
        }
    }

    /// Waits until both ends know that it is over. An error says why, if something failed.
    pub(super) fn settle(&self, receiver: &mut Receiver) -> Result<(), String> {
        while let Ok((kind, payload)) = receiver.receive() {
            if let (Kind::Message, Ok(Message::Over { failed })) = (kind, Message::read(payload)) {
                self.hear_over(failed);
            }
        }
        lock(&self.over).failed.take().map_or(Ok(()), Err)
    }

    fn is_over(&self) -> bool {
        let over = lock(&self.over);
        over.is_said || over.is_heard
    }

    fn hear_over(&self, failed: Option<String>) {
        let mut over = lock(&self.over);
        if over.is_said {
            return self.handle.close();
        }
        if std::mem::replace(&mut over.is_heard, true) {
            return;
        }
        over.failed = failed;
        let _ = say(&self.sender, &Message::Over { failed: None });
        // The other end closes it now; if it can't, nobody waits for it.
        self.handle.set_patience(Duration::ZERO);
    }

    fn lost(&self, error: &ConnectionError) {
        let mut over = lock(&self.over);
        if !over.is_said && !over.is_heard {
            over.is_heard = true;
            over.failed = Some(format!("lost the other end of the tunnel: {error}"));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn say(sender: &Mutex<Sender>, message: &Message) -> Result<u64, ConnectionError> {
    let payload = serde_json::to_vec(message).map_err(io::Error::from)?;
    lock(sender).send(Kind::Message, payload)
}
