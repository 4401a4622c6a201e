//! Bytes that mean nothing to the tunnel, both ways between two unix sockets: each direction through an LZ coder of its own,
//! and with credit of its own, so that one that is at a halt does not hold up the other, nor one connection another's.
//!
//! ```text
//! socket ─▶ reader: encode ─▶ link ─▶ listener: decode ─▶ queue ─▶ writer ─▶ socket
//!              ▲ credit ◀──────────── acknowledgement ◀──────────────┘
//! ```
//!
//! Whatever is read is sent at once, all of it: nothing waits for more to come.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use vmferry_core::limits::{BATCH_BYTES, BATCH_BYTES_LEAST};
use vmferry_core::page::CodecSettings;
use vmferry_core::page::lz::{Decode, Encode};
use vmferry_core::session::{Ack, LaneCredit, WAITING_CHARGE_MAX, charge};
use vmferry_core::wire::frame::{HEADER_BYTES, Kind};
use vmferry_dataplane::connection::Receiver;

use super::Carried;
use super::link::{Heard, Link};
use crate::migrate::peers::lock;

/// Bytes read at once, at the most: about what a unix socket holds.
const CHUNK_BYTES: usize = BATCH_BYTES_LEAST;

/// Bytes in front of a chunk's coded ones that say how many it stands for.
const LENGTH_BYTES: usize = size_of::<u32>();

struct Pipe<'a> {
    socket: &'a UnixStream,
    link: &'a Link,
    credit: Mutex<LaneCredit>,
    /// There is more credit, or it is over.
    changed: Condvar,
    over: AtomicBool,
    /// What the chunks count for that wait to be written.
    waiting: AtomicU64,
    began: Instant,
    read: AtomicU64,
    written: AtomicU64,
    sent: AtomicU64,
}

/// Carries both directions until either end of the pipe closes its socket or something fails. `first` is a frame of bytes that
/// was heard already.
pub(super) fn carry(
    socket: &UnixStream,
    (link, receiver): (&Link, &mut Receiver),
    codec: &CodecSettings,
    first: Option<Vec<u8>>,
) -> Result<Carried, String> {
    let encoder = codec.encoder().map_err(|error| error.to_string())?;
    let mut decoder = codec.decoder().map_err(|error| error.to_string())?;
    let pipe = Pipe {
        socket,
        link,
        credit: Mutex::default(),
        changed: Condvar::new(),
        over: AtomicBool::new(false),
        waiting: AtomicU64::new(0),
        began: Instant::now(),
        read: AtomicU64::new(0),
        written: AtomicU64::new(0),
        sent: AtomicU64::new(0),
    };
    let (queue, chunks) = mpsc::channel();
    thread::scope(|scope| {
        let pipe = &pipe;
        scope.spawn(move || pipe.run(|| pipe.read(encoder)));
        scope.spawn(move || pipe.run(|| pipe.write(chunks)));
        let _watch = Watch(pipe);
        if let Some(payload) = first
            && let Err(why) = pipe.hear(Heard::Frame(Kind::Data, &payload), &mut *decoder, &queue)
        {
            pipe.fail(why);
        }
        while let Some(heard) = link.next(receiver, |heard| pipe.hear(heard, &mut *decoder, &queue)) {
            if let Err(why) = heard {
                pipe.fail(why);
                break;
            }
        }
        pipe.close();
        // The writer's chunks end with it.
        drop(queue);
        link.settle(receiver)
    })?;
    Ok(Carried {
        read_bytes: pipe.read.into_inner(),
        written_bytes: pipe.written.into_inner(),
        wire_bytes: pipe.sent.into_inner(),
    })
}

/// Ends the pipe if its thread panics: others would wait for it.
struct Watch<'a>(&'a Pipe<'a>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .fail("a thread panicked, which is a defect in vmferry: see its log".to_owned());
        }
    }
}

impl Pipe<'_> {
    /// Runs a part of it, whose failure ends it.
    fn run(&self, part: impl FnOnce() -> Result<(), String>) {
        let _watch = Watch(self);
        if let Err(why) = part() {
            self.fail(why);
        }
    }

    fn fail(&self, why: String) {
        self.link.end(Some(why));
        self.close();
    }

    fn close(&self) {
        self.over.store(true, Ordering::SeqCst);
        // An error says that it is closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
        // Whoever waits holds the lock while it looks, so it can't miss this.
        drop(lock(&self.credit));
        self.changed.notify_all();
    }

    /// From the socket to the link, until the socket is closed.
    fn read(&self, mut encoder: Box<dyn Encode>) -> Result<(), String> {
        let (mut socket, mut buffer) = (self.socket, vec![0; CHUNK_BYTES]);
        loop {
            let bytes = match socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Closed by who had not read everything.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(format!("can't read from the socket: {error}")),
            };
            let mut payload = (bytes as u32).to_be_bytes().to_vec();
            let coded = encoder.encode(&[&buffer[..bytes]], &mut payload);
            coded.map_err(|error| error.to_string())?;
            let (stream_bytes, wire_bytes) = (bytes as u64, (HEADER_BYTES + payload.len()) as u64);
            let mut credit = self.wait(|credit| credit.allows(stream_bytes));
            credit.sent(stream_bytes, wire_bytes, self.began.elapsed());
            drop(credit);
            self.read.fetch_add(stream_bytes, Ordering::Relaxed);
            let sent = self.link.send(Kind::Data, payload)?;
            self.sent.fetch_add(sent, Ordering::Relaxed);
        }
        // The other end is given all of it first.
        drop(self.wait(LaneCredit::is_idle));
        self.link.end(None);
        self.close();
        Ok(())
    }

    /// Waits until the credit is so, or it is over.
    fn wait(&self, is_so: impl Fn(&LaneCredit) -> bool) -> MutexGuard<'_, LaneCredit> {
        let waits = |credit: &mut LaneCredit| !is_so(credit) && !self.over.load(Ordering::SeqCst);
        self.changed
            .wait_while(lock(&self.credit), waits)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// From the queue to the socket.
    fn write(&self, chunks: mpsc::Receiver<(Vec<u8>, u64)>) -> Result<(), String> {
        let (mut socket, mut ack) = (self.socket, Ack::default());
        for (chunk, wire_bytes) in chunks {
            if self.over.load(Ordering::SeqCst) {
                return Ok(());
            }
            let stream_bytes = chunk.len() as u64;
            match socket.write_all(&chunk) {
                Ok(()) => {}
                // It is closed, as the reader will find when it has read what came before.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(format!("can't write to the socket: {error}")),
            }
            self.waiting.fetch_sub(charge(stream_bytes), Ordering::Relaxed);
            self.written.fetch_add(stream_bytes, Ordering::Relaxed);
            ack.stream_bytes += stream_bytes;
            ack.wire_bytes += wire_bytes;
            let sent = self.link.send(Kind::Ack, ack.encode().to_vec())?;
            self.sent.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }

    fn hear(
        &self,
        heard: Heard<'_>,
        decoder: &mut dyn Decode,
        queue: &mpsc::Sender<(Vec<u8>, u64)>,
    ) -> Result<(), String> {
        match heard {
            Heard::Frame(Kind::Data, payload) => {
                let chunk = decode(payload, decoder)?;
                let charge = charge(chunk.len() as u64);
                if self.waiting.fetch_add(charge, Ordering::Relaxed) + charge > WAITING_CHARGE_MAX {
                    return Err("the other end sends more than it has credit for".to_owned());
                }
                // Fails when the writer has failed, which says why.
                let _ = queue.send((chunk, (HEADER_BYTES + payload.len()) as u64));
                Ok(())
            }
            Heard::Frame(Kind::Ack, payload) => {
                let ack = Ack::decode(payload).ok_or("an acknowledgement that can't be read")?;
                let acknowledged = lock(&self.credit).acknowledged(ack, self.began.elapsed());
                acknowledged.map_err(|error| error.to_string())?;
                self.changed.notify_all();
                Ok(())
            }
            Heard::Frame(kind, _) => Err(format!("a {kind:?} frame among bytes")),
            Heard::Message(message) => Err(format!("{message:?} among bytes")),
        }
    }
}

fn decode(payload: &[u8], decoder: &mut dyn Decode) -> Result<Vec<u8>, String> {
    let (length, coded) = payload
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or("a chunk without its length")?;
    let length = u32::from_be_bytes(*length) as usize;
    if !(1..=BATCH_BYTES).contains(&length) {
        return Err(format!("a chunk of {length} bytes"));
    }
    let mut chunk = vec![0; length];
    decoder
        .decode(coded, &mut [&mut chunk])
        .map_err(|error| error.to_string())?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_is_none_is_an_error() {
        let codec = CodecSettings::default();
        let mut coded = Vec::new();
        codec.encoder().unwrap().encode(&[&b"abc"[..]], &mut coded).unwrap();
        let chunk = |length: u32, coded: &[u8]| {
            let payload = [&length.to_be_bytes()[..], coded].concat();
            decode(&payload, &mut *codec.decoder().unwrap())
        };
        assert_eq!(chunk(3, &coded).unwrap(), b"abc");
        for (length, coded) in [
            (2, &coded[..]),
            (4, &coded[..]),
            (0, &[][..]),
            (u32::MAX, &coded[..]),
            (3, &b"not zstd"[..]),
        ] {
            assert!(chunk(length, coded).is_err(), "{length} bytes, {coded:?}");
        }
        assert!(decode(&[0, 0, 1], &mut *codec.decoder().unwrap()).is_err());
    }
}
