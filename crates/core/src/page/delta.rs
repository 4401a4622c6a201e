//! A page as its difference to what the target holds at its address: which of its 128 lines changed, and to what. A line is
//! 32 bytes of a page of 4 KiB.
//!
//! ```text
//! offset size
//!      0   16  a bit for each line that changed, the first line's the lowest
//!     16    n  those lines, as they are now
//! ```

/// Lines of a page.
pub(super) const LINES: usize = 128;
/// Bytes in front of the lines.
pub(super) const MASK_BYTES: usize = 16;

/// A page crosses as its changed lines up to this part of all lines. Beyond it lines cost as much as the page itself, in
/// which LZ finds longer strings.
const CHANGED_MAX_PART: usize = 2;

/// Appends the mask and those lines of the page whose bits are set in it to `out`, and returns how many lines; `None`, and
/// nothing appended, if the page itself costs less, or nothing seems to have changed: then hashes of lines were alike by
/// chance.
pub(super) fn lines(changed: u128, now: &[u8], out: &mut Vec<u8>) -> Option<u8> {
    let line_bytes = now.len() / LINES;
    if line_bytes == 0 || changed == 0 || !is_close(changed) {
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
pub(super) fn is_close(changed: u128) -> bool {
    changed.count_ones() as usize <= LINES / CHANGED_MAX_PART
}

/// Bytes of a difference with so many lines, of a page of so many bytes.
pub(super) fn bytes(lines: u8, page_bytes: usize) -> usize {
    MASK_BYTES + usize::from(lines) * (page_bytes / LINES)
}

/// Makes the page's next version of it; `false` if the difference is not one of such a page.
pub(super) fn apply(delta: &[u8], page: &mut [u8]) -> bool {
    let line_bytes = page.len() / LINES;
    let Some((mask, lines)) = delta.split_first_chunk::<MASK_BYTES>() else {
        return false;
    };
    let mask = u128::from_be_bytes(*mask);
    if lines.len() != mask.count_ones() as usize * line_bytes {
        return false;
    }
    let mut lines = lines.chunks(line_bytes.max(1));
    for (number, line) in page.chunks_mut(line_bytes.max(1)).enumerate().take(LINES) {
        if mask & (1 << number) != 0
            && let Some(difference) = lines.next()
        {
            line.copy_from_slice(difference);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::FingerprintKey;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changed_lines_applied_give_the_new_page(
            before in proptest::collection::vec(any::<u8>(), 4096),
            changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..160),
        ) {
            let mut now = before.clone();
            for (at, value) in changes {
                now[at] = value;
            }
            let key = FingerprintKey::new([7; 32]);
            let changed = key.page_lines(&now).changed(&key.page_lines(&before));
            let mut delta = b"before".to_vec();
            match lines(changed, &now, &mut delta) {
                Some(count) => {
                    let delta = &delta[6..];
                    prop_assert_eq!(delta.len(), bytes(count, 4096));
                    let mut page = before;
                    prop_assert!(apply(delta, &mut page));
                    prop_assert_eq!(page, now);
                }
                None => {
                    prop_assert!(changed == 0 || changed.count_ones() as usize > LINES / CHANGED_MAX_PART);
                    prop_assert_eq!(delta, b"before");
                }
            }
        }

        #[test]
        fn what_is_no_difference_is_refused(delta in proptest::collection::vec(any::<u8>(), 0..600)) {
            let lines = delta.first_chunk().map(|mask| u128::from_be_bytes(*mask).count_ones() as u8);
            let fits = lines.is_some_and(|lines| delta.len() == bytes(lines, 4096));
            prop_assert_eq!(apply(&delta, &mut [0; 4096]), fits);
        }
    }

    #[test]
    fn a_page_of_which_much_changed_is_sent_itself() {
        let now = [1u8; 4096];
        let most = (1 << (LINES / CHANGED_MAX_PART)) - 1;
        assert_eq!(lines(most, &now, &mut Vec::new()), Some(64));
        assert_eq!(lines(most << 1 | 1, &now, &mut Vec::new()), None);
    }
}
