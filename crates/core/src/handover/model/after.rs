//! What a step does to the world; what an agent does in it is in `drivers.rs`.

use super::machines::Event;
use super::rules::Broken;
use super::steps::{Model, Step};
use super::world::{Driver, Host, Qemu, Stream, World};
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
                source.is_some_and(|source| source.needs_peer() || source.verdict() != Verdict::Undecided)
            }
            Host::Target => world.b_qemu != Qemu::Incoming,
        };
        if !repeats {
            world.disturb();
        }
        self.tell(world, host, Event::Tick);
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
                let released = matches!(known.last(), Some(Record::Released { .. } | Record::HandedOver { .. }));
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
        world.a.lists = !records.iter().any(|record| matches!(record, Record::HandedOver { .. }));
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
            AfterRestart::Commit(handover, _) => {
                let (source, plan) = self.machinery.source(Source::released(handover, Duration::ZERO));
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
        let owned = has(|record| matches!(record, Record::Owned { .. }));
        world.b.lists = owned && !has(|record| matches!(record, Record::Dropped { .. }));
        let found = if world.b_qemu.lives() {
            FoundQemu::Other
        } else {
            FoundQemu::Gone
        };
        let after = after_restart(&records);
        world.b_may_have_run |= matches!(after, AfterRestart::Run(..));
        world.may_be_lost |= world.b_may_have_run && found == FoundQemu::Gone;
        world.b.driver = match after.given(found) {
            AfterRestart::Nothing => {
                // A QEMU that nothing was promised for.
                if records.is_empty() {
                    world.b_qemu = Qemu::Absent;
                }
                Driver::Idle
            }
            AfterRestart::Ask(handover, peer) => {
                let (target, plan) = self.machinery.target(Target::prepared(handover, peer, Duration::ZERO));
                world.b.plan = plan;
                world.b.reported = (found == FoundQemu::Gone).then_some(Event::QemuGone);
                Driver::Resumed(target)
            }
            AfterRestart::Run(handover, peer) => {
                let (target, plan) = self.machinery.target(Target::owned(handover, peer));
                world.b.plan = plan;
                Driver::Resumed(target)
            }
            other => panic!("a target's journal gave {other:?}"),
        };
    }
}
