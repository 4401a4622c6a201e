//! Two hosts, their agents, and a small guest that goes back and forth between them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::agent::Agent;
use vmferry_e2e::etcd::Etcd;
use vmferry_e2e::guest::Guest;
use vmferry_e2e::image::{Extras, ext4_disk, image};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Disk, Spec};
use vmferry_e2e::scenario::BOOT_MAX;

use super::client::Client;
use super::plan::Side;

/// The guest's name.
pub(crate) const VM: &str = "web";
/// Where the guest has its disk.
pub(crate) const DATA: &str = "/data";

const MEMORY_MIB: u32 = 192;
const DISK_BYTES: u64 = 64 << 20;
/// Room for one guest's memory and not for two: of a reservation that is left over, the next run hears.
const MEMORY_LIMIT: &str = "320MiB";
/// The disk with an agent's state: room for its journal, its log and what it keeps of the guest's memory.
const STATE_DISK_MIB: u32 = 512;
/// What the guest has in memory, bytes: some that stays, and some that it keeps writing anew, so many bytes a second. Of that
/// the host that it comes back to has nothing.
const FILLED_BYTES: u32 = 8 << 20;
const DIRTY_BYTES: u32 = 8 << 20;
const DIRTY_BYTES_PER_S: u32 = 1 << 20;

/// What a fault campaign runs on.
pub(crate) struct World<'lab> {
    /// Hosts and links.
    pub(crate) lab: &'lab Lab,
    agents: [Agent<'lab>; 2],
    etcd: Option<Etcd<'lab>>,
    spec: Spec,
    /// The image of the guest's disk.
    pub(crate) disk: PathBuf,
    /// Where the guest is.
    pub(crate) at: Host,
}

impl<'lab> World<'lab> {
    /// Starts both agents of the program `vmferry`, each with a small disk for its state and a wall clock that can be made to
    /// jump, and etcd where that is their arbiter.
    pub(crate) fn new(lab: &'lab Lab, vmferry: &Path, arbiter: bool) -> Result<Self> {
        let etcd = arbiter.then(|| Etcd::start(lab)).transpose()?;
        let disk = lab.folder().join("disk.raw");
        ext4_disk(&disk, DISK_BYTES, None)?;
        let image = image(Extras::Redis)?;
        let spec = Spec {
            accel: Accel::Tcg,
            image,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            index: 0,
            disks: vec![Disk {
                file: disk.display().to_string(),
                format: "raw".to_owned(),
                read_only: false,
                mount: DATA.to_owned(),
            }],
        };
        Ok(Self {
            lab,
            agents: [
                start_agent(lab, Host::A, vmferry, arbiter)?,
                start_agent(lab, Host::B, vmferry, arbiter)?,
            ],
            etcd,
            spec,
            disk,
            at: Host::A,
        })
    }

    /// Boots the guest, on [`Host::A`], and connects to it.
    pub(crate) fn boot(&mut self) -> Result<Client> {
        let definition = self.spec.write_definition(self.lab.folder(), VM)?;
        self.agent(Host::A).cli([Path::new("run"), &definition])?.success()?;
        self.at = Host::A;
        let mut guest = Guest::connect(self.lab, Host::Client, self.spec.address(), BOOT_MAX)?;
        guest.ask(&format!("fill random {FILLED_BYTES}"))?;
        guest.ask(&format!("dirty random {DIRTY_BYTES} {DIRTY_BYTES_PER_S}"))?;
        Client::connect(self.lab, guest)
    }

    /// The agent on `host`.
    pub(crate) fn agent(&self, host: Host) -> &Agent<'lab> {
        let [a, b] = &self.agents;
        if host == Host::B { b } else { a }
    }

    /// The hosts' arbiter.
    ///
    /// # Errors
    /// When they have none.
    pub(crate) fn etcd(&mut self) -> Result<&mut Etcd<'lab>> {
        self.etcd.as_mut().context("these hosts have no arbiter")
    }

    /// The agent on `host`, to end and start it.
    pub(crate) fn agent_mut(&mut self, host: Host) -> &mut Agent<'lab> {
        let [a, b] = &mut self.agents;
        if host == Host::B { b } else { a }
    }

    /// The host on `side` of a migration of the guest from where it is.
    pub(crate) fn host(&self, side: Side) -> Host {
        match (side, self.at) {
            (Side::Source, at) => at,
            (Side::Target, Host::A) => Host::B,
            (Side::Target, _) => Host::A,
        }
    }
}

/// The file that says how far the wall clock of the agent on `host` is off, for libfaketime.
pub(crate) fn clock(lab: &Lab, host: Host) -> PathBuf {
    lab.folder().join(format!("{}.clock", host.name()))
}

fn start_agent<'lab>(lab: &'lab Lab, host: Host, vmferry: &Path, arbiter: bool) -> Result<Agent<'lab>> {
    lab.add_state_disk(host, STATE_DISK_MIB)?;
    let clock = clock(lab, host);
    fs::write(&clock, "+0")?;
    // A write past a limit on the length of files shall fail, and not end the agent.
    let agent = format!(
        "trap '' XFSZ\nexport LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_CACHE_DURATION=1 \
         FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {} \"$@\"",
        faketime()?.display(),
        clock.display(),
        vmferry.display()
    );
    // What fails is the agent's: its QEMUs have the host's clock and no such limit.
    let qemu = "ulimit -f unlimited\nunset LD_PRELOAD\nexec qemu-system-x86_64 \"$@\"";
    let qemu = script(lab, &format!("{}-qemu", host.name()), qemu)?;
    let program = script(lab, &format!("{}-agent", host.name()), &agent)?;
    let qemu = qemu.display().to_string();
    let mut options = vec!["--qemu", &qemu, "--memory-limit", MEMORY_LIMIT];
    let etcd = Etcd::option();
    if arbiter {
        options.extend(["--arbiter", &etcd]);
    }
    let mut agent = Agent::start_with(lab, host, &program, &options)?;
    agent.set_command_line(vmferry);
    Ok(agent)
}

fn script(lab: &Lab, name: &str, lines: &str) -> Result<PathBuf> {
    let path = lab.folder().join(name);
    fs::write(&path, format!("#!/bin/sh -e\n{lines}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Debian has it in a folder that is named after the machine's architecture.
fn faketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.filter_map(|folder| Some(folder.ok()?.path()));
    folders
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .context("no libfaketime: run the set-up first, it installs faketime")
}
