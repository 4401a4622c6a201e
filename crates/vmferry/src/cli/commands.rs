//! The commands that are one request.

use std::path::Path;

use crate::{
    api::{
        migration::MigrationView,
        types::{Event, EventKind, HostView, IndexState, IndexView, VmView},
    },
    cli::{
        client::{Client, segment},
        exit::{Exit, Failure},
        output::{print, print_json, print_text},
        table::Table,
        units::bytes,
    },
    vm::VmDefinition,
};

/// `vmferry run`: the definition is read and checked here, so that its problems come with their lines.
pub async fn run(client: &Client, json: bool, definition: &Path) -> Result<Exit, Failure> {
    let definition = VmDefinition::from_toml_file(definition).map_err(|error| Failure::Usage(error.to_string()))?;
    let vm: VmView = client.post("/v1/vms", &definition).await?;
    let text = |vm: &VmView| format!("{} {} as process {}", vm.name, vm.state, pid(vm));
    print(json, &vm, text)?;
    Ok(Exit::Ok)
}

/// `vmferry host`.
pub async fn host(client: &Client, json: bool) -> Result<Exit, Failure> {
    let host: HostView = client.get("/v1/host").await?;
    print(json, &host, describe_host)?;
    Ok(Exit::Ok)
}

/// `vmferry ps`.
pub async fn ps(client: &Client, json: bool) -> Result<Exit, Failure> {
    let vms: Vec<VmView> = client.get("/v1/vms").await?;
    match json {
        true => vms.iter().try_for_each(print_json)?,
        false => print_text(&list(&vms))?,
    }
    Ok(Exit::Ok)
}

/// `vmferry index`.
pub async fn index(client: &Client, json: bool, wait: bool) -> Result<Exit, Failure> {
    let sources: Vec<IndexView> = client.get(&format!("/v1/index?wait={wait}")).await?;
    match json {
        true => sources.iter().try_for_each(print_json)?,
        false => print_text(&indexes(&sources))?,
    }
    Ok(Exit::Ok)
}

/// `vmferry stop`.
pub async fn stop(client: &Client, json: bool, vm: &str, force: bool) -> Result<Exit, Failure> {
    let vm: VmView = client.delete(&format!("/v1/vms/{}?force={force}", segment(vm))).await?;
    print(json, &vm, |vm| format!("{} stopped", vm.name))?;
    Ok(Exit::Ok)
}

/// `vmferry cancel`.
pub async fn cancel(client: &Client, json: bool, vm: &str) -> Result<Exit, Failure> {
    let migration: MigrationView = client.post(&format!("/v1/vms/{}/cancel", segment(vm)), &()).await?;
    print(json, &migration, |m| {
        format!("cancelling migration {} of {} to {}", m.id, m.vm, m.to)
    })?;
    Ok(Exit::Ok)
}

/// `vmferry events`: until the agent ends or this process is interrupted.
pub async fn events(client: &Client, json: bool) -> Result<Exit, Failure> {
    let mut lines = client.lines("/v1/events").await?;
    while let Some(event) = lines.next::<Event>().await? {
        print(json, &event, describe)?;
    }
    Ok(Exit::Ok)
}

fn describe_host(host: &HostView) -> String {
    let mut lines = vec![
        format!("{} (vmferry {}) listens on {}", host.name, host.version, host.listen),
        format!("QEMU {} ({})", host.qemu_version, host.qemu),
        format!(
            "{} of memory, {} available; {} VMs",
            bytes(host.memory_total_bytes),
            bytes(host.memory_available_bytes),
            host.vms
        ),
    ];
    match host.unconfined.is_empty() {
        true => lines.push("QEMUs are confined: a user, a filter of system calls and a cgroup for each".to_owned()),
        false => lines.extend(host.unconfined.iter().map(|lack| format!("not confined: {lack}"))),
    }
    lines.join("\n")
}

fn pid(vm: &VmView) -> String {
    vm.pid.map_or("-".to_owned(), |pid| pid.to_string())
}

fn list(vms: &[VmView]) -> String {
    let mut table = Table::new(["name", "state", "vCPUs", "memory", "pid", "epoch", "machine", ""]).left(2);
    for vm in vms {
        let note = match (&vm.migration, &vm.reason) {
            (Some(migration), _) => format!("being migrated ({migration})"),
            (None, reason) => reason.clone().unwrap_or_default(),
        };
        table.row([
            vm.name.clone(),
            vm.state.to_string(),
            vm.vcpus.to_string(),
            bytes(vm.memory_bytes),
            pid(vm),
            vm.epoch.to_string(),
            vm.machine.clone(),
            note,
        ]);
    }
    table.to_string()
}

fn indexes(sources: &[IndexView]) -> String {
    let mut table = Table::new(["index", "size", "source", ""]).left(1);
    for source in sources {
        let note = match (source.state, &source.reason) {
            (_, Some(reason)) => reason.clone(),
            (IndexState::Indexing, None) => format!("{} so far", bytes(source.bytes_done)),
            _ => String::new(),
        };
        table.row([
            source.state.to_string(),
            bytes(source.bytes),
            source.source.clone(),
            note,
        ]);
    }
    table.to_string()
}

fn describe(event: &Event) -> String {
    let because = |reason: &Option<String>| reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    let what = match &event.kind {
        EventKind::VmState { vm, state, reason } => format!("{vm} is {state}{}", because(reason)),
        EventKind::VmGone { vm, reason } => format!("{vm} is gone: {reason}"),
        EventKind::MigrationStarted { migration, vm, to } => {
            format!("migration {migration} of {vm} to {to} began")
        }
        EventKind::MigrationFinished { migration, vm, outcome } => format!("migration {migration} of {vm} {outcome}"),
        EventKind::Missed { events } => format!("{events} events were missed"),
    };
    format!("{}.{:03}  {what}", event.at_unix_ms / 1000, event.at_unix_ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::VmState;

    #[test]
    fn the_list_of_vms_is_a_table() {
        let vm = VmView {
            name: "web".to_owned(),
            uuid: None,
            state: VmState::Running,
            reason: None,
            epoch: 3,
            pid: Some(4321),
            memory_bytes: 1 << 30,
            vcpus: 2,
            machine: "pc-q35-10.0".to_owned(),
            migration: None,
        };
        let gone = VmView {
            name: "database".to_owned(),
            state: VmState::Stopped,
            reason: Some("the guest shut down".to_owned()),
            pid: None,
            ..vm.clone()
        };
        assert_eq!(
            list(&[vm, gone]),
            "\
name       state     vCPUs    memory    pid   epoch       machine
web        running       2   1.07 GB   4321       3   pc-q35-10.0
database   stopped       2   1.07 GB      -       3   pc-q35-10.0   the guest shut down
"
        );
    }
}
