//! What a stream takes on the wire, and how much of that its pages that are sent again.

use vmferry_core::page::{
    Batch, BatchBuilder, Coders, Encoders, EncodingStats, Fingerprint, FingerprintKey, Known, LineHashes, LzError,
    Reach, StreamDigest, encode,
};

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

/// A source.
struct Source {
    known: Known,
    encoders: Encoders,
    payload: Vec<u8>,
    sent: Sent,
}

impl Source {
    fn new(versions_bytes_max: usize) -> Self {
        Self {
            known: Known::new(Reach::All, versions_bytes_max),
            encoders: Encoders::new(Coders::default()),
            payload: Vec::new(),
            sent: Sent::default(),
        }
    }

    fn send(&mut self, batch: &Batch, fingerprints: &[Fingerprint], lines: &[LineHashes]) -> Result<(), LzError> {
        let classes = self.known.classify(batch, fingerprints, lines);
        let mut stats = EncodingStats::default();
        // Its value changes nothing about the length.
        let after = StreamDigest::default();
        self.payload.clear();
        encode(
            batch,
            &classes,
            after,
            &mut self.encoders,
            0,
            &mut self.payload,
            &mut stats,
        )?;
        if let Some(round) = self.sent.rounds.last_mut() {
            *round += stats;
        }
        Ok(())
    }
}

/// Sends a stream, given by rounds, once with each of these budgets of memory for versions, bytes.
pub(crate) fn send(rounds: &[Vec<u8>], budgets: &[usize]) -> Result<Vec<Sent>, LzError> {
    let key = FingerprintKey::new([7; 32]);
    let sources = budgets.iter().map(|bytes_max| Source::new(*bytes_max));
    let mut sources: Vec<Source> = sources.collect();
    let mut builder = BatchBuilder::new();
    let (mut seq, mut buffer) = (0, Vec::new());
    for (round, mut rest) in rounds.iter().map(Vec::as_slice).enumerate() {
        for source in &mut sources {
            source.sent.rounds.push(EncodingStats::default());
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
            for source in &mut sources {
                source.send(&batch, &fingerprints, &lines)?;
            }
            buffer = batch.into_buffer();
        }
    }
    Ok(sources.into_iter().map(|source| source.sent).collect())
}
