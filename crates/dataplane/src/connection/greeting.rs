//! The first exchange on a TCP connection: a preface each, a hello, its answer.

use super::ConnectionError;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind, check_preface};
use vmferry_core::wire::hello::{Hello, HelloReply};

/// How long a connection may take to be made, and how long its hellos may take, all bytes of them.
pub(super) const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// A TCP connection whose hellos have to be exchanged by some moment.
pub(super) struct Greeting {
    stream: TcpStream,
    limit: Duration,
    ends: Instant,
}

impl Greeting {
    /// Of a connection that was made or accepted just now.
    pub(super) fn begin(stream: TcpStream, limit: Duration) -> io::Result<Greeting> {
        stream.set_nodelay(true)?;
        // Of an answer that the peer does not read.
        stream.set_write_timeout(Some(limit))?;
        Ok(Greeting {
            stream,
            limit,
            ends: Instant::now() + limit,
        })
    }

    /// Connects and introduces itself. The peer welcomes this connection, and says how many of its frames it has.
    pub(super) fn call(
        address: SocketAddr,
        connect_limit: Duration,
        limit: Duration,
        hello: &Hello,
    ) -> Result<(TcpStream, u64), ConnectionError> {
        let mut greeting = Greeting::begin(TcpStream::connect_timeout(&address, connect_limit)?, limit)?;
        greeting.stream.write_all(&PREFACE)?;
        greeting.say(Kind::Hello, hello)?;
        greeting.read_preface()?;
        match greeting.read(Kind::HelloReply, "the answer to a hello")? {
            HelloReply::Welcome { heard, .. } => Ok((greeting.end()?, heard)),
            HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
        }
    }

    /// Reads the hello of a peer that connected.
    pub(super) fn hear(&mut self) -> Result<Hello, ConnectionError> {
        self.read_preface()?;
        self.read(Kind::Hello, "a hello")
    }

    /// Answers it. If the peer is welcome the connection may be used.
    pub(super) fn reply(mut self, reply: HelloReply) -> Result<TcpStream, ConnectionError> {
        self.stream.write_all(&PREFACE)?;
        self.say(Kind::HelloReply, &reply)?;
        match reply {
            HelloReply::Welcome { .. } => Ok(self.end()?),
            HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
        }
    }

    /// Frames may take their time from here, in both directions.
    fn end(self) -> io::Result<TcpStream> {
        self.stream.set_write_timeout(None)?;
        self.stream.set_read_timeout(None)?;
        Ok(self.stream)
    }

    fn say(&mut self, kind: Kind, value: &impl serde::Serialize) -> Result<(), ConnectionError> {
        let payload = serde_json::to_vec(value).map_err(io::Error::from)?;
        let bytes = payload.len();
        let header = Header::encode(kind, 0, 0, &payload).ok_or(ConnectionError::TooLong { kind, bytes })?;
        Ok(self.stream.write_all(&[&header, &payload[..]].concat())?)
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self, kind: Kind, wanted: &'static str) -> Result<T, ConnectionError> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header)?;
        let header = Header::parse(&header)?;
        if header.kind != kind {
            let got = header.kind;
            return Err(FrameError::Unexpected { got, wanted }.into());
        }
        let mut payload = vec![0; header.payload_bytes];
        self.read_exact(&mut payload)?;
        header.verify(&payload)?;
        serde_json::from_slice(&payload).map_err(|error| {
            let why = error.to_string();
            FrameError::Payload { kind, why }.into()
        })
    }

    fn read_preface(&mut self) -> Result<(), ConnectionError> {
        let mut preface = [0; PREFACE.len()];
        self.read_exact(&mut preface)?;
        Ok(check_preface(preface)?)
    }

    /// A byte now and then would last for ever, were each waited for anew.
    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ConnectionError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = self.ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectionError::Silent(self.limit));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
