//! What simulated sessions send: recorded pages, alone and mixed, and pages that nobody recorded.

use super::{
    costs::Cost,
    kind::{Load, PageKind},
    recorded::{CHANGED, Pages, recorded},
    simulation::Random,
};
use crate::limits::BATCH_BYTES;

/// QEMU's stream of a session, bytes: a small guest, for which trying coders out costs the most.
pub const SESSION_BYTES: usize = 512 << 20;

/// The same in batches.
const BATCHES: usize = SESSION_BYTES / BATCH_BYTES;

/// Batches after which a mixed session goes on with other pages: 4 MiB.
const RUN_BATCHES: usize = 8;

/// Batches of one content.
#[derive(Clone, Debug)]
pub struct Content {
    /// What the chooser is told of one.
    pub load: Load,
    /// What each coder makes of it, by its number.
    pub coders: Vec<Cost>,
}

impl From<&Pages> for Content {
    fn from(pages: &Pages) -> Content {
        Content {
            load: pages.load(),
            coders: pages.coders.clone(),
        }
    }
}

/// What a session sends.
#[derive(Clone, Debug)]
pub struct Mix {
    /// What it is called.
    pub name: String,
    /// All contents in it.
    pub contents: Vec<Content>,
    /// The session's batches: which of those each one has.
    pub batches: Vec<usize>,
}

impl Mix {
    fn of(name: impl Into<String>, pages: &[&Pages], batches: impl Fn(usize) -> usize) -> Mix {
        Mix {
            name: name.into(),
            contents: pages.iter().copied().map(Content::from).collect(),
            batches: (0..BATCHES).map(batches).collect(),
        }
    }

    /// Of pages that nobody recorded, in runs that are shorter or longer: each content is a blend of two recorded ones within
    /// every batch, and each coder does better or worse on it than on those.
    pub(super) fn unheard_of(random: &mut Random) -> Mix {
        let contents: Vec<Content> = (0..=random.below(6)).map(|_| strange(random)).collect();
        let mut batches = Vec::new();
        while batches.len() < BATCHES {
            let content = random.below(contents.len());
            let run = 1 << random.below(9);
            batches.extend(std::iter::repeat_n(content, run));
        }
        batches.truncate(BATCHES);
        Mix {
            name: format!("{} contents that nobody recorded", contents.len()),
            contents,
            batches,
        }
    }
}

/// Sessions of one content each, once as it is and once with the second half of the session in changed pages, and two of all
/// contents: one after another, and by turns.
pub fn mixes() -> Vec<Mix> {
    let all: Vec<&Pages> = recorded().pages.iter().collect();
    let mut mixes = Vec::new();
    for pages in all.iter().filter(|pages| pages.load().kind == PageKind::Fresh) {
        mixes.push(Mix::of(&pages.name, &[pages], |_| 0));
        let changed = format!("{}{CHANGED}", pages.name);
        if let Some(changed) = all.iter().find(|other| other.name == changed) {
            let name = format!("{}, then changed", pages.name);
            mixes.push(Mix::of(name, &[pages, changed], |batch| batch * 2 / BATCHES));
        }
    }
    let part = BATCHES.div_ceil(all.len());
    mixes.push(Mix::of("all, one after another", &all, |batch| batch / part));
    let by_turns = |batch| batch / RUN_BATCHES % all.len();
    mixes.push(Mix::of("all, by turns", &all, by_turns));
    mixes
}

/// How far a strange content's figures may be from recorded ones, as powers of two: of times, and of the logarithm of ratios.
const STRANGE_TIME: f64 = 0.25;
const STRANGE_DENSITY: f64 = 0.1;

fn strange(random: &mut Random) -> Content {
    let is_changed = random.below(3) == 0;
    let of_kind = |pages: &&Pages| (pages.load().kind == PageKind::Changed) == is_changed;
    let recorded: Vec<&Pages> = recorded().pages.iter().filter(of_kind).collect();
    let mut any = || recorded[random.below(recorded.len())];
    let (one, other) = (any(), any());
    let part = random.unit();
    let of_one = part * one.content / (part * one.content + (1.0 - part) * other.content);
    let blend = |a: f64, b: f64| of_one * a + (1.0 - of_one) * b;
    let mut off = |by: f64| ((2.0 * random.unit() - 1.0) * by).exp2();
    let coders = one.coders.iter().zip(&other.coders).map(|(a, b)| Cost {
        encode_ns_per_byte: blend(a.encode_ns_per_byte, b.encode_ns_per_byte) * off(STRANGE_TIME),
        decode_ns_per_byte: blend(a.decode_ns_per_byte, b.decode_ns_per_byte) * off(STRANGE_TIME),
        ratio: blend(a.ratio, b.ratio).powf(off(STRANGE_DENSITY)).min(1.0),
    });
    Content {
        coders: coders.collect(),
        load: Load {
            kind: one.load().kind,
            content: part * one.content + (1.0 - part) * other.content,
            dense: blend(one.load().dense, other.load().dense),
        },
    }
}
