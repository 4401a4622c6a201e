//! What can go wrong between us and a monitor.

use std::{io, path::PathBuf};

/// The result of a QMP call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a QMP call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error("cannot connect to the QMP socket {}: {source}; is this QEMU still running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something answered, but not with QMP's greeting.
    #[error("no QMP greeting: {reason}; a monitor serves one client at a time, so close the other one")]
    Greeting {
        /// What came instead.
        reason: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {error}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's answer.
        error: CommandError,
    },
    /// QEMU answered with something that is not what this command answers.
    #[error("QEMU's answer to {command} is not understood ({reason}); report this QEMU's version")]
    Answer {
        /// The command.
        command: String,
        /// What did not fit.
        reason: String,
    },
    /// The connection ended, before the call or while it waited.
    #[error("the QMP connection is closed: {reason}")]
    Closed {
        /// Why it ended.
        reason: String,
    },
    /// The receiver was too slow and events were dropped; query the state instead of relying on them.
    #[error("{count} QMP events were lost because nobody read them; query the state again")]
    EventsLost {
        /// How many.
        count: u64,
    },
}

/// A QMP error reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{description} ({class})")]
pub struct CommandError {
    /// `GenericError`, `CommandNotFound`, `DeviceNotActive`, …
    pub class: String,
    /// QEMU's sentence for people (`desc`).
    pub description: String,
}
