//! Certificates for a lab's hosts, got as their administrator gets them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::agent::{Agent, PORT};
use crate::command::run;
use crate::net::{Host, Lab};

/// The host that has the authority of its lab's cluster.
pub const AUTHORITY: Host = Host::A;

/// The folder of `host`'s agent.
pub(crate) fn state_dir(lab: &Lab, host: Host) -> PathBuf {
    lab.folder().join(host.name())
}

/// `vmferry pki` on `host`.
#[must_use]
pub fn pki(lab: &Lab, host: Host, vmferry: &Path) -> Command {
    let mut command = lab.command(host, vmferry);
    command.arg("pki").arg("--state-dir").arg(state_dir(lab, host));
    command
}

/// Gives `host` a certificate, if it has none.
///
/// # Errors
/// What `vmferry pki` said.
pub(crate) fn certify(lab: &Lab, host: Host, vmferry: &Path) -> Result<()> {
    let has = |host, file: &str| state_dir(lab, host).join("pki").join(file).exists();
    if has(host, "host.pem") {
        return Ok(());
    }
    if !has(AUTHORITY, "host.pem") {
        fs::create_dir_all(state_dir(lab, AUTHORITY))?;
        let address = format!("{}:{PORT}", AUTHORITY.address());
        run(pki(lab, AUTHORITY, vmferry)
            .args(["init", "--name", AUTHORITY.name()])
            .args(["--address", &address]))?;
    }
    if host == AUTHORITY {
        return Ok(());
    }
    // Who joins asks the agent there, which may not have been started yet.
    let socket = state_dir(lab, AUTHORITY).join("agent.sock");
    let _agent = match UnixStream::connect(socket) {
        Ok(_) => None,
        Err(_) => Some(Agent::start(lab, AUTHORITY, vmferry)?),
    };
    join(lab, host, vmferry)
}

/// Invites `host` and has it join; the agent on the authority's host runs.
///
/// # Errors
/// What `vmferry pki` said.
pub fn join(lab: &Lab, host: Host, vmferry: &Path) -> Result<()> {
    let token = run(pki(lab, AUTHORITY, vmferry).args(["invite", host.name()]))?;
    let path = lab.folder().join(format!("token-{}", host.name()));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(token.as_bytes())?;
    let joined = run(pki(lab, host, vmferry).args(["join", "--token-file"]).arg(&path));
    fs::remove_file(&path)?;
    joined
        .map(drop)
        .with_context(|| format!("{} does not join", host.name()))
}
