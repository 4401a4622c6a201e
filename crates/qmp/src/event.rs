//! Events: what a QEMU tells without being asked.

use std::time::Duration;

use serde_json::Value;

use crate::MigrationStatus;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When, by the clock of QEMU's host, since the Unix epoch; `None` if QEMU did not know.
    pub at: Option<Duration>,
    /// All that came with it (QMP's `data`), `Null` if nothing did.
    pub data: Value,
}

/// The events that vmferry acts upon, and all others by name.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// The CPUs stopped.
    Stop,
    /// The CPUs run.
    Resume,
    /// The guest, or someone through QEMU, shut the machine down; QEMU ends unless told not to.
    Shutdown,
    /// The guest reported a panic.
    GuestPanicked,
    /// The migration's status changed (capability `events`).
    Migration(MigrationStatus),
    /// A pass over the dirty pages began, counted from 1 (capability `events`).
    MigrationPass(u64),
    /// Any other event, by QEMU's name.
    Other(String),
}

impl EventKind {
    /// The kind behind a QMP event's name and data. Data that lacks what the kind needs makes it [`EventKind::Other`].
    pub(crate) fn new(name: &str, data: &Value) -> Self {
        let known = match name {
            "STOP" => Some(Self::Stop),
            "RESUME" => Some(Self::Resume),
            "SHUTDOWN" => Some(Self::Shutdown),
            "GUEST_PANICKED" => Some(Self::GuestPanicked),
            "MIGRATION" => data
                .get("status")
                .and_then(Value::as_str)
                .map(|status| Self::Migration(status.into())),
            "MIGRATION_PASS" => data.get("pass").and_then(Value::as_u64).map(Self::MigrationPass),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}
