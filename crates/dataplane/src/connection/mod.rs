//! Connections that carry frames: one [`Sender`], one [`Receiver`], used from a thread each.
//!
//! A connection may [outlive](Handle::set_patience) its TCP connection: both sides keep what the other has not said to have, the
//! side that opened it connects anew, and neither end of it notices anything but time.
//!
//! | module | what |
//! |---|---|
//! | `greeting` | the first exchange on a TCP connection |
//! | `channel` | what both directions share: numbers, what is kept, the present TCP connection |
//! | [`acceptor`] | the side that is connected to finds connections that are taken up again |

pub mod acceptor;
mod channel;
mod greeting;

use self::channel::{Channel, Dialer, Reading, Shows, Up};
use self::greeting::Greeting;
use crate::arrivals::{Arrivals, Lane};
use crate::transport::{Limits, Security, TransportError};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmferry_core::session::WrongCount;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind};
use vmferry_core::wire::hello::Hello;

/// Why a connection can't be used, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer closed it between two frames, or it was closed here.
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
    /// The peer's word on what it has can't be true.
    #[error(transparent)]
    Count(#[from] WrongCount),
    /// The peer does not want it.
    #[error("the peer declines: {0}")]
    Unwelcome(String),
    /// The peer said nothing for as long as a living one would.
    #[error("no word from the peer for {0:?}")]
    Silent(Duration),
    /// The link broke and was not there again in time.
    #[error("the link was not there again within {after:?}: {why}")]
    GaveUp {
        /// How long it was waited for.
        after: Duration,
        /// Why it broke.
        why: Arc<ConnectionError>,
    },
    /// A payload over its kind's limit was to be sent.
    #[error("{bytes} bytes do not fit a {kind:?} frame")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The payload's length.
        bytes: usize,
    },
}

impl ConnectionError {
    /// Whether another TCP connection can mend it.
    fn is_of_the_link(&self) -> bool {
        matches!(
            self,
            ConnectionError::Closed | ConnectionError::Io(_) | ConnectionError::Silent(_)
        )
    }
}

/// What became of the TCP connection under a connection that outlives it.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// It broke, for this reason; another is waited for.
    Down(Arc<ConnectionError>),
    /// There is another.
    Up,
}

/// The sending direction.
#[derive(Debug)]
pub struct Sender {
    channel: Arc<Channel>,
    _open: Arc<Open>,
}

/// The receiving direction.
#[derive(Debug)]
pub struct Receiver {
    channel: Arc<Channel>,
    _open: Arc<Open>,
    reading: Option<Reading>,
    payload: Vec<u8>,
    /// Reads it instead, where arrivals are counted.
    lane: Option<Lane>,
    on_link: Option<OnLink>,
}

/// Hears what becomes of the link.
struct OnLink(Box<dyn Fn(LinkEvent) + Send + Sync>);

impl std::fmt::Debug for OnLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnLink")
    }
}

/// The connection is closed once neither direction is used any more.
#[derive(Debug)]
struct Open(Arc<Channel>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.end(ConnectionError::Closed);
    }
}

/// Acts on a connection from anywhere.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Channel>);

impl Handle {
    /// Closes both directions for good; whoever reads or writes gets an error. Harmless if it is closed already.
    pub fn close(&self) {
        self.0.end(ConnectionError::Closed);
    }

    /// From now on, a link that breaks is waited for so long; zero, as at first, is not at all. The side that opened the connection
    /// connects anew meanwhile. Nothing changes where its hello named no connection.
    pub fn set_patience(&self, patience: Duration) {
        self.0.set_patience(patience);
    }

    /// After how long without a byte the link counts as broken; none, as at first, waits for ever.
    pub fn set_silence(&self, silence: Option<Duration>) -> io::Result<()> {
        self.0.set_silence(silence)
    }

    /// The link was gone at that time, as far as another connection to the same peer can tell: a TCP connection made before is not
    /// waited for to notice it.
    pub fn suspect(&self, before: Instant) {
        self.0.suspect(before);
    }

    /// Bytes of frames that were sent once more, over another TCP connection.
    pub fn resent_bytes(&self) -> u64 {
        self.0.resent()
    }
}

impl Sender {
    /// Sends a frame; returns its bytes on the wire. A frame that the peer has not yet said to have is kept, and sent again over the
    /// next TCP connection if there is [patience](Handle::set_patience) for one.
    pub fn send(&mut self, kind: Kind, payload: Vec<u8>) -> Result<u64, ConnectionError> {
        let bytes = payload.len();
        self.channel.send(kind, payload)?;
        Ok((HEADER_BYTES + bytes) as u64)
    }

    /// An empty buffer for a payload, which may have been one before.
    pub fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.channel.buffer();
        buffer.clear();
        buffer
    }

    /// A handle on the connection.
    pub fn handle(&self) -> Handle {
        Handle(self.channel.clone())
    }

    /// The host that the peer's certificate names; none without TLS.
    pub fn host(&self) -> Option<&str> {
        self.channel.host()
    }

    /// The address of the other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.channel.stream()?.peer_addr()
    }
}

impl Receiver {
    /// Waits for a frame. The payload is valid until the next call.
    pub fn receive(&mut self) -> Result<(Kind, &[u8]), ConnectionError> {
        loop {
            let generation = match &self.reading {
                Some(reading) => reading.generation,
                None => self.attach()?,
            };
            let header = match self.read() {
                Ok(header) => header,
                Err(error) => {
                    self.reading = None;
                    self.channel.broken(generation, error);
                    continue;
                }
            };
            match self.channel.accept(generation, &header, &self.payload) {
                Ok(true) => return Ok((header.kind, &self.payload)),
                Ok(false) => self.reading = None,
                Err(error) => {
                    self.reading = None;
                    self.channel.end(error);
                }
            }
        }
    }

    /// Has what becomes of the link told while a frame is waited for.
    pub fn on_link(&mut self, tell: impl Fn(LinkEvent) + Send + Sync + 'static) {
        self.on_link = Some(OnLink(Box::new(tell)));
    }

    /// From now on, counts how fast frames arrive: on the socket of that number of these.
    pub(crate) fn count_arrivals(&mut self, arrivals: Arc<Arrivals>, index: usize) {
        self.lane = Some(Lane::new(arrivals, index));
    }

    /// The socket, to count what it receives.
    pub(crate) fn socket(&self) -> io::Result<TcpStream> {
        self.channel.stream()
    }

    /// Takes the present TCP connection, or waits for the next; returns its number.
    fn attach(&mut self) -> Result<u64, ConnectionError> {
        let reading = match self.channel.present()? {
            Up::Now(reading) => reading,
            Up::Waits(why) => {
                self.tell(LinkEvent::Down(why));
                let up = self.channel.next()?;
                self.tell(LinkEvent::Up);
                up
            }
        };
        if let Some(lane) = &self.lane {
            lane.goes_on(reading.stream.try_clone()?);
        }
        Ok(self.reading.insert(reading).generation)
    }

    fn tell(&self, event: LinkEvent) {
        if let Some(OnLink(tell)) = &self.on_link {
            tell(event);
        }
    }

    /// Reads a frame; what it carries is in `payload` then, and not checked.
    fn read(&mut self) -> Result<Header, ConnectionError> {
        let Some(Reading { stream, incoming, .. }) = &mut self.reading else {
            return Err(ConnectionError::Closed);
        };
        let mut header = [0; HEADER_BYTES];
        let silence = self.channel.silence();
        let read = loop {
            let read = match &self.lane {
                Some(lane) => lane.read(incoming, &mut header, silence),
                None => incoming.read(&mut &*stream, &mut header),
            };
            match read {
                // A process that was stopped and goes on has its wait interrupted where that has a limit.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| read_error(error, silence))?,
            }
        };
        if read == 0 {
            return Err(ConnectionError::Closed);
        }
        let mut rest = |buffer: &mut [u8]| {
            let read = match &self.lane {
                Some(lane) => lane.read_rest(incoming, buffer, silence),
                None => incoming.read_exact(&mut &*stream, buffer),
            };
            read.map_err(|error| read_error(error, silence))
        };
        rest(&mut header[read..])?;
        let header = Header::parse(&header)?;
        self.payload.resize(header.payload_bytes, 0);
        rest(&mut self.payload)?;
        Ok(header)
    }
}

fn read_error(error: io::Error, silence: Option<Duration>) -> ConnectionError {
    match (error.kind(), silence) {
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(silence)) => ConnectionError::Silent(silence),
        _ => ConnectionError::Io(error),
    }
}

/// Of a channel whose first TCP connection is there.
fn directions(channel: Arc<Channel>) -> (Sender, Receiver) {
    let open = Arc::new(Open(channel.clone()));
    let sender = Sender {
        channel: channel.clone(),
        _open: open.clone(),
    };
    let receiver = Receiver {
        channel,
        _open: open,
        reading: None,
        payload: Vec::new(),
        lane: None,
        on_link: None,
    };
    (sender, receiver)
}

/// Connects to an agent and introduces itself; the peer is known to welcome this connection afterwards. One whose hello names a
/// connection is taken up again if its link breaks, for as long as there is `patience`. `shows` says what this side shows to whom it
/// believes, each time anew.
pub fn connect(
    address: SocketAddr,
    shows: impl Fn() -> Security + Send + Sync + 'static,
    hello: &Hello,
    patience: Duration,
) -> Result<(Sender, Receiver), ConnectionError> {
    let (greeted, _) = Greeting::call(address, Limits::default(), &shows(), hello)?;
    let dialer = Dialer {
        address,
        shows: Shows(Box::new(shows)),
        hello: hello.clone(),
    };
    let channel = Channel::new(greeted, hello.connection.is_some(), Some(dialer));
    channel.set_patience(patience);
    Ok(directions(channel))
}

#[cfg(test)]
mod tests;
