//! A TCP connection that carries frames: one [`Sender`], one [`Receiver`], used from a thread each.

use crate::arrivals::{Arrivals, Lane};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind, Sequence, check_preface};
use vmferry_core::wire::hello::{Hello, HelloReply, VERSIONS, answer};

/// How long a connection may take to be made, and how long its hellos may take, all bytes of them.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// Why a connection can't be used, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer closed it between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The network or the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
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
    stream: TcpStream,
    sequence: Sequence,
}

/// The receiving direction.
#[derive(Debug)]
pub struct Receiver {
    stream: TcpStream,
    sequence: Sequence,
    payload: Vec<u8>,
    patience: Option<Duration>,
    /// When the hellos have to be exchanged, while they are.
    greeting_ends: Option<Instant>,
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
        write_all(&mut self.stream, [&header, payload])?;
        Ok((HEADER_BYTES + payload.len()) as u64)
    }

    /// A handle to close the connection with.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.stream.try_clone()?))
    }

    /// The address of the other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl Receiver {
    /// Waits for a frame. The payload is valid until the next call.
    pub fn receive(&mut self) -> Result<(Kind, &[u8]), ConnectionError> {
        let mut header = [0; HEADER_BYTES];
        let read = loop {
            self.hurry()?;
            let read = match &self.lane {
                Some(lane) => lane.read(&mut header, self.patience),
                None => self.stream.read(&mut header),
            };
            match read {
                // A process that was stopped and goes on has its wait interrupted where that has a limit.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| self.read_error(error))?,
            }
        };
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

    /// Reads the rest of a frame of which something is here.
    fn read_exact_into(&mut self, buffer: &mut [u8]) -> Result<(), ConnectionError> {
        if self.greeting_ends.is_none() {
            let read = match &self.lane {
                Some(lane) => lane.read_rest(buffer, self.patience),
                None => self.stream.read_exact(buffer),
            };
            return read.map_err(|error| self.read_error(error));
        }
        // A byte now and then would last for ever, were each waited for anew.
        let mut filled = 0;
        while filled < buffer.len() {
            self.hurry()?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        Ok(())
    }

    /// Lets the next read take no longer than is left for the greeting.
    fn hurry(&self) -> Result<(), ConnectionError> {
        let Some(ends) = self.greeting_ends else {
            return Ok(());
        };
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectionError::Silent(self.patience.unwrap_or_default()));
        }
        Ok(self.stream.set_read_timeout(Some(left))?)
    }

    /// The hellos are exchanged: frames may take their time, in both directions.
    fn greeted(&mut self) -> io::Result<()> {
        self.greeting_ends = None;
        self.stream.set_write_timeout(None)?;
        self.set_patience(None)
    }

    fn read_error(&self, error: io::Error) -> ConnectionError {
        match (error.kind(), self.patience) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(patience)) => ConnectionError::Silent(patience),
            _ => ConnectionError::Io(error),
        }
    }
}

/// Writes both parts in as few system calls as the socket takes.
fn write_all(stream: &mut TcpStream, parts: [&[u8]; 2]) -> io::Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) if rest.iter().all(|part| part.is_empty()) => break,
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Of a connection whose hellos are to be exchanged within `limit`.
fn both_directions(stream: TcpStream, limit: Duration) -> io::Result<(Sender, Receiver)> {
    stream.set_nodelay(true)?;
    // Of an answer that the peer does not read.
    stream.set_write_timeout(Some(limit))?;
    let receiving = stream.try_clone()?;
    Ok((
        Sender {
            stream,
            sequence: Sequence::default(),
        },
        Receiver {
            stream: receiving,
            sequence: Sequence::default(),
            payload: Vec::new(),
            patience: Some(limit),
            greeting_ends: Some(Instant::now() + limit),
            lane: None,
        },
    ))
}

/// Connects to an agent and introduces itself; the peer is known to welcome this connection afterwards.
pub fn connect(address: SocketAddr, hello: &Hello) -> Result<(Sender, Receiver), ConnectionError> {
    let stream = TcpStream::connect_timeout(&address, GREETING_LIMIT)?;
    let (mut sender, mut receiver) = both_directions(stream, GREETING_LIMIT)?;
    sender.stream.write_all(&PREFACE)?;
    sender.send(Kind::Hello, &to_json(hello)?)?;
    read_preface(&mut receiver)?;
    match receiver.receive()? {
        (Kind::HelloReply, payload) => match from_json(Kind::HelloReply, payload)? {
            HelloReply::Welcome { .. } => {}
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
pub fn accept(stream: TcpStream, host: &str, software: &str) -> Result<(Sender, Receiver, Hello), ConnectionError> {
    accept_within(GREETING_LIMIT, stream, host, software)
}

fn accept_within(
    limit: Duration,
    stream: TcpStream,
    host: &str,
    software: &str,
) -> Result<(Sender, Receiver, Hello), ConnectionError> {
    let (mut sender, mut receiver) = both_directions(stream, limit)?;
    read_preface(&mut receiver)?;
    let hello: Hello = match receiver.receive()? {
        (Kind::Hello, payload) => from_json(Kind::Hello, payload)?,
        (got, _) => return Err(FrameError::Unexpected { got, wanted: "a hello" }.into()),
    };
    let reply = answer(&hello, VERSIONS, host, software);
    sender.stream.write_all(&PREFACE)?;
    sender.send(Kind::HelloReply, &to_json(&reply)?)?;
    receiver.greeted()?;
    match reply {
        HelloReply::Welcome { .. } => Ok((sender, receiver, hello)),
        HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
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
        let error = accept_within(limit, listener.accept().unwrap().0, "b", "test").unwrap_err();
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
            let error = accept(listener.accept().unwrap().0, "b", "test").unwrap_err();
            assert!(matches!(error, ConnectionError::Frame(_)), "{error}");
        }
    }

    #[test]
    fn a_payload_that_comes_after_its_header_is_seen_to_arrive() {
        let (here, mut peer) = connected();
        let (_, mut receiver) = both_directions(here, GREETING_LIMIT).unwrap();
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
