//! The figures of all moves beside each other.

use std::time::Duration;

use vmferry::cli::table::Table;
use vmferry::cli::units::{bytes, milliseconds};

/// One move of the guest.
pub(crate) struct Move {
    /// Who moved it, and how.
    pub(crate) by: String,
    /// From the command to the guest running on the other host.
    pub(crate) took: Duration,
    /// What the source's host sent to the switch meanwhile.
    pub(crate) link_bytes: u64,
    /// The longest time that the client waited for an answer of Redis.
    pub(crate) longest_pause: Duration,
}

/// The moves as a table.
pub(crate) fn table(moves: &[Move]) -> String {
    let mut table = Table::new(["moved by", "bytes on the link", "time", "longest pause the client saw"]);
    for each in moves {
        table.row([
            each.by.clone(),
            bytes(each.link_bytes),
            time(each.took),
            time(each.longest_pause),
        ]);
    }
    table.to_string()
}

/// A duration as people read it.
pub(crate) fn time(duration: Duration) -> String {
    milliseconds(duration.as_secs_f64() * 1e3)
}
