//! The API over TLS, for hosts of the cluster: who has a certificate may ask for everything that a user of the socket
//! may.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use vmferry_dataplane::transport::{Purpose, Security};

use crate::agent::Agent;

/// Connections whose handshake is under way, as on the port between agents: for one more, the longest is closed.
const GREETING_MAX: usize = 64;
/// How long a handshake may take.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const READY_MAX: usize = 16;

/// Connections of hosts that have shown who they are.
#[derive(Debug)]
pub struct RemoteListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl RemoteListener {
    /// Greets whoever connects to that listener, until the agent ends.
    ///
    /// # Errors
    /// The system's.
    pub fn start(agent: Arc<Agent>, listener: TcpListener) -> io::Result<RemoteListener> {
        let address = listener.local_addr()?;
        let (to_api, ready) = mpsc::channel(READY_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = agent.ending() => {}
                () = greet(&agent, listener, to_api) => {}
            }
        });
        Ok(RemoteListener { ready, address })
    }
}

impl Listener for RemoteListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The agent ends, and with it who waits here.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn greet(agent: &Agent, listener: TcpListener, to_api: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let mut greeting: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the API");
                tokio::time::sleep(vmferry_core::limits::HEARTBEAT).await;
                continue;
            }
        };
        let Security::Tls(tls) = agent.identity.security() else {
            return;
        };
        greeting.retain(|task| !task.is_finished());
        if greeting.len() >= GREETING_MAX
            && let Some(longest) = greeting.pop_front()
        {
            longest.abort();
        }
        let acceptor = TlsAcceptor::from(tls.server(Purpose::Api));
        let to_api = to_api.clone();
        let task = tokio::spawn(async move {
            match tokio::time::timeout(GREETING_LIMIT, acceptor.accept(stream)).await {
                // Fails when the API ends.
                Ok(Ok(stream)) => drop(to_api.send((stream, from)).await),
                Ok(Err(error)) => tracing::info!(%from, %error, "no client of the API"),
                Err(_) => tracing::info!(%from, "no client of the API: its handshake takes too long"),
            }
        });
        greeting.push_back(task.abort_handle());
    }
}
