//! The simulation over links, processors and pages: is the choice ever much worse than the best fixed coder?

use super::{
    costs::PageKind,
    recorded::{CHANGED, Pages, recorded},
    simulation::{Policy, Session},
};
use crate::limits::BATCH_BYTES;
use crate::page::Coders;

/// Links, megabits a second.
pub const LINKS_MBIT_S: [f64; 13] = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];

/// Processors of the source and of the target; the same number twice stands for one host that both are on, too.
pub const CORES: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];

/// QEMU's stream of a session, bytes: a small guest, for which trying coders out costs the most.
pub const SESSION_BYTES: usize = 512 << 20;

/// Batches after which a mixed session goes on with other pages: 4 MiB.
const RUN_BATCHES: usize = 8;

/// Machines that are faster and slower than the one that the costs were recorded on.
const SLOWNESS: [f64; 3] = [1.0, 0.4, 2.5];

/// Where two processors, a link and pages meet.
#[derive(Clone, Debug)]
pub struct Point {
    /// The link, megabits a second.
    pub link_mbit_s: f64,
    /// Processors of the source.
    pub source_cores: u16,
    /// Processors of the target.
    pub target_cores: u16,
    /// Both sides are on one host.
    pub shared: bool,
    /// How much slower the machines are than the recorded one.
    pub slowness: f64,
    /// The pages.
    pub pages: String,
    /// Seconds with each fixed coder, by its number.
    pub fixed_s: Vec<f64>,
    /// Seconds as chosen.
    pub chosen_s: f64,
}

impl Point {
    /// The fixed coder with the least time, and that time.
    pub fn best(&self) -> (usize, f64) {
        let fixed = self.fixed_s.iter().copied().enumerate();
        fixed
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .unwrap_or((0, f64::INFINITY))
    }

    /// The chosen time over that of the best fixed coder.
    pub fn regret(&self) -> f64 {
        self.chosen_s / self.best().1
    }
}

/// Sessions of one kind of page each, once as they are and once with the second half of the session in changed pages, and two
/// of all kinds: one after another, and by turns.
pub fn mixes() -> Vec<(String, Vec<&'static Pages>)> {
    let batches = SESSION_BYTES / BATCH_BYTES;
    let all: Vec<&Pages> = recorded().pages.iter().collect();
    let mut mixes = Vec::new();
    for pages in all.iter().filter(|pages| pages.kind() == PageKind::Fresh) {
        mixes.push((pages.name.clone(), vec![*pages; batches]));
        let changed = format!("{}{CHANGED}", pages.name);
        if let Some(changed) = all.iter().find(|other| other.name == changed) {
            let halves = [vec![*pages; batches / 2], vec![*changed; batches / 2]];
            mixes.push((format!("{}, then changed", pages.name), halves.concat()));
        }
    }
    let part = batches.div_ceil(all.len());
    let in_parts = (0..batches).map(|batch| all[batch / part]).collect();
    let by_turns = (0..batches).map(|batch| all[batch / RUN_BATCHES % all.len()]).collect();
    mixes.push(("all, one after another".to_owned(), in_parts));
    mixes.push(("all, by turns".to_owned(), by_turns));
    mixes
}

/// Runs the session at one point.
pub fn point(link_mbit_s: f64, cores: [u16; 2], shared: bool, slowness: f64, mix: &(String, Vec<&Pages>)) -> Point {
    let session = Session {
        link_bytes_per_s: link_mbit_s * 1e6 / 8.0,
        source_cores: f64::from(cores[0]),
        target_cores: f64::from(cores[1]),
        shared,
        slowness,
        batches: mix.1.clone(),
    };
    let coders = 0..Coders::auto().len() as u8;
    Point {
        link_mbit_s,
        source_cores: cores[0],
        target_cores: cores[1],
        shared,
        slowness,
        pages: mix.0.clone(),
        fixed_s: coders.map(|coder| session.seconds(Policy::Fixed(coder))).collect(),
        chosen_s: session.seconds(Policy::Chosen),
    }
}

/// All points: every link, every pair of processors, apart and shared, every mix of pages; machines of three speeds in turn.
pub fn points() -> impl Iterator<Item = Point> {
    let mixes = mixes();
    let hosts = CORES.into_iter().flat_map(|source| {
        let apart = CORES.into_iter().map(move |target| ([source, target], false));
        apart.chain([([source, source], true)])
    });
    let places: Vec<_> = LINKS_MBIT_S
        .into_iter()
        .flat_map(|link| hosts.clone().map(move |(cores, shared)| (link, cores, shared)))
        .collect();
    places
        .into_iter()
        .enumerate()
        .flat_map(move |(number, (link, cores, shared))| {
            let slowness = SLOWNESS[number % SLOWNESS.len()];
            let points: Vec<_> = mixes
                .iter()
                .map(|mix| point(link, cores, shared, slowness, mix))
                .collect();
            points
        })
}
