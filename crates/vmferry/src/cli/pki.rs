//! `vmferry pki`: certificates. These commands work on the state directory's files, whether an agent runs or not; one
//! that runs uses what they change from its next connection on.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::agent::default_state_dir;
use crate::api::types::{PORT_DEFAULT, with_port};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::print;
use crate::cli::table::Table;
use crate::pki::{Authority, Certificate, Folder, Revocations, Token, client};

/// A token is far shorter.
const TOKEN_BYTES_MAX: u64 = 4096;

/// `vmferry pki`.
#[derive(Debug, Args)]
pub struct PkiArgs {
    /// The agent's state directory [default: /var/lib/vmferry].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster: its authority, which stays on this host, and this host's certificate.
    Init {
        /// What this host is called [default: the host name].
        #[arg(long)]
        name: Option<String>,
        /// Where the other hosts reach this one's agent [default: its name, port 7464].
        #[arg(long, value_name = "HOST[:PORT]")]
        address: Option<String>,
    },
    /// Print a token with which the host of that name can join, once, within an hour. On the authority's host.
    Invite {
        /// What the host is to be called.
        host: String,
    },
    /// Have this host join the cluster of a token; the agent on the authority's host has to run.
    Join {
        /// The file that holds the token; - for standard input. It is a secret, so it is no argument.
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// The port that this host's agent listens on.
        #[arg(long, default_value_t = PORT_DEFAULT)]
        port: u16,
    },
    /// Get this host a new certificate and key now; a running agent does so by itself when two thirds of its life are
    /// over.
    Rotate {
        /// The port that this host's agent listens on.
        #[arg(long, default_value_t = PORT_DEFAULT)]
        port: u16,
    },
    /// Have no host trust that one any more. On the authority's host.
    Revoke {
        /// What the host is called.
        host: String,
    },
    /// Print what this host has, and whom it does not trust.
    Status,
}

/// Carries it out. It blocks.
///
/// # Errors
/// What went wrong, and what to do.
pub fn pki(json: bool, args: PkiArgs) -> Result<Exit, Failure> {
    let folder = Folder::new(&args.state_dir.unwrap_or_else(default_state_dir));
    match args.command {
        Command::Init { name, address } => init(json, &folder, name, address),
        Command::Invite { host } => invite(json, &folder, &host),
        Command::Join { token_file, port } => join(json, &folder, &token_file, port),
        Command::Rotate { port } => {
            let certificate = client::renew(&folder, port).map_err(Failure::Pki)?;
            told(json, &certificate, "has a new certificate")
        }
        Command::Revoke { host } => revoke(json, &folder, &host),
        Command::Status => status(json, &folder),
    }
}

fn init(json: bool, folder: &Folder, name: Option<String>, address: Option<String>) -> Result<Exit, Failure> {
    let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = name.unwrap_or_else(host_name);
    let address = with_port(address.as_deref().unwrap_or(&name));
    let made = Authority::create(folder, &name, &address).and_then(|_| folder.certificate());
    let certificate = made.map_err(Failure::Pki)?;
    told(json, &certificate, "has the cluster's authority, and a certificate")
}

fn invite(json: bool, folder: &Folder, host: &str) -> Result<Exit, Failure> {
    let token = Authority::open(folder)
        .and_then(|authority| authority.invite(host))
        .map_err(Failure::Pki)?;
    print(json, &json!({ "token": token.to_text() }), |_| token.to_text())?;
    Ok(Exit::Ok)
}

fn join(json: bool, folder: &Folder, token: &Path, port: u16) -> Result<Exit, Failure> {
    let joined = read_token(token).and_then(|token| client::join(folder, &token, port));
    told(json, &joined.map_err(Failure::Pki)?, "has joined")
}

fn read_token(path: &Path) -> anyhow::Result<Token> {
    let mut text = String::new();
    let read = match path == "-" {
        true => io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read the token from {}", path.display()))?;
    text.parse()
}

fn revoke(json: bool, folder: &Folder, host: &str) -> Result<Exit, Failure> {
    let fellows = Authority::open(folder)
        .and_then(|authority| authority.revoke(host))
        .map_err(Failure::Pki)?;
    let mut unaware = Vec::new();
    for (fellow, address) in fellows {
        if let Err(error) = client::tell_revocations(folder, &fellow, &address) {
            unaware.push(json!({ "host": fellow, "reason": format!("{error:#}") }));
        }
    }
    print(json, &json!({ "revoked": host, "unaware": unaware }), |_| {
        let mut text = format!("{host} is not trusted any more; connections that it has go on until they end");
        for fellow in &unaware {
            let (host, reason) = (&fellow["host"], &fellow["reason"]);
            text += &format!("\n{host} could not be told and will ask within minutes of running: {reason}");
        }
        text
    })?;
    Ok(Exit::Ok)
}

fn status(json: bool, folder: &Folder) -> Result<Exit, Failure> {
    let read = || {
        let cluster = folder.cluster()?;
        let revoked = Revocations::read(folder)?;
        Ok::<_, anyhow::Error>((folder.certificate()?, cluster, revoked))
    };
    // Asked first, for a sentence that says what to do.
    folder.certificate().map_err(Failure::Pki)?;
    let (certificate, cluster, revoked) = read().map_err(Failure::Pki)?;
    let has_authority = folder.has_authority();
    let value = json!({
        "host": certificate.host, "serial": certificate.serial, "until_unix": certificate.until_unix,
        "authority_host": cluster.authority_host, "authority_address": cluster.authority_address,
        "has_authority": has_authority,
        "revocations": { "number": revoked.number, "serials": revoked.serials },
    });
    print(json, &value, |_| {
        let mut table = Table::new(["", ""]).left(2);
        let place = if has_authority {
            "this host"
        } else {
            &cluster.authority_host
        };
        table.row(["host".to_owned(), certificate.host.clone()]);
        table.row([
            "certificate".to_owned(),
            format!("{}, {}", certificate.serial, left(&certificate)),
        ]);
        table.row([
            "authority".to_owned(),
            format!("{place}, {}", cluster.authority_address),
        ]);
        table.row([
            "revoked".to_owned(),
            format!("{} in list {}", revoked.serials.len(), revoked.number),
        ]);
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

fn told(json: bool, certificate: &Certificate, what: &str) -> Result<Exit, Failure> {
    let value = json!({
        "host": certificate.host, "serial": certificate.serial, "until_unix": certificate.until_unix,
    });
    print(json, &value, |_| {
        format!("{} {what}, {}", certificate.host, left(certificate))
    })?;
    Ok(Exit::Ok)
}

fn left(certificate: &Certificate) -> String {
    let hours = certificate.left().as_secs() / 3600;
    match hours {
        0 if certificate.left().is_zero() => "expired".to_owned(),
        _ => format!("valid for {} days and {} hours", hours / 24, hours % 24),
    }
}
