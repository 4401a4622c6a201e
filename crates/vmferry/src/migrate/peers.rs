//! The port on which agents reach one another: greets whoever connects, hands data lanes to their migration, and answers
//! or takes in what a control lane asks for.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver as Inbox, Sender as Outbox, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use vmferry_core::handover;
use vmferry_core::limits::{INCOMING_MAX, LANES_MAX, PEER_SILENCE, UNCLAIMED_LANES_MAX};
use vmferry_core::wire::hello::{Hello, Lane, MigrationId};
use vmferry_core::wire::message::{Message, Verdict};
use vmferry_dataplane::connection::acceptor::Acceptor;
use vmferry_dataplane::connection::{Receiver, Sender};
use vmferry_dataplane::transport::{self, Purpose};

use super::control::{Control, Heard};
use super::dial::dial;
use super::{SOFTWARE, target};
use crate::agent::Agent;
use crate::host::Reservations;
use crate::pki;

/// Connections of which it is not clear yet who is there and for what. For one more, the one that has taken longest is closed:
/// an agent greets within milliseconds, and who opens connections only to hold them must not keep agents out.
const GREETING_MAX: usize = 64;

/// Control lanes that wait for a handover to go on with. A source has one at a time.
const ATTACHED_MAX: usize = 4;

/// A data lane whose hellos are exchanged.
#[derive(Debug)]
pub(crate) struct DataLane {
    /// Which of its migration's.
    pub(crate) index: u16,
    /// Towards the source.
    pub(crate) sender: Sender,
    /// From the source.
    pub(crate) receiver: Receiver,
}

/// What an agent's connections need to find of what is under way.
#[derive(Debug)]
pub struct Peers {
    /// Connections that peers opened, for when they take them up again.
    pub(crate) acceptor: Acceptor,
    /// Where the data lanes of a migration to this host go.
    lanes: Mutex<BTreeMap<MigrationId, Expected>>,
    /// The handovers away from here: what a target that asks is answered.
    sources: Mutex<BTreeMap<MigrationId, watch::Receiver<Verdict>>>,
    /// The handovers to this host: where a control lane goes on which a source goes on with one.
    targets: Mutex<BTreeMap<MigrationId, Outbox<(Control, Message)>>>,
    reservations: Mutex<Reservations>,
    /// For control lanes on which a migration is yet to begin or to go on.
    unclaimed: Arc<Semaphore>,
}

/// Data lanes that are expected.
#[derive(Debug)]
struct Expected {
    /// The host that they have to come from, which offered the VM; none without TLS.
    host: Option<String>,
    outbox: Outbox<DataLane>,
}

impl Default for Peers {
    fn default() -> Peers {
        Peers {
            acceptor: Acceptor::default(),
            lanes: Mutex::default(),
            sources: Mutex::default(),
            targets: Mutex::default(),
            reservations: Mutex::default(),
            unclaimed: Arc::new(Semaphore::new(UNCLAIMED_LANES_MAX)),
        }
    }
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
    pub(super) fn enter_target(&self, migration: MigrationId) -> Inbox<(Control, Message)> {
        let (sender, receiver) = channel(ATTACHED_MAX);
        let mut targets = lock(&self.targets);
        targets.retain(|_, sender| !sender.is_closed());
        targets.insert(migration, sender);
        receiver
    }

    /// Expects data lanes; says why not, if they are expected already or too many are.
    pub(crate) fn expect_lanes(&self, migration: MigrationId, host: Option<&str>) -> Result<Inbox<DataLane>, String> {
        let (outbox, inbox) = channel(LANES_MAX);
        let mut lanes = lock(&self.lanes);
        lanes.retain(|_, expected| !expected.outbox.is_closed());
        if lanes.contains_key(&migration) {
            return Err("this migration is under way here already".to_owned());
        }
        if lanes.len() >= INCOMING_MAX {
            return Err(format!(
                "{INCOMING_MAX} migrations are under way to this host: try again later"
            ));
        }
        let host = host.map(str::to_owned);
        lanes.insert(migration, Expected { host, outbox });
        Ok(inbox)
    }

    pub(crate) fn deliver_lane(&self, migration: MigrationId, lane: DataLane) -> Result<(), &'static str> {
        let lanes = lock(&self.lanes);
        let expected = lanes.get(&migration).ok_or("no such migration is expected")?;
        if expected.host.as_deref() != lane.sender.host() {
            return Err("its migration is another host's");
        }
        expected
            .outbox
            .try_send(lane)
            .map_err(|_| "its migration takes no more lanes")
    }

    /// Whether a migration to this host is known to be another host's than the one that speaks of it.
    fn is_of_another(&self, migration: MigrationId, host: Option<&str>) -> bool {
        lock(&self.lanes)
            .get(&migration)
            .is_some_and(|expected| expected.host.as_deref() != host)
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
            Some(target) => match target.try_send((control, message)) {
                Ok(()) => None,
                Err(TrySendError::Full(unsent) | TrySendError::Closed(unsent)) => Some(unsent),
            },
            None => Some((control, message)),
        }
    }
}

/// What is behind the mutex: a thread that panicked leaves nothing half done there that others look at.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the port until the agent ends.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let greetings = Arc::new(Greetings::default());
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
        let (agent, greetings) = (agent.clone(), greetings.clone());
        tokio::spawn(async move {
            let stream = stream
                .into_std()
                .and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
            let for_greeting = agent.clone();
            let greeted = tokio::task::spawn_blocking(move || {
                let stream = stream?;
                let _counted = greetings.enter(&stream)?;
                greet(&for_greeting, stream)
            });
            match greeted.await {
                Ok(Ok(Some((sender, receiver, hello)))) => greeted_by(agent, from, sender, receiver, hello).await,
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::info!(%from, error = format!("{error:#}"), "not a peer"),
                Err(panic) => tracing::error!(%from, %panic, "greeting a peer"),
            }
        });
    }
}

/// Learns who has connected. Gives the connection if it is a new lane; one that is taken up again goes on, and what else may be asked
/// for is answered here.
fn greet(agent: &Agent, stream: TcpStream) -> anyhow::Result<Option<(Sender, Receiver, Hello)>> {
    let link = transport::accept(stream, &agent.identity.security())?;
    match (link.purpose(), agent.identity.folder()) {
        (Purpose::Lane, _) => Ok(agent.peers.acceptor.accept(link, &agent.config.name, SOFTWARE)?),
        (_, Some(folder)) => pki::service::answer(folder, link).map(|()| None),
        (_, None) => Ok(None),
    }
}

/// The connections of which it is not clear yet who is there.
#[derive(Debug, Default)]
pub(crate) struct Greetings {
    /// In the order in which they came, each with its number.
    open: Mutex<VecDeque<(u64, TcpStream)>>,
}

/// One of them, for as long as it lives.
pub(crate) struct Greeting<'a> {
    all: &'a Greetings,
    number: u64,
}

impl Greetings {
    pub(crate) fn enter(&self, stream: &TcpStream) -> std::io::Result<Greeting<'_>> {
        let stream = stream.try_clone()?;
        let mut open = lock(&self.open);
        if open.len() >= GREETING_MAX
            && let Some((_, longest)) = open.pop_front()
        {
            tracing::warn!("{GREETING_MAX} connections have not said who they are: the longest is closed for one more");
            // An error says that it is closed already.
            let _ = longest.shutdown(Shutdown::Both);
        }
        let number = open.back().map_or(0, |(number, _)| number + 1);
        open.push_back((number, stream));
        Ok(Greeting { all: self, number })
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        lock(&self.all.open).retain(|(number, _)| *number != self.number);
    }
}

async fn greeted_by(agent: Arc<Agent>, from: SocketAddr, sender: Sender, receiver: Receiver, hello: Hello) {
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
            Ok(control) => {
                let peer = SocketAddr::new(from.ip(), hello.port);
                match agent.peers.unclaimed.clone().try_acquire_owned() {
                    Ok(unclaimed) => first_message(agent, control, (peer, hello.host), unclaimed).await,
                    Err(_) => tracing::warn!(%from, "turned away: too many control lanes that no migration claims"),
                }
            }
            Err(error) => tracing::warn!(%from, %error, "a control lane"),
        },
        Lane::Tunnel { .. } => tracing::warn!(
            %from,
            "a tunnel's source is turned away: this is an agent; `vmferry tunnel target` has a port of its own"
        ),
    }
}

/// Serves a control lane until it asks for a VM to be taken in, which it then belongs to, or ends.
async fn first_message(
    agent: Arc<Agent>,
    mut control: Control,
    (peer, host): (SocketAddr, String),
    unclaimed: OwnedSemaphorePermit,
) {
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
                let lanes = match agent.peers.expect_lanes(handover.migration, control.host()) {
                    Ok(lanes) => lanes,
                    Err(reason) => {
                        let reasons = vec![reason];
                        return control.mouth().say(Message::Refused { reasons });
                    }
                };
                drop(unclaimed);
                let address = peer.to_string();
                let peer = target::Peer { address, host };
                return target::take_in(agent, control, peer, (handover, transfer, offer), lanes).await;
            }
            Message::Commit { ref handover } | Message::Abort { ref handover, .. } => {
                let migration = handover.migration;
                if agent.peers.is_of_another(migration, control.host()) {
                    return tracing::warn!(%peer, "a host speaks of another's migration: its control lane is closed");
                }
                match agent.peers.attach(migration, control, message) {
                    None => return,
                    Some((back, message)) => {
                        control = back;
                        answer(&agent, &control, migration, &message);
                    }
                }
            }
            Message::Inquire { ref handover } => answer(&agent, &control, handover.migration, &message),
            _ => return tracing::info!(%peer, "a control lane is closed: its message is about nothing here"),
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
    let (mut control, _) = dial(agent, address, Duration::ZERO).await?;
    control.mouth().say(message);
    match tokio::time::timeout(PEER_SILENCE, control.heard.recv()).await {
        Ok(Some(Heard::Message(answer))) => Ok(answer),
        Ok(Some(Heard::Lost(why))) => Err(why),
        Ok(_) => Err("it does not answer".to_owned()),
        Err(_) => Err(format!("no answer within {PEER_SILENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_migrations_are_expected_than_a_host_can_take() {
        let peers = Peers::default();
        let expect = |number| peers.expect_lanes(MigrationId(number), None);
        let mut expected: Vec<_> = (0..INCOMING_MAX as u128)
            .map(|number| expect(number).unwrap())
            .collect();
        assert!(expect(0).unwrap_err().contains("already"));
        assert!(expect(1 << 100).unwrap_err().contains("try again later"));
        expected.pop();
        assert!(expect(1 << 100).is_ok(), "one is over");
    }

    #[test]
    fn who_holds_connections_does_not_keep_others_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let meet = || (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
        let greetings = Greetings::default();
        let mut held: Vec<_> = (0..GREETING_MAX).map(|_| meet()).collect();
        let mut entered: Vec<_> = held.iter().map(|(_, here)| greetings.enter(here).unwrap()).collect();
        let (_peer, late) = meet();
        let _late = greetings.enter(&late).unwrap();
        // Closed for it: the first one, and no other.
        assert_eq!(std::io::Read::read(&mut held[0].0, &mut [0]).unwrap(), 0);
        held[1].0.set_nonblocking(true).unwrap();
        assert!(std::io::Read::read(&mut held[1].0, &mut [0]).is_err());
        entered.clear();
        assert_eq!(lock(&greetings.open).len(), 1);
    }
}
