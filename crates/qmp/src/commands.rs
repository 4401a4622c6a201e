//! One method per QMP command that vmferry uses. Each waits for QEMU's answer and fails as [`Qmp::execute`] does.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    BlockDevice, BlockNode, Capability, CpuDefinition, CpuModel, Error, FdSet, Machine, MemorySize, MigrationInfo,
    Parameters, Qmp, Result, Status, Version,
};

/// The run state and life of the machine.
impl Qmp {
    /// `query-status`.
    pub async fn query_status(&self) -> Result<Status> {
        self.ask("query-status", Value::Null).await
    }

    /// `query-uuid`: the machine's UUID, all zero if it was given none.
    pub async fn query_uuid(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "UUID")]
            uuid: String,
        }
        let answer: Answer = self.ask("query-uuid", Value::Null).await?;
        Ok(answer.uuid)
    }

    /// `cont`: runs the CPUs.
    pub async fn cont(&self) -> Result<()> {
        self.tell("cont", Value::Null).await
    }

    /// `stop`: stops the CPUs.
    pub async fn stop(&self) -> Result<()> {
        self.tell("stop", Value::Null).await
    }

    /// `quit`: ends QEMU. It answers first, so `Ok` means that it will end, not that it has.
    pub async fn quit(&self) -> Result<()> {
        self.tell("quit", Value::Null).await
    }

    /// `system_powerdown`: presses the power button.
    pub async fn system_powerdown(&self) -> Result<()> {
        self.tell("system_powerdown", Value::Null).await
    }

    /// `announce-self`: every NIC tells the network where it is now, `rounds` times, the first at once and each later
    /// one `step_ms` further apart (50 ms, then 50 ms + step, …).
    pub async fn announce_self(&self, rounds: u32, step_ms: u32) -> Result<()> {
        let arguments = json!({ "initial": 50, "max": 550, "rounds": rounds, "step": step_ms });
        self.tell("announce-self", arguments).await
    }

    /// `human-monitor-command`: what HMP prints for `command_line`, also when it prints an error.
    pub async fn human_monitor_command(&self, command_line: &str) -> Result<String> {
        self.ask("human-monitor-command", json!({ "command-line": command_line }))
            .await
    }

    /// `info ramblock`: the RAM blocks and where they are in QEMU's address space.
    pub async fn ram_blocks(&self) -> Result<Vec<crate::ramblock::RamBlock>> {
        let text = self.human_monitor_command("info ramblock").await?;
        crate::ramblock::parse(&text).map_err(|error| Error::Answer {
            command: "info ramblock".to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Migration.
impl Qmp {
    /// `query-migrate`.
    pub async fn query_migrate(&self) -> Result<MigrationInfo> {
        self.ask("query-migrate", Value::Null).await
    }

    /// `migrate`: starts sending to `uri` (`unix:PATH`, `tcp:HOST:PORT`, …). It connects later, so that a failure to
    /// connect shows as status `failed`.
    pub async fn migrate(&self, uri: &str) -> Result<()> {
        self.tell("migrate", json!({ "uri": uri })).await
    }

    /// `migrate-incoming`: listens on `uri`, in a QEMU started with `-incoming defer`, once in its life. A broken stream
    /// ends that QEMU, unless it shall stay and can (`exit-on-error`, from QEMU 9.1 on; an older one refuses the argument).
    pub async fn migrate_incoming(&self, uri: &str, stays: bool) -> Result<()> {
        let arguments = match stays {
            true => json!({ "uri": uri, "exit-on-error": false }),
            false => json!({ "uri": uri }),
        };
        self.tell("migrate-incoming", arguments).await
    }

    /// `migrate_cancel`: harmless where no migration runs; the guest runs on at the source.
    pub async fn migrate_cancel(&self) -> Result<()> {
        self.tell("migrate_cancel", Value::Null).await
    }

    /// `migrate-set-capabilities`; refused while a migration runs.
    pub async fn migrate_set_capabilities(&self, capabilities: &[(Capability, bool)]) -> Result<()> {
        let capabilities: Vec<Value> = capabilities
            .iter()
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        let arguments = json!({ "capabilities": capabilities });
        self.tell("migrate-set-capabilities", arguments).await
    }

    /// `query-migrate-capabilities`: every capability this QEMU has, and whether it is on.
    pub async fn query_migrate_capabilities(&self) -> Result<Vec<(Capability, bool)>> {
        #[derive(Deserialize)]
        struct Entry {
            capability: Capability,
            state: bool,
        }
        let entries: Vec<Entry> = self.ask("query-migrate-capabilities", Value::Null).await?;
        Ok(entries
            .into_iter()
            .map(|entry| (entry.capability, entry.state))
            .collect())
    }

    /// `migrate-set-parameters`; at any time.
    pub async fn migrate_set_parameters(&self, parameters: &Parameters) -> Result<()> {
        self.tell("migrate-set-parameters", json!(parameters)).await
    }

    /// `yank` of the migration, out of band: shuts its sockets down even where QEMU's main loop is stuck. At a source
    /// that has not completed, the guest resumes. Refused where no migration is connected.
    pub async fn yank_migration(&self) -> Result<()> {
        let arguments = json!({ "instances": [{ "type": "migration" }] });
        self.execute_out_of_band("yank", arguments).await?;
        Ok(())
    }
}

/// What this QEMU offers, and what its VM uses.
impl Qmp {
    /// `query-version`.
    pub async fn query_version(&self) -> Result<Version> {
        self.ask("query-version", Value::Null).await
    }

    /// `query-machines`.
    pub async fn query_machines(&self) -> Result<Vec<Machine>> {
        self.ask("query-machines", Value::Null).await
    }

    /// `query-cpu-definitions`.
    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuDefinition>> {
        self.ask("query-cpu-definitions", Value::Null).await
    }

    /// `query-cpu-model-expansion` of type `full`: all properties that `model` has under this QEMU's accelerator. `model`
    /// is a name with optional features as in `-cpu` (`max,avx=off,+aes`).
    pub async fn query_cpu_model_expansion(&self, model: &str) -> Result<CpuModel> {
        #[derive(Deserialize)]
        struct Answer {
            model: CpuModel,
        }
        let (name, props) = split_cpu_option(model);
        let arguments = json!({ "type": "full", "model": { "name": name, "props": props } });
        let answer: Answer = self.ask("query-cpu-model-expansion", arguments).await?;
        Ok(answer.model)
    }

    /// `query-block`: the guest's disks.
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>> {
        self.ask("query-block", Value::Null).await
    }

    /// `query-named-block-nodes`, without the backing chains.
    pub async fn query_named_block_nodes(&self) -> Result<Vec<BlockNode>> {
        self.ask("query-named-block-nodes", json!({ "flat": true })).await
    }

    /// `query-fdsets`: the descriptors that QEMU was given by `-add-fd`.
    pub async fn query_fdsets(&self) -> Result<Vec<FdSet>> {
        self.ask("query-fdsets", Value::Null).await
    }

    /// `query-memory-size-summary`.
    pub async fn query_memory_size_summary(&self) -> Result<MemorySize> {
        self.ask("query-memory-size-summary", Value::Null).await
    }

    async fn ask<T: DeserializeOwned>(&self, command: &str, arguments: Value) -> Result<T> {
        let value = self.execute(command, arguments).await?;
        serde_json::from_value(value).map_err(|error| Error::Answer {
            command: command.to_owned(),
            reason: error.to_string(),
        })
    }

    /// For commands that answer nothing (`{}`).
    async fn tell(&self, command: &str, arguments: Value) -> Result<()> {
        self.execute(command, arguments).await.map(drop)
    }
}

/// `-cpu`'s `NAME,+a,-b,c=on,d=5` as QMP's model name and properties.
fn split_cpu_option(option: &str) -> (&str, serde_json::Map<String, Value>) {
    let mut parts = option.split(',').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let props = parts
        .filter(|part| !part.is_empty())
        .map(
            |part| match (part.strip_prefix('+'), part.strip_prefix('-'), part.split_once('=')) {
                (Some(feature), _, _) => (feature, Value::Bool(true)),
                (_, Some(feature), _) => (feature, Value::Bool(false)),
                (_, _, Some((key, "on" | "yes" | "true"))) => (key, Value::Bool(true)),
                (_, _, Some((key, "off" | "no" | "false"))) => (key, Value::Bool(false)),
                (_, _, Some((key, value))) => (key, value.parse::<i64>().map_or_else(|_| value.into(), Value::from)),
                (_, _, None) => (part, Value::Bool(true)),
            },
        )
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    (name, props)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_options_become_properties() {
        let (name, props) = split_cpu_option("Skylake-Server,+aes,-avx,pcid=off,vme,level=13,vendor=Ours");
        assert_eq!(name, "Skylake-Server");
        let expected = json!({ "aes": true, "avx": false, "pcid": false, "vme": true, "level": 13, "vendor": "Ours" });
        assert_eq!(Value::Object(props), expected);
        assert_eq!(split_cpu_option("").0, "");
    }
}
