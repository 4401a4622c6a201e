//! One VM on this host: its definition, its QEMU's command line, its process.
//!
//! | module | what |
//! |---|---|
//! | [`definition`] | what a VM is, as people write it and as agents send it |
//! | [`command_line`] | a definition as QEMU's arguments, the same guest-visible hardware on every host |
//! | [`folder`] | where a VM's files are on this host |
//! | [`process`] | a QEMU process that is never mistaken for another one |
//! | [`network`] | putting a tap on a bridge |
//! | [`mod@launch`] | starting a QEMU that outlives the agent, finding it again, ending it |

pub mod command_line;
pub mod definition;
pub mod folder;
pub mod launch;
pub mod network;
pub mod process;
pub mod size;
mod validate;

pub use definition::{DefinitionError, VmDefinition};
pub use folder::VmFolder;
pub use launch::{LaunchError, Role, RunningVm, find_again, launch};
pub use process::Process;
pub use size::ByteSize;
