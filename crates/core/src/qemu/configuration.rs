//! The subsections of the configuration section, which settle how RAM is laid out.

use super::LostCause;
use super::cursor::{Cursor, Stop};
use crate::limits::{PAGE_BYTES_MAX, PAGE_BYTES_MIN};

const SUBSECTION: u8 = 0x05;
const UUID_BYTES: usize = 16;

/// A subsection up to where its variable part begins.
pub(super) enum Subsection {
    /// `configuration/target-page-bits`: the guest's page size, bytes.
    PageBytes(usize),
    /// `configuration/capabilities`: so many names follow.
    Capabilities(u32),
    /// `configuration/uuid`.
    Uuid,
}

/// Reads the head of a subsection; `None` if what follows is none.
pub(super) fn subsection(cursor: &mut Cursor<'_>) -> Result<Option<Subsection>, Stop<LostCause>> {
    if cursor.peek().u8()? != SUBSECTION {
        return Ok(None);
    }
    cursor.u8()?;
    let name = cursor.str8()?;
    let version = cursor.u32()?;
    let subsection = match (name, version) {
        (b"configuration/target-page-bits", 1) => Subsection::PageBytes(page_bytes(cursor.u32()?)?),
        (b"configuration/capabilities", 1) => Subsection::Capabilities(cursor.u32()?),
        (b"configuration/uuid", 1) => {
            cursor.take(UUID_BYTES)?;
            Subsection::Uuid
        }
        _ => return Err(LostCause::Subsection(String::from_utf8_lossy(name).into_owned()).into()),
    };
    Ok(Some(subsection))
}

fn page_bytes(bits: u32) -> Result<usize, LostCause> {
    1usize
        .checked_shl(bits)
        .filter(|bytes| (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(bytes))
        .ok_or(LostCause::PageBits(bits))
}
