//! The command line. Except for `agent`, `pki`, `tunnel` and `doctor`, every command is a client of the agent's API.
//!
//! | module | what |
//! |---|---|
//! | [`commands`] | what each short command does |
//! | [`migrate`] | `vmferry migrate`: the request, the live view, Ctrl-C |
//! | [`resolve`] | `vmferry resolve`: what is known, what must be true, the decision |
//! | [`doctor`] | `vmferry doctor`: what would stop or slow a migration |
//! | [`progress`], [`report`], [`table`] | what people see of a migration |
//! | [`pki`] | `vmferry pki` |
//! | [`tunnel`] | `vmferry tunnel` |
//! | [`client`] | HTTP over the agent's unix socket, or over TLS |
//! | [`exit`] | exit codes |
//! | [`output`] | standard output |
//! | [`units`] | durations and rates |

pub mod client;
pub mod commands;
pub mod doctor;
pub mod exit;
pub mod migrate;
pub mod output;
pub mod pki;
pub mod progress;
pub mod report;
pub mod resolve;
pub mod table;
pub mod tunnel;
pub mod units;

use std::{io, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::agent::{self, Settings};
use client::Client;
use exit::{Exit, Failure};

/// Moves running QEMU virtual machines between hosts.
#[derive(Debug, Parser)]
#[command(name = "vmferry", version, about, after_help = exit::HELP)]
pub struct Cli {
    /// The agent's API socket [default: /run/vmferry/agent.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Ask another host's agent, over TLS: where its --api-listen is.
    #[arg(long = "host", global = true, value_name = "HOST:PORT", conflicts_with = "socket")]
    pub remote: Option<String>,
    /// The state directory whose certificate is shown to another host's agent [default: /var/lib/vmferry].
    #[arg(long, global = true, value_name = "DIR")]
    pub credentials: Option<PathBuf>,
    /// Print JSON instead of text, one object a line.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Own the VMs of this host: start them, watch them, move them away, take them in.
    ///
    /// Its guests run on when it ends; it finds them again when it is started anew. Its log goes to standard error,
    /// filtered by the variable RUST_LOG.
    Agent(Box<AgentArgs>),
    /// Who may talk: make a cluster, have hosts join, renew and revoke their certificates.
    Pki(pki::PkiArgs),
    /// Carry migrations of VMs that libvirt or another manager owns: compressed, encrypted, over links that break.
    ///
    /// Each QEMU connects to a socket of the tunnel's source instead of to the other host. Either end runs until it is ended;
    /// its log goes to standard error, filtered by the variable RUST_LOG.
    Tunnel(Box<tunnel::TunnelArgs>),
    /// Start a VM from its definition, or start one anew that has stopped.
    Run {
        /// The definition, TOML.
        #[arg(value_name = "FILE.toml")]
        definition: PathBuf,
    },
    /// Say what on this host would stop or slow a migration, and what to do about it.
    ///
    /// Each check prints a line: ok, warning, or problem, and what to do. Exits with 1 where there is a problem. Run it as root,
    /// with the settings of the agent: those of /etc/vmferry/agent.toml where there is one and nothing else is said.
    Doctor(Box<doctor::DoctorArgs>),
    /// Print what this host is, and what of its QEMUs' confinement it can't do.
    Host,
    /// List this host's VMs.
    Ps,
    /// List what is indexed of disks and images: pages that stand there need not be sent.
    Index {
        /// Return when nothing is left to be indexed.
        #[arg(long)]
        wait: bool,
    },
    /// Move a running VM to another host.
    Migrate(migrate::MigrateArgs),
    /// Cancel the migration that moves a VM away; the guest runs on here.
    Cancel {
        /// The VM's name.
        vm: String,
    },
    /// Decide which copy of a VM is the VM, when a handover waits for a host that is gone for ever.
    ///
    /// Says first what is known and what must be true, and asks whether it is.
    Resolve {
        /// The VM's name.
        vm: String,
        /// The host whose copy is the VM: this host's name, or the other's address.
        #[arg(long, value_name = "HOST")]
        keep: String,
        /// What must be true is true: don't ask.
        #[arg(long)]
        yes: bool,
    },
    /// Print what happens on this host, until interrupted.
    Events,
    /// End a VM as if its power were cut, and forget it.
    Stop {
        /// The VM's name.
        vm: String,
        /// Stop it even while it is being migrated: the migration is cancelled first.
        #[arg(long)]
        force: bool,
    },
}

/// `vmferry agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A TOML file with the same settings, and `socket`; flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl AgentArgs {
    /// What the flags say, and what they leave open from the file.
    fn settings(self, socket: Option<PathBuf>) -> Result<Settings, Failure> {
        let flags = Settings {
            socket,
            ..self.settings
        };
        flags.or_from_file(self.config.as_deref()).map_err(Failure::Usage)
    }
}

/// Carries out a command line and gives the exit code; failures are said on standard error.
pub async fn run(cli: Cli) -> Exit {
    let json = cli.json;
    match dispatch(cli).await {
        Ok(exit) => exit,
        // The reader has read enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(failure) => {
            match (&failure, json) {
                (Failure::Agent(error), true) => {
                    eprintln!("{}", serde_json::json!({ "error": error }));
                }
                (_, true) => {
                    eprintln!("{}", serde_json::json!({ "error": { "message": failure.to_string() } }));
                }
                (_, false) => eprintln!("vmferry: {failure}"),
            }
            failure.exit()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let Cli {
        socket,
        remote,
        credentials,
        json,
        command,
    } = cli;
    let is_remote = remote.is_some();
    let client = |socket: Option<PathBuf>| match remote {
        Some(address) => Client::remote(&address, &credentials.unwrap_or_else(agent::default_state_dir)),
        None => Ok(Client::new(socket.unwrap_or_else(agent::default_socket))),
    };
    match command {
        Command::Agent(args) => {
            agent::serve(args.settings(socket)?).await.map_err(Failure::Start)?;
            Ok(Exit::Ok)
        }
        Command::Pki(args) => match tokio::task::spawn_blocking(move || pki::pki(json, args)).await {
            Ok(done) => done,
            Err(panic) => Err(Failure::Pki(panic.into())),
        },
        Command::Tunnel(args) => tunnel::tunnel(*args).await,
        Command::Run { definition } => commands::run(&client(socket)?, json, &definition).await,
        Command::Doctor(_) if is_remote => Err(Failure::Usage(
            "vmferry doctor looks at the host that it runs on: run it there, without --host".to_owned(),
        )),
        Command::Doctor(args) => doctor::doctor(json, *args, socket).await,
        Command::Host => commands::host(&client(socket)?, json).await,
        Command::Ps => commands::ps(&client(socket)?, json).await,
        Command::Index { wait } => commands::index(&client(socket)?, json, wait).await,
        Command::Migrate(args) => migrate::migrate(&client(socket)?, json, args).await,
        Command::Cancel { vm } => commands::cancel(&client(socket)?, json, &vm).await,
        Command::Resolve { vm, keep, yes } => resolve::resolve(&client(socket)?, json, &vm, keep, yes).await,
        Command::Events => commands::events(&client(socket)?, json).await,
        Command::Stop { vm, force } => commands::stop(&client(socket)?, json, &vm, force).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_work_before_and_after_the_command() {
        for line in ["vmferry --json --socket /s ps", "vmferry ps --socket /s --json"] {
            let cli = parse(line).unwrap();
            assert!(cli.json && cli.socket == Some("/s".into()));
        }
    }

    #[test]
    fn every_command_takes_its_arguments() {
        for line in [
            "vmferry agent --listen 127.0.0.1:0 --state-dir /d --name a --qemu /usr/bin/q --memory-limit 8GiB --memory-headroom 1GiB",
            "vmferry agent --config /etc/vmferry.toml",
            "vmferry agent --image /a.img --image b.qcow2 --index-bandwidth 10MiB --index-space 1GiB --index-memory 64MiB",
            "vmferry agent --qemu-users 200000-200999",
            "vmferry host",
            "vmferry doctor --peer host-b --config /etc/vmferry/agent.toml --state-dir /d",
            "vmferry index --wait",
            "vmferry run web.toml",
            "vmferry cancel web",
            "vmferry events",
            "vmferry --host b:7465 --credentials /d ps",
            "vmferry pki init --name a --address a.example.org --state-dir /d",
            "vmferry pki invite b",
            "vmferry pki join --token-file - --port 7464",
            "vmferry pki rotate",
            "vmferry pki revoke b",
            "vmferry pki status --json",
            "vmferry resolve web --keep host-b --yes",
            "vmferry agent --arbiter etcd:http://a:2379,https://b:2379 --arbiter-prefix /lab --arbiter-ca ca.pem",
            "vmferry stop web --force",
            "vmferry tunnel source --to b:7466 --listen /run/mig/web.sock --listen /run/mig/db.sock --disks /run/mig/disks.sock",
            "vmferry tunnel source --to b:7466 --listen /m --lanes 4 --link-patience 30s --state-dir /d",
            "vmferry tunnel target --listen 0.0.0.0:7466 --sockets /run/mig --from a --from c",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "vmferry",
            "vmferry migrate web",
            "vmferry run",
            "vmferry ps --socket /s --host b:7465",
            "vmferry pki join vmferry-join/1/b/a/a:7464/00/00",
            "vmferry agent --memory-limit much",
            "vmferry agent --qemu-users 0-9",
            "vmferry tunnel source --to b:7466",
            "vmferry tunnel target --listen 0.0.0.0:7466 --sockets /run/mig --from a --insecure-plaintext",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn help_lists_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Refused,
            Exit::Cancelled,
            Exit::NotConverged,
            Exit::AgentUnreachable,
            Exit::UnknownVm,
            Exit::Conflict,
            Exit::GuestLost,
            Exit::Detached,
        ] {
            let line = format!("\n  {:<3}  ", exit as u8);
            assert!(help.contains(&line), "{exit:?} is not in {help}");
        }
    }
}
