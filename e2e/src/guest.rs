//! A client of the program that runs inside the guests, and a receiver of its ticks.
//!
//! Both open their sockets on one of the lab's hosts, and both stay open while the guest moves.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::net::{Host, Lab};

/// The port of the guest's line protocol.
pub const PORT: u16 = 7000;
/// How long a request waits for its answer: longer than any pause of a guest that is still alive.
pub const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A connection to a guest.
pub struct Guest {
    stream: BufReader<TcpStream>,
    address: Ipv4Addr,
}

impl Guest {
    /// Connects from `host` to the guest at `address`, which may still be booting; gives up after
    /// `boot_max`.
    ///
    /// # Errors
    /// When the guest does not answer in time.
    pub fn connect(lab: &Lab, host: Host, address: Ipv4Addr, boot_max: Duration) -> Result<Self> {
        let target = SocketAddr::from((address, PORT));
        let stream = lab.within(host, || {
            let started = Instant::now();
            loop {
                let left = boot_max.saturating_sub(started.elapsed());
                ensure!(!left.is_zero(), "no guest answered at {target} within {boot_max:?}");
                // A guest that is not up yet shows as silence (until its address resolves) or as a
                // refusal; either way the next try begins at once or soon.
                match TcpStream::connect_timeout(&target, left.min(Duration::from_millis(250))) {
                    Ok(stream) => return Ok(stream),
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut guest = Self {
            stream: BufReader::new(stream),
            address,
        };
        guest.ask("ping")?;
        Ok(guest)
    }

    /// The guest's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Bounds how long [`Guest::ask`] waits: [`ANSWER_MAX`] unless set.
    ///
    /// # Errors
    /// When the socket refuses the bound.
    pub fn set_answer_max(&self, bound: Option<Duration>) -> Result<()> {
        Ok(self.stream.get_ref().set_read_timeout(bound)?)
    }

    /// Sends one request and returns the answer.
    ///
    /// # Errors
    /// When the connection fails, or with the guest's own words when it answers an error.
    pub fn ask(&mut self, request: &str) -> Result<Value> {
        self.send(request)?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        if read.with_context(|| format!("waiting for the answer to {request:?}"))? == 0 {
            bail!("the guest closed the connection after {request:?}");
        }
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{request:?}: {error}");
        }
        Ok(answer)
    }

    /// Has the guest unmount its disks and power off. A machine that is off closes no connection, so
    /// there is no answer: QEMU's end tells.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn power_off(mut self) -> Result<()> {
        self.send("poweroff")
    }

    fn send(&mut self, request: &str) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("asking {} {request:?}", self.address))
    }

    /// The whole number called `field` of the answer to `request`.
    ///
    /// # Errors
    /// As [`Guest::ask`], or when the answer has no such number.
    pub fn ask_number(&mut self, request: &str, field: &str) -> Result<u64> {
        let answer = self.ask(request)?;
        answer[field]
            .as_u64()
            .with_context(|| format!("no number {field} in {answer}"))
    }

    /// Has the guest check all memory under test against what it wrote there.
    ///
    /// # Errors
    /// As [`Guest::ask`], or when the guest found a page that differs.
    pub fn check_memory(&mut self) -> Result<Value> {
        let sum = self.ask("sum")?;
        ensure!(
            sum["wrong_pages"].as_u64() == Some(0),
            "the guest found its memory changed: {sum}"
        );
        Ok(sum)
    }

    /// Keeps asking for the guest's counter on this connection until told to stop.
    #[must_use]
    pub fn converse(mut self) -> Conversation {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut talk = Talk::default();
            let mut answered = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let count = self.ask_number("counter", "count")?;
                ensure!(
                    count >= talk.last_count,
                    "the guest's counter went back from {} to {count}",
                    talk.last_count
                );
                talk.last_count = count;
                talk.answers += 1;
                talk.gap_max = talk.gap_max.max(answered.elapsed());
                answered = Instant::now();
            }
            Ok((self, talk))
        });
        Conversation { stop, thread }
    }
}

/// Continuous requests and answers over one TCP connection.
pub struct Conversation {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(Guest, Talk)>>,
}

impl Conversation {
    /// Ends the conversation after the answer under way; the connection can be used again.
    ///
    /// # Errors
    /// When the connection broke or the guest's counter went back at any time.
    pub fn finish(self) -> Result<(Guest, Talk)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the conversation panicked"))?
    }
}

/// What a [`Conversation`] saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Talk {
    /// Answers received.
    pub answers: u64,
    /// The longest time between two answers.
    pub gap_max: Duration,
    /// The guest's counter in the last answer.
    pub last_count: u64,
}

/// The longest wait for a guest's first tick.
const FIRST_TICK_MAX: Duration = Duration::from_secs(20);

/// A receiver of a guest's ticks: the longest silence is the blackout as the network sees it.
pub struct Ticks {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Silence>>,
}

impl Ticks {
    /// Has `guest` send a tick each `interval` to a socket on `host`, and returns once the first is there.
    ///
    /// # Errors
    /// When the socket cannot be opened, the guest refuses, or no tick comes.
    pub fn start(lab: &Lab, host: Host, guest: &mut Guest, interval: Duration) -> Result<Self> {
        let socket = lab.within(host, || Ok(UdpSocket::bind((host.address(), 0))?))?;
        let port = socket.local_addr()?.port();
        guest.ask(&format!("tick {} {port} {}", host.address(), interval.as_micros()))?;
        socket.set_read_timeout(Some(FIRST_TICK_MAX))?;
        socket.peek(&mut [0; 24]).context("the guest never sent a tick")?;
        // Only so that the receiver sees that it was told to stop.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || receive(&socket, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends the reception. Say `stop-tick` to the guest, too, if it goes on.
    ///
    /// # Errors
    /// When a datagram was malformed.
    pub fn finish(self) -> Result<Silence> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the receiver of ticks panicked"))?
    }
}

/// What a receiver of ticks saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    /// Ticks received.
    pub received: u64,
    /// Ticks sent and never received.
    pub lost: u64,
    /// Ticks that came after a later one. A guest that ran in two places, or from a state that it had left already, sends
    /// such ticks.
    pub repeated: u64,
    /// The longest time between two ticks at the receiver.
    pub gap_max: Duration,
    /// The longest time between two ticks by the guest's own clock: what of the gap is the guest's
    /// own scheduling.
    pub guest_gap_max: Duration,
}

impl Silence {
    /// Counts a tick that came; `sent` is how many the guest has sent by what came so far.
    fn count(&mut self, datagram: [u8; 24], sent: &mut u64) {
        let [count, _, guest_gap] = fields(datagram);
        self.repeated += u64::from(count < *sent);
        *sent = (*sent).max(count.saturating_add(1));
        self.received += 1;
        self.guest_gap_max = self.guest_gap_max.max(Duration::from_nanos(guest_gap));
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Silence> {
    let mut silence = Silence::default();
    let mut last: Option<Instant> = None;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut datagram = [0u8; 24];
        match socket.recv(&mut datagram) {
            Ok(read) => ensure!(read == datagram.len(), "a tick of {read} bytes"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("receiving ticks"),
        }
        let now = Instant::now();
        if let Some(last) = last {
            silence.gap_max = silence.gap_max.max(now - last);
        }
        last = Some(now);
        silence.count(datagram, &mut sent);
    }
    silence.lost = sent.saturating_sub(silence.received);
    Ok(silence)
}

/// Counter, guest clock in ns, longest gap by the guest's clock in ns.
fn fields(datagram: [u8; 24]) -> [u64; 3] {
    let mut fields = [0; 3];
    for (field, bytes) in fields.iter_mut().zip(datagram.chunks_exact(8)) {
        *field = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(count: u64) -> [u8; 24] {
        let mut datagram = [0; 24];
        datagram[..8].copy_from_slice(&count.to_le_bytes());
        datagram
    }

    #[test]
    fn ticks_of_another_copy_are_told_from_lost_ones() {
        let mut silence = Silence::default();
        let mut sent = 0;
        // Tick 3 is lost; the second 4 and the 2 are of another copy.
        for count in [0, 1, 2, 4, 4, 2, 5] {
            silence.count(tick(count), &mut sent);
        }
        assert_eq!((silence.received, silence.repeated, sent), (7, 2, 6));
    }
}
