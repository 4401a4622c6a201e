//! What a stream takes on the wire, and how much of that its pages that are sent again.

use std::{collections::HashMap, error::Error};
use vmferry_core::{
    page::{
        Batch, BatchBuilder, Before, Class, CodecSettings, EncodingStats, Fingerprint, FingerprintKey, Known,
        LineHashes, Op, Reach, StreamDigest, encode, lz::Encode,
    },
    qemu::BlockId,
};

/// Lines of a page, as differences have them.
const LINES: usize = 64;

/// What is kept of pages as they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// As vmferry does it, in so many bytes.
    Within(usize),
    /// Hashes of all pages' lines, and nothing else.
    AllLines,
    /// All pages, whole.
    AllContents,
}

/// What was sent.
#[derive(Default)]
pub(crate) struct Sent {
    /// By round.
    pub(crate) rounds: Vec<EncodingStats>,
}

impl Sent {
    /// Payload bytes of all rounds.
    pub(crate) fn bytes(&self) -> u64 {
        self.rounds.iter().map(EncodingStats::wire_bytes).sum()
    }

    /// Payload bytes of all rounds but the first: of pages that are sent again, but for a few that were free before.
    pub(crate) fn again_bytes(&self) -> u64 {
        self.rounds.iter().skip(1).map(EncodingStats::wire_bytes).sum()
    }
}

/// A way of sending.
struct Sender {
    kept: Kept,
    known: Known,
    /// Contents as last sent, where all are kept.
    contents: HashMap<(BlockId, u64), Box<[u8]>>,
    lz: Box<dyn Encode>,
    payload: Vec<u8>,
    sent: Sent,
}

impl Sender {
    fn new(kept: Kept) -> Result<Self, Box<dyn Error>> {
        let bytes = match kept {
            Kept::Within(bytes) => bytes,
            Kept::AllLines | Kept::AllContents => 0,
        };
        Ok(Self {
            kept,
            known: Known::new(Reach::All, bytes),
            contents: HashMap::new(),
            lz: CodecSettings::default().encoder()?,
            payload: Vec::new(),
            sent: Sent::default(),
        })
    }

    fn send(
        &mut self,
        batch: &Batch,
        fingerprints: &[Fingerprint],
        lines: &[LineHashes],
    ) -> Result<(), Box<dyn Error>> {
        let mut classes = self.known.classify(batch, fingerprints, lines);
        if !matches!(self.kept, Kept::Within(_)) {
            self.compare(batch, &mut classes);
        }
        let stats = self.sent.rounds.last_mut().ok_or("no round")?;
        let after = StreamDigest::default();
        self.payload.clear();
        encode(
            batch,
            &classes,
            fingerprints,
            after,
            self.lz.as_mut(),
            &mut self.payload,
            stats,
        )?;
        Ok(())
    }

    /// Says of new pages what is known when everything is kept.
    fn compare(&mut self, batch: &Batch, classes: &mut [Class]) {
        let mut classes = classes.iter_mut();
        for op in batch.ops() {
            match op {
                Op::Page { at, start, .. } => {
                    let now = batch.page(*start);
                    let before = self.contents.insert((at.block, at.offset), now.into());
                    if let (Some(Class::New { before: known }), Some(before)) = (classes.next(), before) {
                        *known = match self.kept {
                            Kept::AllLines => Before::Changed(changed_lines(&before, now)),
                            _ => Before::Content(before),
                        };
                    }
                }
                Op::Zero { at, pages, .. } => {
                    for page in 0..*pages {
                        let offset = at.offset + page * batch.page_bytes() as u64;
                        self.contents.remove(&(at.block, offset));
                    }
                }
                Op::Bytes(_) | Op::Blocks(_) | Op::Foreign { .. } => {}
            }
        }
    }
}

fn changed_lines(before: &[u8], now: &[u8]) -> u64 {
    let line_bytes = (now.len() / LINES).max(1);
    let pairs = before.chunks(line_bytes).zip(now.chunks(line_bytes)).enumerate();
    pairs.fold(0, |mask, (number, (before, now))| {
        mask | u64::from(before != now) << number
    })
}

/// Sends a stream, given by rounds, in several ways at once.
pub(crate) fn send(rounds: &[Vec<u8>], kept: &[Kept]) -> Result<Vec<Sent>, Box<dyn Error>> {
    let key = FingerprintKey::new([7; 32]);
    let mut senders: Vec<Sender> = kept.iter().map(|kept| Sender::new(*kept)).collect::<Result<_, _>>()?;
    let mut builder = BatchBuilder::new();
    let (mut seq, mut buffer) = (0, Vec::new());
    for (round, mut rest) in rounds.iter().map(Vec::as_slice).enumerate() {
        for sender in &mut senders {
            sender.sent.rounds.push(EncodingStats::default());
        }
        while !rest.is_empty() {
            let spare = builder.spare();
            let (now, later) = rest.split_at(spare.len().min(rest.len()));
            spare[..now.len()].copy_from_slice(now);
            rest = later;
            builder.filled(now.len());
            if rest.is_empty() && round + 1 == rounds.len() {
                builder.end();
            }
            let Some(batch) = builder.cut(seq, round as u32, std::mem::take(&mut buffer)) else {
                continue;
            };
            seq += 1;
            let (fingerprints, lines) = (key.pages(&batch), key.lines(&batch));
            for sender in &mut senders {
                sender.send(&batch, &fingerprints, &lines)?;
            }
            buffer = batch.into_buffer();
        }
    }
    Ok(senders.into_iter().map(|sender| sender.sent).collect())
}
