//! What Redis holds in the benchmark, and the client that reads and replaces some of it at a steady rate.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use vmferry_e2e::net::Lab;

use crate::redis::Redis;

/// Between two requests of the steady load.
const INTERVAL: Duration = Duration::from_millis(2);

const NAMES: [&str; 16] = [
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "haven", "indigo", "jasper", "kestrel", "linden",
    "meadow", "north", "orchid", "prairie",
];

/// What the server holds by the account of its only client.
pub(crate) struct Records {
    address: Ipv4Addr,
    /// The version of each record that the server acknowledged last.
    versions: Vec<u64>,
    random: Random,
    /// Requests of the steady load so far.
    requests: u64,
}

impl Records {
    /// Stores records 0 to `count` in the server at `address`.
    pub(crate) fn fill(lab: &Lab, address: Ipv4Addr, count: u32) -> Result<Self> {
        Redis::connect(lab, address)?.set_all((0..count).map(|number| (key(number), record(number, 0))))?;
        Ok(Self {
            address,
            versions: vec![0; count as usize],
            random: Random(0x5eed),
            requests: 0,
        })
    }

    /// Reads all records back and compares them with what was written last.
    pub(crate) fn check(&self, lab: &Lab) -> Result<()> {
        let expected = (0..).zip(&self.versions);
        Redis::connect(lab, self.address)?
            .check_all(expected.map(|(number, version)| (key(number), record(number, *version))))
    }

    /// Replaces a record or reads one, by turns.
    fn step(&mut self, connection: &mut Redis) -> Result<()> {
        self.requests += 1;
        let number = self.random.below(u32::try_from(self.versions.len())?);
        let version = &mut self.versions[number as usize];
        if self.requests.is_multiple_of(2) {
            connection.set(&key(number), &record(number, self.requests))?;
            *version = self.requests;
        } else {
            let found = connection.get(&key(number))?;
            ensure!(found == record(number, *version), "record {number} is {found:?}");
        }
        Ok(())
    }
}

/// The steady load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Records>>,
}

impl Load {
    /// Begins; whoever ends it has the records back.
    pub(crate) fn start(lab: &Lab, mut records: Records) -> Result<Self> {
        let mut connection = Redis::connect(lab, records.address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                records.step(&mut connection)?;
                thread::sleep(INTERVAL);
            }
            Ok(records)
        });
        Ok(Self { stop, thread })
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When the connection broke or an answer was wrong at any time.
    pub(crate) fn finish(self) -> Result<Records> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the client of Redis panicked"))?
            .context("the client of Redis")
    }
}

fn key(number: u32) -> String {
    format!("user:{number:08}")
}

fn prefix(number: u32) -> String {
    format!("{{\"id\":{number},")
}

/// About what services keep of their users, 0.4 to 1.8 KB: names and words repeat, tokens don't.
fn record(number: u32, version: u64) -> String {
    let mut random = Random((u64::from(number) << 32) ^ version ^ 0x9e37_79b9_7f4a_7c15);
    let (first, last) = (random.word(), random.word());
    let (token, device) = (random.next(), random.next());
    let mut record = prefix(number);
    record.push_str(&format!(
        r#""version":{version},"name":"{first} {last}","email":"{first}.{last}{number}@example.org","#
    ));
    record.push_str(&format!(
        r#""token":"{token:016x}{device:016x}","created":{},"visits":{},"cart":["#,
        1_700_000_000 + u64::from(random.below(40_000_000)),
        random.below(5000),
    ));
    for item in 0..3 + random.below(18) {
        let comma = if item == 0 { "" } else { "," };
        record.push_str(&format!(
            r#"{comma}{{"sku":"{}-{:06}","count":{},"price":{}.{:02}}}"#,
            random.word(),
            random.below(1_000_000),
            1 + random.below(5),
            random.below(300),
            random.below(100),
        ));
    }
    record.push_str("]}");
    record
}

/// SplitMix64: the same records in each run and on each machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    fn word(&mut self) -> &'static str {
        NAMES[self.next() as usize % NAMES.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_record_is_another() {
        assert_ne!(record(5, 0), record(5, 2));
    }
}
