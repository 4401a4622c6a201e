//! A small QMP client: QEMU's JSON protocol over a unix socket, with the commands that vmferry uses as typed methods.
//!
//! What a newer QEMU adds never breaks it: unknown events, fields and enum values are data ([`EventKind::Other`],
//! [`RunState::Other`], …), not errors. Every line is bounded ([`LINE_BYTES_MAX`]), and when the connection ends,
//! every waiting call and every event receiver gets the reason.
//!
//! | module | what |
//! |---|---|
//! | `client` | the connection: greeting, requests matched to replies by id, events |
//! | `commands` | one method per QMP command |
//! | `message` | one line of QMP to one [`Message`] |
//! | [`ramblock`] | the text of `info ramblock` |
//! | `migration`, `machine`, `block` | what the commands take and answer |

mod block;
mod client;
mod commands;
mod error;
mod event;
mod line;
mod machine;
mod message;
mod migration;
mod open_enum;
pub mod ramblock;

pub use block::{BlockDevice, BlockNode, FdSet, FdSetEntry, ImageInfo, InsertedBlock};
pub use client::{Events, Qmp};
pub use error::{CommandError, Error, Result};
pub use event::{Event, EventKind};
pub use line::LINE_BYTES_MAX;
pub use machine::{CpuDefinition, CpuModel, Machine, MemorySize, RunState, Status, Version};
pub use message::{Greeting, Message};
pub use migration::{Capability, MigrationInfo, MigrationStatus, Parameters, RamInfo};
