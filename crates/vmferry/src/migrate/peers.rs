//! The port on which agents reach one another: greets whoever connects, hands data lanes to their migration, and answers
//! or takes in what a control lane asks for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::mpsc::{
    Receiver as Inbox, Sender as Outbox, UnboundedReceiver, UnboundedSender, channel, unbounded_channel,
};
use tokio::sync::watch;
use vmferry_core::handover;
use vmferry_core::limits::{LANES_MAX, PEER_SILENCE};
use vmferry_core::wire::hello::{Lane, MigrationId};
use vmferry_core::wire::message::{Message, Verdict};
use vmferry_dataplane::connection::{self, Receiver, Sender};

use super::control::{Control, Heard};
use super::dial::dial;
use super::{SOFTWARE, target};
use crate::agent::Agent;
use crate::host::Reservations;

/// Connections whose hello has not come; more are turned away until some have greeted or given up.
const GREETING_MAX: usize = 64;

/// A data lane whose hellos are exchanged.
#[derive(Debug)]
pub(super) struct DataLane {
    /// Which of its migration's.
    pub(super) index: u16,
    /// Towards the source.
    pub(super) sender: Sender,
    /// From the source.
    pub(super) receiver: Receiver,
}

/// What an agent's connections need to find of what is under way.
#[derive(Debug, Default)]
pub struct Peers {
    /// Where the data lanes of a migration to this host go.
    lanes: Mutex<BTreeMap<MigrationId, Outbox<DataLane>>>,
    /// The handovers away from here: what a target that asks is answered.
    sources: Mutex<BTreeMap<MigrationId, watch::Receiver<Verdict>>>,
    /// The handovers to this host: where a control lane goes on which a source goes on with one.
    targets: Mutex<BTreeMap<MigrationId, UnboundedSender<(Control, Message)>>>,
    reservations: Mutex<Reservations>,
}

impl Peers {
    /// What is set aside for VMs under way to this host.
    pub(super) fn reservations(&self) -> MutexGuard<'_, Reservations> {
        lock(&self.reservations)
    }

    /// Enters a handover away from here, for as long as the returned sender lives.
    pub(super) fn enter_source(&self, migration: MigrationId) -> watch::Sender<Verdict> {
        let (sender, receiver) = watch::channel(Verdict::Undecided);
        let mut sources = lock(&self.sources);
        sources.retain(|_, verdict| verdict.has_changed().is_ok());
        sources.insert(migration, receiver);
        sender
    }

    /// Enters a handover to this host, for as long as the returned receiver lives.
    pub(super) fn enter_target(&self, migration: MigrationId) -> UnboundedReceiver<(Control, Message)> {
        let (sender, receiver) = unbounded_channel();
        let mut targets = lock(&self.targets);
        targets.retain(|_, sender| !sender.is_closed());
        targets.insert(migration, sender);
        receiver
    }

    /// Expects data lanes; `None` if they are expected already.
    fn expect_lanes(&self, migration: MigrationId) -> Option<Inbox<DataLane>> {
        let (outbox, inbox) = channel(LANES_MAX);
        let mut lanes = lock(&self.lanes);
        lanes.retain(|_, outbox| !outbox.is_closed());
        if lanes.contains_key(&migration) {
            return None;
        }
        lanes.insert(migration, outbox);
        Some(inbox)
    }

    fn deliver_lane(&self, migration: MigrationId, lane: DataLane) -> Result<(), &'static str> {
        let outbox = lock(&self.lanes)
            .get(&migration)
            .cloned()
            .ok_or("no such migration is expected")?;
        outbox.try_send(lane).map_err(|_| "its migration takes no more lanes")
    }

    /// The verdict on a handover away from here that is under way.
    fn verdict(&self, migration: MigrationId) -> Option<Verdict> {
        let sources = lock(&self.sources);
        let verdict = sources.get(&migration)?;
        // A driver that is gone has left its last word in the journal.
        verdict.has_changed().is_ok().then(|| *verdict.borrow())
    }

    /// Gives a control lane to the handover under way that it is about; gives it back if there is none.
    fn attach(&self, migration: MigrationId, control: Control, message: Message) -> Option<(Control, Message)> {
        match lock(&self.targets).get(&migration) {
            Some(target) => target.send((control, message)).err().map(|unsent| unsent.0),
            None => Some((control, message)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the port until the agent ends.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let greeting = Arc::new(tokio::sync::Semaphore::new(GREETING_MAX));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others have to be closed first.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(vmferry_core::limits::HEARTBEAT).await;
                continue;
            }
        };
        let Ok(permit) = greeting.clone().try_acquire_owned() else {
            tracing::warn!(%from, "turned away: too many connections that have not said what they are for");
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let stream = stream
                .into_std()
                .and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
            let name = agent.config.name.clone();
            let greeted = tokio::task::spawn_blocking(move || {
                connection::accept(stream?, &name, SOFTWARE).map_err(std::io::Error::other)
            });
            let greeted = greeted.await;
            drop(permit);
            match greeted {
                Ok(Ok((sender, receiver, hello))) => greeted_by(agent, from, sender, receiver, hello).await,
                Ok(Err(error)) => tracing::info!(%from, %error, "not a peer"),
                Err(panic) => tracing::error!(%from, %panic, "greeting a peer"),
            }
        });
    }
}

async fn greeted_by(
    agent: Arc<Agent>,
    from: SocketAddr,
    sender: Sender,
    receiver: Receiver,
    hello: vmferry_core::wire::hello::Hello,
) {
    match hello.lane {
        Lane::Data { migration, index } => {
            if let Err(why) = agent.peers.deliver_lane(
                migration,
                DataLane {
                    index,
                    sender,
                    receiver,
                },
            ) {
                tracing::info!(%from, %migration, why, "a data lane is turned away");
            }
        }
        Lane::Control => match Control::start(sender, receiver) {
            Ok(control) => first_message(agent, control, SocketAddr::new(from.ip(), hello.port)).await,
            Err(error) => tracing::warn!(%from, %error, "a control lane"),
        },
    }
}

/// Serves a control lane until it asks for a VM to be taken in, which it then belongs to, or ends.
async fn first_message(agent: Arc<Agent>, mut control: Control, peer: SocketAddr) {
    loop {
        let heard = tokio::time::timeout(PEER_SILENCE, control.heard.recv()).await;
        let Ok(Some(Heard::Message(message))) = heard else {
            return;
        };
        match message {
            Message::Reserve {
                handover,
                transfer,
                offer,
            } => {
                let Some(lanes) = agent.peers.expect_lanes(handover.migration) else {
                    let reasons = vec!["this migration is under way here already".to_owned()];
                    return control.mouth().say(Message::Refused { reasons });
                };
                return target::take_in(agent, control, peer.to_string(), (handover, transfer, offer), lanes).await;
            }
            Message::Commit { ref handover } | Message::Abort { ref handover, .. } => {
                let migration = handover.migration;
                match agent.peers.attach(migration, control, message) {
                    None => return,
                    Some((back, message)) => {
                        control = back;
                        answer(&agent, &control, migration, &message);
                    }
                }
            }
            Message::Inquire { ref handover } => answer(&agent, &control, handover.migration, &message),
            other => tracing::info!(?other, "a message that nothing here is about"),
        }
    }
}

fn answer(agent: &Agent, control: &Control, migration: MigrationId, message: &Message) {
    // The verdict first: a driver that ends in between has left its last word in the journal.
    let under_way = agent.peers.verdict(migration);
    if let Some(answer) = handover::answer(&agent.journal.handover_records(migration), under_way, message) {
        control.mouth().say(answer);
    }
}

/// Asks a peer's agent one thing over a connection of its own.
pub(super) async fn ask(agent: &Agent, address: &str, message: Message) -> Result<Message, String> {
    let (mut control, _) = dial(agent, address).await?;
    control.mouth().say(message);
    match tokio::time::timeout(PEER_SILENCE, control.heard.recv()).await {
        Ok(Some(Heard::Message(answer))) => Ok(answer),
        Ok(Some(Heard::Lost(why))) => Err(why),
        Ok(_) => Err("it does not answer".to_owned()),
        Err(_) => Err(format!("no answer within {PEER_SILENCE:?}")),
    }
}
