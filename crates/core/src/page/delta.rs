//! A page as its difference to what the target holds at its address: which of its 64 lines changed, and by what (exclusive
//! or) or to what. A line is 64 bytes of a page of 4 KiB, a processor's cache line, which is what programs write by.
//!
//! ```text
//! offset size
//!      0    8  a bit for each line that changed, the first line's the lowest
//!      8    n  those lines: new content exclusive or old, or new content
//! ```

/// Lines of a page.
pub(super) const LINES: usize = 64;
/// Bytes in front of the lines.
pub(super) const MASK_BYTES: usize = 8;

/// A page crosses as difference up to this part of its bytes changed. Beyond it the page itself costs less: LZ makes a
/// quarter or less of an ordinary page, and little of a difference.
const CHANGED_MAX_PART: usize = 5;

/// How the lines of a difference make the page's next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Exclusive or what is there.
    Change,
    /// In place of what is there.
    Replace,
}

/// A page crosses as its changed lines up to this part of all lines; see [`CHANGED_MAX_PART`].
const LINES_MAX_PART: usize = 4;

/// Appends those lines of the page whose bits are set to `out`, in place of what is there, and returns how many; `None`, and
/// nothing appended, if the page itself costs less.
pub(super) fn lines(changed: u64, now: &[u8], out: &mut Vec<u8>) -> Option<u8> {
    let line_bytes = now.len() / LINES;
    if line_bytes == 0 || !is_close(changed) {
        return None;
    }
    out.extend_from_slice(&changed.to_be_bytes());
    for (number, line) in now.chunks(line_bytes).enumerate().take(LINES) {
        if changed & (1 << number) != 0 {
            out.extend_from_slice(line);
        }
    }
    Some(changed.count_ones() as u8)
}

/// Whether so few lines changed that they cost less than the page.
pub(super) fn is_close(changed: u64) -> bool {
    changed.count_ones() as usize <= LINES / LINES_MAX_PART
}

/// Appends the difference between two versions of a page to `out` and returns how many lines it has; `None`, and nothing
/// appended, if the page itself costs less.
pub(super) fn between(before: &[u8], now: &[u8], out: &mut Vec<u8>) -> Option<u8> {
    let start = out.len();
    let line_bytes = now.len() / LINES;
    let changed_max = now.len() / CHANGED_MAX_PART;
    if before.len() != now.len() || line_bytes == 0 {
        return None;
    }
    out.extend_from_slice(&[0; MASK_BYTES]);
    let (mut mask, mut changed) = (0u64, 0);
    for (number, (before, now)) in before.chunks(line_bytes).zip(now.chunks(line_bytes)).enumerate() {
        if before == now {
            continue;
        }
        mask |= 1 << number;
        out.extend(before.iter().zip(now).map(|(before, now)| before ^ now));
        changed += before.iter().zip(now).filter(|(before, now)| before != now).count();
        if changed > changed_max {
            out.truncate(start);
            return None;
        }
    }
    out[start..start + MASK_BYTES].copy_from_slice(&mask.to_be_bytes());
    Some(mask.count_ones() as u8)
}

/// Bytes of a difference with so many lines, of a page of so many bytes.
pub(super) fn bytes(lines: u8, page_bytes: usize) -> usize {
    MASK_BYTES + usize::from(lines) * (page_bytes / LINES)
}

/// Makes the page's next version of it; `false` if the difference is not one of such a page.
pub(super) fn apply(how: How, delta: &[u8], page: &mut [u8]) -> bool {
    let line_bytes = page.len() / LINES;
    let Some((mask, lines)) = delta.split_first_chunk::<MASK_BYTES>() else {
        return false;
    };
    let mask = u64::from_be_bytes(*mask);
    if lines.len() != mask.count_ones() as usize * line_bytes {
        return false;
    }
    let mut lines = lines.chunks(line_bytes.max(1));
    for (number, line) in page.chunks_mut(line_bytes.max(1)).enumerate().take(LINES) {
        if mask & (1 << number) != 0
            && let Some(difference) = lines.next()
        {
            match how {
                How::Change => line.iter_mut().zip(difference).for_each(|(byte, by)| *byte ^= by),
                How::Replace => line.copy_from_slice(difference),
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_difference_applied_gives_the_new_page(
            before in proptest::collection::vec(any::<u8>(), 4096),
            changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..600),
        ) {
            let mut now = before.clone();
            for (at, value) in changes {
                now[at] = value;
            }
            let mut delta = b"before".to_vec();
            match between(&before, &now, &mut delta) {
                Some(lines) => {
                    let delta = &delta[6..];
                    prop_assert_eq!(delta.len(), bytes(lines, 4096));
                    let mut page = before;
                    prop_assert!(apply(How::Change, delta, &mut page));
                    prop_assert_eq!(page, now);
                }
                None => prop_assert_eq!(delta, b"before"),
            }
        }

        #[test]
        fn what_is_no_difference_is_refused(delta in proptest::collection::vec(any::<u8>(), 0..300)) {
            let lines = delta.first_chunk().map(|mask| u64::from_be_bytes(*mask).count_ones() as u8);
            let fits = lines.is_some_and(|lines| delta.len() == bytes(lines, 4096));
            prop_assert_eq!(apply(How::Replace, &delta, &mut [0; 4096]), fits);
        }
    }

    #[test]
    fn changed_lines_are_replaced() {
        let mut before = [1u8; 4096];
        before[4032..].fill(3);
        let mut now = before;
        (now[0], now[70], now[4095]) = (9, 9, 9);
        let mut delta = Vec::new();
        let changed = 1 | 1 << 1 | 1 << 63;
        assert_eq!(lines(changed, &now, &mut delta), Some(3));
        assert_eq!(delta.len(), bytes(3, 4096));
        assert!(apply(How::Replace, &delta, &mut before));
        assert_eq!(before, now);
        assert_eq!(lines(u64::MAX, &now, &mut delta), None);
    }

    #[test]
    fn a_page_of_which_much_changed_is_sent_itself() {
        let (before, mut now) = ([1u8; 4096], [1u8; 4096]);
        now[..4096 / CHANGED_MAX_PART].fill(2);
        assert!(between(&before, &now, &mut Vec::new()).is_some());
        now[4095] = 3;
        assert_eq!(between(&before, &now, &mut Vec::new()), None);
    }
}
