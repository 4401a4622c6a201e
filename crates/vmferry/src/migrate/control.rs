//! The control lane: a thread that reads, a thread that writes and says `Heartbeat` when there is nothing else to say.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::{io, net::SocketAddr, thread};

use tokio::sync::mpsc as inbox;
use vmferry_core::limits::{CONTENT_TABLE_FRAME_BYTES_MAX, HEARTBEAT, PEER_SILENCE};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::message::Message;
use vmferry_dataplane::connection::{Receiver, Sender};

/// Messages that wait for the driver; a peer that sends faster than it is heard waits.
const INBOX: usize = 64;

/// What comes over the control lane.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message, other than `Heartbeat`.
    Message(Message),
    /// Bytes for the source's QEMU.
    ReturnPath(Vec<u8>),
    /// A part of a content source's table.
    ContentTable(u16, Vec<u8>),
    /// Nothing more: the lane is gone.
    Lost(String),
}

enum Say {
    Message(Message),
    ReturnPath(Vec<u8>),
    ContentTable(u16, Vec<u8>),
}

/// A control lane. Dropping it says what was still to be said, then closes it.
#[derive(Debug)]
pub(super) struct Control {
    /// What the peer says; after `Lost` nothing more comes.
    pub(super) heard: inbox::Receiver<Heard>,
    mouth: Mouth,
    peer: SocketAddr,
}

/// Says things on a control lane from anywhere.
#[derive(Debug, Clone)]
pub(super) struct Mouth(mpsc::Sender<Say>);

impl Mouth {
    /// Says it, if the peer can be reached; that it can't, [`Heard::Lost`] tells.
    pub(super) fn say(&self, message: Message) {
        let _ = self.0.send(Say::Message(message));
    }

    /// Passes bytes of the return path on.
    pub(super) fn return_path(&self, bytes: Vec<u8>) {
        let _ = self.0.send(Say::ReturnPath(bytes));
    }

    /// Sends the table of a content source, packed, in as many frames as it takes.
    pub(super) fn content_table(&self, number: u16, packed: Vec<u8>) {
        let _ = self.0.send(Say::ContentTable(number, packed));
    }
}

impl Control {
    /// Starts the threads of a connection whose hellos are exchanged.
    pub(super) fn start(sender: Sender, mut receiver: Receiver) -> io::Result<Control> {
        receiver.set_patience(Some(PEER_SILENCE))?;
        let peer = sender.peer()?;
        let (to_driver, heard) = inbox::channel(INBOX);
        let (mouth, to_say) = mpsc::channel();
        let lost = to_driver.clone();
        thread::Builder::new()
            .name("control-read".into())
            .spawn(move || listen(receiver, &to_driver))?;
        thread::Builder::new().name("control-write".into()).spawn(move || {
            if let Err(error) = talk(sender, &to_say) {
                // Full only if the reader has told of the loss already, or is about to.
                let _ = lost.try_send(Heard::Lost(error));
            }
        })?;
        Ok(Control {
            heard,
            mouth: Mouth(mouth),
            peer,
        })
    }

    /// A handle to speak with.
    pub(super) fn mouth(&self) -> &Mouth {
        &self.mouth
    }

    /// The address of the other end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }
}

fn listen(mut receiver: Receiver, to_driver: &inbox::Sender<Heard>) {
    loop {
        let heard = match receiver.receive() {
            Ok((Kind::Message, payload)) => match serde_json::from_slice(payload) {
                Ok(Message::Heartbeat | Message::Unknown) => continue,
                Ok(message) => Heard::Message(message),
                Err(error) => Heard::Lost(format!("it sent a message that can't be read: {error}")),
            },
            Ok((Kind::ReturnPath, payload)) => Heard::ReturnPath(payload.to_vec()),
            Ok((Kind::ContentTable, payload)) => match payload.split_first_chunk() {
                Some((number, part)) => Heard::ContentTable(u16::from_be_bytes(*number), part.to_vec()),
                None => Heard::Lost("it sent a content table that can't be read".to_owned()),
            },
            Ok((kind, _)) => Heard::Lost(format!("it sent a {kind:?} frame on the control lane")),
            Err(error) => Heard::Lost(error.to_string()),
        };
        let over = matches!(heard, Heard::Lost(_));
        if to_driver.blocking_send(heard).is_err() || over {
            return;
        }
    }
}

fn talk(mut sender: Sender, to_say: &mpsc::Receiver<Say>) -> Result<(), String> {
    loop {
        let say = match to_say.recv_timeout(HEARTBEAT) {
            Ok(say) => say,
            Err(RecvTimeoutError::Timeout) => Say::Message(Message::Heartbeat),
            Err(RecvTimeoutError::Disconnected) => {
                if let Ok(closer) = sender.closer() {
                    closer.close();
                }
                return Ok(());
            }
        };
        let sent = match say {
            Say::ReturnPath(bytes) => sender.send(Kind::ReturnPath, &bytes).map(drop),
            Say::ContentTable(number, packed) => packed
                .chunks(CONTENT_TABLE_FRAME_BYTES_MAX - size_of::<u16>())
                .try_for_each(|part| {
                    let payload = [&number.to_be_bytes(), part].concat();
                    sender.send(Kind::ContentTable, &payload).map(drop)
                }),
            Say::Message(message) => {
                let payload = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
                sender.send(Kind::Message, &payload).map(drop)
            }
        };
        sent.map_err(|error| error.to_string())?;
    }
}
