//! A small guest that moves to and fro between two hosts of its own, for commands that compare several such in one run.

use std::path::Path;

use anyhow::Result;
use vmferry_e2e::agent::Agent;
use vmferry_e2e::guest::Guest;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::scenario::{BOOT_MAX, small_guest};

/// The guest's name.
pub(crate) const VM: &str = "web";

/// Two hosts, their agents, and the guest.
pub(crate) struct Shuttle<'lab> {
    /// Hosts and links.
    pub(crate) lab: &'lab Lab,
    /// A client of the guest.
    pub(crate) guest: Guest,
    agents: [Agent<'lab>; 2],
    at: usize,
}

impl<'lab> Shuttle<'lab> {
    /// Boots it under agents of the program `binary` with further `options`. Nothing of its memory is kept where it was: all moves
    /// are whole, and what is written after one does not compete with the next.
    pub(crate) fn boot(lab: &'lab Lab, binary: &Path, options: &[&str]) -> Result<Self> {
        let options = [&["--kept-memory", "0"], options].concat();
        let start = |host: Host| Agent::start_with(lab, host, binary, &options);
        let agents = [start(Host::A)?, start(Host::B)?];
        let spec = small_guest(0, Vec::new())?;
        let definition = spec.write_definition(lab.folder(), VM)?;
        agents[0].cli(["run".as_ref(), definition.as_os_str()])?.success()?;
        Ok(Self {
            lab,
            guest: Guest::connect(lab, Host::Client, spec.address(), BOOT_MAX)?,
            agents,
            at: 0,
        })
    }

    /// The agents of the next move's source and target.
    pub(crate) fn ends(&self) -> [&Agent<'lab>; 2] {
        [self.at, 1 - self.at].map(|agent| &self.agents[agent])
    }

    /// It has moved.
    pub(crate) fn moved(&mut self) {
        self.at = 1 - self.at;
    }
}
