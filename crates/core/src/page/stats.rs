//! What each encoding carried and cost.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Pages that crossed in one encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pages.
    pub pages: u64,
    /// Bytes on the wire that stand for them, their share of an LZ stream included.
    pub wire_bytes: u64,
}

/// What crossed, by encoding. Adds up over batches and lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodingStats {
    /// Zero pages, as runs.
    pub zero: Tally,
    /// Pages that the target held at that address already.
    pub same: Tally,
    /// Pages that the target held at another address.
    pub copy: Tally,
    /// Pages that stand in known content which the target reads; those that it then asked for are counted here as well.
    pub content: Tally,
    /// Pages as the difference to an earlier version in known content, through the LZ coder.
    pub patch: Tally,
    /// Pages as the difference to what the target held at that address, through the LZ coder.
    pub delta: Tally,
    /// Pages through the LZ coder.
    pub lz: Tally,
    /// Pages as they are, because LZ does not pay.
    pub raw: Tally,
    /// Records that QEMU itself had encoded, passed on.
    pub foreign: Tally,
    /// Bytes of QEMU's stream that belong to no page's record.
    pub other_bytes: u64,
    /// Bytes on the wire for those and for headers.
    pub other_wire_bytes: u64,
}

impl EncodingStats {
    /// All pages.
    pub fn pages(&self) -> u64 {
        self.tallies().iter().map(|tally| tally.pages).sum()
    }

    /// All payload bytes on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.tallies().iter().map(|tally| tally.wire_bytes).sum::<u64>() + self.other_wire_bytes
    }

    fn tallies(&self) -> [Tally; 9] {
        [
            self.zero,
            self.same,
            self.copy,
            self.content,
            self.patch,
            self.delta,
            self.lz,
            self.raw,
            self.foreign,
        ]
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.wire_bytes += other.wire_bytes;
    }
}

impl AddAssign for EncodingStats {
    fn add_assign(&mut self, other: Self) {
        self.zero += other.zero;
        self.same += other.same;
        self.copy += other.copy;
        self.content += other.content;
        self.patch += other.patch;
        self.delta += other.delta;
        self.lz += other.lz;
        self.raw += other.raw;
        self.foreign += other.foreign;
        self.other_bytes += other.other_bytes;
        self.other_wire_bytes += other.other_wire_bytes;
    }
}
