//! A state of the world, small and comparable: two agents, two QEMUs, two journals, and what is on its way between them.

use super::machines::{Event, Id};
use crate::handover::arbiter::{Claim, Holder};

/// Most that the network can be bounded to hold in one direction.
pub(super) const IN_FLIGHT_MAX: usize = 3;
/// Longer than any journal of one handover gets.
const RECORDS_MAX: usize = 7;

/// One of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Source,
    Target,
}

impl Host {
    pub(super) fn other(self) -> Host {
        match self {
            Host::Source => Host::Target,
            Host::Target => Host::Source,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Qemu {
    Absent,
    /// Runs its guest; at the source, without a migration.
    Running,
    /// Source: runs the guest, pages flow.
    Migrating,
    /// Source: stopped for the final pass.
    Stopped,
    /// Source: as before, and its socket was closed: it will resume the guest by itself.
    Resuming,
    /// Source: given SHUT 0, about to be in `postmigrate`.
    Shutting,
    /// Source: as before, and its socket was closed: it ends in `postmigrate` or resumes the guest, whichever it sees first.
    ShuttingOrResuming,
    PostMigrate,
    /// Target: waits for or loads the stream.
    Incoming,
    /// Target: complete and paused.
    Paused,
    /// Killed, or ended.
    Dead,
}

impl Qemu {
    pub(super) fn lives(self) -> bool {
        !matches!(self, Qemu::Absent | Qemu::Dead)
    }

    pub(super) fn runs(self) -> bool {
        matches!(self, Qemu::Running | Qemu::Migrating)
    }

    /// Target: has all of the guest.
    pub(super) fn is_complete(self) -> bool {
        matches!(self, Qemu::Paused | Qemu::Running)
    }
}

/// What an agent does about the handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Driver {
    /// The agent was killed and is not restarted yet.
    Down,
    /// Its host is gone, and never comes back.
    Gone,
    /// Nothing: it answers from its journal.
    Idle,
    /// It carries out what a state machine says.
    Machine(Id),
    /// The same, after a restart.
    Resumed(Id),
    /// Source, after a restart: sees that the guest runs, then writes `RolledBack`.
    RollBack {
        /// The guest runs, or its QEMU is gone.
        ended: bool,
        /// What it answers is not its journal's word.
        aborted: bool,
    },
}

impl Driver {
    pub(super) fn is_down(self) -> bool {
        matches!(self, Driver::Down | Driver::Gone)
    }

    pub(super) fn machine(self) -> Option<Id> {
        match self {
            Driver::Machine(id) | Driver::Resumed(id) => Some(id),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Agent {
    pub(super) driver: Driver,
    /// Effects still to be carried out.
    pub(super) plan: Id,
    /// What came of one of them, told when all are carried out.
    pub(super) reported: Option<Event>,
    /// It has to be restarted before all is well: its journal takes nothing more, or its QEMU's monitor does not answer.
    pub(super) broken: bool,
    /// It has a control lane.
    pub(super) lane: bool,
    /// Which is gone, and it has not noticed.
    pub(super) lane_cut: bool,
    /// It lists the VM as its own, running or ended.
    pub(super) lists: bool,
}

/// What is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Journal {
    records: [u8; RECORDS_MAX],
    count: u8,
    /// The last was reported as failed, so that only a restarted agent knows of it.
    pub(super) unheard: bool,
}

impl Journal {
    pub(super) fn push(&mut self, record: Id) {
        self.records[usize::from(self.count)] = u8::try_from(record).unwrap();
        self.count += 1;
    }

    pub(super) fn on_disk(&self) -> impl Iterator<Item = Id> {
        self.records.into_iter().take(usize::from(self.count)).map(Id::from)
    }

    /// What the agent that wrote it knows to be there.
    pub(super) fn known(&self) -> impl Iterator<Item = Id> {
        let count = self.count - u8::from(self.unheard);
        self.records.into_iter().take(usize::from(count)).map(Id::from)
    }
}

/// Messages on their way in one direction, in no order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Net([Id; IN_FLIGHT_MAX]);

impl Net {
    /// `false` if there is no place for it.
    pub(super) fn send(&mut self, message: Id, bound: usize) -> bool {
        let free = self.0[IN_FLIGHT_MAX - bound..].iter_mut().find(|place| **place == 0);
        let Some(place) = free else { return false };
        *place = message;
        self.0.sort_unstable();
        true
    }

    pub(super) fn take(&mut self, message: Id) {
        if let Some(place) = self.0.iter_mut().find(|place| **place == message) {
            *place = 0;
        }
        self.0.sort_unstable();
    }

    /// Each message once.
    pub(super) fn messages(self) -> impl Iterator<Item = Id> {
        let mut before = 0;
        let is_new = move |message: &Id| std::mem::replace(&mut before, *message) != *message;
        self.0.into_iter().filter(is_new)
    }
}

/// The arbiter's register, and what is on its way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arbiter {
    /// There is one.
    pub(super) is_there: bool,
    pub(super) holder: Holder,
    /// The questions whose answers are awaited, of the source and of the target.
    asked: [Option<Claim>; 2],
    /// Questions whose answers nobody awaits any more, and that may be carried out yet: a bit for each claim.
    late: u8,
}

const LATE: [Claim; 3] = [Claim::Release, Claim::Take, Claim::TakeBack];

impl Arbiter {
    pub(super) fn new(is_there: bool) -> Arbiter {
        Arbiter {
            is_there,
            holder: Holder::Source,
            asked: [None; 2],
            late: 0,
        }
    }

    pub(super) fn asked(&self, by: Host) -> Option<Claim> {
        self.asked[by as usize]
    }

    pub(super) fn ask(&mut self, by: Host, claim: Claim) {
        self.give_up(by);
        self.asked[by as usize] = Some(claim);
    }

    /// The question never left its host, or was answered.
    pub(super) fn end(&mut self, by: Host) {
        self.asked[by as usize] = None;
    }

    /// Nobody awaits the answer any more.
    pub(super) fn give_up(&mut self, by: Host) {
        let claim = self.asked[by as usize].take();
        let bit = LATE.iter().position(|late| Some(*late) == claim);
        self.late |= bit.map_or(0, |bit| 1 << bit);
    }

    pub(super) fn late(&self) -> impl Iterator<Item = Claim> + use<> {
        let late = self.late;
        (0..LATE.len())
            .filter(move |bit| late & 1 << bit != 0)
            .map(|bit| LATE[bit])
    }

    pub(super) fn arrives(&mut self, claim: Claim) {
        let bit = LATE.iter().position(|late| *late == claim);
        self.late &= !bit.map_or(0, |bit| 1 << bit);
    }

    /// The source may be given the VM back.
    pub(super) fn may_return(&self) -> bool {
        self.asked.contains(&Some(Claim::TakeBack)) || self.late().any(|claim| claim == Claim::TakeBack)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stream {
    Closed,
    /// The source's lanes are connected.
    Open,
    /// The target has heard of all of them.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) a: Agent,
    pub(super) b: Agent,
    pub(super) a_journal: Journal,
    pub(super) b_journal: Journal,
    pub(super) a_qemu: Qemu,
    pub(super) b_qemu: Qemu,
    pub(super) to_a: Net,
    pub(super) to_b: Net,
    pub(super) arbiter: Arbiter,
    pub(super) stream: Stream,
    /// The source's QEMU has sent its last byte.
    pub(super) sent: bool,
    /// What the agents have not heard of their QEMUs yet.
    pub(super) stop_unheard: bool,
    pub(super) postmigrate_unheard: bool,
    pub(super) a_gone_unheard: bool,
    pub(super) b_gone_unheard: bool,
    /// Faults and repetitions that may still happen.
    pub(super) faults: u8,
    pub(super) repeats: u8,

    // What no agent knows, for the rules.
    /// The target's guest ran.
    pub(super) b_ran: bool,
    /// The target's QEMU was told to run its guest, which outlives the agent.
    pub(super) b_told: bool,
    /// For all that the target's agent can know, since it was restarted.
    pub(super) b_may_have_run: bool,
    /// The source's guest ran after the image was made that the target has.
    pub(super) stale: bool,
    /// A release was reported as failed, so that the target was told to drop its copy.
    pub(super) revoked: bool,
    /// Something other than the source's QEMU failed, or took too long.
    pub(super) disturbed: bool,
    /// The source's QEMU died, and unless something else fails too the target's copy has to be used.
    pub(super) covered: bool,
    /// A QEMU died that had the guest, in a way that may cost the VM.
    pub(super) may_be_lost: bool,
}

impl Agent {
    /// Between two effect lists.
    pub(super) fn is_free(&self) -> bool {
        self.plan == 0 && self.reported.is_none()
    }

    pub(super) fn can_say(&self) -> bool {
        self.lane && !self.lane_cut
    }

    pub(super) fn lose_lane(&mut self) {
        (self.lane, self.lane_cut) = (false, false);
    }
}

impl World {
    pub(super) fn agent(&self, host: Host) -> &Agent {
        match host {
            Host::Source => &self.a,
            Host::Target => &self.b,
        }
    }

    pub(super) fn agent_mut(&mut self, host: Host) -> &mut Agent {
        match host {
            Host::Source => &mut self.a,
            Host::Target => &mut self.b,
        }
    }

    pub(super) fn qemu(&self, host: Host) -> Qemu {
        match host {
            Host::Source => self.a_qemu,
            Host::Target => self.b_qemu,
        }
    }

    pub(super) fn net(&self, to: Host) -> Net {
        match to {
            Host::Source => self.to_a,
            Host::Target => self.to_b,
        }
    }

    pub(super) fn net_mut(&mut self, to: Host) -> &mut Net {
        match to {
            Host::Source => &mut self.to_a,
            Host::Target => &mut self.to_b,
        }
    }

    /// Something else failed than the source's QEMU, if that did.
    pub(super) fn disturb(&mut self) {
        self.disturbed = true;
        self.may_be_lost |= std::mem::take(&mut self.covered);
    }

    /// The source's guest runs, if it did not before from where it was stopped.
    pub(super) fn source_runs(&mut self) {
        self.stale |= self.sent;
        self.a_qemu = Qemu::Running;
    }

    /// Its driver ends, and closes its lane.
    pub(super) fn finish(&mut self, host: Host) {
        let agent = self.agent_mut(host);
        agent.driver = Driver::Idle;
        self.arbiter.give_up(host);
        let agent = self.agent_mut(host);
        if agent.lane {
            agent.lose_lane();
            let other = self.agent_mut(host.other());
            other.lane_cut = other.lane;
        }
        self.forget_events(host);
    }

    pub(super) fn kill_agent(&mut self, host: Host) {
        self.finish(host);
        let agent = self.agent_mut(host);
        agent.driver = Driver::Down;
        (agent.plan, agent.reported, agent.broken, agent.lists) = (0, None, false, false);
        self.arbiter.give_up(host);
        if host == Host::Source {
            self.close_migration();
        }
    }

    /// The socket is closed that the source's QEMU migrates into.
    pub(super) fn close_migration(&mut self) {
        self.a_qemu = match self.a_qemu {
            Qemu::Migrating => Qemu::Running,
            Qemu::Stopped => Qemu::Resuming,
            Qemu::Shutting => Qemu::ShuttingOrResuming,
            qemu => qemu,
        };
    }

    pub(super) fn forget_events(&mut self, host: Host) {
        match host {
            Host::Source => {
                (self.stop_unheard, self.postmigrate_unheard, self.a_gone_unheard) = (false, false, false);
            }
            Host::Target => self.b_gone_unheard = false,
        }
    }
}
