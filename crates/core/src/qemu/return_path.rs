//! What the target QEMU answers, on the same socket in the other direction: `u16` type, `u16` length, payload.

use thiserror::Error;

use super::BlockName;
use super::cursor::{Cursor, Short, Stop};
use crate::limits::{GUEST_BYTES_MAX, PAGE_BYTES_MIN, RETURN_PATH_PAYLOAD_BYTES_MAX};

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;

/// What QEMU writes behind a bitmap.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
/// One bit a page, in whole words.
const BITMAP_BYTES_MAX: u64 = GUEST_BYTES_MAX / PAGE_BYTES_MIN as u64 / 8;

/// Bytes of an encoded SHUT or PONG.
pub const ANSWER_BYTES: usize = 8;

/// A message of the return path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// The target's last word: 0, everything is loaded; else loading failed and the source must go on.
    Shut(u32),
    /// The answer to a PING command, with its value.
    Pong(u32),
    /// Post-copy: the guest waits for these pages.
    RequestPages {
        /// The block, or that of the request before.
        block: Option<BlockName>,
        /// Bytes from the start of the block.
        offset: u64,
        /// Bytes wanted: the size of the block's host pages.
        bytes: u32,
    },
    /// Post-copy recovery: which pages of a block the target has. So many bytes of bitmap follow, as
    /// [`Message::BitmapBytes`], then [`Message::BitmapEnd`].
    ReceivedBitmap {
        /// The block.
        block: BlockName,
        /// Length of the bitmap, bytes.
        bytes: u64,
    },
    /// A piece of a bitmap (little-endian, the lowest page first).
    BitmapBytes(&'a [u8]),
    /// The bitmap is complete.
    BitmapEnd,
    /// Post-copy recovery: the target is ready to go on. QEMU sends 1.
    ResumeAck(u32),
    /// The target is ready for the switchover, as far as its devices are concerned.
    SwitchoverAck,
}

/// What is wrong with the return path. It cannot be followed any further: fail the migration, the source's QEMU resumes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReturnPathError {
    /// No QEMU up to 10.2 sends this.
    #[error("the target's QEMU sent an unknown message of type {0}: use the same QEMU version on both hosts")]
    UnknownType(u16),
    /// A length that its type does not have.
    #[error("the target's QEMU sent a message of type {kind} with {bytes} bytes")]
    Length {
        /// The message's type.
        kind: u16,
        /// Its payload's length, bytes.
        bytes: u16,
    },
    /// An empty or otherwise impossible block name.
    #[error("the target's QEMU sent a message about a block with an impossible name")]
    BlockName,
    /// A bitmap larger than any guest's.
    #[error("the target's QEMU sent a bitmap of {0} bytes, more than any guest needs")]
    BitmapLength(u64),
    /// The bitmap does not end with its end mark.
    #[error("the target's QEMU sent a bitmap without its end mark")]
    BitmapEnd,
}

impl From<ReturnPathError> for Stop<ReturnPathError> {
    fn from(error: ReturnPathError) -> Self {
        Self::Malformed(error)
    }
}

/// Follows the return path. It holds no bytes: the caller shows it the front of what it has.
#[derive(Debug, Default)]
pub struct ReturnPath {
    /// Bytes of the bitmap we are inside of that are still to come.
    bitmap_left: Option<u64>,
}

impl ReturnPath {
    /// A return path before its first message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the message at the front of `input`, and how many bytes it takes; `None` if `input` ends inside it.
    ///
    /// # Errors
    /// The bytes are no message of QEMU's. Asked again, it fails again.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Message<'a>)>, ReturnPathError> {
        let mut cursor = Cursor::new(input);
        let read = match self.bitmap_left {
            None => message(&mut cursor),
            Some(0) => bitmap_end(&mut cursor),
            Some(left) => bitmap_bytes(left, input, &mut cursor),
        };
        let message = match read {
            Ok(message) => message,
            Err(Stop::More) => return Ok(None),
            Err(Stop::Malformed(error)) => return Err(error),
        };
        match &message {
            Message::ReceivedBitmap { bytes, .. } => self.bitmap_left = Some(*bytes),
            Message::BitmapBytes(piece) => {
                self.bitmap_left = self.bitmap_left.map(|left| left.saturating_sub(piece.len() as u64));
            }
            Message::BitmapEnd => self.bitmap_left = None,
            _ => {}
        }
        Ok(Some((cursor.consumed(), message)))
    }
}

/// The bytes of [`Message::Shut`]: 0 completes the source's migration, anything else resumes its guest.
pub fn shut(value: u32) -> [u8; ANSWER_BYTES] {
    answer(SHUT, value)
}

/// The bytes of [`Message::Pong`].
pub fn pong(value: u32) -> [u8; ANSWER_BYTES] {
    answer(PONG, value)
}

fn answer(kind: u16, value: u32) -> [u8; ANSWER_BYTES] {
    let [k0, k1] = kind.to_be_bytes();
    let [v0, v1, v2, v3] = value.to_be_bytes();
    [k0, k1, 0, 4, v0, v1, v2, v3]
}

fn message<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Stop<ReturnPathError>> {
    let kind = cursor.u16()?;
    let bytes = cursor.u16()?;
    let wrong_length = ReturnPathError::Length { kind, bytes };
    let fixed = match kind {
        SHUT | PONG | RESUME_ACK => Some(4),
        REQ_PAGES => Some(12),
        SWITCHOVER_ACK => Some(0),
        REQ_PAGES_ID | RECV_BITMAP => None,
        _ => return Err(ReturnPathError::UnknownType(kind).into()),
    };
    if fixed.is_some_and(|fixed| fixed != bytes) || usize::from(bytes) > RETURN_PATH_PAYLOAD_BYTES_MAX {
        return Err(wrong_length.into());
    }
    let mut payload = Cursor::new(cursor.take(usize::from(bytes))?);
    let short = |_: Short| wrong_length.clone();
    let message = match kind {
        SHUT => Message::Shut(payload.u32().map_err(short)?),
        PONG => Message::Pong(payload.u32().map_err(short)?),
        RESUME_ACK => Message::ResumeAck(payload.u32().map_err(short)?),
        SWITCHOVER_ACK => Message::SwitchoverAck,
        REQ_PAGES | REQ_PAGES_ID => {
            let offset = payload.u64().map_err(short)?;
            let length = payload.u32().map_err(short)?;
            let block = match kind {
                REQ_PAGES_ID => Some(block_name(payload.str8().map_err(short)?)?),
                _ => None,
            };
            Message::RequestPages {
                block,
                offset,
                bytes: length,
            }
        }
        _ => {
            let block = block_name(payload.str8().map_err(short)?)?;
            // The bitmap itself is not counted in the message's length.
            let bitmap = cursor.u64()?;
            if bitmap > BITMAP_BYTES_MAX {
                return Err(ReturnPathError::BitmapLength(bitmap).into());
            }
            Message::ReceivedBitmap { block, bytes: bitmap }
        }
    };
    if payload.consumed() != usize::from(bytes) {
        return Err(wrong_length.into());
    }
    Ok(message)
}

fn block_name(name: &[u8]) -> Result<BlockName, ReturnPathError> {
    BlockName::new(name).ok_or(ReturnPathError::BlockName)
}

fn bitmap_bytes<'a>(left: u64, input: &[u8], cursor: &mut Cursor<'a>) -> Result<Message<'a>, Stop<ReturnPathError>> {
    if input.is_empty() {
        return Err(Stop::More);
    }
    let bytes = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
    Ok(Message::BitmapBytes(cursor.take(bytes)?))
}

fn bitmap_end<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Stop<ReturnPathError>> {
    match cursor.u64()? {
        BITMAP_END => Ok(Message::BitmapEnd),
        _ => Err(ReturnPathError::BitmapEnd.into()),
    }
}
