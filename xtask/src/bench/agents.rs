//! vmferry's agents on both hosts, and a guest that they move.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmferry_e2e::agent::{Agent, Answer, PORT};
use vmferry_e2e::net::{BRIDGE, Host, Lab};
use vmferry_e2e::qemu::Spec;

use super::movers::Moved;
use super::plan::DOWNTIME_MAX;

const VM: &str = "bench";
/// Exit codes of `vmferry migrate`: the target refused the guest, the guest did not converge.
const REFUSED: i32 = 3;
const NOT_CONVERGED: i32 = 5;

/// An agent on host A and one on host B.
pub(crate) struct Agents<'lab> {
    lab: &'lab Lab,
    agents: [Agent<'lab>; 2],
}

impl<'lab> Agents<'lab> {
    /// Starts both agents of the program `binary` and boots the guest on host A.
    pub(crate) fn start(lab: &'lab Lab, binary: &Path, options: &[&str], spec: &Spec) -> Result<Self> {
        let agents = [
            Agent::start_with(lab, Host::A, binary, options)?,
            Agent::start_with(lab, Host::B, binary, options)?,
        ];
        let file = spec.write_definition(lab.folder(), VM)?;
        agents[0].cli(["run".as_ref(), file.as_os_str()])?.success()?;
        Ok(Self { lab, agents })
    }

    /// Makes both hosts ready for a move from `from` to `to`; nothing of that is counted. With `forget`, the agent on
    /// `to` is a new one: it may not know what it held when the guest was there before, which is a case of its own.
    /// Agents that look through disks in the background have done so then.
    pub(crate) fn prepare(&mut self, from: Host, to: Host, forget: bool) -> Result<()> {
        for agent in self.agents.iter_mut().filter(|agent| forget && agent.host() == to) {
            agent.renew()?;
        }
        self.introduce(from, to)?;
        for agent in &self.agents {
            let help = help(agent, &[])?;
            if help.lines().any(|line| line.split_whitespace().next() == Some("index")) {
                let waited = agent.cli(["index", "--wait"])?.success();
                waited.context("waiting for the index")?;
            }
        }
        Ok(())
    }

    /// An agent looks at its QEMU and processors when the first guest is offered to it, which takes a while once in its
    /// life. An offer that it has to refuse, as its bridge has another name meanwhile, is enough for that and leaves
    /// nothing behind.
    fn introduce(&self, from: Host, to: Host) -> Result<()> {
        const HIDDEN: &str = "hidden0";
        self.rename_bridge(to, BRIDGE, HIDDEN)?;
        let answer = self.ask_to_migrate(from, to, None, Duration::from_secs(20));
        self.rename_bridge(to, HIDDEN, BRIDGE)?;
        let answer = answer?;
        ensure!(
            answer.code == Some(REFUSED),
            "vmferry ended with {:?} where no bridge was: {}",
            answer.code,
            answer.said
        );
        Ok(())
    }

    fn rename_bridge(&self, host: Host, name: &str, other: &str) -> Result<()> {
        let mut ip = self.lab.command(host, "ip");
        let status = ip.args(["link", "set", "dev", name, "name", other]).status()?;
        ensure!(
            status.success(),
            "ip did not rename {name} on {}: {status}",
            host.name()
        );
        Ok(())
    }

    /// The agents' processes, the source's first.
    pub(crate) fn pids(&self, from: Host, to: Host) -> Result<(u32, u32)> {
        let pid = |host| self.on(host)?.pid().context("the agent ended");
        Ok((pid(from)?, pid(to)?))
    }

    /// Whether this vmferry has such a codec.
    pub(crate) fn can(&self, codec: &str) -> Result<bool> {
        let help = help(&self.agents[0], &["migrate"])?;
        Ok(help.split(|c: char| !c.is_alphanumeric()).any(|word| word == codec))
    }

    /// Moves the guest, with the default codec where none is given.
    pub(crate) fn migrate(&self, from: Host, to: Host, codec: Option<&str>, time_max: Duration) -> Result<Moved> {
        let answer = self.ask_to_migrate(from, to, codec, time_max)?;
        let report = answer.values.last().cloned().unwrap_or_default();
        ensure!(
            matches!(answer.code, Some(0 | NOT_CONVERGED)),
            "vmferry ended with {:?}: {}\n{report}",
            answer.code,
            answer.said
        );
        let milliseconds = |value: &Value| value.as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
        let stages = report["stages"].as_array().context("a report without stages")?;
        let reserve = stages.iter().find(|stage| stage["stage"] == "reserve");
        Ok(Moved {
            completed: answer.code == Some(0),
            total: milliseconds(&report["total_ms"]).context("a report without a total")?,
            reserve: reserve.and_then(|stage| milliseconds(&stage["ms"])).unwrap_or_default(),
            rounds: report["rounds"].as_array().map_or(0, |rounds| rounds.len() as u64),
        })
    }

    fn ask_to_migrate(&self, from: Host, to: Host, codec: Option<&str>, time_max: Duration) -> Result<Answer> {
        let target = format!("{}:{PORT}", to.address());
        let downtime = format!("{}ms", DOWNTIME_MAX.as_millis());
        let timeout = format!("{}s", time_max.as_secs());
        let mut arguments = vec!["migrate", VM, "--to", &target];
        arguments.extend(["--max-downtime", &downtime, "--timeout", &timeout]);
        if let Some(codec) = codec {
            arguments.extend(["--codec", codec]);
        }
        self.on(from)?.cli(arguments)
    }

    fn on(&self, host: Host) -> Result<&Agent<'lab>> {
        let found = self.agents.iter().find(|agent| agent.host() == host);
        found.with_context(|| format!("no agent on {}", host.name()))
    }
}

/// What `vmferry help` says, of all or of one command.
fn help(agent: &Agent<'_>, command: &[&str]) -> Result<String> {
    let output = agent.command([&["help"], command].concat()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
