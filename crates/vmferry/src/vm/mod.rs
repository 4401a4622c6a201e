//! One VM on this host: its definition, its QEMU's command line, its process.
//!
//! | module | what |
//! |---|---|
//! | [`definition`] | what a VM is, as people write it and as agents send it |
//! | [`command_line`] | a definition as QEMU's arguments, the same guest-visible hardware on every host |
//! | [`folder`] | where a VM's files are on this host |
//! | [`storage`], [`qcow2`] | the files under a disk, whatever stands on what |
//! | [`given`] | what a QEMU is given open |
//! | [`confine`] | what keeps a QEMU from the rest of its host |
//! | [`process`] | a QEMU process that is never mistaken for another one |
//! | [`network`] | making a tap and putting it on a bridge |
//! | [`mod@launch`] | starting a QEMU that outlives the agent, finding it again, ending it |

pub mod command_line;
pub mod confine;
pub mod definition;
pub mod folder;
pub mod given;
pub mod launch;
pub mod network;
pub mod process;
pub mod qcow2;
pub mod size;
pub mod storage;
mod validate;

pub use confine::{Confinement, UserRange};
pub use definition::{DefinitionError, VmDefinition};
pub use folder::VmFolder;
pub use launch::{LaunchError, Launcher, Role, RunningVm, find_again};
pub use process::Process;
pub use size::ByteSize;
