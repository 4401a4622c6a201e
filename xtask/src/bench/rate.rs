//! The search for the dirty rate up to which a guest still arrives.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::plan::{Link, Workload};
use super::results::Status;
use super::world::World;

/// The link of all searches.
pub(crate) const LINK: Link = Link::SLOW;

/// Each halves the ratio of the rates between which the border lies.
const BISECTIONS: usize = 6;

/// One move at a rate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Try {
    /// Bytes of pages a second that the guest was told to write.
    pub(crate) asked_bytes_per_s: u64,
    /// What it wrote by its own account, the move's blackout included.
    pub(crate) written_bytes_per_s: f64,
    pub(crate) converged: bool,
    pub(crate) total_ms: f64,
    pub(crate) blackout_guest_ms: f64,
}

/// All moves of one search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Search {
    pub(crate) workload: Workload,
    pub(crate) mode: Mode,
    pub(crate) tries: Vec<Try>,
}

/// The modes whose border is sought for a workload, and between which bytes of pages a second.
pub(crate) fn plan(workload: Workload) -> Option<(&'static [Mode], (u64, u64))> {
    match workload {
        Workload::Counter => Some((
            &[Mode::Vmferry, Mode::MultifdZstd, Mode::Xbzrle],
            (2_000_000, 128_000_000),
        )),
        Workload::Text => Some((&[Mode::Vmferry, Mode::MultifdZstd], (8_000_000, 128_000_000))),
        _ => None,
    }
}

impl Search {
    /// Bisects between `low` and `high` bytes of pages a second. At the border a rate at which the guest did not arrive
    /// is tried again.
    pub(crate) fn run(world: &mut World, workload: Workload, mode: Mode, (low, high): (u64, u64)) -> Result<Self> {
        let mut search = Self {
            workload,
            mode,
            tries: Vec::new(),
        };
        let (mut low, mut high) = (low as f64, high as f64);
        for _ in 0..BISECTIONS {
            let middle = (low * high).sqrt();
            if search.converges_at(world, middle as u64)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        if search.does_not_converge().is_some() {
            search.converges_at(world, high as u64)?;
        }
        Ok(search)
    }

    fn converges_at(&mut self, world: &mut World, bytes_per_s: u64) -> Result<bool> {
        world.set_dirty_rate(bytes_per_s);
        let run = world.measure(self.mode, LINK)?;
        let converged = run.status == Status::Completed;
        let written = run.written_bytes_per_s.unwrap_or(0.0);
        println!(
            "{:<10} {LINK:>9}  {:<13} {:>7.1} MB/s asked, {:>7.1} MB/s written: {} after {:.1} s",
            self.workload.name(),
            self.mode.name(),
            bytes_per_s as f64 / 1e6,
            written / 1e6,
            if converged { "arrived" } else { "did not arrive" },
            run.total_ms / 1e3,
        );
        self.tries.push(Try {
            asked_bytes_per_s: bytes_per_s,
            written_bytes_per_s: written,
            converged,
            total_ms: run.total_ms,
            blackout_guest_ms: run.blackout_guest_ms,
        });
        Ok(converged)
    }

    /// The highest rate, bytes of pages written a second, of a move that converged.
    pub(crate) fn converges(&self) -> Option<f64> {
        self.tries
            .iter()
            .filter(|one| one.converged)
            .map(|one| one.written_bytes_per_s)
            .max_by(f64::total_cmp)
    }

    /// The lowest rate of those that did not, at which no other move did.
    pub(crate) fn does_not_converge(&self) -> Option<f64> {
        let arrived = self
            .tries
            .iter()
            .filter(|one| one.converged)
            .map(|one| one.asked_bytes_per_s)
            .max();
        self.tries
            .iter()
            .filter(|one| !one.converged && Some(one.asked_bytes_per_s) > arrived)
            .map(|one| one.written_bytes_per_s)
            .min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_try_that_arrives_counts() {
        let one = |rate: u64, converged| Try {
            asked_bytes_per_s: rate,
            written_bytes_per_s: rate as f64,
            converged,
            total_ms: 1.0,
            blackout_guest_ms: 1.0,
        };
        let search = |tries| Search {
            workload: Workload::Counter,
            mode: Mode::Vmferry,
            tries,
        };
        let border = search(vec![one(8, true), one(16, false), one(12, false)]);
        assert_eq!(
            (border.converges(), border.does_not_converge()),
            (Some(8.0), Some(12.0))
        );
        let moved = search(vec![one(8, true), one(16, false), one(12, false), one(12, true)]);
        assert_eq!((moved.converges(), moved.does_not_converge()), (Some(12.0), Some(16.0)));
        assert_eq!(search(vec![one(8, false)]).converges(), None);
    }
}
