//! Commands, which stand between sections.

use super::LostCause;
use super::cursor::{Cursor, Stop};

const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_RAM_DISCARD: u16 = 6;
const PACKAGED: u16 = 7;
const ENABLE_COLO: u16 = 8;
const SWITCHOVER_START: u16 = 11;

/// Length of POSTCOPY_ADVISE's payload when RAM may be post-copied; it is empty when only dirty bitmaps may.
const ADVISE_RAM_BYTES: u16 = 16;
const PACKAGED_BYTES: u16 = 4;

/// What a command means to the parser.
pub(super) enum Meaning {
    /// RAM may be post-copied; the union of all blocks' page sizes.
    AdviseRam { page_sizes: u64 },
    /// The guest is stopped.
    Switchover,
    /// Pages at the target may be gone from here on.
    Postcopy,
    /// Nothing, as every command of a QEMU newer than this parser.
    Nothing,
}

/// Reads a command behind its type byte. Returns what it means and how many bytes more belong to it.
pub(super) fn command(cursor: &mut Cursor<'_>) -> Result<(Meaning, u64), Stop<LostCause>> {
    let command = cursor.u16()?;
    let bytes = cursor.u16()?;
    let payload = u64::from(bytes);
    match (command, bytes) {
        (POSTCOPY_ADVISE, ADVISE_RAM_BYTES) => {
            let page_sizes = cursor.u64()?;
            Ok((Meaning::AdviseRam { page_sizes }, 8))
        }
        (PACKAGED, PACKAGED_BYTES) => {
            // The package is a stream of its own, which the target loads beside this one.
            let package = cursor.u32()?;
            Ok((Meaning::Postcopy, u64::from(package)))
        }
        (PACKAGED, _) => Err(LostCause::CommandLength { command, bytes }.into()),
        (POSTCOPY_RAM_DISCARD, _) => Ok((Meaning::Postcopy, payload)),
        (ENABLE_COLO, _) => Err(LostCause::Colo.into()),
        (SWITCHOVER_START, _) => Ok((Meaning::Switchover, payload)),
        _ => Ok((Meaning::Nothing, payload)),
    }
}
