//! Reads a source in the background.

use std::time::{Duration, Instant};

use super::{Cancel, ScanError, ScanOptions};
use crate::Blocks;

/// Reads in a row that fail before the source counts as lost.
const FAILURES_MAX: u32 = 16;

/// Reads no faster than allowed, until it is cancelled. That some blocks cannot be read does not stop it.
pub(super) struct Reader<'a> {
    content: &'a dyn Blocks,
    options: &'a ScanOptions,
    cancel: &'a Cancel,
    started: Instant,
    bytes_read: u64,
    failures: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(content: &'a dyn Blocks, options: &'a ScanOptions, cancel: &'a Cancel) -> Self {
        Self {
            content,
            options,
            cancel,
            started: Instant::now(),
            bytes_read: 0,
            failures: 0,
        }
    }

    /// Fills `into` from block `first` on, when that is due; false if it cannot be read.
    ///
    /// # Errors
    /// It was cancelled, or the source is lost.
    pub(super) fn read(&mut self, first: u64, into: &mut [u8]) -> Result<bool, ScanError> {
        self.cancel.wait(self.time_until_due())?;
        self.bytes_read += into.len() as u64;
        match self.content.read(first, into) {
            Ok(()) => {
                self.failures = 0;
                Ok(true)
            }
            Err(error) => {
                self.failures += 1;
                if self.failures == FAILURES_MAX {
                    return Err(error.into());
                }
                Ok(false)
            }
        }
    }

    /// How long to wait so that what was read so far stays within the pace.
    fn time_until_due(&self) -> Duration {
        self.options.bytes_per_second.map_or(Duration::ZERO, |pace| {
            let due = Duration::from_secs_f64(self.bytes_read as f64 / pace.max(1) as f64);
            due.saturating_sub(self.started.elapsed())
        })
    }
}
