//! The model: three stages side by side, the slowest decides.

use super::costs::Cost;

/// What a session has to work with, whatever the coder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// What the link carries, bytes a second; infinite where nothing was seen of it.
    pub link_bytes_per_s: f64,
    /// Processors that the source has for this, on average; a busy host has fewer than it is made of.
    pub source_cores: f64,
    /// The same on the target.
    pub target_cores: f64,
    /// Both sides work on the same processors, `source_cores` of them.
    pub shared: bool,
    /// Lanes: the most processors that either side can use.
    pub lanes: u16,
    /// The source's processor time for everything but encoding, nanoseconds per byte of the stream.
    pub source_ns_per_byte: f64,
    /// The target's for everything but decoding.
    pub target_ns_per_byte: f64,
    /// The least time that a byte of the stream takes whatever the coder, nanoseconds: QEMU does not write faster.
    pub floor_ns_per_byte: f64,
}

/// What one byte of the stream takes with some coder, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// On the link.
    pub link: f64,
    /// On the source's processors, those of all lanes at once.
    pub source: f64,
    /// On the target's.
    pub target: f64,
    /// Of the pipeline: its slowest stage.
    pub total: f64,
    /// Of all stages together: of two coders as fast, the one with less leaves more room for what varies, and for others.
    pub work: f64,
}

/// What a byte of the stream takes of which `content` (0 to 1, or a little more) has to be coded, at that cost.
pub fn predict(cost: &Cost, content: f64, on: &Conditions) -> Prediction {
    let lanes = f64::from(on.lanes.max(1));
    let source_cpu = on.source_ns_per_byte + content * cost.encode_ns_per_byte;
    let target_cpu = on.target_ns_per_byte + content * cost.decode_ns_per_byte;
    let mut source = source_cpu / on.source_cores.min(lanes).max(CORES_MIN);
    let mut target = target_cpu / on.target_cores.min(lanes).max(CORES_MIN);
    if on.shared {
        // Neither side is done before all the work of both is.
        let both = (source_cpu + target_cpu) / on.source_cores.min(2.0 * lanes).max(CORES_MIN);
        (source, target) = (source.max(both), target.max(both));
    }
    let link = content * cost.ratio * 1e9 / on.link_bytes_per_s;
    Prediction {
        link,
        source,
        target,
        total: link.max(source).max(target).max(on.floor_ns_per_byte),
        work: link + source + target,
    }
}

/// A host that is entirely busy still gives a thread its share.
const CORES_MIN: f64 = 0.1;
