//! What must hold after every run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vmferry_e2e::agent::Agent;
use vmferry_e2e::api::{Next, Stream};
use vmferry_e2e::net::Host;

use super::plan::{Fault, Plan, Side};
use super::step::Journals;
use super::world::{VM, World};

/// The longest that two agents may take to agree once nothing fails any more. A migration may wait for its peer meanwhile.
const SETTLE_MAX: Duration = Duration::from_secs(240);
/// An event wakes whoever waits; what happens without one is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// What an agent may have in its state folder.
const STATE_FILES: [&str; 10] = [
    "agent.log",
    "agent.sock",
    "agent.toml",
    "content",
    "content.key",
    "host.id",
    "journal",
    "journal.lock",
    "pki",
    "vms",
];

/// What the names of processes begin with that belong on a host besides its agent.
const QEMU: &str = "qemu-system";
const ETCD: &str = "etcd";

/// Where the guest is once both agents agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It runs there.
    Running(Host),
    /// It has ended, and that host's agent says so.
    Ended(Host),
}

/// Waits until both agents agree on where the guest is, none of them is moving it, and nothing of it is left over elsewhere.
pub(crate) fn settle(world: &World) -> Result<Place> {
    let started = Instant::now();
    let mut events = Stream::open(&world.agent(world.at).socket(), "/v1/events")?;
    loop {
        let difference = match look(world)? {
            Ok(place) => return Ok(place),
            Err(difference) => difference,
        };
        ensure!(
            started.elapsed() < SETTLE_MAX,
            "the hosts do not come to an end within {SETTLE_MAX:?}: {difference}"
        );
        events.next(LOOK_AGAIN)?;
    }
}

/// Where the guest is now, or why that isn't plain yet. What the agents say is asked first: looking at processes is work.
fn look(world: &World) -> Result<Result<Place, String>> {
    let mut found = Vec::new();
    for host in [Host::A, Host::B] {
        let vms = listed(world.agent(host))?;
        found.extend(vms.into_iter().map(|vm| (host, vm)));
    }
    let [(at, vm)] = &found[..] else {
        return Ok(Err(format!("{} VMs: {found:?}", found.len())));
    };
    let place = match vm["state"].as_str() {
        Some("running") => Place::Running(*at),
        Some("stopped") => Place::Ended(*at),
        _ => return Ok(Err(vm.to_string())),
    };
    if !vm["migration"].is_null() {
        return Ok(Err(vm.to_string()));
    }
    for host in [Host::A, Host::B] {
        let processes = world.lab.processes(host)?;
        let qemus = processes.into_iter().filter(|pid| is_called(*pid, QEMU)).count();
        let interfaces = world.lab.interfaces(host)?;
        let taps = interfaces.iter().filter(|name| name.starts_with("vmf")).count();
        let running = usize::from(place == Place::Running(host));
        if qemus != running || taps != running {
            return Ok(Err(format!(
                "{qemus} QEMUs and {taps} taps on {}: {found:?}",
                host.name()
            )));
        }
    }
    Ok(match leftovers(world, *at)? {
        None => Ok(place),
        Some(leftovers) => Err(leftovers),
    })
}

/// What there is on the hosts that does not belong to the agents and the guest, which is on `at`.
fn leftovers(world: &World, at: Host) -> Result<Option<String>> {
    for host in [Host::A, Host::B] {
        let agent = world.agent(host);
        let own = agent.pid().context("the agent has ended")?;
        let mut processes = world.lab.processes(host)?;
        processes.retain(|pid| *pid != own && !is_called(*pid, QEMU) && !is_called(*pid, ETCD));
        let mut files = names(agent.folder())?;
        files.retain(|name| !STATE_FILES.contains(&name.as_str()));
        let folders = names(&agent.folder().join("vms"))?;
        let expected: &[&str] = if host == at { &[VM] } else { &[] };
        if !processes.is_empty() || !files.is_empty() || folders != expected {
            return Ok(Some(format!(
                "on {} processes {processes:?}, files {files:?}, folders of VMs {folders:?}",
                host.name()
            )));
        }
    }
    Ok(None)
}

/// The VMs that an agent lists.
pub(crate) fn listed(agent: &Agent) -> Result<Vec<Value>> {
    match Stream::open(&agent.socket(), "/v1/vms")?.next(ANSWER_MAX)? {
        Next::Object(Value::Array(vms)) => Ok(vms),
        other => bail!("the agent on {} lists no VMs: {other:?}", agent.host().name()),
    }
}

/// Whether the report, if there is one, says what is the case, and what is the case was allowed to happen.
pub(crate) fn ensure_true(
    plan: &Plan,
    world: &World,
    place: Place,
    report: Option<&Value>,
    journals: &Journals,
) -> Result<()> {
    let [source, target] = [Side::Source, Side::Target].map(|side| world.host(side));
    if let Some(report) = report {
        let said = match report["outcome"].as_str() {
            Some("completed") => &[Place::Running(target), Place::Ended(target)][..],
            Some("rolled-back" | "refused" | "cancelled" | "not-converged") => &[Place::Running(source)][..],
            Some("lost") => &[Place::Ended(source)][..],
            _ => &[],
        };
        ensure!(
            said.contains(&place),
            "the guest is {place:?}, but the report says {report:#}"
        );
        // A host refuses for what the run before left over on it. A disk that fails, a QEMU that ends while it starts, and an
        // arbiter out of reach are reasons of their own.
        let reasons = report["reasons"].to_string();
        let may_refuse = match plan.fault {
            Fault::FillDisk(Side::Target) | Fault::FailWrites(Side::Target) | Fault::KillQemu(Side::Target) => true,
            Fault::KillNodes | Fault::CutLink(_) | Fault::CutDirection(_) => reasons.contains("arbiter"),
            _ => false,
        };
        ensure!(report["outcome"] != "refused" || may_refuse, "refused: {report:#}");
    }
    let Place::Ended(_) = place else {
        return Ok(());
    };
    // Only the death of the one QEMU that had all of the guest ends the guest.
    let may_end = match plan.fault {
        Fault::KillQemu(Side::Source) => !journals.has(Side::Target, "prepared")?,
        Fault::KillQemu(Side::Target) => journals.has(Side::Target, "owned")?,
        _ => false,
    };
    ensure!(may_end, "the guest was lost: {place:?}");
    Ok(())
}

/// Whether no part of an agent has panicked.
pub(crate) fn ensure_calm(world: &World) -> Result<()> {
    for host in [Host::A, Host::B] {
        let log = fs::read(world.agent(host).log())?;
        let panic = b"panicked at";
        ensure!(
            !log.windows(panic.len()).any(|words| words == panic),
            "the agent on {} panicked",
            host.name()
        );
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_called(pid: u32, beginning: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(beginning))
}
