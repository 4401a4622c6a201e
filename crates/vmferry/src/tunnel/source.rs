//! The end at which QEMUs connect: sockets in place of those that they would migrate to.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::net::{RecvFlags, recv};
use vmferry_core::limits::HEARTBEAT;
use vmferry_core::page::{CodecSettings, Coders};
use vmferry_core::wire::hello::{ConnectionId, Hello, Lane, MigrationId, VERSIONS};
use vmferry_core::wire::tunnel::{Carries, Message};
use vmferry_dataplane::connection::{self, Receiver, Sender};

use super::link::{Heard, Link};
use super::{Carried, host_name, identity, migration, pipe};
use crate::agent::default_state_dir;
use crate::cli::units::parse_duration;
use crate::migrate::{SOFTWARE, lanes, random};
use crate::pki::{self, Identity};

/// What QEMU's migration stream begins with.
const MIGRATION_MAGIC: [u8; 4] = *b"QEVM";

/// `vmferry tunnel source`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where the target's end listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: String,
    /// A socket for migrations, made here; QEMU's at the target has the same file name. May be given several times, once for each
    /// VM that moves at a time.
    #[arg(long = "listen", value_name = "PATH", required = true)]
    pub migrations: Vec<PathBuf>,
    /// A socket for disks (NBD), made here. May be given several times.
    #[arg(long = "disks", value_name = "PATH")]
    pub disks: Vec<PathBuf>,
    /// TCP connections and encoding threads for each migration, 1 to 64 [default: by the host's processors].
    #[arg(long, value_name = "N")]
    pub lanes: Option<usize>,
    /// Wait so long for a link that breaks; 0s for not at all.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2m")]
    pub link_patience: Duration,
    /// Where this host's certificate is [default: /var/lib/vmferry].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Talk to the other end without encryption, and believe whoever is there.
    #[arg(long)]
    pub insecure_plaintext: bool,
}

/// This end, as its threads see it.
struct Source {
    settings: Settings,
    doors: Vec<Door>,
    lanes: u16,
    identity: Identity,
    host: String,
}

/// A socket that QEMUs connect to.
struct Door {
    path: PathBuf,
    name: String,
    is_for_disks: bool,
    listener: UnixListener,
}

/// Serves the sockets for ever.
///
/// # Errors
/// Why it could not start.
pub fn serve(settings: Settings) -> Result<()> {
    let source = Source::new(settings)?;
    let paths: Vec<_> = source
        .doors
        .iter()
        .map(|door| door.path.display().to_string())
        .collect();
    // Whoever started it waits for this line.
    println!(
        "vmferry tunnel listening on {} for {}",
        paths.join(", "),
        source.settings.to
    );
    source.attend();
    Ok(())
}

impl Door {
    /// A socket that a tunnel left behind is replaced, one that somebody listens on is not.
    fn open(path: &Path, is_for_disks: bool) -> Result<Door> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} does not name a socket", path.display()))?;
        ensure!(
            UnixStream::connect(path).is_err(),
            "somebody listens on {} already",
            path.display()
        );
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        Ok(Door {
            name: name.to_owned(),
            listener: UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?,
            path: path.to_owned(),
            is_for_disks,
        })
    }
}

impl Source {
    /// Makes the sockets.
    fn new(settings: Settings) -> Result<Arc<Source>> {
        let state_dir = settings.state_dir.clone().unwrap_or_else(default_state_dir);
        let identity = identity(&state_dir, settings.insecure_plaintext)?;
        let migrations = settings.migrations.iter().map(|path| Door::open(path, false));
        let disks = settings.disks.iter().map(|path| Door::open(path, true));
        Ok(Arc::new(Source {
            doors: migrations.chain(disks).collect::<Result<_>>()?,
            lanes: lanes(settings.lanes),
            host: host_name(&identity),
            identity,
            settings,
        }))
    }

    /// Carries what comes to the sockets, for ever.
    fn attend(self: &Arc<Self>) {
        thread::scope(|scope| {
            for door in &self.doors {
                scope.spawn(move || self.attend_to(door));
            }
        });
    }

    /// Carries each connection that is made to the socket, on a thread of its own.
    fn attend_to(self: &Arc<Self>, door: &Door) {
        loop {
            let accepted = door.listener.accept().and_then(|(socket, _)| {
                let (source, name, is_for_disks) = (self.clone(), door.name.clone(), door.is_for_disks);
                thread::Builder::new()
                    .name("connection".into())
                    .spawn(move || source.join(&socket, &name, is_for_disks))
            });
            if let Err(error) = accepted {
                // Out of descriptors or threads, most likely: others have to end first.
                tracing::warn!(socket = door.name, %error, "accepting a connection");
                thread::sleep(HEARTBEAT);
            }
        }
    }

    fn join(&self, socket: &UnixStream, name: &str, is_for_disks: bool) {
        match self.carry(socket, name, is_for_disks) {
            Ok(Carried {
                read_bytes,
                written_bytes,
                wire_bytes,
            }) => tracing::info!(socket = name, read_bytes, written_bytes, wire_bytes, "carried"),
            Err(why) => tracing::warn!(socket = name, why, "a connection failed"),
        }
    }

    fn carry(&self, socket: &UnixStream, name: &str, is_for_disks: bool) -> Result<Carried, String> {
        let is_migration = !is_for_disks && begins_a_migration(socket).map_err(|error| error.to_string())?;
        let carries = match is_migration {
            true => Carries::Migration {
                lanes: self.lanes,
                coders: Coders::default(),
                fingerprint_key: random()?,
            },
            false => Carries::Bytes {
                codec: CodecSettings::default(),
                target_speaks_first: is_for_disks,
            },
        };
        let id = MigrationId(u128::from_ne_bytes(random()?));
        let (address, (sender, mut receiver)) = self.reach(Lane::Tunnel { migration: id })?;
        let link = Link::start(sender, self.settings.link_patience).map_err(|error| error.to_string())?;
        self.open(&link, &mut receiver, name, &carries)?;
        match carries {
            Carries::Bytes { codec, .. } => pipe::carry(socket, (&link, &mut receiver), &codec, None),
            Carries::Migration {
                coders,
                fingerprint_key,
                ..
            } => {
                let host = link.host();
                let lanes = (0..self.lanes).map(|index| {
                    let lane = self.connect(address, Lane::Data { migration: id, index })?;
                    match lane.0.host() == host.as_deref() {
                        true => Ok(lane),
                        false => Err(format!("lane {index} reaches another host than the connection does")),
                    }
                });
                match lanes.collect::<Result<_, _>>() {
                    Ok(lanes) => migration::send(socket, (&link, &mut receiver), lanes, coders, fingerprint_key),
                    Err(why) => {
                        link.end(Some(why));
                        link.settle(&mut receiver).map(|()| Carried::default())
                    }
                }
            }
        }
    }

    /// Has the other end reach its QEMU's socket, or get ready to.
    fn open(&self, link: &Link, receiver: &mut Receiver, name: &str, carries: &Carries) -> Result<(), String> {
        link.say(&Message::Open {
            socket: name.to_owned(),
            carries: carries.clone(),
            link_patience_ms: self.settings.link_patience.as_millis() as u64,
        })?;
        match link.next(receiver, |heard| matches!(heard, Heard::Message(Message::Opened))) {
            Some(true) => return Ok(()),
            Some(false) => link.end(Some("something came before it was said to be open".to_owned())),
            None => {}
        }
        link.settle(receiver)
            .and(Err("the other end closed it at once".to_owned()))
    }

    /// Connects to the other end, under whatever address its host has now.
    fn reach(&self, lane: Lane) -> Result<(SocketAddr, (Sender, Receiver)), String> {
        let meant = &self.settings.to;
        let addresses = meant.to_socket_addrs();
        let mut addresses = addresses.map_err(|error| format!("{meant} is not a host that can be reached: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{meant} has no address"))?;
        let connected = self.connect(address, lane).map_err(|error| {
            format!("can't reach the other end at {meant}: {error}. Is `vmferry tunnel target` running there, and its port open?")
        })?;
        pki::check_is_at(connected.0.host(), meant, address)?;
        Ok((address, connected))
    }

    fn connect(&self, address: SocketAddr, lane: Lane) -> Result<(Sender, Receiver), String> {
        let hello = Hello {
            versions: VERSIONS,
            host: self.host.clone(),
            software: SOFTWARE.to_owned(),
            // No agent's: nobody asks a tunnel about an outcome.
            port: 0,
            lane,
            connection: Some(ConnectionId(u128::from_ne_bytes(random()?))),
            heard: None,
        };
        connection::connect(address, self.identity.shown(), &hello, self.settings.link_patience)
            .map_err(|error| error.to_string())
    }
}

/// Waits for a connection's first bytes, and leaves them where they are: says whether they are those of a migration stream.
fn begins_a_migration(socket: &UnixStream) -> io::Result<bool> {
    let mut begin = [0; MIGRATION_MAGIC.len()];
    let (_, bytes) = rustix::io::retry_on_intr(|| recv(socket, &mut begin, RecvFlags::PEEK))?;
    // QEMU writes them at once.
    Ok(begin[..bytes] == MIGRATION_MAGIC)
}
