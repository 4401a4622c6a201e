//! The end that other hosts' ends connect to, and that connects to the sockets on which QEMUs here wait.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use vmferry_core::limits::{HEARTBEAT, LANES_MAX, LINK_PATIENCE_MAX, TUNNEL_CONNECTIONS_MAX};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::hello::{Hello, Lane, MigrationId};
use vmferry_core::wire::tunnel::{Carries, Message};
use vmferry_dataplane::connection::{Receiver, Sender};
use vmferry_dataplane::transport::{self, Purpose};

use super::link::{Heard, Link};
use super::{host_name, identity, migration, pipe};
use crate::agent::default_state_dir;
use crate::migrate::SOFTWARE;
use crate::migrate::peers::{DataLane, Greetings, Peers};
use crate::pki::Identity;

/// How long a migration's data lanes may take to connect.
const LANES_LIMIT: Duration = Duration::from_secs(10);

/// `vmferry tunnel target`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where sources' ends reach this one.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// The folder of the sockets on which QEMUs here wait. Who may connect here reaches all of them, and nothing else.
    #[arg(long, value_name = "DIR")]
    pub sockets: PathBuf,
    /// Let only this host's end in; may be given several times [default: every host of the cluster].
    #[arg(long = "from", value_name = "HOST", conflicts_with = "insecure_plaintext")]
    pub from: Vec<String>,
    /// Where this host's certificate is [default: /var/lib/vmferry].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Let anyone in, without encryption.
    #[arg(long)]
    pub insecure_plaintext: bool,
}

/// This end, as its threads see it.
struct Target {
    settings: Settings,
    identity: Identity,
    host: String,
    peers: Peers,
    greetings: Greetings,
    /// Connections that are carried.
    open: AtomicUsize,
}

/// Serves the port for ever.
///
/// # Errors
/// Why it could not start.
pub async fn serve(settings: Settings) -> Result<()> {
    let target = Target::new(settings)?;
    let listen = target.settings.listen;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
    // Whoever started it waits for this line.
    println!(
        "vmferry tunnel listening on {} for the sockets in {}",
        listener.local_addr()?,
        target.settings.sockets.display()
    );
    loop {
        if let Err(error) = target.accept(&listener).await {
            // Out of descriptors or threads, most likely: others have to end first.
            tracing::warn!(%error, "accepting a connection");
            tokio::time::sleep(HEARTBEAT).await;
        }
    }
}

impl Target {
    fn new(settings: Settings) -> Result<Arc<Target>> {
        let state_dir = settings.state_dir.clone().unwrap_or_else(default_state_dir);
        let identity = identity(&state_dir, settings.insecure_plaintext)?;
        let sockets = &settings.sockets;
        ensure!(sockets.is_dir(), "{} is not a folder", sockets.display());
        Ok(Arc::new(Target {
            host: host_name(&identity),
            identity,
            settings,
            peers: Peers::default(),
            greetings: Greetings::default(),
            open: AtomicUsize::new(0),
        }))
    }

    /// Carries the next connection on a thread of its own.
    async fn accept(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        let (stream, from) = listener.accept().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        let (target, runtime) = (self.clone(), Handle::current());
        let serve = move || match target.greet(stream) {
            Ok(Some((sender, receiver, hello))) => target.greeted_by(from, sender, receiver, &hello, &runtime),
            Ok(None) => {}
            Err(error) => tracing::info!(%from, error = format!("{error:#}"), "not a tunnel's end"),
        };
        thread::Builder::new().name("connection".into()).spawn(serve).map(drop)
    }

    /// Learns who has connected. One that takes a connection up again goes on.
    fn greet(&self, stream: TcpStream) -> Result<Option<(Sender, Receiver, Hello)>> {
        let _counted = self.greetings.enter(&stream)?;
        let link = transport::accept(stream, &self.identity.security())?;
        ensure!(
            link.purpose() == Purpose::Lane,
            "it asks for a certificate, which agents do"
        );
        if let (Some(host), false) = (link.host(), self.settings.from.is_empty()) {
            ensure!(
                self.settings.from.iter().any(|from| from == host),
                "{host} is not let in: it is not among --from"
            );
        }
        Ok(self.peers.acceptor.accept(link, &self.host, SOFTWARE)?)
    }

    fn greeted_by(&self, from: SocketAddr, sender: Sender, receiver: Receiver, hello: &Hello, runtime: &Handle) {
        match hello.lane {
            Lane::Data { migration, index } => {
                let lane = DataLane {
                    index,
                    sender,
                    receiver,
                };
                if let Err(why) = self.peers.deliver_lane(migration, lane) {
                    tracing::info!(%from, why, "a data lane is turned away");
                }
            }
            Lane::Tunnel { migration } => {
                let counted = Counted::enter(&self.open);
                if counted.number > TUNNEL_CONNECTIONS_MAX {
                    return tracing::warn!(%from, "turned away: {TUNNEL_CONNECTIONS_MAX} connections are open already");
                }
                match self.carry(sender, receiver, migration, runtime) {
                    Ok(()) => tracing::info!(%from, host = hello.host, "carried"),
                    Err(why) => tracing::warn!(%from, host = hello.host, why, "a connection failed"),
                }
            }
            Lane::Control => tracing::warn!(%from, "an agent is turned away: this is a tunnel"),
        }
    }

    fn carry(
        &self,
        sender: Sender,
        mut receiver: Receiver,
        migration: MigrationId,
        runtime: &Handle,
    ) -> Result<(), String> {
        let link = Link::start(sender, Duration::ZERO).map_err(|error| error.to_string())?;
        let opened = self.open(&link, &mut receiver).and_then(|(socket, carries, patience)| {
            let path = within(&self.settings.sockets, &socket)?;
            link.set_patience(patience);
            Ok((path, carries, patience))
        });
        let done = opened.and_then(|(path, carries, patience)| match carries {
            Carries::Bytes {
                codec,
                target_speaks_first,
            } => {
                let connected = target_speaks_first.then(|| connect(&path)).transpose()?;
                link.say(&Message::Opened)?;
                let (socket, first) = match connected {
                    Some(socket) => (socket, None),
                    None => {
                        let first = first_bytes(&link, &mut receiver)?;
                        (connect(&path)?, Some(first))
                    }
                };
                pipe::carry(&socket, (&link, &mut receiver), &codec, first).map(drop)
            }
            Carries::Migration {
                lanes,
                coders,
                fingerprint_key,
            } => {
                let lanes = self.await_lanes(&link, migration, lanes, runtime)?;
                migration::receive(path, (&link, &mut receiver), lanes, coders, fingerprint_key, patience)
            }
        });
        if let Err(why) = &done {
            link.end(Some(why.clone()));
        }
        link.settle(&mut receiver).and(done)
    }

    /// Hears what is to be opened: the socket's name, what comes, and how long a link that breaks is waited for.
    fn open(&self, link: &Link, receiver: &mut Receiver) -> Result<(String, Carries, Duration), String> {
        let opened = link.next(receiver, |heard| match heard {
            Heard::Message(Message::Open {
                socket,
                carries,
                link_patience_ms,
            }) => Ok((
                socket,
                carries,
                Duration::from_millis(link_patience_ms).min(LINK_PATIENCE_MAX),
            )),
            _ => Err("something came before it was said what is to be opened".to_owned()),
        });
        opened.unwrap_or_else(|| Err("it was closed at once".to_owned()))
    }

    /// Says that lanes may come, and waits for them.
    fn await_lanes(
        &self,
        link: &Link,
        migration: MigrationId,
        wanted: u16,
        runtime: &Handle,
    ) -> Result<Vec<(Sender, Receiver)>, String> {
        if !(1..=LANES_MAX).contains(&usize::from(wanted)) {
            return Err(format!("{wanted} lanes are wanted"));
        }
        let mut inbox = self.peers.expect_lanes(migration, link.host().as_deref())?;
        link.say(&Message::Opened)?;
        let mut lanes: Vec<Option<DataLane>> = (0..wanted).map(|_| None).collect();
        let all = async {
            while lanes.iter().any(Option::is_none) {
                let lane = inbox.recv().await.ok_or("nobody delivers lanes any more")?;
                match lanes.get_mut(usize::from(lane.index)) {
                    Some(free @ None) => *free = Some(lane),
                    _ => return Err(format!("lane {} was connected unasked", lane.index)),
                }
            }
            Ok(())
        };
        runtime
            .block_on(async { tokio::time::timeout(LANES_LIMIT, all).await })
            .map_err(|_| format!("not all lanes came within {LANES_LIMIT:?}"))??;
        Ok(lanes
            .into_iter()
            .flatten()
            .map(|lane| (lane.sender, lane.receiver))
            .collect())
    }
}

/// The socket of that name, and nothing outside of the folder.
fn within(folder: &Path, name: &str) -> Result<PathBuf, String> {
    match Path::new(name).file_name() {
        Some(file) if file == name => Ok(folder.join(name)),
        _ => Err(format!("{name:?} does not name a socket")),
    }
}

/// A QEMU that is connected to and told nothing stands still: whatever comes first has to be there by then.
fn first_bytes(link: &Link, receiver: &mut Receiver) -> Result<Vec<u8>, String> {
    let first = link.next(receiver, |heard| match heard {
        Heard::Frame(Kind::Data, payload) => Ok(payload.to_vec()),
        _ => Err("something else came than bytes".to_owned()),
    });
    first.unwrap_or_else(|| Err("it was closed before a byte came".to_owned()))
}

fn connect(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).map_err(|error| format!("can't reach the target's QEMU at {}: {error}", path.display()))
}

/// One of those that are counted, for as long as it lives.
struct Counted<'a> {
    all: &'a AtomicUsize,
    number: usize,
}

impl Counted<'_> {
    fn enter(all: &AtomicUsize) -> Counted<'_> {
        let number = all.fetch_add(1, Ordering::Relaxed) + 1;
        Counted { all, number }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_within_its_folder() {
        let folder = Path::new("/run/migrations");
        assert_eq!(within(folder, "web.sock"), Ok(folder.join("web.sock")));
        for name in ["", ".", "..", "/etc/x", "../x", "a/b", "x/", "./x"] {
            assert!(within(folder, name).is_err(), "{name}");
        }
    }
}
