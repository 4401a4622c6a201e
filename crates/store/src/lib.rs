//! Durable records: a [`Journal`] to which one process appends, and which says at its next start what was written.
//!
//! ```text
//! file  = "VMFERRY JOURNAL 1\n"  frame*
//! frame = length u32 | check of the length u32 | XXH3-64 of the payload u64 | payload: one record as JSON
//! ```
//! Numbers are little-endian. The file appears under its name with its first line already durable (written under
//! another name, synced, renamed). A record is durable before [`Journal::append`] returns, and only the last frame can
//! have been under way when the machine went down. So damage is told apart from a torn write: a torn frame is cut short,
//! or has zeros where nothing was written (JSON has no zero byte) and nothing behind it. A torn tail is dropped and
//! reported, since nobody was told that it was written; anything else that does not check is an error, since a record that
//! somebody relied on may be in it.

mod frame;
mod journal;

pub use frame::RECORD_BYTES_MAX;
pub use journal::{Error, Journal, Opened, read, replay};
