//! The control lane: a thread that reads, a thread that writes and says `Heartbeat` when there is nothing else to say.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{io, net::SocketAddr, thread};

use tokio::sync::mpsc as inbox;
use vmferry_core::limits::{
    CONTENT_TABLE_FRAME_BYTES_MAX, HEARD_BYTES, HEARTBEAT, LINK_SILENCE, PEER_SILENCE, UNHEARD_BYTES_MAX,
};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::message::Message;
use vmferry_dataplane::connection::{Handle, LinkEvent, Receiver, Sender};

/// Messages that wait for the driver; a peer that sends faster than it is heard waits. Few: each may be of a MiB, and take a
/// multiple of that.
const INBOX: usize = 8;

/// What a message counts for at the least while it waits to be sent, bytes.
const SAY_BYTES_MIN: usize = 256;

/// What comes over the control lane.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message, other than `Heartbeat`.
    Message(Message),
    /// Bytes for the source's QEMU.
    ReturnPath(Vec<u8>),
    /// A part of a content source's table.
    ContentTable(u16, Vec<u8>),
    /// The link broke, or is there again. Nothing that was said is lost.
    Link(LinkEvent),
    /// Nothing more: the lane is gone.
    Lost(String),
}

/// What is to be sent.
enum Say {
    /// A frame, and what it counts for while it waits.
    Frame {
        kind: Kind,
        payload: Vec<u8>,
        charge: usize,
    },
    /// The packed table of the content source of that number, in as many frames as it takes.
    ContentTable(u16, Vec<u8>),
}

/// A control lane. Dropping it says what was still to be said, then closes it.
#[derive(Debug)]
pub(super) struct Control {
    /// What the peer says; after `Lost` nothing more comes.
    pub(super) heard: inbox::Receiver<Heard>,
    mouth: Mouth,
    peer: SocketAddr,
    host: Option<String>,
}

/// Says things on a control lane from anywhere.
#[derive(Debug, Clone)]
pub(super) struct Mouth(Arc<Speech>);

#[derive(Debug)]
struct Speech {
    to_say: mpsc::Sender<Say>,
    /// What waits to be sent counts for so many bytes.
    waiting: Arc<AtomicUsize>,
    connection: Handle,
}

impl Mouth {
    /// Says it, if the peer can be reached; that it can't, [`Heard::Lost`] tells.
    pub(super) fn say(&self, message: Message) {
        match serde_json::to_vec(&message) {
            Ok(payload) => self.send(Kind::Message, payload),
            Err(error) => {
                tracing::error!(%error, "a message can't be written");
                self.0.connection.close();
            }
        }
    }

    /// Passes bytes of the return path on.
    pub(super) fn return_path(&self, bytes: Vec<u8>) {
        self.send(Kind::ReturnPath, bytes);
    }

    /// Sends the table of a content source, packed. Once for each control lane, so that it does not count.
    pub(super) fn content_table(&self, number: u16, packed: Vec<u8>) {
        let _ = self.0.to_say.send(Say::ContentTable(number, packed));
    }

    /// A peer can make this side answer, and never read the answers: the lane is closed before they fill the memory.
    fn send(&self, kind: Kind, payload: Vec<u8>) {
        let charge = payload.len().max(SAY_BYTES_MIN);
        if self.0.waiting.fetch_add(charge, Ordering::Relaxed) + charge > UNHEARD_BYTES_MAX {
            return self.0.connection.close();
        }
        // Fails when the lane is gone.
        let _ = self.0.to_say.send(Say::Frame { kind, payload, charge });
    }
}

impl Control {
    /// Starts the threads of a connection whose hellos are exchanged. Its end is that of its link, until the link [is
    /// waited for](Control::wait_for_link).
    pub(super) fn start(sender: Sender, mut receiver: Receiver) -> io::Result<Control> {
        let connection = sender.handle();
        connection.set_silence(Some(PEER_SILENCE))?;
        let peer = sender.peer()?;
        let host = sender.host().map(str::to_owned);
        let (to_driver, heard) = inbox::channel(INBOX);
        let link = to_driver.clone();
        // Fails when the driver has ended.
        receiver.on_link(move |event| drop(link.blocking_send(Heard::Link(event))));
        let (to_say, to_be_said) = mpsc::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let mouth = Mouth(Arc::new(Speech {
            to_say,
            waiting: waiting.clone(),
            connection,
        }));
        let (lost, speech) = (to_driver.clone(), Arc::downgrade(&mouth.0));
        thread::Builder::new()
            .name("control-read".into())
            .spawn(move || listen(receiver, &to_driver, &speech))?;
        thread::Builder::new().name("control-write".into()).spawn(move || {
            if let Err(error) = talk(sender, &to_be_said, &waiting) {
                // Full only if the reader has told of the loss already, or is about to.
                let _ = lost.try_send(Heard::Lost(error));
            }
        })?;
        Ok(Control {
            heard,
            mouth,
            peer,
            host,
        })
    }

    /// From now on a link that breaks is waited for so long, and the lane goes on over the next TCP connection. A link that is
    /// silent counts as broken sooner then.
    pub(super) fn wait_for_link(&self, patience: Duration) {
        let connection = &self.mouth.0.connection;
        connection.set_patience(patience);
        let silence = if patience.is_zero() { PEER_SILENCE } else { LINK_SILENCE };
        // Fails where the link is broken already; the next TCP connection gets it.
        let _ = connection.set_silence(Some(silence));
    }

    /// A handle to speak with.
    pub(super) fn mouth(&self) -> &Mouth {
        &self.mouth
    }

    /// The address of the other end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The host that the certificate of the other end names; none without TLS.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
}

fn listen(mut receiver: Receiver, to_driver: &inbox::Sender<Heard>, speech: &Weak<Speech>) {
    let mut unsaid = 0;
    loop {
        let received = receiver.receive();
        // Whatever is said tells the peer what came; heartbeats would let it wait where much comes.
        unsaid += received.as_ref().map_or(0, |(_, payload)| payload.len());
        if unsaid >= HEARD_BYTES {
            unsaid = 0;
            if let Some(speech) = speech.upgrade() {
                Mouth(speech).say(Message::Heartbeat);
            }
        }
        let heard = match received {
            Ok((Kind::Message, payload)) => match Message::read(payload) {
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

fn talk(mut sender: Sender, to_say: &mpsc::Receiver<Say>, waiting: &AtomicUsize) -> Result<(), String> {
    let heartbeat = serde_json::to_vec(&Message::Heartbeat).map_err(|error| error.to_string())?;
    loop {
        let sent = match to_say.recv_timeout(HEARTBEAT) {
            Ok(Say::Frame { kind, payload, charge }) => {
                let sent = sender.send(kind, payload);
                waiting.fetch_sub(charge, Ordering::Relaxed);
                sent.map(drop)
            }
            Ok(Say::ContentTable(number, packed)) => packed
                .chunks(CONTENT_TABLE_FRAME_BYTES_MAX - size_of::<u16>())
                .try_for_each(|part| {
                    let payload = [&number.to_be_bytes(), part].concat();
                    sender.send(Kind::ContentTable, payload).map(drop)
                }),
            Err(RecvTimeoutError::Timeout) => sender.send(Kind::Message, heartbeat.clone()).map(drop),
            Err(RecvTimeoutError::Disconnected) => {
                sender.handle().close();
                return Ok(());
            }
        };
        sent.map_err(|error| error.to_string())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use vmferry_core::wire::hello::{Hello, Lane, VERSIONS};
    use vmferry_dataplane::connection::{self, acceptor::Acceptor};
    use vmferry_dataplane::transport::{self, Security};

    /// A control lane, and the other end of its connection.
    fn lane() -> (Control, (Sender, Receiver)) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            let hello = Hello {
                versions: VERSIONS,
                host: "a".to_owned(),
                software: "test".to_owned(),
                port: 1,
                lane: Lane::Control,
                connection: None,
                heard: None,
            };
            connection::connect(address, || Security::Plaintext, &hello, Duration::ZERO).unwrap()
        });
        let link = transport::accept(listener.accept().unwrap().0, &Security::Plaintext).unwrap();
        let accepted = Acceptor::default().accept(link, "b", "test");
        let Ok(Some((sender, receiver, _))) = accepted else {
            panic!("{accepted:?}")
        };
        (Control::start(sender, receiver).unwrap(), peer.join().unwrap())
    }

    fn lost(control: &mut Control) -> String {
        loop {
            match control.heard.blocking_recv() {
                Some(Heard::Lost(why)) => return why,
                Some(_) => {}
                None => panic!("it ended without a word"),
            }
        }
    }

    #[test]
    fn a_peer_that_reads_no_answers_is_let_go() {
        let (mut control, _peer) = lane();
        let mut said = 0;
        let answer = Message::Refused {
            reasons: vec!["no ".repeat(10_000)],
        };
        // What the sockets between them take is far less than two thousand of these.
        while control.heard.is_empty() && control.mouth().0.waiting.load(Ordering::Relaxed) <= UNHEARD_BYTES_MAX {
            control.mouth().say(answer.clone());
            said += 1;
            assert!(said < 2000, "answers wait without end");
        }
        lost(&mut control);
    }

    #[test]
    fn what_is_no_message_ends_the_lane() {
        let values = format!(r#"{{"message":"disks","disks":[{}0]}}"#, "0,".repeat(100_000));
        let nested = format!(r#"{{"message":"disks","disks":{}"#, "[".repeat(1000));
        for (kind, payload, with) in [
            (Kind::Message, &b""[..], "can't be read"),
            (Kind::Message, values.as_bytes(), "JSON values"),
            (Kind::Message, nested.as_bytes(), "recursion"),
            (Kind::ContentTable, &[0], "content table"),
            (Kind::Data, &[0; 64], "a Data frame on the control lane"),
            (Kind::Hello, &[], "a Hello frame on the control lane"),
        ] {
            let (mut control, (mut liar, _)) = lane();
            liar.send(kind, payload.to_vec()).unwrap();
            let why = lost(&mut control);
            assert!(why.contains(with), "{kind:?}: {why}");
        }
    }
}
