//! Reaching a peer's agent.

use std::time::{Duration, Instant};

use vmferry_core::limits::HEARTBEAT;
use vmferry_core::wire::hello::{ConnectionId, Hello, Lane, VERSIONS};
use vmferry_dataplane::connection;

use super::control::Control;
use super::{SOFTWARE, random};
use crate::agent::Agent;
use crate::pki;

/// Reaches the peer's agent, however long it takes.
pub(super) async fn reach(agent: &Agent, address: &str) -> Control {
    loop {
        match dial(agent, address, Duration::ZERO).await {
            Ok((control, _)) => return control,
            Err(why) => tracing::warn!(why, "a handover waits for its target's agent"),
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Connects to the peer's agent; says how long the network's round trip is. A link that breaks is waited for so long.
pub(super) async fn dial(agent: &Agent, address: &str, patience: Duration) -> Result<(Control, Duration), String> {
    let addresses = tokio::net::lookup_host(address).await;
    let mut addresses = addresses.map_err(|error| format!("{address} is not a host that can be reached: {error}"))?;
    let meant = address;
    let address = addresses.next().ok_or_else(|| format!("{meant} has no address"))?;
    let (shows, hello) = (agent.identity.shown(), hello(agent, Lane::Control)?);
    let connected = tokio::task::spawn_blocking(move || {
        let before = Instant::now();
        let (sender, receiver) = connection::connect(address, shows, &hello, patience)?;
        // Connecting and the hellos are two round trips and some work.
        let round_trip = before.elapsed() / 2;
        let control = Control::start(sender, receiver)?;
        control.wait_for_link(patience);
        Ok::<_, connection::ConnectionError>((control, round_trip))
    });
    let connected = connected.await.map_err(|panic| panic.to_string())?;
    let (control, round_trip) = connected.map_err(|error| {
        format!("can't reach an agent at {address}: {error}. Is `vmferry agent` running there, and its port open?")
    })?;
    pki::check_is_at(control.host(), meant, address)?;
    Ok((control, round_trip))
}

/// How this agent introduces itself on a connection that can be taken up again.
pub(super) fn hello(agent: &Agent, lane: Lane) -> Result<Hello, String> {
    let host = agent.config.name.clone();
    Ok(Hello {
        versions: VERSIONS,
        host,
        software: SOFTWARE.to_owned(),
        port: agent.listen.port(),
        lane,
        connection: Some(ConnectionId(u128::from_ne_bytes(random()?))),
        heard: None,
    })
}
