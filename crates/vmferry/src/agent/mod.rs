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

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use anyhow::Context;
pub use error::AgentError;
use sd_notify::NotifyState;
pub use settings::{ArbiterSettings, Config, Settings, default_socket, default_state_dir};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch as latest,
};

use crate::{
    api::{self, RemoteListener, access::ApiListener, types::HostView},
    arbiter::{self, Arbiter},
    content::{self, KnownContent},
    host::{Probes, QemuFacts, capability},
    migrate::{self, peers::Peers, resolve::OpenHandovers},
    pki::{self, Folder, Identity},
    vm::{Confinement, Launcher},
};
use events::EventBus;
use journal::Journal;
use migrations::Migrations;
use registry::Registry;
use vmferry_dataplane::transport::Security;

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
    /// What this host shows to other agents, and whom it believes.
    pub identity: Identity,
    /// How it is started.
    pub launcher: Launcher,
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
            unconfined: self.launcher.confinement.lacks.clone(),
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
    let is_named = settings.name.is_some();
    let mut config = settings.resolve().context("the settings are wrong")?;
    make_private_dir(&config.state_dir)?;
    let identity = identity(&mut config, is_named)?;
    let (journal, ledger) = Journal::open(&config.state_dir)?;
    let probes = Probes::new(config.qemu.clone());
    let qemu = probes.qemu().await?;
    let confinement = Confinement::find(config.qemu_users, qemu.sandbox);
    for lack in &confinement.lacks {
        tracing::warn!("{lack}");
    }
    let launcher = Launcher {
        qemu: config.qemu.clone(),
        confinement,
    };
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
    let api_listener = ApiListener::bind(&config.socket).await?;
    let remote_api = match config.api_listen {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for the API; choose another address with --api-listen")
        })?),
        None => None,
    };
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
        identity,
        launcher,
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
    tokio::spawn(pki::upkeep::keep(agent.clone()));
    if let Some(listener) = remote_api {
        tracing::info!(address = %listener.local_addr()?, "the API is served over TLS to hosts of the cluster");
        let listener = RemoteListener::start(agent.clone(), listener)?;
        tokio::spawn(api::serve(listener, agent.clone(), agent.ending()));
    }
    tokio::spawn(arbiter::look_after(agent.clone()));

    // Whoever started the agent waits for this line.
    println!(
        "vmferry agent {} listening on {}, API on {}",
        agent.config.name,
        agent.listen,
        agent.config.socket.display()
    );
    // And systemd, where that started it.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd is not told that the agent serves");
    }
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

/// What this host shows to others; with a certificate, the host is called as that says.
fn identity(config: &mut Config, is_named: bool) -> anyhow::Result<Identity> {
    if config.insecure_plaintext {
        anyhow::ensure!(
            config.api_listen.is_none(),
            "--api-listen needs a certificate, which --insecure-plaintext does without: leave one of them out"
        );
        // Not by way of the log, which can be filtered. A full disk takes neither, and the agent starts all the same.
        let _ = writeln!(
            io::stderr(),
            "WARNING: --insecure-plaintext: what guests hold in memory crosses the network for anyone to read and to change, and\n\
             WARNING: anyone who reaches {} can start VMs here, and take those that are here. For measurements only.",
            config.listen
        );
        return Ok(Identity::none());
    }
    let identity = Identity::open(Folder::new(&config.state_dir))?;
    if let Security::Tls(tls) = identity.security() {
        if !is_named {
            config.name = tls.host().to_owned();
        }
        anyhow::ensure!(
            config.name == tls.host(),
            "this host is to be called {}, and its certificate is for {}: leave --name out, or have the host join as {}",
            config.name,
            tls.host(),
            config.name
        );
    }
    Ok(identity)
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
