//! The client that uses the guest without pause while it moves, and checks in the end that nothing was lost.

use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::net::{Host, Lab};

use super::shop::{ORDERS, SESSIONS, order, session};
use crate::random::Random;
use crate::redis::Redis;

/// The file on the guest's disk that records are appended to.
const LOG: &str = "/data/log";
const BOOT_MAX: Duration = Duration::from_secs(120);
/// Between two records on the disk, so that its traffic stays small beside the migration's.
const RECORD_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until the guest serves.
pub(crate) fn await_guest(lab: &Lab, address: Ipv4Addr) -> Result<Guest> {
    Guest::connect(lab, Host::Client, address, BOOT_MAX)
}

/// Starts Redis in the guest and fills it.
pub(crate) fn fill(lab: &Lab, guest: &mut Guest) -> Result<()> {
    guest.ask("redis --save \"\" --appendonly no --protected-mode no")?;
    let mut redis = Redis::connect(lab, guest.address())?;
    redis.set_all((0..ORDERS).map(order))?;
    redis.set_all((0..SESSIONS).map(|number| session(number, 0)))
}

/// Two open connections on which requests are made without pause: to Redis, and to the guest's program, which syncs
/// records to its disk.
pub(crate) struct Traffic {
    redis: JoinHandle<Result<Sessions>>,
    /// Answered with the longest pause since the last time. Closed, it ends the traffic.
    pauses: Sender<Sender<Duration>>,
    disk: JoinHandle<Result<(Guest, u64)>>,
    /// Closed, it ends the records.
    stop_disk: Sender<()>,
}

/// What the client found when it checked everything.
pub(crate) struct Checked {
    /// The connection to the guest's program.
    pub(crate) guest: Guest,
    /// Writes that Redis acknowledged while the guest moved.
    pub(crate) writes: u64,
    /// Records that the guest synced to its disk meanwhile.
    pub(crate) records: u64,
}

impl Traffic {
    /// Begins, on the connection `guest` and a new one to Redis.
    pub(crate) fn start(lab: &Lab, guest: Guest) -> Result<Self> {
        let sessions = Sessions::new(Redis::connect(lab, guest.address())?);
        let (pauses, asked) = channel();
        let (stop_disk, stopped) = channel();
        Ok(Self {
            redis: thread::spawn(move || sessions.keep_using(&asked)),
            pauses,
            disk: thread::spawn(move || keep_recording(guest, &stopped)),
            stop_disk,
        })
    }

    /// The longest time without an answer of Redis since the last call or the start, a pause under way included.
    pub(crate) fn longest_pause(&self) -> Result<Duration> {
        let (sender, receiver) = channel();
        let gone = "the client's connection to Redis was dropped";
        self.pauses.send(sender).context(gone)?;
        receiver.recv().context(gone)
    }

    /// Ends the traffic and checks on the same connections that everything acknowledged is there.
    pub(crate) fn finish(self) -> Result<Checked> {
        drop((self.pauses, self.stop_disk));
        let mut sessions = self
            .redis
            .join()
            .map_err(|_| anyhow!("the client of Redis panicked"))??;
        sessions.check()?;
        let (mut guest, acknowledged) = self
            .disk
            .join()
            .map_err(|_| anyhow!("the client of the disk panicked"))??;
        let records = guest.ask_number(&format!("disk-check {LOG}"), "records")?;
        ensure!(
            records == acknowledged,
            "of {acknowledged} records acknowledged, {records} are on the disk"
        );
        Ok(Checked {
            guest,
            writes: sessions.writes,
            records,
        })
    }
}

/// The sessions in Redis, and the version of each that was acknowledged last.
struct Sessions {
    redis: Redis,
    acknowledged: Vec<u32>,
    writes: u64,
}

impl Sessions {
    fn new(redis: Redis) -> Self {
        Self {
            redis,
            acknowledged: vec![0; SESSIONS as usize],
            writes: 0,
        }
    }

    /// Replaces one session and reads another, over and over.
    fn keep_using(mut self, pauses: &Receiver<Sender<Duration>>) -> Result<Self> {
        let mut random = Random::new(0, 0);
        let mut longest = Duration::ZERO;
        loop {
            let started = Instant::now();
            self.replace(random.below(SESSIONS))?;
            longest = longest.max(started.elapsed());
            let started = Instant::now();
            self.read(random.below(SESSIONS))?;
            longest = longest.max(started.elapsed());
            match pauses.try_recv() {
                // Whoever asked may have given up.
                Ok(answer) => drop(answer.send(std::mem::take(&mut longest))),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(self),
            }
        }
    }

    fn replace(&mut self, number: u32) -> Result<()> {
        let acknowledged = &mut self.acknowledged[number as usize];
        let version = *acknowledged + 1;
        let (key, value) = session(number, version);
        self.redis.set(&key, &value)?;
        *acknowledged = version;
        self.writes += 1;
        Ok(())
    }

    fn read(&mut self, number: u32) -> Result<()> {
        let (key, value) = session(number, self.acknowledged[number as usize]);
        let read = self.redis.get(&key)?;
        ensure!(read == value, "{key} is {read}, but {value} was acknowledged");
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.redis.check_all(
            (0..)
                .zip(&self.acknowledged)
                .map(|(number, &version)| session(number, version)),
        )?;
        self.redis.check_all((0..ORDERS).map(order))
    }
}

/// Has the guest sync one record after the other to its disk.
fn keep_recording(mut guest: Guest, stop: &Receiver<()>) -> Result<(Guest, u64)> {
    loop {
        let acknowledged = guest.ask_number(&format!("disk-write {LOG} 1"), "acknowledged")?;
        if stop.recv_timeout(RECORD_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
            return Ok((guest, acknowledged));
        }
    }
}
