//! Costs as the example `coder_costs` measured them once, on one machine: what a choice starts from, and what its simulation
//! runs on. On another machine the proportions between coders hold better than the figures; measuring replaces both.

use super::{
    costs::Cost,
    kind::{Load, PageKind},
};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    /// The processor, and what else is worth knowing.
    pub machine: String,
    /// Everything of the source but encoding, per byte of QEMU's stream.
    pub source_ns_per_byte: f64,
    /// Everything of the target but decoding.
    pub target_ns_per_byte: f64,
    /// Kinds of content.
    pub pages: Vec<Pages>,
}

/// How names end of pages that were changed and sent again.
pub const CHANGED: &str = ", changed";

/// One kind of content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pages {
    /// What it was.
    pub name: String,
    /// The part of QEMU's stream that had to be coded; the rest were references, zero runs and unchanged parts of pages.
    pub content: f64,
    /// What each coder of [`Coders::auto`](super::super::Coders::auto) made of it, by its number.
    pub coders: Vec<Cost>,
}

impl Pages {
    /// What a choice is told of a batch of it.
    pub fn load(&self) -> Load {
        let is_dense = self.coders.iter().all(|coder| coder.ratio > 0.9);
        Load {
            kind: match self.name.ends_with(CHANGED) {
                true => PageKind::Changed,
                false => PageKind::Fresh,
            },
            content: self.content,
            dense: f64::from(u8::from(is_dense)),
        }
    }
}

static RECORDED: LazyLock<Recorded> = LazyLock::new(|| {
    serde_json::from_str(include_str!("recorded.json")).expect("`coder_costs` printed it, and a test reads it")
});

/// All that was measured.
pub fn recorded() -> &'static Recorded {
    &RECORDED
}

/// What to assume of a coder before it was measured on such pages: the middle of what was recorded. The coder is one of
/// [`Coders::auto`](super::super::Coders::auto), by its number.
pub(super) fn assumed(kind: PageKind, is_dense: bool, coder: usize) -> Cost {
    let of_kind = || {
        let pages = recorded().pages.iter().filter(move |pages| {
            let load = pages.load();
            load.kind == kind && (load.dense > 0.5) == is_dense
        });
        pages.filter_map(move |pages| pages.coders.get(coder))
    };
    let middle = |of: fn(&Cost) -> f64| {
        let mut all: Vec<f64> = of_kind().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(1.0)
    };
    Cost {
        encode_ns_per_byte: middle(|cost| cost.encode_ns_per_byte),
        decode_ns_per_byte: middle(|cost| cost.decode_ns_per_byte),
        ratio: middle(|cost| cost.ratio),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::Coders, *};

    #[test]
    fn every_coder_was_recorded_on_every_kind_of_page() {
        for pages in &recorded().pages {
            assert_eq!(pages.coders.len(), Coders::auto().len(), "{}", pages.name);
        }
        for kind in PageKind::ALL {
            let light = assumed(kind, false, 1);
            let heavy = assumed(kind, false, Coders::auto().len() - 1);
            assert!(heavy.ratio < light.ratio, "{kind}: heavier coders save more");
            assert!(
                heavy.encode_ns_per_byte > light.encode_ns_per_byte,
                "{kind}: and take longer"
            );
        }
    }
}
