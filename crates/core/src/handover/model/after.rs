//! What a step does to the world; what an agent does in it is in `drivers.rs`.

use super::machines::{Answer, Event};
use super::mutation::{Mutation, Wrong};
use super::rules::Broken;
use super::steps::{Lease, Model, Step};
use super::world::{Driver, Host, Qemu, Stream, World};
use crate::handover::arbiter::{Claim, Holder, Side};
use crate::handover::{AfterRestart, FoundQemu, Record, Source, Target, after_restart};
use crate::wire::message::Verdict;
use std::time::Duration;

impl Model {
    /// The world after a step, or the rule that the step breaks.
    pub(super) fn after(&mut self, before: &World, step: Step) -> Result<World, Broken> {
        let mut world = *before;
        if step.is_fault() {
            world.faults -= 1;
            if step != Step::KillQemu(Host::Source) {
                world.disturb();
            }
        }
        match step {
            Step::Act(Host::Source) => self.source_acts(&mut world, None)?,
            Step::Act(Host::Target) => self.target_acts(&mut world, None)?,
            Step::ActFails(Host::Source, on_disk) => self.source_acts(&mut world, Some(on_disk))?,
            Step::ActFails(Host::Target, on_disk) => self.target_acts(&mut world, Some(on_disk))?,
            Step::Deliver(host, message) => {
                world.net_mut(host).take(message);
                self.deliver(&mut world, host, message);
            }
            Step::Repeat(host, message) => {
                world.repeats -= 1;
                self.deliver(&mut world, host, message);
            }
            Step::Lose(host, message) => {
                world.disturb();
                world.net_mut(host).take(message);
            }
            Step::LanesArrive => {
                world.stream = Stream::Taken;
                self.tell(&mut world, Host::Target, Event::StreamOpened);
            }
            Step::GuestStops => {
                world.a_qemu = Qemu::Stopped;
                world.stop_unheard = true;
            }
            Step::LastByteIsSent => world.sent = true,
            Step::TargetLoads => {
                world.b_qemu = Qemu::Paused;
                self.tell(&mut world, Host::Target, Event::Loaded);
            }
            Step::ReachesPostMigrate => {
                world.postmigrate_unheard = matches!(world.a.driver, Driver::Machine(_));
                world.a_qemu = Qemu::PostMigrate;
            }
            Step::ResumesByItself => world.source_runs(),
            Step::HearsStop => {
                world.stop_unheard = false;
                self.tell(&mut world, Host::Source, Event::GuestStopped);
            }
            Step::HearsPostMigrate => {
                world.postmigrate_unheard = false;
                // It is asked whether it is, and does not answer if it is dead.
                let lives = world.a_qemu.lives();
                let event = if lives { Event::PostMigrate } else { Event::QemuGone };
                self.tell(&mut world, Host::Source, event);
            }
            Step::HearsQemuGone(Host::Source) => {
                world.a_gone_unheard = false;
                self.tell(&mut world, Host::Source, Event::QemuGone);
            }
            Step::HearsQemuGone(Host::Target) => {
                world.b_gone_unheard = false;
                self.tell(&mut world, Host::Target, Event::QemuGone);
            }
            Step::HearsLaneLost(host) => {
                world.agent_mut(host).lose_lane();
                self.tell(&mut world, host, Event::PeerLost);
            }
            Step::Reconnects => {
                world.a.lane = true;
                self.tell(&mut world, Host::Source, Event::PeerBack);
            }
            Step::StopNow => self.tell(&mut world, Host::Source, Event::StopNow),
            Step::Tick(host) => self.tick(&mut world, host),
            Step::TimePasses => {
                for host in [Host::Source, Host::Target] {
                    if self.tick_is_due(before, host) {
                        self.tick(&mut world, host);
                    }
                }
            }
            Step::Cancel => self.tell(&mut world, Host::Source, Event::Cancel),
            Step::LinkBreaks => {
                world.a.lane_cut = world.a.lane;
                world.b.lane_cut = world.b.lane;
            }
            Step::TransferFails => self.tell(&mut world, Host::Source, Event::TransferFailed),
            Step::MigrationFails => {
                match world.a_qemu {
                    Qemu::Migrating => world.a_qemu = Qemu::Running,
                    _ => world.source_runs(),
                }
                self.tell(&mut world, Host::Source, Event::MigrationFailed);
            }
            Step::LoadFails => self.tell(&mut world, Host::Target, Event::LoadFailed),
            Step::KillAgent(host) | Step::Repair(host) => world.kill_agent(host),
            Step::KillQemu(host) => self.kill_qemu(&mut world, host),
            Step::KillHost(host) => {
                self.kill_qemu(&mut world, host);
                world.kill_agent(host);
            }
            Step::HostGoes(host) => {
                if world.qemu(host).lives() {
                    self.kill_qemu(&mut world, host);
                }
                world.kill_agent(host);
                world.agent_mut(host).driver = Driver::Gone;
            }
            Step::Rules(host, lease) => self.rules(&mut world, host, lease != Lease::Holds),
            Step::Unasked(host) => {
                if let Some(claim) = world.arbiter.asked(host) {
                    world.arbiter.end(host);
                    self.tell(&mut world, host, Event::Ruled(claim, Answer::Unasked));
                }
            }
            Step::Unanswered(host) => {
                if let Some(claim) = world.arbiter.asked(host) {
                    world.arbiter.give_up(host);
                    let answer = match self.wrong() {
                        Some(Wrong::SilenceIsNo) => Answer::Unasked,
                        _ => Answer::Unanswered,
                    };
                    self.tell(&mut world, host, Event::Ruled(claim, answer));
                }
            }
            Step::ArrivesLate(claim) => {
                world.arbiter.arrives(claim);
                world.arbiter.holder = claim.after(world.arbiter.holder);
            }
            Step::Resolve(host) => {
                let keep = match host {
                    Host::Source if world.b_ran || !world.a_qemu.lives() => Side::Target,
                    // The operator knows whether the guest ran on at the source.
                    Host::Target if !world.stale => Side::Target,
                    _ => Side::Source,
                };
                self.tell(&mut world, host, Event::Resolved(keep));
            }
            Step::Restart(Host::Source) => self.restart_source(&mut world),
            Step::Restart(Host::Target) => self.restart_target(&mut world),
        }
        Ok(world)
    }

    fn tick(&mut self, world: &mut World, host: Host) {
        // What is only repeated takes no longer than it may.
        let repeats = match host {
            Host::Source => {
                let source = world.a.driver.machine().map(|id| self.machinery.sources.get(id));
                source.is_some_and(|source| {
                    source.needs_peer() || source.can_be_resolved() || source.verdict() != Verdict::Undecided
                })
            }
            Host::Target => world.b_qemu != Qemu::Incoming,
        };
        if !repeats {
            world.disturb();
        }
        self.tell(world, host, Event::Tick);
    }

    /// The arbiter carries out what it is asked, and answers.
    fn rules(&mut self, world: &mut World, host: Host, other_is_gone: bool) {
        let Some(claim) = world.arbiter.asked(host) else { return };
        let mut holder = claim.after(world.arbiter.holder);
        match (self.wrong(), claim) {
            (Some(Wrong::TakesAnyway), Claim::Take) => holder = Holder::Target,
            (Some(Wrong::TakesBackAnyway), Claim::TakeBack) => {
                holder = Holder::Returned;
                world.arbiter.holder = holder;
            }
            (Some(Wrong::ReleasesNothing), Claim::Release) => holder = Holder::Released,
            _ => world.arbiter.holder = holder,
        }
        world.arbiter.end(host);
        // The target has it and its lease has run out: the source gives its own copy up.
        let gives_up = host == Host::Source && holder == Holder::Target && other_is_gone;
        world.may_be_lost |= gives_up && !world.b_qemu.runs();
        self.tell(world, host, Event::Ruled(claim, Answer::Is(holder, other_is_gone)));
    }

    fn wrong(&self) -> Option<Wrong> {
        match self.machinery.mutation {
            Some(Mutation::Arbiter(wrong)) => Some(wrong),
            _ => None,
        }
    }

    /// Tells a machine something, between two effect lists.
    pub(super) fn tell(&mut self, world: &mut World, host: Host, event: Event) {
        let agent = world.agent_mut(host);
        let Some(before) = agent.driver.machine() else { return };
        let (after, plan) = match host {
            Host::Source => self.machinery.tell_source(before, event),
            Host::Target => self.machinery.tell_target(before, event),
        };
        agent.plan = plan;
        agent.driver = match agent.driver {
            Driver::Resumed(_) => Driver::Resumed(after),
            _ => Driver::Machine(after),
        };
    }

    /// Tells a machine what came of its effects, once all are carried out.
    pub(super) fn report(&mut self, world: &mut World, host: Host) {
        let agent = world.agent_mut(host);
        if agent.plan == 0
            && let Some(event) = agent.reported.take()
        {
            self.tell(world, host, event);
        }
    }

    fn kill_qemu(&mut self, world: &mut World, host: Host) {
        match host {
            Host::Source => {
                let known = self.records(world.a_journal.known());
                let released = if world.arbiter.is_there {
                    matches!(world.arbiter.holder, Holder::Released | Holder::Target) && !world.arbiter.may_return()
                } else {
                    matches!(known.last(), Some(Record::Released { .. } | Record::HandedOver { .. }))
                };
                match (world.b_qemu.is_complete(), released && !world.revoked) {
                    (true, true) => {}
                    (true, false) if !world.disturbed => world.covered = true,
                    _ => world.may_be_lost = true,
                }
                world.a_qemu = Qemu::Dead;
                world.a_gone_unheard = matches!(world.a.driver, Driver::Machine(_));
            }
            Host::Target => {
                world.may_be_lost |=
                    world.b_ran || world.b_may_have_run || world.b_qemu.is_complete() && !world.a_qemu.lives();
                world.b_qemu = Qemu::Dead;
                world.b_gone_unheard = world.b.driver.machine().is_some();
            }
        }
    }

    fn restart_source(&mut self, world: &mut World) {
        world.a_journal.unheard = false;
        let records = self.records(world.a_journal.on_disk());
        world.a.lists = !records
            .iter()
            .any(|record| matches!(record.plain(), Record::HandedOver { .. }));
        let found = match world.a_qemu {
            Qemu::PostMigrate => FoundQemu::PostMigrate,
            qemu if qemu.lives() => FoundQemu::Other,
            _ => FoundQemu::Gone,
        };
        let after = after_restart(&records);
        let was_released = matches!(after, AfterRestart::Commit(..));
        world.a.driver = match after.given(found) {
            AfterRestart::Nothing => Driver::Idle,
            AfterRestart::RollBack(_) => Driver::RollBack {
                ended: false,
                aborted: was_released,
            },
            AfterRestart::Commit(handover, _, arbiter) => {
                let gone = found == FoundQemu::Gone;
                let released = Source::released(handover, arbiter, gone, Duration::ZERO);
                let (source, plan) = self.machinery.source(released);
                world.a.plan = plan;
                Driver::Resumed(source)
            }
            other => panic!("a source's journal gave {other:?}"),
        };
    }

    fn restart_target(&mut self, world: &mut World) {
        world.b_journal.unheard = false;
        let records = self.records(world.b_journal.on_disk());
        let has = |wanted: fn(&Record) -> bool| records.iter().any(wanted);
        let owned = has(|record| matches!(record.plain(), Record::Owned { .. }));
        world.b.lists = owned && !has(|record| matches!(record.plain(), Record::Dropped { .. }));
        let found = match (world.b_qemu.lives(), world.b_told) {
            (true, _) => FoundQemu::Other,
            (false, true) => FoundQemu::Gone,
            (false, false) => FoundQemu::GoneUnstarted,
        };
        let after = after_restart(&records);
        world.b_may_have_run |= matches!(after, AfterRestart::Run(..)) && found != FoundQemu::GoneUnstarted;
        world.may_be_lost |= world.b_may_have_run && found == FoundQemu::Gone;
        world.b.driver = match after.given(found) {
            AfterRestart::Nothing => {
                // A QEMU that nothing was promised for.
                if records.is_empty() {
                    world.b_qemu = Qemu::Absent;
                }
                Driver::Idle
            }
            AfterRestart::Ask(handover, peer, arbiter) => {
                let prepared = Target::prepared(handover, peer, arbiter, Duration::ZERO);
                let (target, plan) = self.machinery.target(prepared);
                world.b.plan = plan;
                world.b.reported = (found != FoundQemu::Other).then_some(Event::QemuGone);
                Driver::Resumed(target)
            }
            AfterRestart::Run(handover, peer) => {
                let (target, plan) = self.machinery.target(Target::owned(handover, peer));
                world.b.plan = plan;
                Driver::Resumed(target)
            }
            AfterRestart::GiveBack(handover, peer) => {
                let (target, plan) = self.machinery.target(Target::owned_unstarted(handover, peer));
                world.b.plan = plan;
                Driver::Resumed(target)
            }
            other => panic!("a target's journal gave {other:?}"),
        };
    }
}
