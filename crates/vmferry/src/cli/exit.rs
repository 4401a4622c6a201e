//! How a command ends: its exit code, and what it says when it fails.

use std::{io, path::PathBuf, process::ExitCode};

use crate::api::{
    error::{ErrorCode, ErrorView},
    migration::Outcome,
};

/// The exit codes, as `vmferry --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed; where it was a migration, the guest runs on the source.
    Failed = 1,
    /// The command line or a definition is wrong.
    Usage = 2,
    /// The target refuses the VM.
    Refused = 3,
    /// The migration was cancelled.
    Cancelled = 4,
    /// The guest did not converge in the time allowed.
    NotConverged = 5,
    /// The agent cannot be reached.
    AgentUnreachable = 6,
    /// There is no such VM.
    UnknownVm = 7,
    /// The VM's state does not allow it: it is being migrated, its name is taken, or another host has it.
    Conflict = 8,
    /// The guest ended during its migration.
    GuestLost = 9,
    /// Detached from a migration that goes on, by a second Ctrl-C.
    Detached = 130,
}

/// The part of `--help` that explains exit codes.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    failed; a guest that was to be moved runs on the source
  2    the command line, a request or a VM definition is wrong
  3    the target refuses the VM
  4    the migration was cancelled; the guest runs on the source
  5    the migration did not converge in time; the guest runs on the source
  6    the agent cannot be reached
  7    there is no such VM
  8    the VM's state does not allow it: being migrated, or its name taken
  9    the guest or its QEMU ended during the migration; it runs nowhere
  130  detached from a migration that goes on (second Ctrl-C)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Completed => Exit::Ok,
            Outcome::RolledBack => Exit::Failed,
            Outcome::Cancelled => Exit::Cancelled,
            Outcome::Refused => Exit::Refused,
            Outcome::NotConverged => Exit::NotConverged,
            Outcome::Lost => Exit::GuestLost,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing answers on the agent's socket.
    #[error("no agent answers on {}: {source}; start one with `vmferry agent`, or name its socket with --socket", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Nothing answers at another host's address, or not for this host.
    #[error("no agent's API at {address}: {why}; is `vmferry agent --api-listen` running there, and is that its port?")]
    RemoteUnreachable {
        /// The address.
        address: String,
        /// Why.
        why: String,
    },
    /// The agent went away, or what it said is not understood.
    #[error("lost the agent: {0}; see with `vmferry ps` what the VM does")]
    Lost(String),
    /// The agent said no.
    #[error("{}", said(.0))]
    Agent(ErrorView),
    /// A file of the user's is wrong.
    #[error("{0}")]
    Usage(String),
    /// This machine got in the way.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A certificate could not be made, or got, or revoked.
    #[error("{0:#}")]
    Pki(anyhow::Error),
    /// A tunnel could not start.
    #[error("the tunnel cannot start: {0:#}")]
    Tunnel(anyhow::Error),
    /// The agent could not start.
    #[error("the agent cannot start: {0:#}")]
    Start(anyhow::Error),
}

impl Failure {
    /// The code to exit with.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Unreachable { .. } | Failure::RemoteUnreachable { .. } | Failure::Lost(_) => {
                Exit::AgentUnreachable
            }
            Failure::Usage(_) => Exit::Usage,
            Failure::Io(_) | Failure::Start(_) | Failure::Tunnel(_) | Failure::Pki(_) => Exit::Failed,
            Failure::Agent(error) => match error.code {
                ErrorCode::BadRequest | ErrorCode::BadDefinition => Exit::Usage,
                ErrorCode::UnknownVm => Exit::UnknownVm,
                ErrorCode::NameTaken
                | ErrorCode::Migrating
                | ErrorCode::NotMigrating
                | ErrorCode::WrongState
                | ErrorCode::OwnedElsewhere
                | ErrorCode::NothingToResolve => Exit::Conflict,
                ErrorCode::NoSuchRoute
                | ErrorCode::UnknownMigration
                | ErrorCode::Arbiter
                | ErrorCode::Qemu
                | ErrorCode::Internal => Exit::Failed,
            },
        }
    }
}

fn said(error: &ErrorView) -> String {
    let mut text = error.message.clone();
    for reason in &error.reasons {
        text.push_str("\n  - ");
        text.push_str(reason);
    }
    text
}
