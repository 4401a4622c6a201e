//! Taking a VM in: carries out what [`vmferry_core::handover::Target`] decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver as Inbox, UnboundedReceiver, UnboundedSender, unbounded_channel};
use vmferry_content::Blocks;
use vmferry_core::handover::arbiter::Side;
use vmferry_core::handover::{Target, TargetEffect, TargetEvent};
use vmferry_core::limits::{CONTENT_TABLES_BYTES_MAX, HEARTBEAT, LANES_MAX, LINK_PATIENCE_MAX};
use vmferry_core::page::catalog::CONTENT_SOURCES_MAX;
use vmferry_core::page::{FingerprintKey, StreamDigest};
use vmferry_core::wire::message::{Handover, Image, Message, Reservation, Transfer};
use vmferry_dataplane::connection::LinkEvent;
use vmferry_dataplane::target::{self as lanes, Event as StreamEvent};

use super::arbitration::Arbitration;
use super::control::{Control, Heard, Mouth};
use super::figures::{TargetFigures, cpu_of, ms};
use super::offer::{Admission, DISK_LOOKS, Offer};
use super::peers::DataLane;
use super::resolve::Decisions;
use super::{monitor, source};
use crate::agent::Agent;
use crate::agent::record::Record;
use crate::content::name::ContentName;
use crate::host::{DiskFacts, TargetFacts, examine};
use crate::policy::Objection;
use crate::vm::{Process, RunningVm, VmFolder, find_again};

/// How long a reservation waits for known content: a disk's server may not answer, and pages can be sent.
const CONTENTS_LIMIT: Duration = Duration::from_secs(5);

/// How long the source may take to describe its disks once more: all looks together end before the reservation is given up.
const DISKS_LIMIT: Duration = Duration::from_secs(10);

/// What a guest's memory blocks may have beside its memory, bytes: ROMs, video memory, and what devices yet to come may bring.
const DEVICE_MEMORY_BYTES_MAX: u64 = 16 << 30;

/// How long a QEMU whose monitor broke may take to greet once more.
const MONITOR_LIMIT: Duration = Duration::from_secs(10);

/// Who offers a VM.
pub(super) struct Peer {
    /// Where its agent listens.
    pub(super) address: String,
    /// What host it is; its policy's list of senders goes by this name.
    pub(super) host: String,
}

/// Takes in the VM that a peer offers on a control lane. `lanes` gives the migration's data lanes as they connect.
pub(super) async fn take_in(
    agent: Arc<Agent>,
    control: Control,
    peer: Peer,
    offered: (Handover, Transfer, serde_json::Value),
    lanes: Inbox<DataLane>,
) {
    let (handover, transfer, offer) = offered;
    let Peer { address: peer, host } = peer;
    control.wait_for_link(link_patience(&transfer));
    let arbiter = agent.arbiter.is_there();
    let (target, effects) = Target::new(handover.clone(), peer, transfer.clone(), offer, arbiter);
    let mut driver = Driver::new(agent, handover, target, Some(control));
    driver.incoming = Some(Incoming {
        lanes,
        connected: BTreeMap::new(),
        sender: host,
        wanted: transfer.lanes,
        transfer,
    });
    driver.run(effects).await;
}

/// Takes up an image that was prepared before the agent restarted; `vm` is its QEMU, if that still lives.
pub(super) async fn resume_prepared(
    agent: Arc<Agent>,
    handover: Handover,
    peer: String,
    arbiter: bool,
    vm: Option<Arc<RunningVm>>,
) {
    let (target, effects) = Target::prepared(handover.clone(), peer, arbiter, Duration::ZERO);
    let mut driver = Driver::new(agent, handover, target, None);
    match vm {
        Some(vm) => driver.hold(vm),
        None => {
            driver.folder = Some(driver.agent.folder(&driver.handover.vm));
            let why = "its QEMU ended while no agent watched it".to_owned();
            driver.queue.push_back(TargetEvent::QemuGone(why));
        }
    }
    driver.run(effects).await;
}

/// Takes up a VM that was owned, but perhaps not started, before the agent restarted.
pub(super) async fn resume_owned(agent: Arc<Agent>, handover: Handover, peer: String, vm: Arc<RunningVm>) {
    let (target, effects) = Target::owned(handover.clone(), peer);
    let mut driver = Driver::new(agent, handover, target, None);
    driver.hold(vm);
    driver.run(effects).await;
}

/// Takes up a VM that was owned before the agent restarted, and whose QEMU is gone without ever having run it.
pub(super) async fn resume_unstarted(agent: Arc<Agent>, handover: Handover, peer: String) {
    let (target, effects) = Target::owned_unstarted(handover.clone(), peer);
    Driver::new(agent, handover, target, None).run(effects).await;
}

/// What is needed until the stream is open.
struct Incoming {
    lanes: Inbox<DataLane>,
    connected: BTreeMap<u16, DataLane>,
    /// The source's host.
    sender: String,
    wanted: u16,
    transfer: Transfer,
}

struct Driver {
    agent: Arc<Agent>,
    handover: Handover,
    target: Target,
    control: Option<Control>,
    /// The link of the control lane is broken.
    is_link_down: bool,
    queue: VecDeque<TargetEvent>,
    /// Control lanes on which the source goes on after this one was lost.
    attached: Inbox<(Control, Message)>,
    arbitration: Arbitration,
    /// What an operator decides.
    decisions: Decisions,
    /// What the source's agent answers an inquiry, from a task of its own.
    answers: (UnboundedSender<Message>, UnboundedReceiver<Message>),
    stream_events: (UnboundedSender<StreamEvent>, UnboundedReceiver<StreamEvent>),
    incoming: Option<Incoming>,
    admission: Option<Admission>,
    /// Content that the source may refer pages to, by number.
    contents: Vec<Option<Arc<dyn Blocks>>>,
    vm: Option<Arc<RunningVm>>,
    /// Its files, also when its QEMU has ended.
    folder: Option<VmFolder>,
    stream: Option<Arc<lanes::Target>>,
    began: Instant,
    stopped_at: Option<Instant>,
    /// The source was told `Prepared`.
    promised: bool,
    blackout: Option<Duration>,
    agent_cpu_at_start: Duration,
    finished: bool,
}

impl Driver {
    fn new(agent: Arc<Agent>, handover: Handover, target: Target, control: Option<Control>) -> Driver {
        Driver {
            attached: agent.peers.enter_target(handover.migration),
            decisions: agent.handovers.enter(&handover, Side::Target, target.peer()),
            arbitration: Arbitration::default(),
            agent,
            handover,
            target,
            control,
            is_link_down: false,
            queue: VecDeque::new(),
            answers: unbounded_channel(),
            stream_events: unbounded_channel(),
            incoming: None,
            admission: None,
            contents: Vec::new(),
            vm: None,
            folder: None,
            stream: None,
            began: Instant::now(),
            stopped_at: None,
            promised: false,
            blackout: None,
            agent_cpu_at_start: cpu_of("self"),
            finished: false,
        }
    }

    fn hold(&mut self, vm: Arc<RunningVm>) {
        self.folder = Some(vm.folder.clone());
        self.vm = Some(vm);
    }

    async fn run(mut self, effects: Vec<TargetEffect>) {
        self.carry_out(effects).await;
        while !self.finished {
            self.decisions.waits(self.target.can_be_resolved());
            let event = match self.queue.pop_front() {
                Some(event) => event,
                None => self.next().await,
            };
            tracing::debug!(migration = %self.handover.migration, ?event, "target");
            let effects = self.target.handle(event, self.began.elapsed());
            self.carry_out(effects).await;
        }
    }

    async fn next(&mut self) -> TargetEvent {
        loop {
            let deadline = self.target.deadline().map(|at| self.began + at);
            // Once it has promised, the state machine asks.
            let asks = self.is_link_down && !self.promised;
            let event = tokio::select! {
                biased;
                heard = hear(&mut self.control) => self.on_heard(heard),
                Some((control, message)) = self.attached.recv() => {
                    self.control = Some(control);
                    Some(TargetEvent::Peer(message))
                }
                (claim, ruling) = self.arbitration.ruled() => Some(TargetEvent::Ruled(claim, ruling)),
                keep = self.decisions.next() => Some(TargetEvent::Resolved(keep)),
                Some(answer) = self.answers.1.recv() => Some(TargetEvent::Peer(answer)),
                Some(event) = self.stream_events.1.recv() => self.on_stream(event).await,
                Some(lane) = next_lane(&mut self.incoming) => self.on_lane(lane),
                () = qemu_ends(&self.vm) => {
                    let words = self.vm.take().map(|vm| vm.last_words()).unwrap_or_default();
                    Some(TargetEvent::QemuGone(format!("the target's QEMU ended: {words}")))
                }
                () = source::until(deadline) => Some(TargetEvent::Tick),
                () = tokio::time::sleep(HEARTBEAT), if asks => {
                    self.inquire();
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn on_heard(&mut self, heard: Option<Heard>) -> Option<TargetEvent> {
        match heard {
            Some(Heard::Message(Message::Stopped)) => {
                self.stopped_at = Some(Instant::now());
                if let Some(stream) = &self.stream {
                    stream.guest_stopped();
                }
                None
            }
            Some(Heard::Message(message)) => Some(TargetEvent::Peer(message)),
            Some(Heard::ReturnPath(_) | Heard::ContentTable(..)) => {
                self.control = None;
                let why = "the source's agent sent a frame that only a target sends";
                Some(TargetEvent::PeerLost(why.to_owned()))
            }
            // A source whose agent has ended looks the same, and once it is there again it has given this attempt up: it is asked.
            Some(Heard::Link(event)) => {
                self.is_link_down = matches!(event, LinkEvent::Down(_));
                None
            }
            Some(Heard::Lost(why)) => {
                (self.control, self.is_link_down) = (None, false);
                Some(TargetEvent::PeerLost(format!("lost the source's agent: {why}")))
            }
            None => {
                self.control = None;
                None
            }
        }
    }

    async fn on_stream(&mut self, event: StreamEvent) -> Option<TargetEvent> {
        match event {
            StreamEvent::ReturnPath(bytes) => {
                if let Some(mouth) = self.mouth() {
                    mouth.return_path(bytes);
                }
                None
            }
            StreamEvent::Loaded(stream) => Some(match self.image(stream).await {
                Ok(image) => TargetEvent::Loaded(image),
                Err(why) => TargetEvent::LoadFailed(why),
            }),
            StreamEvent::Failed(why) => Some(TargetEvent::LoadFailed(why)),
        }
    }

    /// Describes what QEMU has loaded.
    async fn image(&self, stream: StreamDigest) -> Result<Image, String> {
        let verify = self
            .incoming
            .as_ref()
            .is_some_and(|incoming| incoming.transfer.verify_memory);
        let lanes = self.stream.clone().filter(|_| verify);
        let memory = match lanes {
            None => None,
            Some(lanes) => tokio::task::spawn_blocking(move || lanes.hash_memory().transpose())
                .await
                .map_err(|panic| panic.to_string())?
                .map_err(|error| format!("reading the guest's memory: {error}"))?,
        };
        Ok(Image { stream, memory })
    }

    fn on_lane(&mut self, lane: DataLane) -> Option<TargetEvent> {
        let incoming = self.incoming.as_mut()?;
        let is_wanted = lane.index < incoming.wanted && self.stream.is_none();
        if !is_wanted || incoming.connected.contains_key(&lane.index) {
            return Some(TargetEvent::LoadFailed(format!(
                "the source connected lane {} unasked",
                lane.index
            )));
        }
        incoming.connected.insert(lane.index, lane);
        if incoming.connected.len() < usize::from(incoming.wanted) {
            return None;
        }
        Some(match self.open_stream() {
            Ok(()) => TargetEvent::StreamOpened,
            Err(why) => TargetEvent::LoadFailed(why),
        })
    }

    fn open_stream(&mut self) -> Result<(), String> {
        let (Some(incoming), Some(admission), Some(vm)) = (&mut self.incoming, &mut self.admission, &self.vm) else {
            return Err("a stream came before it was reserved for".to_owned());
        };
        let connected = std::mem::take(&mut incoming.connected);
        let settings = lanes::Settings {
            coders: incoming.transfer.coders.clone(),
            key: FingerprintKey::new(incoming.transfer.fingerprint_key),
            qemu: vm.folder.incoming(),
            guest_bytes_max: admission
                .definition
                .memory
                .size
                .0
                .saturating_add(DEVICE_MEMORY_BYTES_MAX),
            content: reader(std::mem::take(&mut self.contents)),
            bandwidth: incoming.transfer.bandwidth,
            link_patience: link_patience(&incoming.transfer),
        };
        let to_driver = self.stream_events.0.clone();
        // The driver's receiver lives as long as the stream.
        let on_event = move |event| drop(to_driver.send(event));
        let pairs = connected
            .into_values()
            .map(|lane| (lane.sender, lane.receiver))
            .collect();
        let stream = lanes::Target::start(pairs, admission.memory.take(), settings, on_event);
        self.stream = Some(Arc::new(
            stream.map_err(|error| format!("can't start the lanes: {error}"))?,
        ));
        Ok(())
    }

    fn mouth(&self) -> Option<&Mouth> {
        self.control.as_ref().map(Control::mouth)
    }

    async fn carry_out(&mut self, effects: Vec<TargetEffect>) {
        for effect in effects {
            tracing::debug!(migration = %self.handover.migration, ?effect, "target");
            if let Some(event) = self.effect(effect).await {
                self.queue.push_back(event);
            }
        }
    }

    async fn effect(&mut self, effect: TargetEffect) -> Option<TargetEvent> {
        match effect {
            TargetEffect::Reserve { offer, .. } => Some(TargetEvent::Reserved(self.reserve(offer).await)),
            TargetEffect::Journal(fact) => Some(TargetEvent::Journaled(super::journal(&self.agent, fact).await)),
            TargetEffect::Send(message) => {
                self.promised |= matches!(message, Message::Prepared { .. });
                if let Some(mouth) = self.mouth() {
                    if let Message::Running { .. } = message {
                        mouth.say(Message::Figures {
                            figures: self.figures(),
                        });
                    }
                    mouth.say(message);
                }
                None
            }
            TargetEffect::Inquire => {
                self.inquire();
                None
            }
            TargetEffect::Arbitrate(claim) => {
                self.arbitration
                    .ask(&self.agent, Side::Target, &self.handover, claim, None);
                None
            }
            TargetEffect::StartGuest => Some(self.start_guest().await),
            TargetEffect::Drop { reason } => {
                self.drop_copy(&reason).await;
                None
            }
            TargetEffect::Finish { owned } => {
                if let (true, Some(vm)) = (owned, self.vm.take()) {
                    if let Err(error) = vm.folder.remove_incoming() {
                        tracing::warn!(vm = self.handover.vm, %error, "the folder of its stream's socket");
                    }
                    self.forget_kept().await;
                    self.agent.take_in(vm, self.handover.epoch);
                    self.agent.peers.reservations().release(&self.handover.vm);
                }
                self.finished = true;
                None
            }
        }
    }

    /// Checks the offer, sets its memory and name aside, starts its QEMU and has it wait. Every reason against it at once.
    async fn reserve(&mut self, offer: serde_json::Value) -> Result<Reservation, Vec<String>> {
        let (lanes, verify) = self.incoming.as_ref().map_or((0, false), |incoming| {
            (usize::from(incoming.wanted), incoming.transfer.verify_memory)
        });
        if !(1..=LANES_MAX).contains(&lanes) {
            return Err(vec![format!(
                "the source asks for {lanes} lanes; it can have 1 to {LANES_MAX}"
            )]);
        }
        let mut offer: Offer = serde_json::from_value(offer)
            .map_err(|error| vec![format!("this host does not understand the offer: {error}")])?;
        let objections = self.weigh(&offer).await?;
        let facts = self
            .examine(&mut offer, objections)
            .await
            .map_err(|error| vec![error])?;
        let same = super::offer::same_arbiter(&self.agent, offer.arbiter.as_ref()).await;
        let arbiter_host = same.map_err(|error| vec![error])?;
        let mut admission = super::offer::admit(&self.agent, &self.handover, offer, &facts)?;
        let started = async {
            let definition = Box::new(admission.definition.clone());
            let incoming = Record::Incoming {
                migration: self.handover.migration,
                definition,
            };
            self.agent
                .journal
                .append(incoming)
                .await
                .map_err(|error| error.to_string())?;
            let vm = admission.launch(&self.agent).await?;
            if let Err(error) = vm.folder.mark_unstarted() {
                let why = format!("the VM's folder can't be written: {error}");
                return Err(end_unfit(&vm, why).await);
            }
            if let Err(error) = monitor::await_stream(&vm.qmp, VmFolder::INCOMING.as_ref()).await {
                let why = format!("the target's QEMU does not wait for a stream: {error}");
                return Err(end_unfit(&vm, why).await);
            }
            admission.memory = monitor::guest_memory(&vm).await;
            if verify && admission.memory.is_none() {
                return Err(end_unfit(&vm, monitor::UNVERIFIABLE.to_owned()).await);
            }
            Ok::<_, String>(vm)
        };
        match started.await {
            Ok(vm) => {
                let names = admission
                    .contents
                    .get(..CONTENT_SOURCES_MAX)
                    .unwrap_or(&admission.contents);
                let contents = self.open_contents(&vm, names, admission.contents.len());
                if tokio::time::timeout(CONTENTS_LIMIT, contents).await.is_err() {
                    tracing::warn!(
                        vm = self.handover.vm,
                        "known content can't be opened in time; pages are sent"
                    );
                    self.contents.clear();
                }
                self.hold(Arc::new(vm));
                let numbered = (0..).zip(&self.contents);
                let reservation = Reservation {
                    reads_guest_memory: admission.memory.is_some(),
                    arbiter_host,
                    contents: numbered
                        .filter_map(|(number, content)| content.as_ref().map(|_| number))
                        .collect(),
                };
                self.admission = Some(admission);
                Ok(reservation)
            }
            Err(reason) => {
                self.remove_files(&admission.definition.name);
                super::offer::give_back(&self.agent, &self.handover, &reason);
                Err(vec![reason])
            }
        }
    }

    /// Removes what is left of a copy whose QEMU did not start, or was ended again.
    fn remove_files(&self, vm: &str) {
        let folder = self.agent.folder(vm);
        // One that lives all the same is found by its files.
        let removed = match Process::find(&folder.pid()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => folder.remove(),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(vm, %error, "the files of a copy that did not start");
        }
    }

    /// What this host's policy has against the offer: before anything that it names is looked at. A host that may not send
    /// VMs is told nothing else, nor is one whose definition does not hold together.
    async fn weigh(&self, offer: &Offer) -> Result<Vec<Objection>, Vec<String>> {
        let policy = self.agent.config.policy.clone();
        let sender = self.incoming.as_ref().map_or("", |incoming| &incoming.sender);
        policy
            .check_sender(sender)
            .map_err(|objection| vec![objection.to_string()])?;
        let definition = offer.definition.clone().validated().map_err(|error| error.problems())?;
        tokio::task::spawn_blocking(move || policy.objections(&definition))
            .await
            .map_err(|panic| vec![panic.to_string()])
    }

    /// Looks at this host, except for what its policy is against. The offer's disks are described anew while their content is
    /// all that is against them.
    async fn examine(&mut self, offer: &mut Offer, objections: Vec<Objection>) -> Result<TargetFacts, String> {
        let examined = examine(&self.agent.probes, offer, objections).await;
        let mut facts = examined.map_err(|error| error.to_string())?;
        for _ in 1..DISK_LOOKS {
            if !facts.content_differs() {
                break;
            }
            let Some(disks) = self.describe_disks().await else {
                break;
            };
            tracing::info!(
                vm = self.handover.vm,
                "disks were written to while they were compared: once more"
            );
            offer.disks = disks;
            facts.look_again(offer).await;
        }
        Ok(facts)
    }

    /// Has the source describe its disks anew; none if it does not answer that. What else it says is handled afterwards.
    async fn describe_disks(&mut self) -> Option<Vec<DiskFacts>> {
        self.mouth()?.say(Message::DescribeDisks);
        let heard = tokio::time::timeout(DISKS_LIMIT, hear(&mut self.control)).await.ok()?;
        if let Some(Heard::Message(Message::Disks { disks })) = heard {
            return serde_json::from_value(disks).ok();
        }
        let event = self.on_heard(heard);
        self.queue.extend(event);
        None
    }

    /// Opens what the source may refer to, and tells it what else there is.
    async fn open_contents(&mut self, vm: &RunningVm, names: &[ContentName], offered: usize) {
        self.contents = self.agent.content.open_for(vm, names).await;
        self.tell_kept(offered).await;
    }

    /// Tells the source what memory of the VM is kept here: the content source behind the `offered` ones.
    async fn tell_kept(&mut self, offered: usize) {
        let (Some(kept), vm) = (self.agent.content.kept(), self.handover.vm.clone()) else {
            return;
        };
        let table_bytes_max = usize::try_from(self.agent.content.tables_bytes_max())
            .map_or(CONTENT_TABLES_BYTES_MAX, |bytes| bytes.min(CONTENT_TABLES_BYTES_MAX));
        let kept = tokio::task::spawn_blocking(move || kept.of(&vm, table_bytes_max)).await;
        let kept = kept.ok().flatten();
        let number = u16::try_from(offered).ok().filter(|_| offered < CONTENT_SOURCES_MAX);
        let mouth = self.control.as_ref().map(Control::mouth);
        if let (Some(kept), Some(number), Some(mouth)) = (kept, number, mouth) {
            mouth.content_table(number, kept.table);
            self.contents.push(Some(kept.blocks));
        }
    }

    /// Asks the source's agent, over a connection of its own.
    fn inquire(&self) {
        let (agent, peer, answers) = (
            self.agent.clone(),
            self.target.peer().to_owned(),
            self.answers.0.clone(),
        );
        let handover = self.handover.clone();
        tokio::spawn(async move {
            match super::peers::ask(&agent, &peer, Message::Inquire { handover }).await {
                // Fails when the driver has ended, which is fine.
                Ok(answer) => drop(answers.send(answer)),
                Err(why) => tracing::warn!(why, "the source of a prepared VM can't be asked"),
            }
        });
    }

    async fn start_guest(&mut self) -> TargetEvent {
        let Some(mut vm) = self.vm.clone() else {
            return TargetEvent::QemuGone("the target's QEMU ended before it ran".to_owned());
        };
        if vm.qmp.is_closed() {
            // It is gone, or only its monitor broke, perhaps when it was told before. Now it is not told anything.
            let found = tokio::time::timeout(MONITOR_LIMIT, find_again(vm.folder.clone())).await;
            vm = match found {
                Ok(Ok(Some(found))) => Arc::new(found),
                Ok(Ok(None)) => {
                    self.vm = None;
                    return TargetEvent::QemuGone("the target's QEMU ended before it ran".to_owned());
                }
                Ok(Err(error)) => return TargetEvent::Started(Err(error.to_string())),
                Err(_) => {
                    let why = format!("its monitor greets nobody within {MONITOR_LIMIT:?}");
                    return TargetEvent::Started(Err(why));
                }
            };
            self.hold(vm.clone());
        }
        if let Err(error) = vm.folder.unmark_unstarted() {
            return TargetEvent::Started(Err(format!("its folder can't be written: {error}")));
        }
        match vm.qmp.cont().await {
            Ok(()) => {}
            Err(vmferry_qmp::Error::Refused { error, .. }) => return TargetEvent::Started(Err(error.to_string())),
            // It has ended, or it lives and only its monitor broke. Whether it was told can't be known.
            Err(error) => {
                tracing::warn!(vm = self.handover.vm, %error, "its QEMU is told once more to run the guest");
                return TargetEvent::StartUnknown(error.to_string());
            }
        }
        self.blackout = self.blackout.or(self.stopped_at.map(|at| at.elapsed()));
        monitor::announce(&vm.qmp).await;
        TargetEvent::Started(Ok(()))
    }

    fn figures(&self) -> serde_json::Value {
        let qemu_cpu = self.vm.as_ref().map(|vm| cpu_of(vm.process.pid())).unwrap_or_default();
        let (placed_bytes, not_placed) = self.stream.as_ref().map(|stream| stream.placed()).unwrap_or_default();
        let figures = TargetFigures {
            blackout_ms: self.blackout.map(ms),
            agent_cpu_s: cpu_of("self").saturating_sub(self.agent_cpu_at_start).as_secs_f64(),
            qemu_cpu_s: qemu_cpu.as_secs_f64(),
            placed_bytes,
            not_placed,
        };
        serde_json::to_value(figures).unwrap_or_default()
    }

    /// The VM runs here: what was kept of it is of no more use. Once the VM is listed nothing of it is left, and what is kept of
    /// it when it leaves again can't be taken for that.
    async fn forget_kept(&self) {
        if let Some(kept) = self.agent.content.kept() {
            let vm = self.handover.vm.clone();
            if let Err(panic) = tokio::task::spawn_blocking(move || kept.forget(&vm)).await {
                tracing::error!(%panic, "forgetting memory that was kept");
            }
        }
    }

    /// Keeps what came of a guest's memory, for the next attempt. Not once the source may wait for word that the copy is gone,
    /// its guest paused.
    async fn keep_memory(&self, stream: &Arc<lanes::Target>) {
        if let (Some(kept), false) = (self.agent.content.kept(), self.promised) {
            let (stream, vm) = (stream.clone(), self.handover.vm.clone());
            let keep = move || kept.keep(&vm, |each| stream.read_memory(each));
            if let Err(panic) = tokio::task::spawn_blocking(keep).await {
                tracing::error!(%panic, "keeping the guest's memory");
            }
        }
    }

    async fn drop_copy(&mut self, reason: &str) {
        tracing::info!(
            vm = self.handover.vm,
            reason,
            "dropping the copy that was to be taken in"
        );
        if let Some(stream) = self.stream.take() {
            stream.stop();
            self.keep_memory(&stream).await;
            stream.close();
        }
        if let Some(vm) = self.vm.take()
            && let Err(error) = vm.process.kill().await
        {
            tracing::error!(vm = self.handover.vm, %error, "the dropped copy's QEMU can't be ended");
        }
        if let Some(Err(error)) = self.folder.take().map(|folder| folder.remove()) {
            tracing::warn!(vm = self.handover.vm, %error, "the dropped copy's files");
        }
        super::offer::give_back(&self.agent, &self.handover, reason);
    }
}

/// How long a link that breaks is waited for.
fn link_patience(transfer: &Transfer) -> Duration {
    Duration::from_millis(transfer.link_patience_ms).min(LINK_PATIENCE_MAX)
}

/// Reads content by its number.
fn reader(contents: Vec<Option<Arc<dyn Blocks>>>) -> Arc<lanes::ReadContent> {
    Arc::new(move |number, first, into| {
        let content = contents.get(usize::from(number)).and_then(Option::as_ref);
        content.is_some_and(|content| match content.read(first, into) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(?content, first, %error, "known content can't be read");
                false
            }
        })
    })
}

async fn hear(control: &mut Option<Control>) -> Option<Heard> {
    match control {
        Some(control) => control.heard.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_lane(incoming: &mut Option<Incoming>) -> Option<DataLane> {
    match incoming {
        Some(incoming) => incoming.lanes.recv().await,
        None => None,
    }
}

async fn qemu_ends(vm: &Option<Arc<RunningVm>>) {
    match vm {
        Some(vm) => {
            if let Err(error) = vm.process.ended().await {
                tracing::error!(%error, "can't watch a QEMU");
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

/// Ends a QEMU that was started for nothing; returns why, and what else went wrong.
async fn end_unfit(vm: &RunningVm, why: String) -> String {
    match vm.end().await {
        Ok(()) => why,
        Err(error) => format!("{why}; and its QEMU does not end: {error}"),
    }
}
