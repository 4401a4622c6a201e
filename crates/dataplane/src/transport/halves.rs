//! The two directions of a connection. Each is for a thread of its own, and neither waits for the other: the session
//! that they share is locked while bytes are sealed or opened, never while a socket is waited for.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use super::TransportError;
use super::session::{Session, sealed_bytes};
use crate::threads::lock;

/// Plain bytes that are sealed and written at once: few calls, and what was sealed is in the processor's cache still.
const SEALED_AT_ONCE_BYTES: usize = 64 * 1024;
/// Room for what the session itself has to say, such as new keys.
const SESSION_BYTES: usize = 1024;
/// Room for what was received and is not opened, at first and at the most.
const RECEIVED_BYTES_FIRST: usize = 20 * 1024;
const RECEIVED_BYTES_MAX: usize = 320 * 1024;

pub(super) type Shared = Arc<Mutex<dyn Session>>;

/// Bytes that were received and are not opened.
pub(super) struct Received {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Received {
    pub(super) fn new() -> Received {
        Received {
            bytes: vec![0; RECEIVED_BYTES_FIRST],
            begin: 0,
            end: 0,
        }
    }

    pub(super) fn held(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.end]
    }

    pub(super) fn discard(&mut self, bytes: usize) {
        self.begin += bytes;
        if self.begin >= self.end {
            (self.begin, self.end) = (0, 0);
        }
    }

    /// Receives what there is and has room, and waits for it if there is nothing.
    pub(super) fn receive(&mut self, raw: &mut dyn Read) -> io::Result<usize> {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let bytes = raw.read(&mut self.bytes[self.end..])?;
        self.end += bytes;
        Ok(bytes)
    }

    pub(super) fn is_full(&self) -> bool {
        self.begin == 0 && self.end == self.bytes.len()
    }

    /// A peer that fills it sends a lot: few calls then need a larger one.
    fn grow(&mut self) {
        if self.is_full() && self.bytes.len() < RECEIVED_BYTES_MAX {
            self.bytes.resize(RECEIVED_BYTES_MAX, 0);
        }
    }
}

/// The receiving direction, less the socket, which may be one of which others tell what it has received.
pub(crate) struct Incoming(Option<Opener>);

struct Opener {
    session: Shared,
    received: Received,
    /// What was opened, up to `taken` read already.
    opened: Vec<u8>,
    taken: usize,
}

impl Incoming {
    pub(crate) fn plain() -> Incoming {
        Incoming(None)
    }

    /// Of a session after whose handshake so much was received and opened already.
    pub(super) fn of(session: Shared, received: Received, opened: Vec<u8>) -> Incoming {
        Incoming(Some(Opener {
            session,
            received,
            opened,
            taken: 0,
        }))
    }

    /// Reads what there is, and waits for it if there is nothing. `raw` is the socket, each time the same.
    pub(crate) fn read(&mut self, raw: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            None => raw.read(buffer),
            Some(opener) => opener.read(raw, buffer),
        }
    }

    /// Fills the buffer.
    pub(crate) fn read_exact(&mut self, raw: &mut dyn Read, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(raw, &mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many bytes the socket has yet to give before that many can be read.
    pub(crate) fn lacks(&self, bytes: usize) -> u64 {
        let lacks = match &self.0 {
            None => bytes,
            Some(opener) => {
                let unopened = bytes.saturating_sub(opener.opened.len() - opener.taken);
                sealed_bytes(unopened).saturating_sub(opener.received.end - opener.received.begin)
            }
        };
        lacks as u64
    }
}

impl Opener {
    fn read(&mut self, raw: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.taken < self.opened.len() {
                let bytes = buffer.len().min(self.opened.len() - self.taken);
                buffer[..bytes].copy_from_slice(&self.opened[self.taken..][..bytes]);
                self.taken += bytes;
                return Ok(bytes);
            }
            self.opened.clear();
            self.taken = 0;
            let opened = lock(&self.session).open(self.received.held(), buffer, &mut self.opened);
            let opened = opened.map_err(broken)?;
            self.received.discard(opened.discard);
            if opened.wanted > 0 || opened.end {
                return Ok(opened.wanted);
            }
            if !opened.any && self.received.receive(raw)? == 0 {
                // Nothing is made of an end that nobody vouches for: what ends in the middle of a frame is an error
                // anyway.
                return Ok(0);
            }
            self.received.grow();
        }
    }
}

/// The sending direction.
pub(crate) struct Outgoing {
    stream: TcpStream,
    sealer: Option<Sealer>,
}

struct Sealer {
    session: Shared,
    sealed: Vec<u8>,
}

impl Outgoing {
    pub(super) fn plain(stream: TcpStream) -> Outgoing {
        Outgoing { stream, sealer: None }
    }

    pub(super) fn of(session: Shared, stream: TcpStream) -> Outgoing {
        let sealer = Some(Sealer {
            session,
            sealed: Vec::new(),
        });
        Outgoing { stream, sealer }
    }

    /// Writes both parts in as few system calls as the socket takes.
    pub(crate) fn write_all(&mut self, parts: [&[u8]; 2]) -> io::Result<()> {
        match &mut self.sealer {
            None => write_all(&self.stream, parts),
            Some(sealer) => sealer.write_all(&self.stream, parts),
        }
    }
}

impl Sealer {
    fn write_all(&mut self, mut stream: &TcpStream, parts: [&[u8]; 2]) -> io::Result<()> {
        let mut used = 0;
        for part in parts.into_iter().flat_map(|part| part.chunks(SEALED_AT_ONCE_BYTES)) {
            let room = sealed_bytes(part.len()) + SESSION_BYTES;
            // A first part that is a frame's header goes with what follows it.
            if used > SESSION_BYTES {
                stream.write_all(&self.sealed[..used])?;
                used = 0;
            }
            if self.sealed.len() < used + room {
                self.sealed.resize(used + room, 0);
            }
            used += lock(&self.session)
                .seal(part, &mut self.sealed[used..])
                .map_err(broken)?;
        }
        stream.write_all(&self.sealed[..used])
    }
}

fn write_all(mut stream: &TcpStream, parts: [&[u8]; 2]) -> io::Result<()> {
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

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, TransportError::from(error))
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("is_tls", &self.0.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("stream", &self.stream)
            .field("is_tls", &self.sealer.is_some())
            .finish_non_exhaustive()
    }
}
