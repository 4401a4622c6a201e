//! Renews this host's certificate in time, and hears of revocations that nobody told it of.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::client;
use super::folder::Folder;
use crate::agent::Agent;

/// How often it is asked what is revoked, and looked whether the certificate is to be renewed. A revocation that a host
/// was not told of when it was made counts there so much later.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// Does so until the agent ends.
pub async fn keep(agent: Arc<Agent>) {
    let Some(folder) = agent.identity.folder().cloned() else {
        return;
    };
    let port = agent.listen.port();
    let looks = async {
        loop {
            let folder = folder.clone();
            match tokio::task::spawn_blocking(move || look(&folder, port)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "certificates: tried again later"),
                Err(panic) => tracing::error!(%panic, "certificates"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = agent.ending() => {}
        () = looks => {}
    }
}

fn look(folder: &Folder, port: u16) -> Result<()> {
    let certificate = folder.certificate()?;
    if certificate.is_to_be_renewed() {
        let renewed = client::renew(folder, port)?;
        tracing::info!(serial = renewed.serial, "this host has a new certificate");
    } else if !folder.has_authority() {
        client::fetch_revocations(folder)?;
    }
    Ok(())
}
