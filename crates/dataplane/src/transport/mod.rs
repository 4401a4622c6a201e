//! What connections run over: TLS 1.3 in which both hosts show a certificate of their cluster, or plain TCP where
//! somebody wants to measure what that costs.
//!
//! | module | what |
//! |---|---|
//! | `tls` | what this host shows, and whom it believes |
//! | `handshake` | who is at the other end, in bounded time and memory |
//! | `session` | sealing and opening records |
//! | `halves` | the two directions, each for a thread of its own |
//! | `mismatch` | telling a peer that one side speaks TLS and the other does not |
//! | `error` | why there is no connection, in sentences |

mod error;
mod halves;
mod handshake;
mod mismatch;
mod session;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::TransportError;
pub(crate) use halves::{Incoming, Outgoing};
use rustls::ClientConfig;
pub use tls::{Credentials, Tls, host_of, provider};

/// How long everything may take until it is clear who is there and for what, all bytes of it.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection to a peer may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To be made.
    pub connect: Duration,
    /// Until it is clear who is there, and each has said what it is for, all bytes of it.
    pub greet: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: GREETING_LIMIT,
            greet: GREETING_LIMIT,
        }
    }
}

/// Whether connections are encrypted, and with what.
#[derive(Clone, Debug)]
pub enum Security {
    /// They are not, and nobody knows who is at the other end.
    Plaintext,
    /// TLS 1.3, both hosts authenticated.
    Tls(Arc<Tls>),
}

/// What a connection is for: its ALPN protocol, which TLS agrees on before anything is said over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Lanes between agents.
    Lane,
    /// Certificates and revocations, between hosts that have a certificate.
    Certificates,
    /// A host that has no certificate yet asks for its first.
    Join,
    /// The agent's API.
    Api,
}

impl Purpose {
    /// Those that the port between agents is for.
    const OF_AGENTS: [Purpose; 3] = [Purpose::Lane, Purpose::Certificates, Purpose::Join];

    /// Its name on the wire.
    #[must_use]
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Purpose::Lane => b"vmferry/1",
            Purpose::Certificates => b"vmferry-certificates/1",
            Purpose::Join => b"vmferry-join/1",
            Purpose::Api => b"http/1.1",
        }
    }

    fn of(protocol: &[u8]) -> Option<Purpose> {
        Self::OF_AGENTS
            .into_iter()
            .find(|purpose| purpose.protocol() == protocol)
    }
}

/// When a greeting has to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Deadline {
        let at = Instant::now() + limit;
        Deadline { at, limit }
    }

    /// How long all of it may take.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

/// A socket of which no read or write goes on beyond a deadline, however often a byte comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hurried<'a> {
    pub(crate) stream: &'a TcpStream,
    pub(crate) deadline: Deadline,
}

impl Read for Hurried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.deadline.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection of which it is known who is at the other end. What is said over it first has to be said by a deadline,
/// too.
pub struct Link {
    pub(crate) stream: TcpStream,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) deadline: Deadline,
    purpose: Purpose,
    host: Option<String>,
}

impl Link {
    fn plain(stream: TcpStream, deadline: Deadline) -> io::Result<Link> {
        Ok(Link {
            outgoing: Outgoing::plain(stream.try_clone()?),
            incoming: Incoming::plain(),
            stream,
            deadline,
            purpose: Purpose::Lane,
            host: None,
        })
    }

    /// What the peer wants of it.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The host that the peer's certificate names. None of a plain connection, and of a peer that has yet to join.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The address of the other end.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut raw = Hurried {
            stream: &self.stream,
            deadline: self.deadline,
        };
        self.incoming.read(&mut raw, buffer)
    }
}

impl Write for Link {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.left()?))?;
        self.outgoing.write_all([buffer, &[]])?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("purpose", &self.purpose)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Connects to an agent, and learns which host's it is.
///
/// # Errors
/// Why there is no such connection.
pub fn connect(
    address: SocketAddr,
    limits: Limits,
    security: &Security,
    purpose: Purpose,
) -> Result<Link, TransportError> {
    let (stream, deadline) = reach(address, limits)?;
    match security {
        Security::Plaintext => Ok(Link::plain(stream, deadline)?),
        Security::Tls(tls) => handshake::connect(stream, tls.client(purpose), purpose, deadline),
    }
}

/// Connects to an agent by a configuration of TLS of one's own, as who has no certificate yet must.
///
/// # Errors
/// Why there is no such connection.
pub fn connect_with(address: SocketAddr, config: Arc<ClientConfig>, purpose: Purpose) -> Result<Link, TransportError> {
    let (stream, deadline) = reach(address, Limits::default())?;
    handshake::connect(stream, config, purpose, deadline)
}

fn reach(address: SocketAddr, limits: Limits) -> io::Result<(TcpStream, Deadline)> {
    let stream = TcpStream::connect_timeout(&address, limits.connect)?;
    stream.set_nodelay(true)?;
    Ok((stream, Deadline::after(limits.greet)))
}

/// Learns which host has connected, and for what.
///
/// # Errors
/// Why it is let go.
pub fn accept(stream: TcpStream, security: &Security) -> Result<Link, TransportError> {
    accept_within(GREETING_LIMIT, stream, security)
}

pub(crate) fn accept_within(limit: Duration, stream: TcpStream, security: &Security) -> Result<Link, TransportError> {
    stream.set_nodelay(true)?;
    let deadline = Deadline::after(limit);
    let begins = mismatch::first_byte(&stream, deadline)?;
    match security {
        Security::Plaintext if begins == mismatch::TLS => Err(mismatch::needs_plaintext(&stream, deadline)),
        Security::Plaintext => Ok(Link::plain(stream, deadline)?),
        Security::Tls(_) if begins == mismatch::PLAIN => Err(mismatch::needs_tls(&stream, deadline)),
        Security::Tls(tls) => handshake::accept(stream, tls, deadline),
    }
}
