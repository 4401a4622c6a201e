//! The first exchange over a connection of which it is known who is at the other end: a preface each, a hello, its answer.

use super::ConnectionError;
use crate::transport::{self, Incoming, Limits, Link, Outgoing, Purpose, Security};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind, check_preface};
use vmferry_core::wire::hello::{Hello, HelloReply};

/// A connection whose hellos have to be exchanged in time.
pub(super) struct Greeting {
    link: Link,
}

/// A connection whose hellos are exchanged.
pub(super) struct Greeted {
    pub(super) stream: TcpStream,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    /// The host that the peer's certificate names; none without TLS.
    pub(super) host: Option<String>,
}

impl Greeting {
    pub(super) fn begin(link: Link) -> Greeting {
        Greeting { link }
    }

    /// The host that the peer's certificate names; none without TLS.
    pub(super) fn host(&self) -> Option<&str> {
        self.link.host()
    }

    /// Connects and introduces itself. The peer welcomes this connection, and says how many of its frames it has.
    pub(super) fn call(
        address: SocketAddr,
        limits: Limits,
        security: &Security,
        hello: &Hello,
    ) -> Result<(Greeted, u64), ConnectionError> {
        let mut greeting = Greeting::begin(transport::connect(address, limits, security, Purpose::Lane)?);
        greeting.link.write_all(&PREFACE)?;
        greeting.say(Kind::Hello, hello)?;
        greeting.read_preface()?;
        match greeting.read(Kind::HelloReply, "the answer to a hello")? {
            HelloReply::Welcome { host, heard, .. } => {
                greeting.is_who_it_says(&host)?;
                Ok((greeting.end()?, heard))
            }
            HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
        }
    }

    /// Reads the hello of a peer that connected.
    pub(super) fn hear(&mut self) -> Result<Hello, ConnectionError> {
        self.read_preface()?;
        self.read(Kind::Hello, "a hello")
    }

    /// Answers it. If the peer is welcome the connection may be used.
    pub(super) fn reply(mut self, reply: HelloReply) -> Result<Greeted, ConnectionError> {
        self.link.write_all(&PREFACE)?;
        self.say(Kind::HelloReply, &reply)?;
        match reply {
            HelloReply::Welcome { .. } => Ok(self.end()?),
            HelloReply::Unwelcome { reason } => Err(ConnectionError::Unwelcome(reason)),
        }
    }

    /// Whether the peer's certificate is that of the host that it says to be.
    pub(super) fn is_who_it_says(&self, said: &str) -> Result<(), ConnectionError> {
        match self.host() {
            Some(host) if host != said => Err(ConnectionError::Pretends {
                said: said.to_owned(),
                host: host.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Frames may take their time from here, in both directions.
    fn end(self) -> io::Result<Greeted> {
        let host = self.link.host().map(str::to_owned);
        let Link {
            stream,
            outgoing,
            incoming,
            ..
        } = self.link;
        stream.set_write_timeout(None)?;
        stream.set_read_timeout(None)?;
        Ok(Greeted {
            stream,
            outgoing,
            incoming,
            host,
        })
    }

    fn say(&mut self, kind: Kind, value: &impl serde::Serialize) -> Result<(), ConnectionError> {
        let payload = serde_json::to_vec(value).map_err(io::Error::from)?;
        let bytes = payload.len();
        let header = Header::encode(kind, 0, 0, &payload).ok_or(ConnectionError::TooLong { kind, bytes })?;
        Ok(self.link.write_all(&[&header, &payload[..]].concat())?)
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

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ConnectionError> {
        self.link.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectionError::Silent(self.link.deadline.limit()),
            io::ErrorKind::UnexpectedEof => ConnectionError::Closed,
            _ => error.into(),
        })
    }
}
