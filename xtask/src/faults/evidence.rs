//! What is kept of a run in which something did not hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use vmferry_e2e::definition::console;
use vmferry_e2e::net::Host;

use super::judge::listed;
use super::plan::Plan;
use super::world::{VM, World};

/// Keeps plan, finding, both agents' logs, journals and lists, QEMU's logs and the guest's console in a folder of `results`.
pub(crate) fn keep(world: &World, results: &Path, seed: u32, plan: &Plan, finding: &anyhow::Error) -> Result<PathBuf> {
    let folder = results.join(format!("seed-{seed}-run-{}", plan.number));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let text = format!("{plan}\n{plan:#?}\n\n{finding:?}\n");
    fs::write(folder.join("finding.txt"), text)?;
    for host in [Host::A, Host::B] {
        let agent = world.agent(host);
        let of = |what: &str| folder.join(format!("{}.{what}", host.name()));
        copy(&agent.log(), &of("log"))?;
        copy(&agent.folder().join("vms").join(VM).join("qemu.log"), &of("qemu.log"))?;
        let records = vmferry_store::read::<Value>(&agent.folder().join("journal"));
        let journal = match records {
            Ok(records) => records.iter().map(|record| format!("{record}\n")).collect(),
            Err(error) => error.to_string(),
        };
        fs::write(of("journal"), journal)?;
        let processes: Vec<String> = world.lab.processes(host)?.into_iter().map(command_line).collect();
        let state = format!("{:#?}\n\n{}\n", listed(agent), processes.join("\n"));
        fs::write(of("state"), state)?;
    }
    copy(&console(world.lab.folder(), VM), &folder.join("console"))?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&words).replace('\0', " "))
}
