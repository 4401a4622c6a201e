//! What goes wrong in a run, drawn from the campaign's seed and the run's number alone.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::random::Random;

/// The shortest and the longest that a link fails, seconds.
const CUT_S: (f64, f64) = (0.1, 30.0);
/// The same of all else: what comes later finds the migration ended.
const FAILURE_S: (f64, f64) = (0.1, 4.0);
/// The same of what is sent on one connection of several: from when on it is replaced, and beyond that.
const SILENT_LANE_S: (f64, f64) = (1.0, 60.0);
/// Longer than the silence after which an agent counts its peer as lost, seconds.
const PAUSE_S: (f64, f64) = (12.0, 15.0);
/// The longest time from a step to the fault, milliseconds.
const DELAY_MS_MAX: u32 = 50;

/// One of the two hosts of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Side {
    /// The one that the guest leaves.
    Source,
    /// The one that it is to run on.
    Target,
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// SIGKILL of an agent, which is started again.
    KillAgent(Side),
    /// SIGKILL of a QEMU.
    KillQemu(Side),
    /// The link of a host: nothing gets in or out, its guest's traffic included.
    CutLink(Side),
    /// All that this agent sends to the other one is lost, and nobody is told.
    CutDirection(Side),
    /// One TCP connection between the agents, the control lane's or a data lane's.
    BreakLane,
    /// All that is sent on one of these connections is lost, both ways, and nobody is told.
    SilenceLane,
    /// SIGKILL of one of etcd's three nodes, which is started again.
    KillNode,
    /// The same of two nodes: the rest decides nothing.
    KillNodes,
    /// The disk with the agent's state has no room left.
    FillDisk(Side),
    /// Each of the agent's writes to a file fails.
    FailWrites(Side),
    /// The agent's wall clock jumps, and back later.
    JumpClock(Side),
    /// SIGSTOP of an agent, past the silence that its peer allows, then SIGCONT.
    PauseAgent(Side),
}

impl Fault {
    /// Every kind.
    pub(crate) const ALL: [Self; 21] = [
        Self::None,
        Self::KillAgent(Side::Source),
        Self::KillAgent(Side::Target),
        Self::KillQemu(Side::Source),
        Self::KillQemu(Side::Target),
        Self::CutLink(Side::Source),
        Self::CutLink(Side::Target),
        Self::CutDirection(Side::Source),
        Self::CutDirection(Side::Target),
        Self::BreakLane,
        Self::SilenceLane,
        Self::KillNode,
        Self::KillNodes,
        Self::FillDisk(Side::Source),
        Self::FillDisk(Side::Target),
        Self::FailWrites(Side::Source),
        Self::FailWrites(Side::Target),
        Self::JumpClock(Side::Source),
        Self::JumpClock(Side::Target),
        Self::PauseAgent(Side::Source),
        Self::PauseAgent(Side::Target),
    ];

    /// Those that there are for hosts with or without an arbiter.
    fn kinds(arbiter: bool) -> Vec<Self> {
        let is_of_etcd = |fault: &Self| matches!(fault, Self::KillNode | Self::KillNodes);
        Self::ALL
            .into_iter()
            .filter(|fault| arbiter || !is_of_etcd(fault))
            .collect()
    }

    /// What people call it.
    pub(crate) const fn name(self) -> &'static str {
        use Side::{Source, Target};
        match self {
            Self::None => "nothing",
            Self::KillAgent(Source) => "source agent killed",
            Self::KillAgent(Target) => "target agent killed",
            Self::KillQemu(Source) => "source QEMU killed",
            Self::KillQemu(Target) => "target QEMU killed",
            Self::CutLink(Source) => "source's link down",
            Self::CutLink(Target) => "target's link down",
            Self::CutDirection(Source) => "source's packets lost",
            Self::CutDirection(Target) => "target's packets lost",
            Self::BreakLane => "one connection broken",
            Self::SilenceLane => "one connection silent",
            Self::KillNode => "one etcd node killed",
            Self::KillNodes => "two etcd nodes killed",
            Self::FillDisk(Source) => "source's disk full",
            Self::FillDisk(Target) => "target's disk full",
            Self::FailWrites(Source) => "source's writes fail",
            Self::FailWrites(Target) => "target's writes fail",
            Self::JumpClock(Source) => "source's clock jumps",
            Self::JumpClock(Target) => "target's clock jumps",
            Self::PauseAgent(Source) => "source agent paused",
            Self::PauseAgent(Target) => "target agent paused",
        }
    }
}

/// When the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Step {
    /// The source's journal says that an attempt began.
    Offered,
    /// Memory is crossing.
    PreCopy,
    /// What the guest wrote meanwhile is crossing.
    SecondRound,
    /// The guest stands still.
    StopAndCopy,
    /// The target's journal says that it has all of the guest.
    Prepared,
    /// The source's journal says that the guest is the target's.
    Released,
    /// The target's journal says that the guest is its own.
    Owned,
    /// The target's journal says that the guest runs there.
    TakenOver,
}

impl Step {
    /// Every step, in order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Offered,
        Self::PreCopy,
        Self::SecondRound,
        Self::StopAndCopy,
        Self::Prepared,
        Self::Released,
        Self::Owned,
        Self::TakenOver,
    ];

    /// What people call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::PreCopy => "pre-copy",
            Self::SecondRound => "second round",
            Self::StopAndCopy => "stop-and-copy",
            Self::Prepared => "prepared",
            Self::Released => "released",
            Self::Owned => "owned",
            Self::TakenOver => "taken over",
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Its number in the campaign, from 0.
    pub(crate) number: u32,
    /// Whether etcd is the hosts' arbiter.
    pub(crate) arbiter: bool,
    /// What fails.
    pub(crate) fault: Fault,
    /// At which step.
    pub(crate) step: Step,
    /// How long after that.
    pub(crate) delay: Duration,
    /// How long it lasts; for an agent that is killed, until it is started again.
    pub(crate) lasts: Duration,
    /// A number that whatever else there is to choose is chosen by: which connection, how far a clock jumps.
    pub(crate) choice: u32,
    /// The limit on what crosses, MB a second.
    pub(crate) bandwidth_mb_s: u32,
}

impl Plan {
    /// Run `number` of the campaign with `seed`: every other one has an arbiter. Of those that have one, and of the others, each
    /// kind of fault comes once in as many runs as there are kinds, in an order that is drawn anew each time.
    pub(crate) fn drawn(seed: u32, number: u32) -> Self {
        let (arbiter, nth) = (number % 2 == 1, number / 2);
        let mut order = Fault::kinds(arbiter);
        let kinds = order.len() as u32;
        let mut shuffle = Random::new(seed, 2 * (nth / kinds) + u32::from(arbiter));
        for last in (1..kinds).rev() {
            order.swap(last as usize, shuffle.below(last + 1) as usize);
        }
        let fault = order[(nth % kinds) as usize];
        let mut random = Random::new(!seed, number);
        let (shortest, longest) = match fault {
            Fault::PauseAgent(_) => PAUSE_S,
            Fault::CutLink(_) | Fault::CutDirection(_) | Fault::KillNode | Fault::KillNodes => CUT_S,
            Fault::SilenceLane => SILENT_LANE_S,
            _ => FAILURE_S,
        };
        // As many short ones as long ones: the logarithm is drawn.
        let part = f64::from(random.below(1 << 16)) / f64::from(1 << 16);
        let seconds = shortest * (longest / shortest).powf(part);
        Self {
            number,
            arbiter,
            fault,
            step: random.one_of(&Step::ALL),
            delay: Duration::from_millis(random.below(DELAY_MS_MAX + 1).into()),
            lasts: Duration::from_secs_f64(seconds),
            choice: random.below(u32::MAX),
            bandwidth_mb_s: random.one_of(&[16, 40, 100]),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arbiter = if self.arbiter { "etcd" } else { "" };
        write!(f, "{:>4} {arbiter:<4} {:<22}", self.number, self.fault.name())?;
        if self.fault != Fault::None {
            write!(
                f,
                " {} ms after {:<14} for {:4.1} s",
                self.delay.as_millis(),
                self.step.name(),
                self.lasts.as_secs_f64()
            )?;
        }
        write!(f, "  at {} MB/s", self.bandwidth_mb_s)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Fault, Plan, Step};

    #[test]
    fn a_run_follows_from_seed_and_number() {
        assert_eq!(Plan::drawn(7, 3), Plan::drawn(7, 3));
        let of_seed = |seed| (0..36).map(move |number| Plan::drawn(seed, number)).collect::<Vec<_>>();
        assert_ne!(of_seed(7), of_seed(8));
    }

    #[test]
    fn every_kind_of_fault_comes_in_each_round_and_every_step_in_a_few() {
        for arbiter in [false, true] {
            let kinds = Fault::kinds(arbiter).len() as u32;
            for round in 0..3 {
                let names: HashSet<&str> = (round * kinds..(round + 1) * kinds)
                    .map(|nth| Plan::drawn(1, 2 * nth + u32::from(arbiter)).fault.name())
                    .collect();
                assert_eq!(names.len(), kinds as usize);
            }
        }
        let steps: HashSet<&str> = (0..100).map(|number| Plan::drawn(1, number).step.name()).collect();
        assert_eq!(steps.len(), Step::ALL.len());
    }
}
