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
        self.batches.push_back(Sent { end, batch, sources });
        None
    }

    /// Gives back a batch that the target has placed: it has, with all before it, once it has acknowledged `end` bytes.
    pub(crate) fn placed(&mut self, end: u64) -> Option<Batch> {
        self.batches.pop_front_if(|sent| sent.end <= end).map(|sent| sent.batch)
    }

    /// What the target asks for.
    pub(crate) fn answer(&self, ask: &Ask) -> Result<Answer, String> {
        let sent = self.batches.iter().find(|sent| sent.batch.seq == ask.seq);
        let wrong = || {
            format!(
                "the target asks for pages of batch {} that it was not referred to",
                ask.seq
            )
        };
        let sent = sent.ok_or_else(wrong)?;
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
