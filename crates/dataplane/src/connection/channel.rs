//! A connection that outlives its TCP connections: frames are numbered, those that the peer has not said to have are kept, and
//! when a TCP connection breaks its opener makes another, over which both sides go on where the other one is.

use super::ConnectionError;
use super::greeting::{Greeted, Greeting};
use crate::threads::lock;
use crate::transport::{Incoming, Limits, Outgoing, Security};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmferry_core::limits::RESEND_BYTES_MAX;
use vmferry_core::session::{Unheard, Unsaid, WrongCount};
use vmferry_core::wire::frame::{HEADER_BYTES, Header, Kind, Received};
use vmferry_core::wire::hello::Hello;

/// How long one attempt to connect anew may take: a packet that was lost in a broken link is not sent again before a second.
const REDIAL_LIMITS: Limits = Limits {
    connect: Duration::from_secs(1),
    greet: Duration::from_secs(3),
};
/// Pause between two attempts that failed at once.
const REDIAL_PAUSE: Duration = Duration::from_millis(250);

/// How long the other end's kernel may leave what was sent, or a probe, without an answer, milliseconds: half of what a guest stands
/// still for at the most, unless told otherwise. A link that swallows the packets of one connection alone is noticed by nothing else.
/// A reader that is at a halt for so long looks the same, and then is sent a little again.
const UNACKNOWLEDGED_MS_MAX: u32 = 5_000;
/// After how long without a packet the kernel probes, and how often then. The end that has nothing to send has to notice, too.
const PROBE_AFTER: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Payload buffers that wait to be used again, at the most.
const SPENT_MAX: usize = 4;

/// What both directions of a connection share.
#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// The state became another one.
    changed: Condvar,
    /// The TCP connection of that generation, for whoever writes: a frame, or those that the peer does not have.
    writing: Mutex<Option<(u64, Outgoing)>>,
    unheard: Mutex<Unheard>,
    /// The peer has more of what was sent.
    room: Condvar,
    /// Frames that this side has.
    received: AtomicU64,
    /// Bytes sent once more.
    resent: AtomicU64,
    /// Buffers for payloads.
    spent: Mutex<Vec<Vec<u8>>>,
    /// Whether it can be taken up again at all.
    outlives: bool,
    /// Where and how to connect anew; none at the side that is connected to.
    dialer: Option<Dialer>,
    /// The host that the peer's certificate names; none without TLS.
    host: Option<String>,
}

/// Connects.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) address: SocketAddr,
    pub(super) shows: Shows,
    pub(super) hello: Hello,
}

#[derive(Debug)]
struct State {
    /// Counts TCP connections.
    generation: u64,
    /// When the present one was made.
    made: Instant,
    wire: Wire,
    received: Received,
    /// How long a broken link is waited for.
    patience: Duration,
    /// After how long without a byte the link counts as broken.
    silence: Option<Duration>,
}

#[derive(Debug)]
enum Wire {
    /// The socket, and what comes in, until the reader has taken it.
    Up(TcpStream, Option<Incoming>),
    Down {
        since: Instant,
        why: Arc<ConnectionError>,
    },
    /// For good; the first who asks is told why.
    Over(Option<ConnectionError>),
}

/// What [`Channel::present`] found.
pub(super) enum Up {
    /// The TCP connection of that generation.
    Now(Reading),
    /// None at present, for this reason.
    Waits(Arc<ConnectionError>),
}

/// What this side shows: asked for each TCP connection, since certificates are renewed and revoked meanwhile.
pub(super) struct Shows(pub(super) Box<dyn Fn() -> Security + Send + Sync>);

impl std::fmt::Debug for Shows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shows")
    }
}

/// A TCP connection to read from.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) generation: u64,
    pub(super) stream: TcpStream,
    pub(super) incoming: Incoming,
}

impl Channel {
    /// Of a first TCP connection whose hellos are exchanged; `outlives` if both sides have a name for the connection.
    pub(super) fn new(greeted: Greeted, outlives: bool, dialer: Option<Dialer>) -> Arc<Channel> {
        let state = State {
            generation: 0,
            made: Instant::now(),
            wire: Wire::Up(greeted.stream, Some(greeted.incoming)),
            received: Received::default(),
            patience: Duration::ZERO,
            silence: None,
        };
        Arc::new(Channel {
            state: Mutex::new(state),
            changed: Condvar::new(),
            writing: Mutex::new(Some((0, greeted.outgoing))),
            unheard: Mutex::default(),
            room: Condvar::new(),
            received: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            spent: Mutex::default(),
            outlives,
            dialer,
            host: greeted.host,
        })
    }

    /// The host that the peer's certificate names; none without TLS.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// How long a broken link is waited for from now on, if the connection can outlive it.
    pub(super) fn set_patience(&self, patience: Duration) {
        let mut state = lock(&self.state);
        if self.outlives {
            state.patience = patience;
            if let Wire::Up(stream, _) = &state.wire {
                bound_unacknowledged(stream);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// After how long without a byte the link counts as broken from the next read on.
    pub(super) fn set_silence(&self, silence: Option<Duration>) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.silence = silence;
        match &state.wire {
            Wire::Up(stream, _) => stream.set_read_timeout(silence),
            _ => Ok(()),
        }
    }

    /// After how long without a byte the link counts as broken.
    pub(super) fn silence(&self) -> Option<Duration> {
        lock(&self.state).silence
    }

    /// Sends a frame, at once or over the next TCP connection. Waits while the peer lacks too much of what was sent.
    pub(super) fn send(self: &Arc<Self>, kind: Kind, payload: Vec<u8>) -> Result<(), ConnectionError> {
        let bytes = payload.len();
        if bytes > kind.payload_bytes_max() {
            return Err(ConnectionError::TooLong { kind, bytes });
        }
        let mut unheard = lock(&self.unheard);
        while unheard.bytes() > RESEND_BYTES_MAX && !self.is_over() {
            unheard = self.room.wait(unheard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(unheard);
        let mut writing = lock(&self.writing);
        if self.is_over() {
            return Err(self.why_over());
        }
        let (sequence, frame) = self.keep(kind, payload)?;
        if let Some((generation, outgoing)) = &mut *writing
            && let Err(error) = self.write(outgoing, sequence, frame.kind, &frame.payload)
        {
            let generation = *generation;
            *writing = None;
            self.broken(generation, error);
        }
        Ok(())
    }

    /// Numbers a frame, and keeps it if it may have to be sent again.
    fn keep(&self, kind: Kind, payload: Vec<u8>) -> Result<(u64, Arc<Unsaid>), WrongCount> {
        let mut unheard = lock(&self.unheard);
        let (sequence, frame) = unheard.push(kind, payload);
        if !self.outlives {
            unheard.heard(sequence + 1, drop)?;
        }
        Ok((sequence, frame))
    }

    fn write(&self, outgoing: &mut Outgoing, sequence: u64, kind: Kind, payload: &[u8]) -> Result<(), ConnectionError> {
        let header = Header::encode(kind, sequence, self.received.load(Ordering::SeqCst), payload);
        let bytes = payload.len();
        let header = header.ok_or(ConnectionError::TooLong { kind, bytes })?;
        Ok(outgoing.write_all([&header, payload])?)
    }

    /// Takes a frame that came over the TCP connection of that generation; `false` if another is in use by now. Then it comes again.
    pub(super) fn accept(&self, generation: u64, header: &Header, payload: &[u8]) -> Result<bool, ConnectionError> {
        let mut state = lock(&self.state);
        if state.generation != generation || !matches!(state.wire, Wire::Up(..)) {
            return Ok(false);
        }
        state.received.accept(header, payload)?;
        self.received.store(state.received.count(), Ordering::SeqCst);
        drop(state);
        self.heard(header.heard)?;
        Ok(true)
    }

    fn heard(&self, count: u64) -> Result<(), ConnectionError> {
        if !self.outlives {
            return Ok(());
        }
        let mut spent = lock(&self.spent);
        lock(&self.unheard).heard(count, |payload| {
            if spent.len() < SPENT_MAX {
                spent.push(payload);
            }
        })?;
        self.room.notify_all();
        Ok(())
    }

    /// The TCP connection to read from, if there is one at present that the reader has not had.
    pub(super) fn present(&self) -> Result<Up, ConnectionError> {
        let mut state = lock(&self.state);
        match state.reading()? {
            Some(reading) => Ok(Up::Now(reading)),
            None => match &state.wire {
                Wire::Down { why, .. } => Ok(Up::Waits(why.clone())),
                _ => {
                    drop(state);
                    Err(self.why_over())
                }
            },
        }
    }

    /// The next TCP connection to read from. Waits for it as long as there is patience; then the connection is over.
    pub(super) fn next(&self) -> Result<Reading, ConnectionError> {
        let mut state = lock(&self.state);
        loop {
            if let Some(reading) = state.reading()? {
                return Ok(reading);
            }
            let Wire::Down { since, why } = &state.wire else {
                drop(state);
                return Err(self.why_over());
            };
            let left = state.patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                let (after, why) = (state.patience, why.clone());
                drop(state);
                self.end(ConnectionError::GaveUp { after, why });
                return Err(self.why_over());
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The TCP connection of that generation is of no more use: another is waited for, and made by the side that opened it. Ends the
    /// connection where nothing is waited for, or the peer is at fault.
    pub(super) fn broken(self: &Arc<Self>, generation: u64, error: ConnectionError) {
        let mut state = lock(&self.state);
        let Wire::Up(stream, _) = &state.wire else {
            return;
        };
        if state.generation != generation {
            return;
        }
        close(stream);
        if state.patience.is_zero() || !error.is_of_the_link() {
            state.wire = Wire::Over(Some(error));
        } else {
            state.wire = Wire::Down {
                since: Instant::now(),
                why: Arc::new(error),
            };
        }
        let redials = matches!(state.wire, Wire::Down { .. }) && self.dialer.is_some();
        drop(state);
        self.tell();
        if redials {
            let weak = Arc::downgrade(self);
            let spawned = thread::Builder::new().name("redial".to_owned()).spawn(move || {
                while let Some(channel) = weak.upgrade() {
                    if channel.redial() {
                        return;
                    }
                }
            });
            if let Err(error) = spawned {
                self.end(error.into());
            }
        }
    }

    /// As [`broken`](Channel::broken), of the present TCP connection if it was made before that.
    pub(super) fn suspect(self: &Arc<Self>, before: Instant) {
        let (generation, made) = {
            let state = lock(&self.state);
            (state.generation, state.made)
        };
        if made < before {
            self.broken(generation, ConnectionError::Closed);
        }
    }

    /// Ends the connection, for this reason if there was none before.
    pub(super) fn end(&self, error: ConnectionError) {
        let mut state = lock(&self.state);
        match &state.wire {
            Wire::Over(_) => return,
            Wire::Up(stream, _) => close(stream),
            Wire::Down { .. } => {}
        }
        state.wire = Wire::Over(Some(error));
        drop(state);
        self.tell();
    }

    /// Whoever waits looks again. Who waits for room holds that lock while it looks, so it can't miss this.
    fn tell(&self) {
        self.changed.notify_all();
        drop(lock(&self.unheard));
        self.room.notify_all();
    }

    fn is_over(&self) -> bool {
        matches!(lock(&self.state).wire, Wire::Over(_))
    }

    fn why_over(&self) -> ConnectionError {
        match &mut lock(&self.state).wire {
            Wire::Over(why) => why.take().unwrap_or(ConnectionError::Closed),
            _ => ConnectionError::Closed,
        }
    }

    /// Tries once to connect anew. Whether that is over, with or without success.
    fn redial(self: &Arc<Self>) -> bool {
        let Some(dialer) = &self.dialer else {
            return true;
        };
        let (began, heard) = (Instant::now(), self.received.load(Ordering::SeqCst));
        {
            let state = lock(&self.state);
            match &state.wire {
                Wire::Down { since, .. } if since.elapsed() < state.patience => {}
                // Who waits for it gives up.
                _ => return true,
            }
        }
        let hello = Hello {
            heard: Some(heard),
            ..dialer.hello.clone()
        };
        match Greeting::call(dialer.address, REDIAL_LIMITS, &(dialer.shows.0)(), &hello) {
            Ok((greeted, heard)) if greeted.host == self.host => {
                self.go_on(greeted, heard);
                true
            }
            Err(error @ ConnectionError::Unwelcome(_)) => {
                self.end(error);
                true
            }
            // Nobody is there, or another host is.
            _ => {
                let state = lock(&self.state);
                let pause = REDIAL_PAUSE.saturating_sub(began.elapsed());
                let goes_on = |state: &mut State| matches!(state.wire, Wire::Down { .. });
                drop(self.changed.wait_timeout_while(state, pause, goes_on));
                false
            }
        }
    }

    /// The peer connects anew and has so many frames: nothing more is taken from the TCP connection before. Returns how many this
    /// side has, unless the connection is over or the peer can't go on with what is kept.
    pub(super) fn suspend(self: &Arc<Self>, heard: u64) -> Option<u64> {
        if !lock(&self.unheard).can_go_on(heard) {
            return None;
        }
        self.suspect(Instant::now());
        let state = lock(&self.state);
        (!matches!(state.wire, Wire::Over(_))).then(|| state.received.count())
    }

    /// Goes on over a new TCP connection, whose other end has so many frames.
    pub(super) fn go_on(self: &Arc<Self>, greeted: Greeted, heard: u64) {
        let Greeted {
            stream,
            mut outgoing,
            incoming,
            ..
        } = greeted;
        let mut writing = lock(&self.writing);
        if let Err(error) = self.heard(heard) {
            return self.end(error);
        }
        let mut state = lock(&self.state);
        match &state.wire {
            Wire::Over(_) => return close(&stream),
            Wire::Up(before, _) => close(before),
            Wire::Down { .. } => {}
        }
        bound_unacknowledged(&stream);
        if let Err(error) = stream.set_read_timeout(state.silence) {
            drop(state);
            return self.end(error.into());
        }
        state.generation += 1;
        state.made = Instant::now();
        let generation = state.generation;
        state.wire = Wire::Up(stream, Some(incoming));
        drop(state);
        // The other side sends again, too: somebody has to read by now.
        self.tell();
        let again: Vec<_> = lock(&self.unheard).frames().collect();
        for (sequence, frame) in again {
            let bytes = (HEADER_BYTES + frame.payload.len()) as u64;
            if let Err(error) = self.write(&mut outgoing, sequence, frame.kind, &frame.payload) {
                *writing = None;
                return self.broken(generation, error);
            }
            self.resent.fetch_add(bytes, Ordering::Relaxed);
        }
        *writing = Some((generation, outgoing));
    }

    /// Bytes of frames that were sent once more, over another TCP connection.
    pub(super) fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    /// A buffer for a payload.
    pub(super) fn buffer(&self) -> Vec<u8> {
        lock(&self.spent).pop().unwrap_or_default()
    }

    /// The present TCP connection, or the one before.
    pub(super) fn stream(&self) -> io::Result<TcpStream> {
        match &lock(&self.state).wire {
            Wire::Up(stream, _) => stream.try_clone(),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl State {
    /// The present TCP connection, if there is one that the reader has not had.
    fn reading(&mut self) -> io::Result<Option<Reading>> {
        let Wire::Up(stream, incoming) = &mut self.wire else {
            return Ok(None);
        };
        let Some(incoming) = incoming.take() else {
            return Ok(None);
        };
        Ok(Some(Reading {
            generation: self.generation,
            stream: stream.try_clone()?,
            incoming,
        }))
    }
}

fn close(stream: &TcpStream) {
    // An error says that it is closed already.
    let _ = stream.shutdown(Shutdown::Both);
}

fn bound_unacknowledged(stream: &TcpStream) {
    use rustix::net::sockopt;
    // A kernel that does not know of one of these does without.
    let _ = sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX);
    let _ = sockopt::set_tcp_keepidle(stream, PROBE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(stream, PROBE_EVERY);
    let _ = sockopt::set_socket_keepalive(stream, true);
}
