//! What was promised to VMs that are under way to this host. A promise ends with its handover, whose state machine also
//! gives it up when no stream comes in time.

use std::collections::BTreeMap;

/// One promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The VM's UUID.
    pub uuid: Option<String>,
    /// Memory set aside, bytes.
    pub memory_bytes: u64,
}

/// All promises that stand, by the VM's name.
#[derive(Debug, Default)]
pub struct Reservations(BTreeMap<String, Reservation>);

impl Reservations {
    /// Promises.
    pub fn hold(&mut self, vm: &str, reservation: Reservation) {
        self.0.insert(vm.to_owned(), reservation);
    }

    /// Takes a promise back: it was used, or is not wanted any more.
    pub fn release(&mut self, vm: &str) {
        self.0.remove(vm);
    }

    /// The promises that stand, with their VMs' names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Reservation)> {
        self.0.iter().map(|(vm, reservation)| (vm.as_str(), reservation))
    }
}
