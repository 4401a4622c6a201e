//! One attempt to move a VM away from here: carries out what [`vmferry_core::handover::Source`] decides.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vmferry_core::controller::{Controller, Decision, Limits, Sample};
use vmferry_core::handover::arbiter::Side;
use vmferry_core::handover::{Cause, Outcome, Source, SourceEffect, SourceEvent, Stage};
use vmferry_core::memory;
use vmferry_core::page::{FingerprintKey, RING_BATCHES, Reach};
use vmferry_core::qemu::return_path;
use vmferry_core::wire::hello::{Lane, MigrationId};
use vmferry_core::wire::message::{Handover, Image, Message, Reservation, Transfer, Verdict};
use vmferry_dataplane::connection::LinkEvent;
use vmferry_dataplane::source::{self as lanes, Counters};
use vmferry_dataplane::{connection, source};
use vmferry_qmp::{EventKind, Events, MigrationStatus};

use super::arbitration::Arbitration;
use super::contents::Contents;
use super::control::{Control, Heard};
use super::dial::{dial, hello, reach};
use super::figures::{Account, ms};
use super::offer::DISK_LOOKS;
use super::resolve::Decisions;
use super::{monitor, random};
use crate::agent::Agent;
use crate::agent::migrations::{Cancel, MigrationHandle};
use crate::api::migration::{self as view, MigrateRequest, Progress, Report, Verification};
use crate::host::describe_disks;
use crate::vm::RunningVm;

/// How often QEMU is asked how far it is, and the controller whether to stop.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is shown for how long a broken link has been waited for.
const WAITING_SHOWN: Duration = Duration::from_secs(1);
/// How long QEMU may take to connect to the socket that it was told to migrate into.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the driver waits for an answer of QEMU's while the guest runs.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long a QEMU that has closed its monitor may take to end.
const ENDING_LIMIT: Duration = Duration::from_secs(10);
/// How long a QEMU that has written its last byte may take to say that the migration is over for it, too.
const POSTMIGRATE_LIMIT: Duration = Duration::from_secs(30);
/// One attempt to move a VM away from here.
pub(super) struct Attempt<'a> {
    /// What both hosts call it.
    pub(super) id: MigrationId,
    /// The migration that it belongs to.
    pub(super) handle: &'a MigrationHandle,
    /// Which of its attempts this is, from 1.
    pub(super) number: u32,
}

/// How an attempt ended.
pub(super) struct Ended {
    pub(super) report: Report,
    /// The guest runs here, and a link that broke is to blame: another attempt may do.
    pub(super) is_worth_another: bool,
    /// What the target knows the attempt by, if it heard of it.
    pub(super) handover: Option<Handover>,
}

/// Carries an attempt out.
pub(super) async fn run(agent: &Arc<Agent>, attempt: Attempt<'_>) -> Ended {
    let began = Instant::now();
    let handle = attempt.handle;
    let request = handle.request.clone();
    let to = request.address();
    let failed = |outcome, reason, is_worth_another| Ended {
        report: Report::without_transfer(
            handle.id,
            &handle.vm,
            &agent.config.name,
            &to,
            outcome,
            vec![reason],
            ms(began.elapsed()),
        ),
        is_worth_another,
        handover: None,
    };
    let vm = agent.registry.with(&handle.vm, |vm| Ok((vm.running.clone(), vm.epoch)));
    let (running, epoch) = match vm {
        Ok((Some(running), epoch)) => (running, epoch),
        _ => return failed(view::Outcome::RolledBack, "the VM has no QEMU".to_owned(), false),
    };
    let prepared = async {
        let transfer = transfer(&request)?;
        if transfer.verify_memory && monitor::guest_memory(&running).await.is_none() {
            return Err(monitor::UNVERIFIABLE.to_owned());
        }
        let memory = memory::Session {
            guest_bytes: running.definition.memory.size.0,
            lanes: transfer.lanes,
            coders: transfer.coders.clone(),
        };
        let tables_bytes_max = memory.tables_bytes_max(agent.content.tables_bytes_max());
        // Nothing has changed yet, on either host.
        let owned = agent.arbiter.own(&handle.vm, epoch).await;
        let epoch = owned.map_err(|error| error.to_string())?;
        let (offer, contents) = super::offer::make(agent, &running).await?;
        let patience = Duration::from_millis(request.link_patience_ms);
        let (control, round_trip) = dial(agent, &to, patience).await?;
        Ok::<_, String>((
            Session {
                attempt: attempt.id,
                transfer,
                control,
                round_trip,
                contents: Contents::offered(contents, memory.guest_bytes, tables_bytes_max),
                memory,
            },
            offer,
            epoch,
        ))
    };
    let mut cancel = handle.cancel();
    let (session, offer, epoch) = tokio::select! {
        prepared = prepared => match prepared {
            Ok(prepared) => prepared,
            Err(why) => return failed(view::Outcome::RolledBack, why, attempt.number > 1),
        },
        () = cancel.wait() => return failed(view::Outcome::Cancelled, Cause::Cancelled.to_string(), false),
    };
    let handover = Handover {
        migration: attempt.id,
        vm: handle.vm.clone(),
        epoch: epoch.next(),
    };
    let decisions = agent
        .handovers
        .enter(&handover, Side::Source, &session.control.peer().to_string());
    let (source, effects) = Source::new(
        handover.clone(),
        session.control.peer().to_string(),
        session.transfer.clone(),
        offer,
        Duration::from_millis(request.max_blackout_ms),
        agent.arbiter.is_there(),
    );
    let driver = Driver::new(
        agent.clone(),
        handle,
        attempt.number,
        running,
        session,
        (handover, source, decisions),
        began,
    );
    driver.run(effects).await
}

fn transfer(request: &MigrateRequest) -> Result<Transfer, String> {
    let coders = request.coders().map_err(|error| error.to_string())?;
    Ok(Transfer {
        lanes: super::lanes(request.lanes),
        coders,
        fingerprint_key: random()?,
        verify_memory: request.verify,
        bandwidth: request.bandwidth_bytes_s,
        link_patience_ms: request.link_patience_ms,
    })
}

/// What joins this agent and the target's.
struct Session {
    attempt: MigrationId,
    transfer: Transfer,
    control: Control,
    round_trip: Duration,
    contents: Contents,
    memory: memory::Session,
}

/// The state of one attempt, outside of what the state machine knows.
struct Driver<'a> {
    agent: Arc<Agent>,
    handle: &'a MigrationHandle,
    cancel: Cancel,
    number: u32,
    vm: Arc<RunningVm>,
    session: Session,
    control_lost: bool,
    /// The control lane that is to replace a lost one.
    reached: Option<JoinHandle<Control>>,
    source: Source,
    handover: Handover,
    arbitration: Arbitration,
    /// What an operator decides.
    decisions: Decisions,
    /// What a target that asks is answered meanwhile.
    verdict: watch::Sender<Verdict>,
    queue: VecDeque<SourceEvent>,
    qmp_events: Option<Events>,
    stream: Option<Arc<source::Source>>,
    stream_events: UnboundedReceiver<lanes::Event>,
    to_driver: UnboundedSender<lanes::Event>,
    controller: Controller,
    account: Account,
    let_stop: bool,
    /// The attempt came to its last stage: what became of it after that is for people to look at.
    came_to_commit: bool,
    /// How often the disks were described to the target.
    disk_looks: usize,
    began: Instant,
    stream_began: Option<Instant>,
    outcome: Option<Outcome>,
}

impl<'a> Driver<'a> {
    fn new(
        agent: Arc<Agent>,
        handle: &'a MigrationHandle,
        number: u32,
        vm: Arc<RunningVm>,
        session: Session,
        (handover, source, decisions): (Handover, Source, Decisions),
        began: Instant,
    ) -> Driver<'a> {
        let (to_driver, stream_events) = unbounded_channel();
        let limits = Limits {
            max_downtime: Duration::from_millis(handle.request.max_downtime_ms),
            timeout: Some(Duration::from_secs(handle.request.timeout_s)),
        };
        let account = Account::new(began, vm.process.pid());
        Driver {
            verdict: agent.peers.enter_source(session.attempt),
            qmp_events: Some(vm.qmp.events()),
            agent,
            cancel: handle.cancel(),
            handle,
            number,
            vm,
            session,
            control_lost: false,
            reached: None,
            source,
            handover,
            arbitration: Arbitration::default(),
            decisions,
            queue: VecDeque::new(),
            stream: None,
            stream_events,
            to_driver,
            controller: Controller::new(limits),
            account,
            let_stop: false,
            came_to_commit: false,
            disk_looks: 1,
            began,
            stream_began: None,
            outcome: None,
        }
    }

    async fn run(mut self, effects: Vec<SourceEffect>) -> Ended {
        self.carry_out(effects).await;
        loop {
            if let Some(outcome) = self.outcome.take() {
                return self.end(outcome);
            }
            let event = match self.queue.pop_front() {
                Some(event) => event,
                None => self.next().await,
            };
            tracing::debug!(migration = %self.handle.id, ?event, "source");
            self.came_to_commit |= self.source.stage() == Stage::Commit;
            let effects = self.source.handle(event, self.began.elapsed());
            self.verdict.send_replace(self.source.verdict());
            self.decisions.waits(self.source.can_be_resolved());
            self.account.stage(self.source.stage());
            self.publish();
            self.carry_out(effects).await;
        }
    }

    /// Waits for something to happen.
    async fn next(&mut self) -> SourceEvent {
        loop {
            let deadline = self.source.deadline().map(|at| self.began + at);
            let looks = self.stream.is_some() && self.source.stage() == Stage::PreCopy && !self.account.is_link_down();
            let waits_for_link = self.account.is_link_down();
            let can_cancel = self.source.can_cancel();
            // A lost lane ends an attempt that is not released. A released one goes on, however long that takes.
            if self.control_lost && self.reached.is_none() && self.source.needs_peer() {
                let (agent, address) = (self.agent.clone(), self.handle.request.address());
                self.reached = Some(tokio::spawn(async move { reach(&agent, &address).await }));
            }
            let event = tokio::select! {
                biased;
                heard = self.session.control.heard.recv(), if !self.control_lost => self.hear(heard),
                control = joined(&mut self.reached) => {
                    self.session.control = control;
                    (self.reached, self.control_lost) = (None, false);
                    self.account.link_up();
                    Some(SourceEvent::PeerBack)
                }
                // Before what QEMU says: that its migration failed follows from a stream that did.
                Some(event) = self.stream_events.recv() => self.on_stream(event),
                event = next_event(&mut self.qmp_events) => self.on_qmp(event).await,
                (claim, ruling) = self.arbitration.ruled() => Some(SourceEvent::Ruled(claim, ruling)),
                keep = self.decisions.next() => Some(SourceEvent::Resolved(keep)),
                () = self.cancel.wait(), if can_cancel => Some(SourceEvent::Cancel),
                () = until(deadline) => Some(SourceEvent::Tick),
                () = tokio::time::sleep(WAITING_SHOWN), if waits_for_link => {
                    self.publish();
                    None
                }
                () = tokio::time::sleep(LOOK), if looks => self.look().await,
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn hear(&mut self, heard: Option<Heard>) -> Option<SourceEvent> {
        match heard {
            Some(Heard::Message(Message::Figures { figures })) => {
                self.account.target = serde_json::from_value(figures).unwrap_or_default();
                None
            }
            Some(Heard::Message(Message::DescribeDisks)) => {
                self.describe_disks();
                None
            }
            Some(Heard::Message(message)) => {
                if let Message::Running { .. } = message {
                    self.account.guest_runs_there();
                }
                Some(SourceEvent::Peer(message))
            }
            Some(Heard::ReturnPath(bytes)) => {
                let written = self.stream.as_ref().map(|stream| stream.return_path(&bytes));
                written?
                    .err()
                    .map(|error| SourceEvent::TransferFailed(format!("QEMU's return path: {error}")))
            }
            Some(Heard::ContentTable(number, part)) => {
                let taken = self.session.contents.take(number, &part);
                taken.err().map(SourceEvent::PeerLost)
            }
            Some(Heard::Link(event)) => {
                self.on_link(event);
                None
            }
            Some(Heard::Lost(why)) => {
                if !self.account.link_broke() {
                    self.account.link_down();
                }
                Some(SourceEvent::PeerLost(why))
            }
            None => {
                self.control_lost = true;
                None
            }
        }
    }

    /// The link of the control lane broke or is there again.
    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Down(why) => {
                tracing::warn!(migration = %self.handle.id, %why, "the link to the target broke; waiting for it");
                self.account.link_down();
            }
            LinkEvent::Up => {
                let was_down = self.account.link_up();
                tracing::info!(migration = %self.handle.id, ?was_down, "the link to the target is there again");
                if let Some(stream) = &self.stream {
                    stream.link_was_down(was_down);
                }
            }
        }
        self.publish();
    }

    /// Tells the target what the disks look like by now, as often as that can be of use to it.
    fn describe_disks(&mut self) {
        if self.source.stage() != Stage::Reserve || self.disk_looks >= DISK_LOOKS {
            return;
        }
        self.disk_looks += 1;
        let (vm, mouth) = (self.vm.clone(), self.session.control.mouth().clone());
        tokio::spawn(async move {
            // Of a disk that can't be read any more there is nothing to say; the target then refuses it.
            let disks = describe_disks(&vm).await.unwrap_or_default();
            mouth.say(Message::Disks { disks: json!(disks) });
        });
    }

    async fn on_qmp(&mut self, event: Result<EventKind, vmferry_qmp::Error>) -> Option<SourceEvent> {
        match event {
            Err(error @ vmferry_qmp::Error::EventsLost { .. }) => Some(SourceEvent::MigrationFailed(format!(
                "it can't be followed any further: {error}"
            ))),
            Err(error) => Some(self.monitor_lost(&error).await),
            Ok(EventKind::Stop) if self.stream.is_some() => {
                self.account.guest_stopped();
                Some(SourceEvent::GuestStopped)
            }
            Ok(EventKind::MigrationPass(pass)) => {
                let round = u32::try_from(pass).unwrap_or(u32::MAX);
                if let Some(stream) = &self.stream {
                    stream.set_round(round);
                }
                self.account.round(round);
                self.look().await
            }
            Ok(EventKind::Migration(MigrationStatus::Completed)) => {
                let reached = monitor::reaches_postmigrate(&self.vm.qmp);
                match tokio::time::timeout(POSTMIGRATE_LIMIT, reached).await {
                    Ok(Ok(true)) => Some(SourceEvent::PostMigrate),
                    Ok(Ok(false)) => Some(SourceEvent::MigrationFailed(
                        "it went on after its migration ended".to_owned(),
                    )),
                    Ok(Err(error)) => Some(self.monitor_lost(&error).await),
                    Err(_) => Some(SourceEvent::MigrationFailed(format!(
                        "its migration ended and {POSTMIGRATE_LIMIT:?} later it still was not in postmigrate"
                    ))),
                }
            }
            Ok(EventKind::Migration(MigrationStatus::Failed)) => {
                let info = self.vm.qmp.query_migrate().await.unwrap_or_default();
                let why = info
                    .error_desc
                    .unwrap_or_else(|| "its migration failed and it does not say why".to_owned());
                Some(SourceEvent::MigrationFailed(why))
            }
            Ok(_) => None,
        }
    }

    /// What it means that QEMU's monitor fails. That QEMU is gone has to be certain: then the VM is given away unasked.
    async fn monitor_lost(&self, error: &vmferry_qmp::Error) -> SourceEvent {
        match tokio::time::timeout(ENDING_LIMIT, self.vm.process.ended()).await {
            Ok(Ok(())) => SourceEvent::QemuGone,
            _ => SourceEvent::MigrationFailed(format!("it lives, but its monitor fails: {error}")),
        }
    }

    fn on_stream(&mut self, event: lanes::Event) -> Option<SourceEvent> {
        match event {
            lanes::Event::Switchover | lanes::Event::Ended | lanes::Event::Taken => None,
            lanes::Event::Lost(reason) => {
                tracing::warn!(migration = %self.handle.id, reason, "QEMU's stream is passed on as it is from here");
                self.account.stream_lost = Some(reason);
                None
            }
            lanes::Event::Failed(why) => Some(SourceEvent::TransferFailed(why)),
        }
    }

    /// Asks QEMU how far it is and the controller what to do.
    async fn look(&mut self) -> Option<SourceEvent> {
        let (counters, stream_began) = (self.stream.as_ref()?.counters(), self.stream_began?);
        // Once the guest is stopped QEMU answers nobody until its last byte is written.
        if self.source.stage() != Stage::PreCopy || self.account.is_stopped() {
            return None;
        }
        // It may be about to stop: then it answers when its last byte is written, and the driver must not wait for that.
        let Ok(Ok(info)) = tokio::time::timeout(ANSWER_LIMIT, self.vm.qmp.query_migrate()).await else {
            let overdue = self.controller.overdue(stream_began.elapsed());
            return overdue.filter(|_| !self.let_stop).map(SourceEvent::NotConverging);
        };
        let ram = info.ram.clone().unwrap_or_default();
        let sample = Sample {
            // As if the link had been there all the time: what it carried in the meantime says nothing.
            at: stream_began.elapsed().saturating_sub(self.account.link_was_down()),
            round: ram.dirty_sync_count,
            remaining_bytes: ram.remaining,
            dirty_bytes_per_s: ram.dirty_pages_rate.saturating_mul(ram.page_size),
            stream_bytes: counters.stream_bytes,
            wire_bytes: counters.wire_bytes,
            acknowledged_bytes: counters.acknowledged_bytes,
            taken_bytes: counters.taken_bytes,
            round_trip: self.session.round_trip,
        };
        let (decision, forecast) = self.controller.observe(sample);
        self.account.looked(ram, forecast, stream_began.elapsed(), &counters);
        self.publish();
        match decision {
            Decision::Continue => None,
            Decision::Stop if self.let_stop => None,
            Decision::Stop => {
                tracing::info!(migration = %self.handle.id, ?forecast, "stopping the guest");
                Some(SourceEvent::StopNow)
            }
            Decision::GiveUp(why) => Some(SourceEvent::NotConverging(why)),
        }
    }

    async fn carry_out(&mut self, effects: Vec<SourceEffect>) {
        for effect in effects {
            tracing::debug!(migration = %self.handle.id, ?effect, "source");
            if let Some(event) = self.effect(effect).await {
                self.queue.push_back(event);
            }
        }
    }

    async fn effect(&mut self, effect: SourceEffect) -> Option<SourceEvent> {
        match effect {
            SourceEffect::Journal(fact) => Some(SourceEvent::Journaled(super::journal(&self.agent, fact).await)),
            SourceEffect::Send(message) => {
                self.session.control.mouth().say(message);
                None
            }
            SourceEffect::OpenStream(reservation) => self
                .open_stream(reservation)
                .await
                .err()
                .map(SourceEvent::TransferFailed),
            SourceEffect::LetStop => {
                self.let_stop = true;
                let raised = tokio::time::timeout(ANSWER_LIMIT, monitor::let_stop(&self.vm.qmp)).await;
                // No answer means that it is stopping its guest already.
                raised
                    .ok()?
                    .err()
                    .map(|error| SourceEvent::MigrationFailed(error.to_string()))
            }
            SourceEffect::CompareImage(image) => Some(SourceEvent::Compared(self.compare(image).await)),
            SourceEffect::DeliverShut => {
                let delivered = self
                    .stream
                    .as_ref()
                    .map(|stream| stream.return_path(&return_path::shut(0)));
                delivered?
                    .err()
                    .map(|error| SourceEvent::MigrationFailed(format!("its return path is gone: {error}")))
            }
            SourceEffect::ResumeGuest => {
                if let Some(stream) = &self.stream {
                    stream.close();
                }
                let resumed = monitor::resume(&self.vm).await;
                if self.account.is_stopped() {
                    monitor::announce(&self.vm.qmp).await;
                }
                Some(SourceEvent::Resumed(resumed))
            }
            SourceEffect::EndQemu => {
                self.account.qemu_ends();
                self.keep_memory().await;
                self.agent.give_away(&self.handle.vm, &self.handle.request.to);
                let ended = self.vm.end().await.and_then(|()| self.vm.folder.remove());
                if let Err(error) = ended {
                    tracing::error!(vm = self.handle.vm, %error, "the copy here could not be ended; the target runs it");
                }
                None
            }
            SourceEffect::Arbitrate(claim) => {
                let target = self.source.target_host();
                self.arbitration
                    .ask(&self.agent, Side::Source, &self.handover, claim, target);
                None
            }
            SourceEffect::Finish(outcome) => {
                // A target that is gone for ever need not be reached any more.
                if let Some(reaching) = self.reached.take() {
                    reaching.abort();
                }
                self.outcome = Some(outcome);
                None
            }
        }
    }

    async fn open_stream(&mut self, reservation: Reservation) -> Result<(), String> {
        let (contents, readable) = (std::mem::take(&mut self.session.contents), reservation.contents);
        let catalog = tokio::task::spawn_blocking(move || contents.catalog(&readable)).await;
        let (catalog, names) = catalog.map_err(|panic| panic.to_string())?;
        self.account.contents = names;
        let mut lanes = Vec::new();
        for index in 0..self.session.transfer.lanes {
            let hello = hello(
                &self.agent,
                Lane::Data {
                    migration: self.session.attempt,
                    index,
                },
            )?;
            let peer: SocketAddr = self.session.control.peer();
            let patience = Duration::from_millis(self.session.transfer.link_patience_ms);
            let shows = self.agent.identity.shown();
            let connect = move || connection::connect(peer, shows, &hello, patience);
            let connected = tokio::task::spawn_blocking(connect).await;
            let lane = connected.map_err(|panic| panic.to_string())?;
            let lane = lane.map_err(|error| format!("lane {index}: {error}"))?;
            if lane.0.host() != self.session.control.host() {
                return Err(format!("lane {index} reaches another host than the control lane does"));
            }
            lanes.push(lane);
        }
        let (path, path_for_qemu) = self.vm.outgoing();
        let listener = bind(&path).map_err(|error| format!("can't listen on {}: {error}", path.display()))?;
        let accepted = tokio::task::spawn_blocking(move || accept(&listener));
        monitor::begin(&self.vm.qmp, &path_for_qemu)
            .await
            .map_err(|error| format!("QEMU does not migrate: {error}"))?;
        let qemu = accepted.await.map_err(|panic| panic.to_string())?;
        let qemu = qemu.map_err(|error| format!("QEMU did not connect to {}: {error}", path.display()))?;
        // The connection stays; the name has served.
        let _ = std::fs::remove_file(&path);
        let settings = lanes::Settings {
            coders: self.session.transfer.coders.clone(),
            key: FingerprintKey::new(self.session.transfer.fingerprint_key),
            versions_bytes_max: self.versions_bytes_max(catalog.memory_bytes()),
            catalog: Arc::new(catalog),
            reach: if reservation.reads_guest_memory {
                Reach::All
            } else {
                Reach::Batches(RING_BATCHES)
            },
            bandwidth: self.session.transfer.bandwidth,
        };
        let to_driver = self.to_driver.clone();
        // The driver's receiver lives as long as the stream.
        let on_event = move |event| drop(to_driver.send(event));
        let stream = source::Source::start(qemu, lanes, settings, on_event);
        self.stream = Some(Arc::new(
            stream.map_err(|error| format!("can't start the lanes: {error}"))?,
        ));
        self.stream_began = Some(Instant::now());
        Ok(())
    }

    /// Memory for hashes of pages sent, beside tables of so many bytes.
    fn versions_bytes_max(&self, tables_bytes: usize) -> usize {
        let left = self.session.memory.versions_bytes_max(tables_bytes as u64);
        let bytes = self.handle.request.delta_memory_bytes.unwrap_or(left);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Compares what the target says it holds with what was sent.
    async fn compare(&mut self, image: Image) -> Result<(), String> {
        let stream = self.stream.as_ref().ok_or("there is no stream")?;
        stream.check_loaded(&image.stream)?;
        self.account.digest = Some(image.stream.hash.iter().map(|byte| format!("{byte:02x}")).collect());
        if !self.session.transfer.verify_memory {
            return Ok(());
        }
        let theirs = image
            .memory
            .ok_or("the target can't read its guest's memory, so it can't be verified")?;
        let mut memory = monitor::guest_memory(&self.vm).await.ok_or(monitor::UNVERIFIABLE)?;
        let stream = stream.clone();
        let hashed = tokio::task::spawn_blocking(move || stream.hash_memory(&mut memory)).await;
        let ours = hashed
            .map_err(|panic| panic.to_string())?
            .map_err(|error| format!("reading the guest's memory: {error}"))?;
        self.account.verification = Some(Verification {
            bytes_compared: ours.bytes,
            equal: ours == theirs,
        });
        if ours == theirs {
            Ok(())
        } else {
            Err("the two memories differ".to_owned())
        }
    }

    /// Keeps what the guest left in memory here, for its return.
    async fn keep_memory(&self) {
        let (Some(kept), Some(stream)) = (self.agent.content.kept(), self.stream.clone()) else {
            return;
        };
        // A QEMU that does not answer is to be ended all the same.
        let memory = tokio::time::timeout(ANSWER_LIMIT, monitor::guest_memory(&self.vm)).await;
        let Ok(Some(mut memory)) = memory else {
            return;
        };
        let vm = self.handle.vm.clone();
        let keep = move || kept.keep(&vm, |each| stream.read_memory(&mut memory, each));
        if let Err(panic) = tokio::task::spawn_blocking(keep).await {
            tracing::error!(%panic, "keeping the guest's memory");
        }
    }

    fn publish(&self) {
        let progress = self.account.progress(self.source.stage(), &self.counters());
        self.handle.progress(Progress {
            attempt: self.number,
            ..progress
        });
    }

    fn counters(&self) -> Counters {
        self.stream.as_ref().map(|stream| stream.counters()).unwrap_or_default()
    }

    fn end(self, outcome: Outcome) -> Ended {
        let is_of_the_link = matches!(
            &outcome,
            Outcome::RolledBack(Cause::PeerLost(_) | Cause::Transfer(_) | Cause::Target(_) | Cause::TooLong(..))
        );
        let waits = self.session.transfer.link_patience_ms > 0;
        let is_worth_another = waits && is_of_the_link && self.account.link_broke() && !self.came_to_commit;
        let (outcome, reasons) = match outcome {
            Outcome::HandedOver => (view::Outcome::Completed, Vec::new()),
            Outcome::RolledBack(Cause::Refused(reasons)) => (view::Outcome::Refused, reasons),
            Outcome::RolledBack(cause @ Cause::Cancelled) => (view::Outcome::Cancelled, vec![cause.to_string()]),
            Outcome::RolledBack(cause @ Cause::NotConverging(_)) => {
                (view::Outcome::NotConverged, vec![cause.to_string()])
            }
            Outcome::RolledBack(cause) => (view::Outcome::RolledBack, vec![cause.to_string()]),
            Outcome::Lost(cause) => (view::Outcome::Lost, vec![cause.to_string()]),
        };
        let head = Report::without_transfer(
            self.handle.id,
            &self.handle.vm,
            &self.agent.config.name,
            &self.handle.request.address(),
            outcome,
            reasons,
            ms(self.began.elapsed()),
        );
        let counters = self.counters();
        let log = self.stream.as_ref().map(|stream| stream.coding()).unwrap_or_default();
        Ended {
            report: self.account.report(head, &counters, &log),
            is_worth_another,
            handover: Some(self.handover),
        }
    }
}

fn bind(path: &PathBuf) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // QEMU's user has to connect. Nobody else comes as far as this folder.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec {
        tv_sec: CONNECT_LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit))? {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        _ => listener.accept().map(|(stream, _)| stream),
    }
}

/// The control lane that was reached; waits for ever while none is being reached.
async fn joined(reached: &mut Option<JoinHandle<Control>>) -> Control {
    if let Some(task) = reached
        && let Ok(control) = task.await
    {
        return control;
    }
    std::future::pending().await
}

/// The next event of QEMU. An error that ends them comes once, then nothing ever again.
async fn next_event(events: &mut Option<Events>) -> Result<EventKind, vmferry_qmp::Error> {
    let Some(source) = events else {
        return std::future::pending().await;
    };
    let event = source.next().await;
    if !matches!(event, Ok(_) | Err(vmferry_qmp::Error::EventsLost { .. })) {
        *events = None;
    }
    event.map(|event| event.kind)
}

/// Waits for a moment; for ever if there is none.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
