//! The agent: owns the VMs of one host.
//!
//! | module | what |
//! |---|---|
//! | `settings` | flags and configuration file |
//! | [`record`], [`journal`] | what is durable, and what a replay of it says this host owns |
//! | [`registry`] | the VMs in memory |
//! | `lifecycle` | starting, stopping, taking in and giving away |
//! | `watch` | following a guest through its QEMU's events |
//! | `restore` | finding guests again after a restart |
//! | [`migrations`] | the migrations away from here: progress, cancel, report |
//! | [`events`] | what happened, for everyone who listens |

mod error;
pub mod events;
pub mod journal;
mod lifecycle;
pub mod migrations;
pub mod record;
pub mod registry;
mod restore;
mod settings;
mod watch;

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context;
pub use error::AgentError;
pub use settings::{ArbiterSettings, Config, Settings, default_socket};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch as latest,
};

use crate::{
    api::{self, types::HostView},
    arbiter::{self, Arbiter},
    content::{self, KnownContent},
    host::{Probes, QemuFacts, capability},
    migrate::{self, peers::Peers, resolve::OpenHandovers},
};
use events::EventBus;
use journal::Journal;
use migrations::Migrations;
use registry::Registry;

/// One host's agent.
#[derive(Debug)]
pub struct Agent {
    /// What it was told at its start.
    pub config: Config,
    /// Where other agents reach it.
    pub listen: SocketAddr,
    /// The VMs.
    pub registry: Registry,
    /// What is durable about them.
    pub journal: Journal,
    /// What this host knows of content outside its guests.
    pub content: Arc<KnownContent>,
    /// What happens to them.
    pub events: EventBus,
    /// Their migrations away from here.
    pub migrations: Migrations,
    /// The QEMU that runs the guests.
    pub qemu: QemuFacts,
    /// What that QEMU answered when it was asked.
    pub probes: Probes,
    /// Who decides when another host is gone.
    pub arbiter: Arbiter,
    /// What is under way between here and other agents.
    pub peers: Peers,
    /// The handovers under way, for an operator to decide about.
    pub handovers: OpenHandovers,
    /// Becomes true when the agent ends.
    pub shutdown: latest::Sender<bool>,
}

impl Agent {
    /// Waits until the agent ends.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut shutdown = self.shutdown.subscribe();
        async move {
            // Fails only when the agent is gone, which is an end too.
            let _ = shutdown.wait_for(|ending| *ending).await;
        }
    }

    /// This host and its agent, now.
    ///
    /// # Errors
    /// [`AgentError::Host`].
    pub fn host_view(&self) -> Result<HostView, AgentError> {
        let memory = capability::memory().map_err(AgentError::Host)?;
        Ok(HostView {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.listen.to_string(),
            qemu: self.config.qemu.display().to_string(),
            qemu_version: self.qemu.version.to_string(),
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            vms: self.registry.lock().len(),
        })
    }
}

/// Runs an agent until SIGTERM or SIGINT; its guests run on.
///
/// # Errors
/// Why it could not start, or why the API broke.
pub async fn serve(settings: Settings) -> anyhow::Result<()> {
    // First, so that a signal during the start is not lost.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let config = settings.resolve().context("the settings are wrong")?;
    make_private_dir(&config.state_dir)?;
    let (journal, ledger) = Journal::open(&config.state_dir)?;
    let probes = Probes::new(config.qemu.clone());
    let qemu = probes.qemu().await?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another address with --listen",
            config.listen
        )
    })?;
    let arbiter = Arbiter::new(&config)?;
    match arbiter.name().await {
        Ok(None) => {}
        Ok(Some(name)) => tracing::info!(cluster = name.cluster, prefix = name.prefix, "the arbiter answers"),
        // The guests that are here need their agent all the same.
        Err(error) => tracing::error!(%error, "VMs can't be started or moved until it answers"),
    }
    let api_listener = bind_api(&config.socket).await?;
    let agent = Arc::new(Agent {
        listen: listener.local_addr()?,
        registry: Registry::default(),
        journal,
        content: Arc::new(
            KnownContent::open(&config).context("cannot keep indexes and memory in the state directory")?,
        ),
        events: EventBus::new(),
        migrations: Migrations::default(),
        qemu,
        probes,
        arbiter,
        peers: Peers::default(),
        handovers: OpenHandovers::default(),
        shutdown: latest::Sender::new(false),
        config,
    });
    for open in agent.restore(ledger).await? {
        tokio::spawn(migrate::resume::resume(agent.clone(), open));
    }
    tokio::spawn(migrate::peers::serve(agent.clone(), listener));
    tokio::spawn(content::keep(agent.clone()));
    tokio::spawn(arbiter::look_after(agent.clone()));

    // Whoever started the agent waits for this line.
    println!(
        "vmferry agent {} listening on {}, API on {}",
        agent.config.name,
        agent.listen,
        agent.config.socket.display()
    );
    let stop = agent.clone();
    let signalled = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; the guests run on");
        stop.shutdown.send_replace(true);
    };
    api::serve(api_listener, agent.clone(), signalled)
        .await
        .context("the API broke")?;
    let _ = fs::remove_file(&agent.config.socket);
    Ok(())
}

/// Binds the API's socket; one that an agent left behind is replaced, one that an agent listens on is not.
async fn bind_api(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        anyhow::bail!(
            "another agent answers on {}; stop it, or choose another socket with --socket",
            path.display()
        );
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // Who can connect can stop every guest.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .with_context(|| {
            format!(
                "cannot use {} as state directory; choose another with --state-dir",
                path.display()
            )
        })
}
