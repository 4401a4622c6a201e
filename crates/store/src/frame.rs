//! One record in the file.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a record's JSON. The largest real one carries a VM's definition.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES: usize = 16;

/// What stands at some place of the file, which goes on to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A whole record, and all that comes behind it.
    Whole { payload: &'a [u8], rest: &'a [u8] },
    /// The write of the last record did not come to its end.
    Torn,
    /// What was once written is no longer there.
    Damaged,
}

/// The frame around `payload`; `None` if it is longer than [`RECORD_BYTES_MAX`].
pub(crate) fn encode(payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|&length| length as usize <= RECORD_BYTES_MAX)?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&length_check(length.to_le_bytes()));
    frame.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    Some(frame)
}

/// Decodes what stands at the beginning of `bytes`, which is not empty and reaches to the end of the file.
pub(crate) fn decode(bytes: &[u8]) -> Frame<'_> {
    let Some((header, behind)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Frame::Torn;
    };
    let &[l0, l1, l2, l3, c0, c1, c2, c3, ref checksum @ ..] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let is_header = length_check([l0, l1, l2, l3]) == [c0, c1, c2, c3] && length <= RECORD_BYTES_MAX;
    if !is_header {
        return if is_zero(behind) { Frame::Torn } else { Frame::Damaged };
    }
    let Some((payload, rest)) = behind.split_at_checked(length) else {
        return Frame::Torn;
    };
    if xxh3_64(payload).to_le_bytes() == *checksum {
        Frame::Whole { payload, rest }
    } else if payload.contains(&0) && is_zero(rest) {
        Frame::Torn
    } else {
        Frame::Damaged
    }
}

/// Without it a damaged length in the middle would reach past the end of the file, and all behind it look like one torn frame.
fn length_check(length: [u8; 4]) -> [u8; 4] {
    let [c0, c1, c2, c3, ..] = xxh3_64(&length).to_le_bytes();
    [c0, c1, c2, c3]
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
