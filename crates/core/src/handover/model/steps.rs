//! What can happen next.

use super::machines::{Act, Id, Machinery, new_source, short};
use super::mutation::Mutation;
use super::world::{Agent, Arbiter, Driver, Host, IN_FLIGHT_MAX, Journal, Net, Qemu, Stream, World};
use crate::handover::arbiter::{Claim, Holder};
use crate::handover::{Source, Target};
use crate::wire::message::Message;

/// How much of what can happen is explored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Kills, lost connections, failed writes, refusals and cancellations, all together.
    pub(super) faults: u8,
    /// Messages that arrive once more.
    pub(super) repeats: u8,
    /// Messages on their way in each direction; what is sent beyond that is lost.
    pub(super) in_flight: usize,
    /// An arbiter decides.
    pub(super) arbiter: bool,
    /// A host may go for ever, and then an operator may decide.
    pub(super) hosts_go: bool,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An agent carries the next effect out.
    Act(Host),
    /// The same, but what it tries fails; a record may be on the disk all the same.
    ActFails(Host, OnDisk),
    /// A message arrives at this host.
    Deliver(Host, Id),
    /// A message on its way to this host is lost.
    Lose(Host, Id),
    /// A message arrives at this host, and will once more.
    Repeat(Host, Id),
    /// The target's agent has all lanes.
    LanesArrive,
    GuestStops,
    LastByteIsSent,
    TargetLoads,
    ReachesPostMigrate,
    ResumesByItself,
    HearsStop,
    HearsPostMigrate,
    HearsQemuGone(Host),
    HearsLaneLost(Host),
    /// The source's agent reaches the target's again.
    Reconnects,
    StopNow,
    Tick(Host),
    /// Nothing else happens until both agents' deadlines have passed.
    TimePasses,
    Cancel,
    LinkBreaks,
    TransferFails,
    MigrationFails,
    LoadFails,
    KillAgent(Host),
    KillQemu(Host),
    KillHost(Host),
    Restart(Host),
    /// A host goes, and never comes back.
    HostGoes(Host),
    /// The arbiter answers this host.
    Rules(Host, Lease),
    /// What this host asks the arbiter never leaves it, and it sees that.
    Unasked(Host),
    /// What this host asks the arbiter is not answered; it may be carried out yet.
    Unanswered(Host),
    /// Something that was asked of the arbiter is carried out, and nobody hears of it.
    ArrivesLate(Claim),
    /// The other host is gone, and an operator decides on this one.
    Resolve(Host),
    /// Somebody sees to the disk of an agent whose journal can't be written, and restarts it.
    Repair(Host),
}

/// Whether a record is on the disk although its write was reported as failed; or a guest started, although nothing was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnDisk {
    No,
    Yes,
}

/// The other host's lease, as the arbiter has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    Holds,
    RunOut,
    /// Run out, because that host's agent can't reach the arbiter.
    Cut,
}

/// The world's rules.
pub(super) struct Model {
    pub(super) machinery: Machinery,
    pub(super) bounds: Bounds,
}

impl Model {
    pub(super) fn new(bounds: Bounds, mutation: Option<Mutation>) -> Model {
        assert!(bounds.in_flight <= IN_FLIGHT_MAX);
        Model {
            machinery: Machinery::new(mutation),
            bounds,
        }
    }

    /// The world as a migration begins.
    pub(super) fn begin(&mut self) -> World {
        let (source, plan) = self.machinery.source(new_source(self.bounds.arbiter));
        let idle = Agent {
            driver: Driver::Idle,
            plan: 0,
            reported: None,
            broken: false,
            lane: false,
            lane_cut: false,
            lists: false,
        };
        World {
            a: Agent {
                driver: Driver::Machine(source),
                plan,
                lane: true,
                lists: true,
                ..idle
            },
            b: idle,
            a_journal: Journal::default(),
            b_journal: Journal::default(),
            a_qemu: Qemu::Running,
            b_qemu: Qemu::Absent,
            to_a: Net::default(),
            to_b: Net::default(),
            arbiter: Arbiter::new(self.bounds.arbiter),
            stream: Stream::Closed,
            sent: false,
            stop_unheard: false,
            postmigrate_unheard: false,
            a_gone_unheard: false,
            b_gone_unheard: false,
            faults: self.bounds.faults,
            repeats: self.bounds.repeats,
            b_ran: false,
            b_told: false,
            b_may_have_run: false,
            stale: false,
            revoked: false,
            disturbed: false,
            covered: false,
            may_be_lost: false,
        }
    }

    /// Everything that can happen next.
    pub(super) fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = self.undisturbed(world);
        for host in [Host::Source, Host::Target] {
            for message in world.net(host).messages() {
                steps.push(Step::Lose(host, message));
                let is_offer = matches!(self.machinery.messages.get(message), Message::Reserve { .. });
                if world.repeats > 0 && !is_offer && self.can_hear(world, host, message) {
                    steps.push(Step::Repeat(host, message));
                }
            }
            if self.tick_is_due(world, host) {
                steps.push(Step::Tick(host));
            }
        }
        let source = self.free_source(world);
        if world.a_qemu == Qemu::Migrating && source.is_some_and(|source| source.deadline().is_none()) {
            steps.push(Step::StopNow);
        }
        for claim in world.arbiter.late() {
            if claim.after(world.arbiter.holder) != world.arbiter.holder {
                steps.push(Step::ArrivesLate(claim));
            }
        }
        let awaits = |host| world.arbiter.asked(host).is_some() && self.can_be_told(world, host);
        if awaits(Host::Source) && world.b.driver == Driver::Down {
            steps.push(Step::Rules(Host::Source, Lease::RunOut));
        }
        if world.faults == 0 {
            return steps;
        }
        if awaits(Host::Source) && !world.b.driver.is_down() {
            steps.push(Step::Rules(Host::Source, Lease::Cut));
        }
        for host in [Host::Source, Host::Target] {
            steps.extend(self.failures(world, host).map(|on_disk| Step::ActFails(host, on_disk)));
            let (up, lives) = (!world.agent(host).driver.is_down(), world.qemu(host).lives());
            if awaits(host) {
                steps.extend([Step::Unasked(host), Step::Unanswered(host)]);
            }
            let both_up = world.a.driver != Driver::Gone && world.b.driver != Driver::Gone;
            if self.bounds.hosts_go && both_up {
                steps.push(Step::HostGoes(host));
            }
            if up {
                steps.push(Step::KillAgent(host));
            }
            if lives {
                steps.push(Step::KillQemu(host));
            }
            if up && lives {
                steps.push(Step::KillHost(host));
            }
        }
        if world.a.lane && !world.a.lane_cut || world.b.lane && !world.b.lane_cut {
            steps.push(Step::LinkBreaks);
        }
        if let Some(source) = source {
            if source.can_cancel() {
                steps.push(Step::Cancel);
            }
            if world.stream != Stream::Closed {
                steps.push(Step::TransferFails);
            }
            if matches!(world.a_qemu, Qemu::Migrating | Qemu::Stopped | Qemu::Shutting) {
                steps.push(Step::MigrationFails);
            }
        }
        if world.b_qemu == Qemu::Incoming && self.free_target(world).is_some() {
            steps.push(Step::LoadFails);
        }
        steps
    }

    /// What happens next if nothing fails any more, nothing is lost, and time passes only when nothing else happens.
    pub(super) fn next_undisturbed(&self, world: &World) -> Option<Step> {
        for (host, agent) in [(Host::Source, world.a), (Host::Target, world.b)] {
            if agent.broken {
                return Some(Step::Repair(host));
            }
        }
        let time_passes = || {
            let due = self.tick_is_due(world, Host::Source) || self.tick_is_due(world, Host::Target);
            due.then_some(Step::TimePasses)
        };
        self.undisturbed(world).first().copied().or_else(time_passes)
    }

    fn undisturbed(&self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        for host in [Host::Source, Host::Target] {
            let agent = world.agent(host);
            if agent.driver == Driver::Down {
                steps.push(Step::Restart(host));
            }
            if agent.plan != 0 || agent.reported.is_some() || matches!(agent.driver, Driver::RollBack { .. }) {
                steps.push(Step::Act(host));
            }
            for message in world.net(host).messages() {
                if self.can_hear(world, host, message) {
                    steps.push(Step::Deliver(host, message));
                }
            }
            if world.arbiter.asked(host).is_some() && self.can_be_told(world, host) {
                let is_gone = world.agent(host.other()).driver == Driver::Gone;
                let lease = if is_gone { Lease::RunOut } else { Lease::Holds };
                steps.push(Step::Rules(host, lease));
            }
        }
        let (source, target) = (self.free_source(world), self.free_target(world));
        if world.stream == Stream::Open && world.b_qemu == Qemu::Incoming && target.is_some() {
            steps.push(Step::LanesArrive);
        }
        if world.stream == Stream::Taken && world.sent && world.b_qemu == Qemu::Incoming && target.is_some() {
            steps.push(Step::TargetLoads);
        }
        match world.a_qemu {
            Qemu::Migrating => steps.push(Step::GuestStops),
            Qemu::Stopped if !world.sent => steps.push(Step::LastByteIsSent),
            Qemu::Resuming => steps.push(Step::ResumesByItself),
            Qemu::Shutting => steps.push(Step::ReachesPostMigrate),
            Qemu::ShuttingOrResuming => steps.extend([Step::ReachesPostMigrate, Step::ResumesByItself]),
            _ => {}
        }
        if source.is_some() {
            if world.stop_unheard {
                steps.push(Step::HearsStop);
            } else if world.postmigrate_unheard {
                steps.push(Step::HearsPostMigrate);
            } else if world.a_gone_unheard {
                steps.push(Step::HearsQemuGone(Host::Source));
            }
            if world.a.lane_cut {
                steps.push(Step::HearsLaneLost(Host::Source));
            }
        }
        if target.is_some() {
            if world.b_gone_unheard {
                steps.push(Step::HearsQemuGone(Host::Target));
            }
            if world.b.lane_cut {
                steps.push(Step::HearsLaneLost(Host::Target));
            }
        }
        let needs_peer = source.is_some_and(Source::needs_peer);
        if needs_peer && !world.a.lane && !world.b.driver.is_down() {
            steps.push(Step::Reconnects);
        }
        let resolvable = [Host::Source, Host::Target].into_iter();
        steps.extend(resolvable.filter(|host| self.is_stuck(world, *host)).map(Step::Resolve));
        steps
    }

    /// Whether this host waits for the other, which is gone, and no arbiter can help.
    fn is_stuck(&self, world: &World, host: Host) -> bool {
        let Some(id) = world
            .agent(host)
            .driver
            .machine()
            .filter(|_| world.agent(host).is_free())
        else {
            return false;
        };
        if world.agent(host.other()).driver != Driver::Gone {
            return false;
        }
        match host {
            Host::Source => {
                self.machinery.sources.get(id).can_be_resolved() && (!world.arbiter.is_there || !world.a_qemu.lives())
            }
            Host::Target => {
                let is_undecided = world.arbiter.holder == Holder::Source && world.arbiter.asked(host).is_none();
                self.machinery.targets.get(id).can_be_resolved() && is_undecided
            }
        }
    }

    /// A state machine is there, between two effect lists.
    fn can_be_told(&self, world: &World, host: Host) -> bool {
        world.agent(host).driver.machine().is_some() && world.agent(host).is_free()
    }

    /// The source's machine, of a migration that was begun by this agent, between two effect lists.
    fn free_source(&self, world: &World) -> Option<&Source> {
        match world.a.driver {
            Driver::Machine(id) if world.a.is_free() => Some(self.machinery.sources.get(id)),
            _ => None,
        }
    }

    fn free_target(&self, world: &World) -> Option<&Target> {
        let id = world.b.driver.machine().filter(|_| world.b.is_free())?;
        Some(self.machinery.targets.get(id))
    }

    pub(super) fn tick_is_due(&self, world: &World, host: Host) -> bool {
        let agent = world.agent(host);
        let Some(id) = agent.driver.machine().filter(|_| agent.is_free()) else {
            return false;
        };
        match host {
            Host::Source => self.machinery.sources.get(id).deadline().is_some(),
            Host::Target => self.machinery.targets.get(id).deadline().is_some(),
        }
    }

    /// Whether a message has somebody to hear it now; a driver hears between two effect lists.
    fn can_hear(&self, world: &World, host: Host, message: Id) -> bool {
        let agent = world.agent(host);
        let to_driver = !matches!(self.machinery.messages.get(message), Message::Inquire { .. });
        !to_driver || agent.driver.machine().is_none() || agent.is_free()
    }

    /// How the next effect of an agent can fail.
    fn failures(&self, world: &World, host: Host) -> impl Iterator<Item = OnDisk> + use<> {
        let agent = world.agent(host);
        let writes = [Some(OnDisk::No), Some(OnDisk::Yes)];
        let can = match (agent.driver, host) {
            (Driver::RollBack { ended: true, .. }, _) if !agent.broken => writes,
            (Driver::Machine(_) | Driver::Resumed(_), _) if agent.plan != 0 => {
                let (act, _) = match host {
                    Host::Source => self.machinery.sources.step(agent.plan),
                    Host::Target => self.machinery.targets.step(agent.plan),
                };
                match act {
                    Act::Journal(_) if !agent.broken => writes,
                    // Told, and its monitor broke before it said so.
                    Act::StartGuest => writes,
                    Act::OpenStream | Act::CompareImage | Act::ResumeGuest | Act::Reserve => [Some(OnDisk::No), None],
                    _ => [None, None],
                }
            }
            _ => [None, None],
        };
        can.into_iter().flatten()
    }

    /// A step in words.
    pub(super) fn describe(&self, before: &World, step: Step) -> String {
        let name = |id: Id| short(self.machinery.messages.get(id));
        let next = |host: Host| {
            let agent = before.agent(host);
            match (agent.driver, host) {
                (Driver::RollBack { ended: false, .. }, _) => "sees that the guest runs".to_owned(),
                (Driver::RollBack { .. }, _) => "Journal RolledBack".to_owned(),
                (_, Host::Source) if agent.plan != 0 => self.machinery.sources.first(agent.plan),
                (_, Host::Target) if agent.plan != 0 => self.machinery.targets.first(agent.plan),
                _ => format!("{:?}", agent.reported),
            }
        };
        match step {
            Step::Act(host) => format!("{host:?}: {}", next(host)),
            Step::ActFails(host, OnDisk::No) => format!("{host:?}: {} FAILS", next(host)),
            Step::ActFails(host, OnDisk::Yes) => format!("{host:?}: {} FAILS, but is done", next(host)),
            Step::Deliver(host, id) => format!("{host:?} hears {}", name(id)),
            Step::Repeat(host, id) => format!("{host:?} hears {}, and will once more", name(id)),
            Step::Lose(host, id) => format!("{} to the {host:?} is LOST", name(id)),
            Step::KillAgent(host) => format!("the {host:?}'s agent is KILLED"),
            Step::KillQemu(host) => format!("the {host:?}'s QEMU is KILLED"),
            Step::KillHost(host) => format!("the {host:?}'s agent and QEMU are KILLED"),
            Step::HostGoes(host) => format!("the {host:?} is GONE for ever"),
            Step::Rules(host, lease) => {
                let asked = before.arbiter.asked(host);
                let after = asked.map(|claim| claim.after(before.arbiter.holder));
                format!("{host:?} asked {asked:?}, hears {after:?} ({lease:?})")
            }
            other => format!("{other:?}"),
        }
    }
}

impl Step {
    pub(super) fn is_fault(self) -> bool {
        matches!(
            self,
            Step::ActFails(..)
                | Step::Cancel
                | Step::LinkBreaks
                | Step::TransferFails
                | Step::MigrationFails
                | Step::LoadFails
                | Step::KillAgent(_)
                | Step::KillQemu(_)
                | Step::KillHost(_)
                | Step::HostGoes(_)
                | Step::Rules(_, Lease::Cut)
                | Step::Unasked(_)
                | Step::Unanswered(_)
        )
    }
}
