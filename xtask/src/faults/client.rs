//! The client that uses the guest without pause while it moves and while things fail, and knows what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::net::Lab;

use crate::random::Random;
use crate::redis::Redis;

/// Keys in Redis that are replaced over and over.
const KEYS: u32 = 256;
/// Between two values that are replaced: what the guest's processor is free of, others on this machine have.
const VALUE_INTERVAL: Duration = Duration::from_millis(50);
/// Between two records on the disk, so that its traffic stays small beside the migration's.
const RECORD_INTERVAL: Duration = Duration::from_millis(100);

/// Open connections to the guest, and what it acknowledged on them.
pub(crate) struct Client {
    /// The connection to the guest's program.
    pub(crate) guest: Guest,
    redis: Redis,
    versions: Vec<u32>,
    count: u64,
}

/// Requests under way. Dropping it leaves them to themselves.
pub(crate) struct Traffic {
    redis: JoinHandle<Result<(Redis, Vec<u32>)>>,
    guest: JoinHandle<Result<(Guest, u64)>>,
    records: Arc<AtomicU64>,
    /// Closed, they end the traffic.
    stop: [Sender<()>; 2],
    log: String,
}

impl Client {
    /// Starts Redis in a guest that was just booted, and connects to it.
    pub(crate) fn connect(lab: &Lab, mut guest: Guest) -> Result<Self> {
        guest.ask("redis --save \"\" --appendonly no --protected-mode no")?;
        let mut redis = Redis::connect(lab, guest.address())?;
        redis.set_all((0..KEYS).map(|key| value(key, 0)))?;
        Ok(Self {
            guest,
            redis,
            versions: vec![0; KEYS as usize],
            count: 0,
        })
    }

    /// Begins to use the guest: Redis on one connection; on the other its counter, and the file `log`, to which records are
    /// synced.
    pub(crate) fn start(self, log: &str) -> Traffic {
        let Self {
            guest,
            redis,
            versions,
            count,
        } = self;
        let (stop_redis, redis_stopped) = channel();
        let (stop_guest, guest_stopped) = channel();
        let records = Arc::new(AtomicU64::new(0));
        let acknowledged = Arc::clone(&records);
        let file = log.to_owned();
        Traffic {
            redis: thread::spawn(move || replace(redis, versions, &redis_stopped)),
            guest: thread::spawn(move || record(guest, count, &file, &acknowledged, &guest_stopped)),
            records,
            stop: [stop_redis, stop_guest],
            log: log.to_owned(),
        }
    }
}

impl Traffic {
    /// Records that the guest has acknowledged so far.
    pub(crate) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Ends the traffic, and checks on the same connections that everything acknowledged is there.
    pub(crate) fn finish(self) -> Result<Client> {
        drop(self.stop);
        let redis = self.redis.join().map_err(|_| anyhow!("the client of Redis panicked"))?;
        let (mut redis, versions) = redis.map_err(|error| error.context("the client of Redis"))?;
        let guest = self
            .guest
            .join()
            .map_err(|_| anyhow!("the client of the guest panicked"))?;
        let (mut guest, count) = guest.map_err(|error| error.context("the client of the guest's program"))?;
        redis.check_all((0..).zip(&versions).map(|(key, &version)| value(key, version)))?;
        ensure_recorded(&mut guest, &self.log, self.records.load(Ordering::Relaxed))?;
        guest.check_memory()?;
        Ok(Client {
            guest,
            redis,
            versions,
            count,
        })
    }
}

/// Whether the file `log` has the records that were acknowledged. One more may be there: its answer was under way when a
/// guest died.
pub(crate) fn ensure_recorded(guest: &mut Guest, log: &str, acknowledged: u64) -> Result<()> {
    if acknowledged == 0 {
        return Ok(());
    }
    let found = guest.ask_number(&format!("disk-check {log}"), "records")?;
    ensure!(
        found == acknowledged || found == acknowledged + 1,
        "of {acknowledged} records acknowledged, {found} are in {log}"
    );
    Ok(())
}

/// Key and value of version `version`.
fn value(key: u32, version: u32) -> (String, String) {
    let mut random = Random::new(key, version);
    (
        format!("key:{key}"),
        format!("{version}:{:016x}{:016x}", random.next(), random.next()),
    )
}

/// Replaces one value and reads another, over and over.
fn replace(mut redis: Redis, mut versions: Vec<u32>, stop: &Receiver<()>) -> Result<(Redis, Vec<u32>)> {
    let mut random = Random::new(0, 0);
    while stop.recv_timeout(VALUE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let key = random.below(KEYS);
        let (name, text) = value(key, versions[key as usize] + 1);
        redis.set(&name, &text)?;
        versions[key as usize] += 1;
        let key = random.below(KEYS);
        let (name, text) = value(key, versions[key as usize]);
        let read = redis.get(&name)?;
        ensure!(read == text, "{name} is {read}, but {text} was acknowledged");
    }
    Ok((redis, versions))
}

/// Has one record after the other synced, and asks for the counter, which only goes up.
fn record(
    mut guest: Guest,
    mut count: u64,
    log: &str,
    acknowledged: &AtomicU64,
    stop: &Receiver<()>,
) -> Result<(Guest, u64)> {
    loop {
        let records = guest.ask_number(&format!("disk-write {log} 1"), "acknowledged")?;
        acknowledged.store(records, Ordering::Relaxed);
        let now = guest.ask_number("counter", "count")?;
        ensure!(now >= count, "the guest's counter went back from {count} to {now}");
        count = now;
        if stop.recv_timeout(RECORD_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
            return Ok((guest, count));
        }
    }
}
