//! Why an agent does not do what it was asked.

use std::io;

use vmferry_core::wire::hello::MigrationId;

use crate::{api::types::VmState, arbiter::ArbiterError, vm::LaunchError};

/// Why an agent does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The definition is wrong; every problem is listed.
    #[error("the VM's definition is wrong")]
    BadDefinition(Vec<String>),
    /// The request to migrate is wrong; every problem is listed.
    #[error("the migration cannot be done as asked")]
    BadMigrateRequest(Vec<String>),
    /// There is no such VM.
    #[error("there is no VM {0:?} on this host; `vmferry ps` lists those there are")]
    UnknownVm(String),
    /// There is no such migration.
    #[error("there is no migration {0}; GET /v1/migrations lists those known")]
    UnknownMigration(String),
    /// A VM of that name is here and has a QEMU.
    #[error("a VM {0:?} is already here; stop it first, or give this one another name")]
    NameTaken(String),
    /// A migration is moving the VM.
    #[error("VM {vm:?} is being moved by migration {migration}; wait for its end, or cancel it")]
    Migrating {
        /// The VM.
        vm: String,
        /// The migration.
        migration: MigrationId,
    },
    /// No migration is moving the VM.
    #[error("no migration is moving VM {0:?}")]
    NotMigrating(String),
    /// The VM would have to be in another state.
    #[error("VM {vm:?} is {state}; only a running one can be {wanted}")]
    WrongState {
        /// The VM.
        vm: String,
        /// The state it is in.
        state: VmState,
        /// What was to be done to it.
        wanted: &'static str,
    },
    /// Its QEMU does not start, or does not answer.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Its QEMU cannot be ended.
    #[error("the QEMU of VM {vm:?} cannot be ended: {source}")]
    Stop {
        /// The VM.
        vm: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Nothing more can be made durable, so nothing more is begun.
    #[error(transparent)]
    Journal(#[from] vmferry_store::Error),
    /// The arbiter does not answer, or has something against it.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// No handover of the VM waits for a host that may be gone for ever.
    #[error("no handover of VM {vm:?} waits to be decided here: {why}")]
    NothingToResolve {
        /// The VM.
        vm: String,
        /// What there is instead.
        why: String,
    },
    /// The host to be kept is neither of the two.
    #[error(
        "VM {vm:?} is between this host, {here:?}, and the one at {other}: one of both is to be kept, not {keep:?}"
    )]
    NoSuchHost {
        /// The VM.
        vm: String,
        /// This host.
        here: String,
        /// The other's address.
        other: String,
        /// What was asked.
        keep: String,
    },
    /// What the host offers cannot be found out.
    #[error("cannot find out what this host offers: {0}")]
    Host(io::Error),
    /// The system has no random numbers.
    #[error("cannot draw a random number: {0}")]
    Random(io::Error),
}
