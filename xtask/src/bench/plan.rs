//! What is measured: workloads, links and modes.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vmferry_e2e::baseline;

const MIB: u64 = 1 << 20;

/// What the guest holds and does while it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Nothing beyond a booted kernel.
    Idle,
    /// Programs, libraries and documents of this machine in the page cache; nothing writes.
    PageCache,
    /// Redis full of records, with a client that reads and replaces some.
    Redis,
    /// A counter in each page of a heap is stepped.
    Counter,
    /// Pages of text are replaced.
    Text,
    /// Pages of random bytes are replaced.
    Random,
}

/// A region of the guest's memory that a program keeps writing.
pub(crate) struct Dirtier {
    /// Its content, by the guest program's name.
    pub(crate) kind: &'static str,
    /// Its size.
    pub(crate) bytes: u64,
    /// Bytes of pages written a second. At 1 Gb/s QEMU's plain migration converges; at 100 Mb/s only one that
    /// sends less than it does.
    pub(crate) bytes_per_s: u64,
}

impl Workload {
    pub(crate) const ALL: [Self; 6] = [
        Self::Idle,
        Self::PageCache,
        Self::Redis,
        Self::Counter,
        Self::Text,
        Self::Random,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::PageCache => "page-cache",
            Self::Redis => "redis",
            Self::Counter => "counter",
            Self::Text => "text",
            Self::Random => "random",
        }
    }

    pub(crate) fn dirtier(self) -> Option<Dirtier> {
        let (kind, bytes_per_s) = match self {
            Self::Idle | Self::PageCache | Self::Redis => return None,
            Self::Counter => ("counter", 20_000_000),
            Self::Text => ("text", 30_000_000),
            Self::Random => ("random", 6_000_000),
        };
        Some(Dirtier {
            kind,
            bytes: 48 * MIB,
            bytes_per_s,
        })
    }

    /// Bytes of files in the page cache.
    pub(crate) const PAGE_CACHE_BYTES: u64 = 192 * MIB;
    /// Records in Redis, about 150 MB in its memory.
    pub(crate) const REDIS_RECORDS: u32 = 150_000;
    /// Beside what is written, the guest program holds a heap of this size that stays as it is.
    pub(crate) const STEADY_HEAP_BYTES: u64 = 32 * MIB;
}

/// How the guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// vmferry as it comes: zstd.
    Vmferry,
    /// vmferry with LZ4.
    VmferryLz4,
    /// vmferry with the 1978 dictionary coder.
    VmferryLz78,
    /// QEMU, pages as they are.
    Plain,
    /// QEMU, differences to pages sent before.
    Xbzrle,
    /// QEMU, a connection a processor, zstd at level 1.
    MultifdZstd,
}

impl Mode {
    /// All, in the order of reports.
    pub(crate) const ALL: [Self; 6] = [
        Self::Vmferry,
        Self::VmferryLz4,
        Self::VmferryLz78,
        Self::Plain,
        Self::Xbzrle,
        Self::MultifdZstd,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmferry => "vmferry",
            Self::VmferryLz4 => "vmferry-lz4",
            Self::VmferryLz78 => "vmferry-lz78",
            Self::Plain => baseline::Mode::Plain.name(),
            Self::Xbzrle => baseline::Mode::Xbzrle.name(),
            Self::MultifdZstd => baseline::Mode::MultifdZstd.name(),
        }
    }

    /// Which of the two does it, and how.
    pub(crate) fn means(self) -> Means {
        match self {
            Self::Vmferry => Means::Vmferry { codec: "zstd" },
            Self::VmferryLz4 => Means::Vmferry { codec: "lz4" },
            Self::VmferryLz78 => Means::Vmferry { codec: "lz78" },
            Self::Plain => Means::Qemu(baseline::Mode::Plain),
            Self::Xbzrle => Means::Qemu(baseline::Mode::Xbzrle),
            Self::MultifdZstd => Means::Qemu(baseline::Mode::MultifdZstd),
        }
    }
}

/// Who moves the guest.
#[derive(Clone, Copy)]
pub(crate) enum Means {
    /// Two agents.
    Vmferry { codec: &'static str },
    /// QEMU by itself.
    Qemu(baseline::Mode),
}

/// Rates of the link, million bits a second.
pub(crate) const LINKS_MBIT: [u32; 2] = [1000, 100];

/// The pause that each mode may cause: QEMU's own default.
pub(crate) const DOWNTIME_MAX: Duration = Duration::from_millis(300);

/// A migration that takes longer has not converged: well beyond the time that all memory needs at the link's rate.
pub(crate) fn time_max(link_mbit: u32) -> Duration {
    Duration::from_secs(if link_mbit >= 1000 { 20 } else { 45 })
}

/// So many attempts of a mode that do not converge are enough to know it.
pub(crate) const ATTEMPTS_MAX: usize = 2;
