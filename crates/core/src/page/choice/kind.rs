//! What a batch has to send, as far as a cheap look tells before it is encoded.

use super::super::{Batch, delta, entropy::is_compressible, known::Class};
use serde::{Deserialize, Serialize};

/// Kinds of pages that coders treat differently enough to choose for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PageKind {
    /// Pages that the target has no version of.
    #[default]
    Fresh,
    /// Pages that cross as their difference to what the target holds.
    Changed,
}

impl PageKind {
    /// All of them.
    pub const ALL: [PageKind; 2] = [PageKind::Fresh, PageKind::Changed];
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PageKind::Fresh => "fresh",
            PageKind::Changed => "changed",
        })
    }
}

/// Of so many fresh pages one is looked into: where pages are best sent as they are, looking must cost next to nothing.
const LOOK_EVERY: usize = 8;

/// What a batch has to send.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Which kind most of it is.
    pub kind: PageKind,
    /// The part of the stream that has to be coded; the rest are references, zero runs and unchanged parts of pages.
    pub content: f64,
    /// The part of that which hardly a coder makes smaller: random, encrypted, compressed pages.
    pub dense: f64,
}

impl Load {
    /// That of a batch whose pages are of these classes.
    pub fn of(batch: &Batch, classes: &[Class]) -> Load {
        let (mut fresh, mut changed_bytes) = (0, 0);
        let (mut looks, mut dense) = (0, 0_u32);
        for (page, class) in batch.pages().zip(classes) {
            match class {
                Class::New { changed: Some(lines) }
                | Class::Content {
                    changed: Some(lines), ..
                } if delta::is_close(*lines) => {
                    changed_bytes += delta::bytes(lines.count_ones() as u8, page.len());
                }
                Class::New { .. } => {
                    if fresh % LOOK_EVERY == 0 {
                        looks += 1;
                        dense += u32::from(!is_compressible(page));
                    }
                    fresh += 1;
                }
                Class::Same | Class::Copy { .. } | Class::Content { .. } => {}
            }
        }
        let fresh_bytes = (fresh * batch.page_bytes()) as f64;
        let bytes = fresh_bytes + changed_bytes as f64;
        Load {
            kind: match changed_bytes as f64 > fresh_bytes {
                true => PageKind::Changed,
                false => PageKind::Fresh,
            },
            content: bytes / batch.stream().len().max(1) as f64,
            dense: fresh_bytes / bytes.max(1.0) * f64::from(dense) / f64::from(looks.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Fingerprint, Op};
    use super::*;
    use crate::qemu::{BlockId, PageAt};

    const PAGE_BYTES: usize = 4096;

    /// A batch of so many pages of zeros (which are compressible) and then so many of random bytes.
    fn batch(plain: usize, random: usize) -> Batch {
        let mut stream = vec![0; (plain + random) * PAGE_BYTES];
        let random = &mut stream[plain * PAGE_BYTES..];
        blake3::Hasher::new().finalize_xof().fill(random);
        let op = |start| Op::Page {
            at: PageAt {
                block: BlockId(0),
                offset: start as u64,
                named: false,
            },
            record: start,
            start,
        };
        Batch {
            seq: 0,
            round: 0,
            ops: (0..stream.len()).step_by(PAGE_BYTES).map(op).collect(),
            stream,
            page_bytes: PAGE_BYTES,
            postcopy: false,
            stopped: false,
        }
    }

    #[test]
    fn what_coders_hardly_make_smaller_is_told_from_the_rest() {
        let load = Load::of(&batch(96, 32), &vec![Class::New { changed: None }; 128]);
        assert_eq!(
            load,
            Load {
                kind: PageKind::Fresh,
                content: 1.0,
                dense: 0.25
            }
        );
    }

    #[test]
    fn references_are_no_content_and_differences_are_not_dense() {
        let batch = batch(0, 8);
        assert_eq!(Load::of(&batch, &vec![Class::Same; 8]), Load::default());
        // One line of each page changed: the line, and the mask that says which.
        let changed = Some(1);
        let known = |changed| Class::Content {
            source: 0,
            block: 0,
            changed,
            fingerprint: Fingerprint::default(),
        };
        for class in [Class::New { changed }, known(changed)] {
            let load = Load::of(&batch, &vec![class; 8]);
            let content = (16 + 32) as f64 / PAGE_BYTES as f64;
            assert_eq!((load.kind, load.dense), (PageKind::Changed, 0.0));
            assert!((load.content - content).abs() < 1e-9, "{load:?}");
        }
        assert_eq!(Load::of(&batch, &vec![known(None); 8]), Load::default());
    }
}
