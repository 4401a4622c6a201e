//! The simulation over links, processors and pages: is the choice ever much worse than the best fixed coder?

use super::{
    mixes::{Mix, mixes},
    simulation::{Policy, Random, Session, Taken},
};
use crate::page::Coders;

/// Links, megabits a second.
pub const LINKS_MBIT_S: [f64; 13] = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];

/// Processors of the source and of the target; the same number twice stands for one host that both are on, too.
pub const CORES: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Machines that are faster and slower than the one that the costs were recorded on.
const SLOWNESS: [f64; 3] = [1.0, 0.4, 2.5];

/// Where a session runs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The link, megabits a second.
    pub link_mbit_s: f64,
    /// Processors of the source and of the target.
    pub cores: [u16; 2],
    /// Both sides are on one host.
    pub shared: bool,
    /// How much slower the machines are than the recorded one.
    pub slowness: f64,
}

/// Where a place and pages meet.
#[derive(Clone, Debug)]
pub struct Point {
    /// The place.
    pub place: Place,
    /// The pages.
    pub pages: String,
    /// With each fixed coder, by its number.
    pub fixed: Vec<Taken>,
    /// As chosen.
    pub chosen: Taken,
}

impl Point {
    /// Runs the session there; the seed is that of its measurements' errors.
    pub fn run(place: Place, mix: &Mix, seed: u64) -> Point {
        let session = Session {
            link_bytes_per_s: place.link_mbit_s * 1e6 / 8.0,
            source_cores: f64::from(place.cores[0]),
            target_cores: f64::from(place.cores[1]),
            shared: place.shared,
            slowness: place.slowness,
            mix,
            seed,
        };
        let coders = 0..Coders::auto().len() as u8;
        Point {
            place,
            pages: mix.name.clone(),
            fixed: coders.map(|coder| session.run(Policy::Fixed(coder))).collect(),
            chosen: session.run(Policy::Chosen),
        }
    }

    /// The fixed coder with the least time, and what it takes.
    pub fn best(&self) -> (usize, Taken) {
        let fixed = self.fixed.iter().copied().enumerate();
        fixed
            .min_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds))
            .unwrap_or_default()
    }

    /// The chosen time over that of the best fixed coder.
    pub fn regret(&self) -> f64 {
        self.chosen.seconds / self.best().1.seconds
    }
}

/// All points: every link, every pair of processors, apart and shared, every mix of pages; machines of three speeds in turn. The seed is that of
/// the measurements' errors.
pub fn points(seed: u64) -> Vec<Point> {
    let mixes = mixes();
    let hosts = CORES.into_iter().flat_map(|source| {
        let apart = CORES.into_iter().map(move |target| ([source, target], false));
        apart.chain([([source, source], true)])
    });
    let places = LINKS_MBIT_S
        .into_iter()
        .flat_map(|link_mbit_s| hosts.clone().map(move |(cores, shared)| (link_mbit_s, cores, shared)));
    let mut points = Vec::new();
    for (number, (link_mbit_s, cores, shared)) in places.enumerate() {
        let place = Place {
            link_mbit_s,
            cores,
            shared,
            slowness: SLOWNESS[number % SLOWNESS.len()],
        };
        points.extend(mixes.iter().map(|mix| Point::run(place, mix, seed)));
    }
    points
}

/// Points on which nothing was adjusted: drawn at random from all that lies between and around the others, with other errors
/// of measurement and pages that nobody recorded.
pub fn held_out(count: usize, seed: u64) -> Vec<Point> {
    let mut random = Random(seed);
    let mut point = |number| {
        let cores = [(); 2].map(|()| random.between(1.0, 65.0) as u16);
        let shared = random.below(5) == 0;
        let place = Place {
            link_mbit_s: random.between(10.0, 1e5),
            cores: if shared { [cores[0]; 2] } else { cores },
            shared,
            slowness: random.between(0.3, 3.0),
        };
        Point::run(place, &Mix::unheard_of(&mut random), seed + number)
    };
    (0..count as u64).map(&mut point).collect()
}
