//! What a migration takes of each host's memory beside the guest's own, and what it may take.
//!
//! The source's agent stays within an eighth of the guest's memory and [`AGENT_BYTES`], whatever the guest's size, the target's
//! within [`AGENT_BYTES`] and what its operator allows for indexes. What most parts take follows from the guest's size. The one
//! that can do with less are the hashes of pages sent ([`Versions`]): they have what all others leave.
//!
//! An operator can ask for more, by many lanes, coders with long windows, or `--delta-memory`.

use crate::{
    limits::{BATCH_PLAIN_BYTES_MAX, LANE_CREDIT_BYTES_MAX},
    page::{Coders, Known, PageSet, RING_MEMORY_BYTES_MAX, versions::Versions},
};

/// What an agent may have in memory beside a part of the guest's.
pub const AGENT_BYTES: u64 = 256 << 20;
/// The source's agent may take one byte in so many of the guest's memory, too.
pub const GUEST_PART: u64 = 8;

/// The program, its threads' stacks, what the allocator keeps, and what is read of disks and kept memory at once.
const PROGRAM_BYTES: u64 = 40 << 20;
/// Batches of a lane: those on their way, empty buffers for as many, and a few that are worked on.
const LANE_BYTES: u64 = 2 * LANE_CREDIT_BYTES_MAX + 4 * BATCH_PLAIN_BYTES_MAX as u64;
/// Frames of a lane that the target has not said to have, and empty buffers for more.
const RESEND_BYTES: u64 = LANE_CREDIT_BYTES_MAX + 4 * BATCH_PLAIN_BYTES_MAX as u64;
/// Bytes of a page of nearly all guests. Larger ones make fewer entries.
const PAGE_BYTES: u64 = 4096;
/// Memory that a guest has beside what its definition says: firmware, video memory, option ROMs.
const DEVICES_BYTES: u64 = 64 << 20;

/// A migration, as far as memory goes.
#[derive(Clone, Debug)]
pub struct Session {
    /// The guest's memory, bytes.
    pub guest_bytes: u64,
    /// Lanes.
    pub lanes: u16,
    /// Coders of each lane.
    pub coders: Coders,
}

/// What something takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Memory, at the most.
    pub bytes: u64,
}

impl Session {
    /// What the source's agent may take, bytes.
    pub fn source_bytes_max(&self) -> u64 {
        self.guest_bytes / GUEST_PART + AGENT_BYTES
    }

    /// The parts of the source's agent, where tables of known content take so many bytes.
    pub fn source(&self, tables_bytes: u64) -> Vec<Part> {
        let all = Versions::memory_bytes_max(self.pages());
        let mut parts = self.source_fixed();
        parts.push(part("tables of known content", tables_bytes));
        parts.push(part(
            "hashes of pages sent, of lines",
            all.min(self.versions_bytes_max(tables_bytes)),
        ));
        parts
    }

    /// The parts of the target's agent, where the table of the memory that it kept takes so many bytes.
    pub fn target(&self, table_bytes: u64) -> Vec<Part> {
        let lane = LANE_BYTES + self.coders.decoder_bytes_max();
        vec![
            part("the program", PROGRAM_BYTES),
            part("lanes", u64::from(self.lanes) * lane),
            part("the last batches put together", RING_MEMORY_BYTES_MAX),
            part("sets of pages written", 2 * PageSet::memory_bytes_max(self.pages())),
            part("table of kept memory", table_bytes),
        ]
    }

    /// What is left for tables of known content if the operator allows `wished` bytes.
    pub fn tables_bytes_max(&self, wished: u64) -> u64 {
        wished.min(self.source_bytes_max().saturating_sub(sum(&self.source_fixed())))
    }

    /// What is left for hashes of pages sent beside all else, bytes.
    pub fn versions_bytes_max(&self, tables_bytes: u64) -> u64 {
        let others = sum(&self.source_fixed()) + tables_bytes;
        self.source_bytes_max().saturating_sub(others)
    }

    /// What has to be there.
    fn source_fixed(&self) -> Vec<Part> {
        let lane = LANE_BYTES + RESEND_BYTES + self.coders.encoder_bytes_max();
        vec![
            part("the program", PROGRAM_BYTES),
            part("lanes", u64::from(self.lanes) * lane),
            part(
                "fingerprints of pages sent, and where",
                Known::memory_bytes_max(self.pages()),
            ),
            part("set of pages sent", PageSet::memory_bytes_max(self.pages())),
        ]
    }

    fn pages(&self) -> u64 {
        (self.guest_bytes + DEVICES_BYTES) / PAGE_BYTES
    }
}

fn part(name: &'static str, bytes: u64) -> Part {
    Part { name, bytes }
}

/// What all parts take together, bytes.
pub fn sum(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}
