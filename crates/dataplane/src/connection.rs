//! A connection that carries frames: one [`Sender`], one [`Receiver`], used from a thread each.

use crate::arrivals::{Arrivals, Lane};
use crate::transport::{self, Deadline, Hurried, Incoming, Link, Outgoing, Purpose, Security, TransportError};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind, Sequence, check_preface};
use vmferry_core::wire::hello::{Hello, HelloReply, VERSIONS, answer};

/// Why a connection can't be used, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer closed it between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The network or the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not known who is at the other end, or not in time.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It says to be another host than its certificate does.
    #[error("it says to be {said}, and its certificate is that of {host}: is that its agent's --name?")]
    Pretends {
        /// Who it says to be.
        said: String,
        /// Whose certificate it has.
        host: String,
    },
    /// What came is not a frame that belongs here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer does not want it.
    #[error("the peer declines: {0}")]
    Unwelcome(String),
    /// The peer said nothing for as long as a living one would.
    #[error("no word from the peer for {0:?}")]
    Silent(Duration),
    /// A payload over its kind's limit was to be sent.
    #[error("{bytes} bytes do not fit a {kind:?} frame")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The payload's length.
        bytes: usize,
    },
}

/// The sending direction.
#[derive(Debug)]
pub struct Sender {
    outgoing: Outgoing,
    sequence: Sequence,
    host: Option<String>,
}

/// The receiving direction.
#[derive(Debug)]
pub struct Receiver {
    stream: TcpStream,
    incoming: Incoming,
    sequence: Sequence,
    payload: Vec<u8>,
    patience: Option<Duration>,
    /// When the hellos have to be exchanged, while they are.
    greeting: Option<Deadline>,
    /// Reads it instead, where arrivals are counted.
    lane: Option<Lane>,
}

/// Closes a connection's both directions from anywhere; whoever reads or writes it gets an error.
#[derive(Debug)]
pub struct Closer(TcpStream);

impl Closer {
    /// Closes it. Harmless if it is closed already.
    pub fn close(&self) {
        // An error says that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Sender {
    /// Sends a frame; returns its bytes on the wire.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<u64, ConnectionError> {
        let header = self
            .sequence
            .next_header(kind, payload)
            .ok_or(ConnectionError::TooLong {
                kind,
                bytes: payload.len(),
            })?;
        self.outgoing.write_all([&header, payload])?;
        Ok((HEADER_BYTES + payload.len()) as u64)
    }

    /// A handle to close the connection with.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.outgoing.socket().try_clone()?))
    }

    /// The address of the other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.outgoing.socket().peer_addr()
    }

    /// The host that the peer's certificate names; none without TLS.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
}

impl Receiver {
    /// Waits for a frame. The payload is valid until the next call.
    pub fn receive(&mut self) -> Result<(Kind, &[u8]), ConnectionError> {
        let mut header = [0; HEADER_BYTES];
        let read = self.read(&mut header)?;
        if read == 0 {
            return Err(ConnectionError::Closed);
        }
        self.read_exact_into(&mut header[read..])?;
        let header = Header::parse(&header)?;
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(header.payload_bytes, 0);
        self.read_exact_into(&mut payload)?;
        self.payload = payload;
        self.sequence.accept(&header, &self.payload)?;
        Ok((header.kind, &self.payload))
    }

    /// How long [`receive`](Self::receive) waits before it says [`ConnectionError::Silent`]; none waits for ever.
    pub fn set_patience(&mut self, patience: Option<Duration>) -> io::Result<()> {
        self.patience = patience;
        self.stream.set_read_timeout(patience)
    }

    /// From now on, counts how fast frames arrive: on the socket of that number of these.
    pub(crate) fn count_arrivals(&mut self, arrivals: Arc<Arrivals>, index: usize) {
        self.lane = Some(Lane::new(arrivals, index));
    }

    /// The socket, to count what it receives.
    pub(crate) fn socket(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Reads what there is, and waits for it if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ConnectionError> {
        let stream = &self.stream;
        let read = match (&self.lane, self.greeting) {
            (Some(lane), _) => lane.read(&mut self.incoming, buffer, self.patience),
            // A byte now and then would last for ever, were each waited for anew.
            (None, Some(deadline)) => self.incoming.read(&mut Hurried { stream, deadline }, buffer),
            (None, None) => self.incoming.read(&mut &*stream, buffer),
        };
        read.map_err(|error| self.read_error(error))
    }

    /// Reads the rest of a frame of which something is here.
    fn read_exact_into(&mut self, buffer: &mut [u8]) -> Result<(), ConnectionError> {
        let stream = &self.stream;
        let read = match (&self.lane, self.greeting) {
            (Some(lane), _) => lane.read_rest(&mut self.incoming, buffer, self.patience),
            (None, Some(deadline)) => self.incoming.read_exact(&mut Hurried { stream, deadline }, buffer),
            (None, None) => self.incoming.read_exact(&mut &*stream, buffer),
        };
        read.map_err(|error| self.read_error(error))
    }

    /// The hellos are exchanged: frames may take their time, in both directions.
    fn greeted(&mut self) -> io::Result<()> {
        self.greeting = None;
        self.stream.set_write_timeout(None)?;
        self.set_patience(None)
    }

    fn read_error(&self, error: io::Error) -> ConnectionError {
        match (error.kind(), self.patience) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(patience)) => ConnectionError::Silent(patience),
            (io::ErrorKind::UnexpectedEof, _) if self.greeting.is_some() => ConnectionError::Closed,
            _ => ConnectionError::Io(error),
        }
    }
}

/// Of a connection whose hellos are to be exchanged in time.
fn both_directions(link: Link) -> io::Result<(Sender, Receiver)> {
    let host = link.host().map(str::to_owned);
    let patience = link.deadline.limit();
    // Of an answer that the peer does not read.
    link.stream.set_write_timeout(Some(patience))?;
    Ok((
        Sender {
            outgoing: link.outgoing,
            sequence: Sequence::default(),
            host,
        },
        Receiver {
            stream: link.stream,
            incoming: link.incoming,
            sequence: Sequence::default(),
            payload: Vec::new(),
            patience: Some(patience),
            greeting: Some(link.deadline),
            lane: None,
        },
    ))
}

/// Connects to an agent and introduces itself; the peer is known to welcome this connection afterwards.
pub fn connect(address: SocketAddr, security: &Security, hello: &Hello) -> Result<(Sender, Receiver), ConnectionError> {
    let (mut sender, mut receiver) = both_directions(transport::connect(address, security, Purpose::Lane)?)?;
    sender.outgoing.write_all([&PREFACE, &[]])?;
    sender.send(Kind::Hello, &to_json(hello)?)?;
    read_preface(&mut receiver)?;
    match receiver.receive()? {
        (Kind::HelloReply, payload) => match from_json(Kind::HelloReply, payload)? {
            HelloReply::Welcome { host, .. } => is_who_it_says(&sender, &host)?,
            HelloReply::Unwelcome { reason } => return Err(ConnectionError::Unwelcome(reason)),
        },
        (got, _) => {
            return Err(FrameError::Unexpected {
                got,
                wanted: "the answer to a hello",
            }
            .into());
        }
    }
    receiver.greeted()?;
    Ok((sender, receiver))
}

/// Reads the hello of a peer that connected, and answers it as `host`, running `software`; its version is one that both
/// speak afterwards.
pub fn accept(link: Link, host: &str, software: &str) -> Result<(Sender, Receiver, Hello), ConnectionError> {
    let (mut sender, mut receiver) = both_directions(link)?;
    read_preface(&mut receiver)?;
    let hello: Hello = match receiver.receive()? {
        (Kind::Hello, payload) => from_json(Kind::Hello, payload)?,
        (got, _) => return Err(FrameError::Unexpected { got, wanted: "a hello" }.into()),
    };
    let is_itself = is_who_it_says(&sender, &hello.host);
    let reply = match &is_itself {
        Ok(()) => answer(&hello, VERSIONS, host, software),
        Err(error) => HelloReply::Unwelcome {
            reason: error.to_string(),
        },
    };
    sender.outgoing.write_all([&PREFACE, &[]])?;
    sender.send(Kind::HelloReply, &to_json(&reply)?)?;
    receiver.greeted()?;
    is_itself?;
    match reply {
        HelloReply::Welcome { .. } => Ok((sender, receiver, hello)),
        HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
    }
}

fn is_who_it_says(sender: &Sender, said: &str) -> Result<(), ConnectionError> {
    match &sender.host {
        Some(host) if host != said => Err(ConnectionError::Pretends {
            said: said.to_owned(),
            host: host.clone(),
        }),
        _ => Ok(()),
    }
}

fn read_preface(receiver: &mut Receiver) -> Result<(), ConnectionError> {
    let mut preface = [0; PREFACE.len()];
    receiver.read_exact_into(&mut preface)?;
    Ok(check_preface(preface)?)
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, ConnectionError> {
    serde_json::to_vec(value).map_err(|error| ConnectionError::Io(error.into()))
}

fn from_json<T: serde::de::DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|error| FrameError::Payload {
        kind,
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::tests::connected;
    use crate::transport::{accept as greet, accept_within};
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    #[test]
    fn a_peer_that_is_never_done_with_its_hello_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let header = Sequence::default().next_header(Kind::Hello, &[b' '; 60_000]).unwrap();
        peer.write_all(&[&PREFACE[..], &header].concat()).unwrap();
        let (over, is_over) = channel::<()>();
        let sends = std::thread::spawn(move || {
            // Each byte comes well within the limit; all together take minutes.
            let pace = Duration::from_millis(5);
            while is_over.recv_timeout(pace) == Err(RecvTimeoutError::Timeout) && peer.write_all(b" ").is_ok() {}
        });
        let limit = Duration::from_millis(300);
        let link = accept_within(limit, listener.accept().unwrap().0, &Security::Plaintext).unwrap();
        let error = accept(link, "b", "test").unwrap_err();
        drop(over);
        sends.join().unwrap();
        assert!(matches!(error, ConnectionError::Silent(_)), "{error}");
    }

    #[test]
    fn a_frame_that_is_no_hello_is_not_waited_for() {
        for kind in [Kind::Data, Kind::Message, Kind::Ask] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let header = Sequence::default().next_header(kind, &[]).unwrap();
            peer.write_all(&[&PREFACE[..], &header].concat()).unwrap();
            let link = greet(listener.accept().unwrap().0, &Security::Plaintext).unwrap();
            let error = accept(link, "b", "test").unwrap_err();
            assert!(matches!(error, ConnectionError::Frame(_)), "{error}");
        }
    }

    #[test]
    fn a_payload_that_comes_after_its_header_is_seen_to_arrive() {
        let (here, mut peer) = connected();
        // The first byte is looked at, and nothing else.
        peer.write_all(b"x").unwrap();
        let (_, mut receiver) = both_directions(greet(here, &Security::Plaintext).unwrap()).unwrap();
        receiver.read_exact_into(&mut [0]).unwrap();
        receiver.greeted().unwrap();
        let arrivals = Arc::new(Arrivals::new([receiver.socket().unwrap()]));
        receiver.count_arrivals(arrivals.clone(), 0);
        let payload = vec![7; 1000];
        let header = Sequence::default().next_header(Kind::Data, &payload).unwrap();
        std::thread::scope(|scope| {
            let received = scope.spawn(|| receiver.receive().map(|(_, payload)| payload.len()));
            peer.write_all(&header).unwrap();
            while !arrivals.are_awaited() {
                assert!(!received.is_finished(), "it did not wait for the payload");
                std::thread::yield_now();
            }
            peer.write_all(&payload).unwrap();
            assert_eq!(received.join().unwrap().unwrap(), payload.len());
        });
        let seen = arrivals.seen();
        assert!(seen.bytes == 1000 && !seen.time.is_zero(), "{seen:?}");
    }
}
