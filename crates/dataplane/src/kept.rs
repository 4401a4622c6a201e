//! Batches that a lane has sent and the target may yet ask pages of.

use std::collections::VecDeque;
use vmferry_core::page::{Ask, Batch, Class};

/// Of one lane, in order. No more than the lane's credit lets be on its way.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    batches: VecDeque<Sent>,
}

#[derive(Debug)]
struct Sent {
    /// Stream bytes that the lane had sent up to the end of this batch.
    end: u64,
    batch: Batch,
    /// Of each page: the content source that it was referred to.
    sources: Vec<Option<u16>>,
    /// Whether pages of it were asked for. A target knows at once all that it lacks.
    is_asked: bool,
}

/// The answer to an [`Ask`].
pub(crate) struct Answer {
    /// The payload of the `Supply` frame.
    pub(crate) payload: Vec<u8>,
    /// The batch's round.
    pub(crate) round: u32,
    /// The content source of each page asked for.
    pub(crate) sources: Vec<u16>,
}

impl Kept {
    /// Keeps a batch if pages of it were referred to known content; gives it back if not. `end` are the stream bytes that the
    /// lane will have sent with it.
    pub(crate) fn keep(&mut self, end: u64, batch: Batch, classes: &[Class]) -> Option<Batch> {
        let source = |class: &Class| match class {
            Class::Content { source, .. } => Some(*source),
            _ => None,
        };
        let sources: Vec<Option<u16>> = classes.iter().map(source).collect();
        if sources.iter().all(Option::is_none) {
            return Some(batch);
        }
        self.batches.push_back(Sent {
            end,
            batch,
            sources,
            is_asked: false,
        });
        None
    }

    /// Gives back a batch that the target has placed: it has, with all before it, once it has acknowledged `end` bytes.
    pub(crate) fn placed(&mut self, end: u64) -> Option<Batch> {
        self.batches.pop_front_if(|sent| sent.end <= end).map(|sent| sent.batch)
    }

    /// What the target asks for. It asks once about a batch: an answer is a thousand times as long as a question.
    pub(crate) fn answer(&mut self, ask: &Ask) -> Result<Answer, String> {
        let sent = self.batches.iter_mut().find(|sent| sent.batch.seq == ask.seq);
        let wrong = || {
            format!(
                "the target asks for pages of batch {} that it was not referred to",
                ask.seq
            )
        };
        let sent = sent.ok_or_else(wrong)?;
        if std::mem::replace(&mut sent.is_asked, true) {
            return Err(format!("the target asks for pages of batch {} twice", ask.seq));
        }
        let source = |page: &u16| sent.sources.get(usize::from(*page)).copied().flatten();
        let sources: Option<Vec<u16>> = ask.pages.iter().map(source).collect();
        let sources = sources.ok_or_else(wrong)?;
        let payload = ask.answer(&sent.batch).ok_or_else(wrong)?;
        Ok(Answer {
            payload: payload.map_err(|error| error.to_string())?,
            round: sent.batch.round,
            sources,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_core::page::{BatchBuilder, Fingerprint};

    /// A batch of one page, and where it is referred to.
    fn batch() -> (Batch, Vec<Class>) {
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        stream.extend((4096u64 | 0x04).to_be_bytes());
        stream.extend(b"\x06pc.ram\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x02\0\0\0\x02");
        stream.extend(0x08u64.to_be_bytes());
        stream.extend(b"\x06pc.ram");
        stream.extend([7; 4096]);
        let mut builder = BatchBuilder::new();
        builder.spare()[..stream.len()].copy_from_slice(&stream);
        builder.filled(stream.len());
        let class = Class::Content {
            source: 3,
            block: 5,
            changed: None,
            fingerprint: Fingerprint::default(),
        };
        (builder.cut(0, 1, Vec::new()).unwrap(), vec![class])
    }

    #[test]
    fn a_target_asks_about_a_batch_once_and_only_while_it_is_kept() {
        let (batch, classes) = batch();
        assert_eq!(batch.pages().count(), 1);
        let mut kept = Kept::default();
        let end = batch.stream().len() as u64;
        assert!(kept.keep(end, batch, &classes).is_none());
        let ask = |seq, pages: &[u16]| Ask {
            seq,
            pages: pages.to_vec(),
        };
        assert!(kept.answer(&ask(1, &[0])).is_err(), "another batch");
        assert_eq!(kept.answer(&ask(0, &[0])).unwrap().sources, [3]);
        let again = kept.answer(&ask(0, &[0])).err().unwrap();
        assert!(again.contains("twice"), "{again}");
        assert!(kept.placed(end).is_some());
        let gone = kept.answer(&ask(0, &[0])).err().unwrap();
        assert!(gone.contains("not referred to"), "{gone}");
    }

    #[test]
    fn more_pages_than_the_batch_has_are_not_asked_for() {
        for pages in [&[1][..], &[0, 0], &[]] {
            let (batch, classes) = batch();
            let mut kept = Kept::default();
            kept.keep(9, batch, &classes);
            let asked = Ask::decode(
                &Ask {
                    seq: 0,
                    pages: pages.to_vec(),
                }
                .encode(),
            );
            assert!(asked.is_none_or(|ask| kept.answer(&ask).is_err()), "{pages:?}");
        }
    }
}
