//! The drivers of `vmferry/src/migrate`: what they carry out is what the shipped state machines say, and what they answer is
//! what the shipped code answers from a journal.

use super::super::arbiter::Claim;
use super::super::examples::handover;
use super::machines::{Act, Event, Id, matters, new_target};
use super::rules::Broken;
use super::steps::{Model, OnDisk};
use super::world::{Driver, Host, Journal, Qemu, Stream, World};
use crate::handover::{Record, answer};
use crate::wire::message::{Message, Verdict};

impl Model {
    pub(super) fn source_acts(&mut self, world: &mut World, fails: Option<OnDisk>) -> Result<(), Broken> {
        if let Driver::RollBack { ended, aborted } = world.a.driver {
            self.rolls_back(world, ended, aborted, fails);
            return Ok(());
        }
        if world.a.plan != 0 {
            let (act, rest) = self.machinery.sources.step(world.a.plan);
            world.a.plan = rest;
            if let Some(event) = self.source_act(world, act, fails) {
                world.a.reported = Some(event);
            }
        }
        self.report(world, Host::Source);
        Ok(())
    }

    fn source_act(&mut self, world: &mut World, act: Act, fails: Option<OnDisk>) -> Option<Event> {
        match act {
            Act::Journal(record) => return Some(Event::Written(self.write(world, Host::Source, record, fails))),
            Act::Send(message) => {
                // After a restart each question has a connection of its own.
                if world.a.can_say() || matches!(world.a.driver, Driver::Resumed(_)) {
                    self.send(world, Host::Target, message);
                }
            }
            Act::OpenStream if fails.is_some() || !world.a_qemu.lives() => return Some(Event::TransferFailed),
            Act::OpenStream => {
                world.a_qemu = Qemu::Migrating;
                world.stream = Stream::Open;
            }
            Act::CompareImage => return Some(Event::Compared(fails.is_none())),
            Act::DeliverShut => {
                if world.a_qemu == Qemu::Stopped {
                    world.a_qemu = Qemu::Shutting;
                }
            }
            Act::ResumeGuest if fails.is_some() => {
                // Its monitor does not answer; that its socket is closed it sees all the same.
                world.close_migration();
                world.a.broken = true;
                return Some(Event::Resumed(false));
            }
            Act::ResumeGuest => {
                let lives = world.a_qemu.lives();
                if lives {
                    world.source_runs();
                }
                return Some(Event::Resumed(lives));
            }
            Act::EndQemu => {
                world.a.lists = false;
                world.a_qemu = Qemu::Dead;
            }
            Act::Arbitrate(claim) => {
                // It has died, and nobody has heard of it: the target's copy is given up.
                world.may_be_lost |= claim == Claim::TakeBack && !world.a_qemu.lives();
                world.arbiter.ask(Host::Source, claim);
            }
            Act::Finish(_) => world.finish(Host::Source),
            Act::LetStop => {}
            other => panic!("a source does {other:?}"),
        }
        None
    }

    /// `resume::roll_back`.
    fn rolls_back(&mut self, world: &mut World, ended: bool, aborted: bool, fails: Option<OnDisk>) {
        if !ended {
            if world.a_qemu.lives() {
                world.source_runs();
            }
            world.a.driver = Driver::RollBack { ended: true, aborted };
            return;
        }
        let record = self.machinery.records.id(&Record::RolledBack { handover: handover() });
        if self.write(world, Host::Source, record, fails) {
            world.a.driver = Driver::Idle;
        }
    }

    pub(super) fn target_acts(&mut self, world: &mut World, fails: Option<OnDisk>) -> Result<(), Broken> {
        if world.b.plan != 0 {
            let (act, rest) = self.machinery.targets.step(world.b.plan);
            world.b.plan = rest;
            if let Some(event) = self.target_act(world, act, fails)? {
                world.b.reported = Some(event);
            }
        }
        self.report(world, Host::Target);
        Ok(())
    }

    fn target_act(&mut self, world: &mut World, act: Act, fails: Option<OnDisk>) -> Result<Option<Event>, Broken> {
        match act {
            Act::Reserve => {
                if fails.is_none() {
                    world.b_qemu = Qemu::Incoming;
                }
                return Ok(Some(Event::Reserved(fails.is_none())));
            }
            Act::Journal(record) => {
                return Ok(Some(Event::Written(self.write(world, Host::Target, record, fails))));
            }
            Act::Send(message) => {
                if world.b.can_say() {
                    self.send(world, Host::Source, message);
                }
            }
            Act::Inquire => {
                let inquiry = self.machinery.message(Message::Inquire { handover: handover() });
                self.send(world, Host::Source, inquiry);
            }
            Act::Arbitrate(claim) => world.arbiter.ask(Host::Target, claim),
            Act::StartGuest if !world.b_qemu.lives() => {
                if !world.b_gone_unheard {
                    return Ok(Some(Event::QemuGone));
                }
                world.b_told = true;
                // It ends while it is told, as far as the agent can see: its guest may have run.
                world.may_be_lost = true;
                return Ok(Some(Event::StartUnknown));
            }
            Act::StartGuest if fails == Some(OnDisk::No) => {
                world.b_told = true;
                return Ok(Some(Event::Started(false)));
            }
            // Told before, when its monitor broke.
            Act::StartGuest if world.b_qemu.runs() => return Ok(Some(Event::Started(true))),
            Act::StartGuest => {
                if !world.b_qemu.is_complete() {
                    return Err("an incomplete image runs");
                }
                if world.stale {
                    return Err("an image runs that its guest has left behind");
                }
                world.b_qemu = Qemu::Running;
                (world.b_told, world.b_ran) = (true, true);
                // Done, and its monitor broke before it said so.
                let broke = fails.is_some();
                return Ok(Some(if broke {
                    Event::StartUnknown
                } else {
                    Event::Started(true)
                }));
            }
            Act::Drop => {
                if world.b_qemu.runs() {
                    return Err("a running guest is dropped");
                }
                world.b_qemu = Qemu::Absent;
                world.b_gone_unheard = false;
            }
            Act::Finish(owned) => {
                world.b.lists = owned;
                world.finish(Host::Target);
            }
            other => panic!("a target does {other:?}"),
        }
        Ok(None)
    }

    /// Whether the write is reported as done.
    fn write(&mut self, world: &mut World, host: Host, record: Id, fails: Option<OnDisk>) -> bool {
        let forgets = self.machinery.forgets(record);
        let (agent, journal) = match host {
            Host::Source => (&mut world.a, &mut world.a_journal),
            Host::Target => (&mut world.b, &mut world.b_journal),
        };
        if agent.broken {
            return false;
        }
        agent.broken = fails.is_some();
        let is_release = matches!(self.machinery.records.get(record), Record::Released { .. });
        world.revoked |= is_release && fails.is_some();
        if fails != Some(OnDisk::No) && !forgets {
            journal.push(record);
            journal.unheard = fails.is_some();
        }
        fails.is_none()
    }

    fn send(&mut self, world: &mut World, to: Host, message: Id) {
        if !matters(self.machinery.messages.get(message)) {
            return;
        }
        if !world.net_mut(to).send(message, self.bounds.in_flight) {
            world.disturb();
        }
    }

    fn verdict(&self, world: &World) -> Option<Verdict> {
        match world.a.driver {
            Driver::RollBack { aborted: true, .. } => Some(Verdict::Aborted),
            driver => Some(self.machinery.sources.get(driver.machine()?).verdict()),
        }
    }

    pub(super) fn records(&self, records: impl Iterator<Item = Id>) -> Vec<Record> {
        records.map(|id| self.machinery.records.get(id).clone()).collect()
    }

    pub(super) fn deliver(&mut self, world: &mut World, host: Host, id: Id) {
        let message = self.machinery.messages.get(id).clone();
        match (host, world.agent(host).driver, &message) {
            (_, Driver::Down | Driver::Gone, _) => {}
            (Host::Source, _, Message::Inquire { .. }) => {
                let known = self.records(world.a_journal.known());
                if let Some(outcome) = answer(&known, self.verdict(world), &message) {
                    let outcome = self.machinery.message(outcome);
                    self.send(world, Host::Target, outcome);
                }
            }
            (Host::Target, Driver::Idle, Message::Reserve { .. })
                if world.b_journal == Journal::default() && world.b_qemu == Qemu::Absent =>
            {
                let (target, plan) = self.machinery.target(new_target(self.bounds.arbiter));
                world.b.driver = Driver::Machine(target);
                world.b.plan = plan;
                (world.b.lane, world.b.lane_cut) = (true, !world.a.can_say());
            }
            (Host::Target, Driver::Idle, _) => {
                let known = self.records(world.b_journal.known());
                if let Some(reply) = answer(&known, None, &message) {
                    let reply = self.machinery.message(reply);
                    self.send(world, Host::Source, reply);
                }
            }
            (_, Driver::Machine(_) | Driver::Resumed(_), _) => {
                if let Message::Commit { .. } | Message::Abort { .. } = message {
                    // On whichever lane it came, that is where its answers go.
                    let lives = world.a.can_say() || matches!(world.a.driver, Driver::Resumed(_));
                    (world.b.lane, world.b.lane_cut) = (true, !lives);
                }
                self.tell(world, host, Event::Peer(id));
            }
            _ => {}
        }
    }
}
