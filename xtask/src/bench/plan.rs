//! What is measured: workloads, links, and the modes that are worth their time on each.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::mode::Mode;

const MIB: u64 = 1 << 20;

/// What the guest holds and does while it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// A server: files of a disk in the page cache, Redis with a client, a Python with a full heap.
    Mixed,
    /// A counter in each page of a heap is stepped.
    Counter,
    /// Pages of text are replaced.
    Text,
    /// Pages of random bytes are replaced.
    Random,
    /// Redis, moved away before; after a minute of writes the way back is measured.
    Return,
    /// Redis full of records, with a client that reads and replaces some.
    Redis,
    /// Programs, libraries and documents of this machine in the page cache; nothing writes.
    PageCache,
    /// Nothing beyond a booted kernel.
    Idle,
}

/// A region of the guest's memory that a program keeps writing.
#[derive(Clone, Copy)]
pub(crate) struct Dirtier {
    /// Its content, by the guest program's name.
    pub(crate) kind: &'static str,
    /// Its size.
    pub(crate) bytes: u64,
    /// Bytes of pages written a second.
    pub(crate) bytes_per_s: u64,
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Counter => "counter",
            Self::Text => "text",
            Self::Random => "random",
            Self::Return => "return",
            Self::Redis => "redis",
            Self::PageCache => "page-cache",
            Self::Idle => "idle",
        }
    }

    /// In a sentence, for those who read results.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Mixed => {
                "240 MiB of programs, libraries and documents in the page cache, Redis with 150,000 records and a client \
                 that reads and replaces some, and a Python with a heap of about 100 MB; 1 GiB guest"
            }
            Self::Counter => "a counter in each page of 128 MiB of heap is stepped, 4 MB of pages a second",
            Self::Text => "64 MiB of text are replaced, 30 MB a second",
            Self::Random => "64 MiB of random bytes are replaced, 4 MB a second",
            Self::Return => {
                "Redis and its client: moved away, which is not counted, then 60 s of the client's writes, then the way \
                 back"
            }
            Self::Redis => "Redis with 150,000 records and a client that reads and replaces some",
            Self::PageCache => "240 MiB of programs, libraries and documents in the page cache; nothing writes",
            Self::Idle => "a booted kernel",
        }
    }

    pub(crate) fn dirtier(self) -> Option<Dirtier> {
        let (kind, bytes, bytes_per_s) = match self {
            Self::Counter => ("counter", 128 * MIB, 4_000_000),
            Self::Text => ("text", 64 * MIB, 30_000_000),
            Self::Random => ("random", 64 * MIB, 4_000_000),
            Self::Mixed | Self::Return | Self::Redis | Self::PageCache | Self::Idle => return None,
        };
        Some(Dirtier {
            kind,
            bytes,
            bytes_per_s,
        })
    }

    pub(crate) fn has_redis(self) -> bool {
        matches!(self, Self::Mixed | Self::Return | Self::Redis)
    }

    pub(crate) fn has_files(self) -> bool {
        matches!(self, Self::Mixed | Self::PageCache)
    }

    /// Memory of the guest.
    pub(crate) fn memory_mib(self) -> u32 {
        if self == Self::Mixed { 1024 } else { 512 }
    }

    /// A migration that takes longer has not converged: a little more than all memory needs at the link's rate, and
    /// time for what is not limited by the link.
    pub(crate) fn time_max(self, link: Link) -> Duration {
        let at_the_rate = link.mbit().map_or(0, |mbit| {
            u64::from(self.memory_mib()) * MIB * 8 / (u64::from(mbit) * 1_000_000)
        });
        Duration::from_secs((at_the_rate + 3).max(20))
    }

    /// Bytes of files in the page cache.
    pub(crate) const PAGE_CACHE_BYTES: u64 = 240 * MIB;
    /// Records in Redis, about 150 MB in its memory.
    pub(crate) const REDIS_RECORDS: u32 = 150_000;
    /// Python's heap.
    pub(crate) const PYTHON_BYTES: u64 = 100_000_000;
    /// Beside what is written, the guest program holds a heap of this size that stays as it is.
    pub(crate) const STEADY_HEAP_BYTES: u64 = 32 * MIB;
    /// Writes between the two moves of [`Workload::Return`].
    pub(crate) const AWAY: Duration = Duration::from_secs(60);
}

/// The link between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Link {
    mbit: Option<u32>,
}

impl Link {
    pub(crate) const SLOW: Self = Self { mbit: Some(100) };
    pub(crate) const FAST: Self = Self { mbit: Some(1000) };
    pub(crate) const UNLIMITED: Self = Self { mbit: None };

    /// Its rate, million bits a second; none where nothing limits it.
    pub(crate) fn mbit(self) -> Option<u32> {
        self.mbit
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mbit {
            Some(mbit) if mbit.is_multiple_of(1000) => write!(f, "{} Gb/s", mbit / 1000),
            Some(mbit) => write!(f, "{mbit} Mb/s"),
            None => f.write_str("no limit"),
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(mbit) if mbit > 0 => Ok(Self { mbit: Some(mbit) }),
            _ if text == "none" => Ok(Self::UNLIMITED),
            _ => Err("expected million bits a second, or none".to_owned()),
        }
    }
}

/// A workload on a link, and the modes that are measured there.
pub(crate) struct Case {
    pub(crate) workload: Workload,
    pub(crate) link: Link,
    pub(crate) modes: &'static [Mode],
}

/// vmferry's and QEMU's by turns.
pub(crate) const USUAL: &[Mode] = &[Mode::Vmferry, Mode::MultifdZstd, Mode::Plain, Mode::Xbzrle];
const WITH_CODERS: &[Mode] = &[
    Mode::Vmferry,
    Mode::MultifdZstd,
    Mode::VmferryAuto,
    Mode::VmferryLz4,
    Mode::Plain,
    Mode::Xbzrle,
];
const RAW: &[Mode] = &[Mode::VmferryRaw, Mode::Plain];

const fn case(workload: Workload, link: Link, modes: &'static [Mode]) -> Case {
    Case { workload, link, modes }
}

/// What the goals ask for, and of the rest what an hour for everything allows, the search included. Cases of one workload
/// stand together: they share a guest.
pub(crate) const CASES: [Case; 11] = [
    case(Workload::Mixed, Link::SLOW, USUAL),
    case(Workload::Mixed, Link::FAST, WITH_CODERS),
    case(Workload::Mixed, Link::UNLIMITED, RAW),
    case(Workload::Counter, Link::SLOW, USUAL),
    case(Workload::Text, Link::SLOW, USUAL),
    case(Workload::Random, Link::SLOW, USUAL),
    case(Workload::Random, Link::FAST, USUAL),
    case(Workload::Return, Link::SLOW, USUAL),
    case(Workload::Redis, Link::FAST, USUAL),
    case(Workload::PageCache, Link::FAST, WITH_CODERS),
    case(Workload::Idle, Link::FAST, USUAL),
];

/// The pause that each mode may cause: QEMU's own default.
pub(crate) const DOWNTIME_MAX: Duration = Duration::from_millis(300);

/// So many attempts of a mode that do not converge are enough to know it.
pub(crate) const ATTEMPTS_MAX: usize = 2;

/// A mode of QEMU that takes this much longer than another is not its best: once is enough to know it.
pub(crate) const TOO_SLOW: f64 = 1.5;
