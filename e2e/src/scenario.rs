//! What most end-to-end tests begin and end with: two agents, a guest on one of them, and the proof of who runs it.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::accel::Accel;
use crate::agent::{Agent, IN_THE_CLEAR, PORT, built_vmferry};
use crate::api::Stream;
use crate::command::{command, run};
use crate::definition::console;
use crate::guest::Guest;
use crate::image::{Extras, image};
use crate::migration::ensure_moved_and_verified;
use crate::net::{Host, Lab};
use crate::qemu::{Disk, Spec};

/// How long a guest may take to boot, on a busy machine without KVM.
pub const BOOT_MAX: Duration = Duration::from_secs(90);
/// How long two agents may take to agree on a matter that needs nobody else: longer than the silence after which one
/// counts the other as lost.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// An event wakes whoever waits; what happens without one is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Two agents on a [`Lab`].
pub struct Scenario<'lab> {
    /// The ground.
    pub lab: &'lab Lab,
    /// The agent on [`Host::A`].
    pub a: Agent<'lab>,
    /// The agent on [`Host::B`].
    pub b: Agent<'lab>,
    vmferry: PathBuf,
    vms: RefCell<Vec<String>>,
}

/// Memory of a [`small_guest`], MiB.
pub const SMALL_GUEST_MIB: u32 = 160;

/// A small guest, number `index` of its lab. Without KVM on any machine: the tests are about vmferry, and are the same
/// everywhere.
///
/// # Errors
/// When its image cannot be built.
pub fn small_guest(index: u8, disks: Vec<Disk>) -> Result<Spec> {
    Ok(Spec {
        image: image(Extras::None)?,
        accel: Accel::Tcg,
        memory_mib: SMALL_GUEST_MIB,
        vcpus: 1,
        index,
        disks,
    })
}

/// The address of `host`'s agent, for `--to`.
#[must_use]
pub fn address(host: Host) -> String {
    format!("{}:{PORT}", host.address())
}

impl<'lab> Scenario<'lab> {
    /// Builds vmferry and starts both agents.
    ///
    /// # Errors
    /// When it does not compile, or an agent does not serve.
    pub fn set_up(lab: &'lab Lab) -> Result<Self> {
        Self::set_up_with(lab, &[], &[])
    }

    /// As [`set_up`](Self::set_up), with agents whose messages a [`Proxy`](crate::proxy::Proxy) can read.
    ///
    /// # Errors
    /// As [`set_up`](Self::set_up).
    pub fn set_up_in_the_clear(lab: &'lab Lab) -> Result<Self> {
        Self::set_up_with(lab, &[IN_THE_CLEAR], &[IN_THE_CLEAR])
    }

    /// As [`set_up`](Self::set_up), with further options of the agent on [`Host::A`] and of that on [`Host::B`].
    ///
    /// # Errors
    /// As [`set_up`](Self::set_up).
    pub fn set_up_with(lab: &'lab Lab, a: &[&str], b: &[&str]) -> Result<Self> {
        let vmferry = built_vmferry(false)?;
        Self::start((lab, &vmferry), (&vmferry, a), (&vmferry, b))
    }

    /// As [`set_up`](Self::set_up), with the agent on [`Host::A`] and that on [`Host::B`] of these programs.
    ///
    /// # Errors
    /// When an agent does not serve.
    pub fn of(lab: &'lab Lab, a: &Path, b: &Path) -> Result<Self> {
        Self::start((lab, b), (a, &[]), (b, &[]))
    }

    fn start((lab, vmferry): (&'lab Lab, &Path), a: (&Path, &[&str]), b: (&Path, &[&str])) -> Result<Self> {
        Ok(Self {
            lab,
            a: Agent::start_with(lab, Host::A, a.0, a.1)?,
            b: Agent::start_with(lab, Host::B, b.0, b.1)?,
            vmferry: vmferry.to_owned(),
            vms: RefCell::default(),
        })
    }

    /// Replaces the agent on [`Host::B`] by one with further `options`, for which the host is changed by `preparation`, a
    /// shell command that runs where only this agent sees its mounts.
    ///
    /// # Errors
    /// When that agent does not serve.
    pub fn replace_b(&mut self, preparation: &str, options: &[&str]) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        self.b.stop()?;
        let script = self.lab.folder().join("agent-b");
        let text = format!("#!/bin/sh -e\n{preparation}\nexec {} \"$@\"\n", self.vmferry.display());
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.b = Agent::start_with(self.lab, Host::B, &script, options)?;
        // The command line shall be the plain one again.
        self.b.set_command_line(&self.vmferry);
        Ok(())
    }

    /// The agent on `host`.
    ///
    /// # Panics
    /// When that host has none.
    #[must_use]
    pub fn agent(&self, host: Host) -> &Agent<'lab> {
        match host {
            Host::A => &self.a,
            Host::B => &self.b,
            Host::Storage | Host::Client => panic!("{} has no agent", host.name()),
        }
    }

    /// Starts `spec` as the VM `name` on `host` and connects to its guest from the client.
    ///
    /// # Errors
    /// When it does not start, or its guest does not answer.
    pub fn run(&self, host: Host, name: &str, spec: &Spec) -> Result<Guest> {
        self.run_with(host, name, spec, &[])
    }

    /// The program.
    #[must_use]
    pub fn vmferry(&self) -> &Path {
        &self.vmferry
    }

    /// As [`run`](Self::run), with further arguments for its QEMU.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with(&self, host: Host, name: &str, spec: &Spec, qemu_args: &[&str]) -> Result<Guest> {
        self.vms.borrow_mut().push(name.to_owned());
        let definition = spec.write_definition(self.lab.folder(), name)?;
        // In front: behind stand tables.
        let text = format!("extra_args = {qemu_args:?}\n{}", fs::read_to_string(&definition)?);
        fs::write(&definition, text)?;
        self.agent(host)
            .cli(["run".as_ref(), definition.as_os_str()])?
            .success()?;
        Guest::connect(self.lab, Host::Client, spec.address(), BOOT_MAX)
    }

    /// Moves `vm` with `--verify` and further `flags`, and returns the report.
    ///
    /// # Errors
    /// When it does not arrive, or its memory differs.
    pub fn moves(&self, vm: &str, from: Host, to: Host, flags: &[&str]) -> Result<Value> {
        let target = address(to);
        let arguments = [&["migrate", vm, "--to", &target, "--verify"], flags].concat();
        let report = self.agent(from).cli(arguments)?.success()?;
        ensure_moved_and_verified(&report)?;
        Ok(report)
    }

    /// The process of the VM's QEMU on `host`, also while it is only coming.
    ///
    /// # Errors
    /// When there is none.
    pub fn qemu(&self, host: Host, vm: &str) -> Result<u32> {
        let path = self.agent(host).folder().join("vms").join(vm).join("qemu.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{}: {text:?}", path.display()))
    }

    /// Waits until `on_a` and `on_b` are the VMs of both hosts, all running and none being moved, with one QEMU and one
    /// tap each, and nothing of any other.
    ///
    /// # Errors
    /// When it does not come to that; what is different is in the error.
    pub fn settles(&self, on_a: &[&str], on_b: &[&str]) -> Result<()> {
        for (agent, expected) in [(&self.a, on_a), (&self.b, on_b)] {
            let started = Instant::now();
            let mut events = Stream::open(&agent.socket(), "/v1/events")?;
            while let Err(difference) = self.ensure_runs(agent, expected) {
                ensure!(
                    started.elapsed() < SETTLE_MAX,
                    "{}: {difference:#}",
                    agent.host().name()
                );
                events.next(LOOK_AGAIN)?;
            }
        }
        Ok(())
    }

    fn ensure_runs(&self, agent: &Agent, expected: &[&str]) -> Result<()> {
        let listed = agent.cli(["ps"])?;
        ensure!(listed.code == Some(0), "ps: {}", listed.said);
        let mut names: Vec<&str> = listed.values.iter().filter_map(|vm| vm["name"].as_str()).collect();
        names.sort_unstable();
        ensure!(names == expected, "VMs {names:?}, expected {expected:?}");
        for vm in &listed.values {
            ensure!(vm["state"] == "running" && vm["migration"].is_null(), "{vm}");
        }
        let namespace = self.lab.namespace(agent.host());
        let processes = run(&mut command("ip", ["netns", "pids", &namespace]))?;
        let qemus = processes.lines().filter(|pid| is_qemu(pid)).count();
        ensure!(qemus == expected.len(), "{qemus} QEMUs for {expected:?}");
        let links = run(&mut command("ip", ["-n", &namespace, "-o", "link"]))?;
        let taps = links.lines().filter(|link| link.contains(": vmf")).count();
        ensure!(taps == expected.len(), "{taps} taps for {expected:?}");
        Ok(())
    }
}

impl Drop for Scenario<'_> {
    /// A test that fails shows what agents and guests said; of one that passes nobody sees it.
    fn drop(&mut self) {
        for agent in [&self.a, &self.b] {
            let log = fs::read_to_string(agent.log()).unwrap_or_default();
            eprintln!("the agent on {}:\n{log}", agent.host().name());
        }
        for vm in &*self.vms.borrow() {
            let console = fs::read(console(self.lab.folder(), vm)).unwrap_or_default();
            eprintln!("the console of {vm}:\n{}", String::from_utf8_lossy(&console));
        }
    }
}

fn is_qemu(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu-system"))
}

/// Has the guest show that it is alive: its memory holds what was written there, and its counter goes up.
///
/// # Errors
/// When it does not.
pub fn ensure_alive(guest: &mut Guest) -> Result<()> {
    guest.check_memory()?;
    let before = guest.ask_number("counter", "count")?;
    let started = Instant::now();
    while guest.ask_number("counter", "count")? <= before {
        if started.elapsed() > SETTLE_MAX {
            bail!("the guest answers, but its counter stands still");
        }
    }
    Ok(())
}
