//! `vmferry doctor`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    api::types::HostView,
    cli::{
        AgentArgs,
        client::Client,
        exit::{Exit, Failure},
        output::{print_json, print_text},
    },
    doctor::{Finding, Verdict, examine},
};

/// Where the package has the agent's configuration.
const CONFIG: &str = "/etc/vmferry/agent.toml";
/// As wide as the longest name of a check.
const CHECK_WIDTH: usize = 14;

/// `vmferry doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Another host's agent: is it there, who is it, how far away?
    #[arg(long, value_name = "HOST[:PORT]")]
    peer: Option<String>,
    #[command(flatten, next_help_heading = "Settings of this host's agent")]
    agent: AgentArgs,
}

/// Looks at this host, and prints what it found.
pub async fn doctor(json: bool, args: DoctorArgs, socket: Option<PathBuf>) -> Result<Exit, Failure> {
    let DoctorArgs { peer, mut agent } = args;
    if agent.config.is_none() && Path::new(CONFIG).exists() {
        agent.config = Some(CONFIG.into());
    }
    let config = agent.settings(socket)?.resolve();
    let config = config.map_err(|error| Failure::Usage(error.to_string()))?;
    let client = Client::new(&config.socket);
    let host: Result<HostView, _> = client.get("/v1/host").await;
    let findings = examine(&config, host.map_err(|error| error.to_string()), peer.as_deref()).await;
    match json {
        true => findings.iter().try_for_each(print_json)?,
        false => print_text(&describe(&findings))?,
    }
    let has_problem = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if has_problem { Exit::Failed } else { Exit::Ok })
}

fn describe(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text += &format!(
            "{:<8} {:<CHECK_WIDTH$} {}\n",
            finding.verdict, finding.check, finding.found
        );
        if let Some(remedy) = &finding.remedy {
            text += &format!("{:<8} {:<CHECK_WIDTH$} do: {remedy}\n", "", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (problems, warnings) = (count(Verdict::Problem), count(Verdict::Warning));
    text += &format!("{problems} problems, {warnings} warnings, {} ok\n", count(Verdict::Ok));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_what_to_do_another() {
        let finding = |check: &str, verdict, remedy: Option<&str>| Finding {
            check: check.to_owned(),
            verdict,
            found: "what was found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [
            finding("kvm", Verdict::Ok, None),
            finding("qemu-migration", Verdict::Problem, Some("upgrade it")),
        ];
        assert_eq!(
            describe(&findings),
            "\
ok       kvm            what was found
problem  qemu-migration what was found
                        do: upgrade it
1 problems, 0 warnings, 1 ok
"
        );
    }
}
