//! `vmferry doctor`: what on this host would stop or slow a migration, and what to do about it.
//!
//! Each module finds out the facts of its matter and weighs them; weighing is apart from finding out, so that every verdict has
//! its test. Nothing is changed on the host.
//!
//! | module | what |
//! |---|---|
//! | `cluster` | certificates, the authority's host, the arbiter |
//! | `mounts` | which file system a path is on |
//! | `network` | the port that others reach, and a peer: who it is, how far, through which packets |
//! | `permits` | what the policy lets other hosts do |
//! | `processor` | KVM, instructions that coding and TLS use |
//! | `qemu` | its version and what migrating takes of it |
//! | `storage` | the state directory's disk, and the VMs' |
//! | `system` | the kernel, memory, limits, users, the clock |

mod cluster;
mod mounts;
mod network;
mod permits;
mod processor;
mod qemu;
mod storage;
mod system;

use serde::{Deserialize, Serialize};

use crate::{agent::Config, api::types::HostView, host::Probes};

/// What was found in one respect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// In which respect: `kvm`, `certificate`.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, where that is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Migrations work, but slower, or not in every case, or not for long.
    Warning,
    /// Migrations fail, or can lose a guest.
    Problem,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        })
    }
}

impl Finding {
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, found.into(), None)
    }

    fn warning(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warning, found.into(), Some(remedy.into()))
    }

    fn problem(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Verdict::Problem, found.into(), Some(remedy.into()))
    }

    fn new(check: &str, verdict: Verdict, found: String, remedy: Option<String>) -> Self {
        let check = check.to_owned();
        Self {
            check,
            verdict,
            found,
            remedy,
        }
    }
}

/// Looks at this host, whose agent has these settings, and said this, or why it did not answer. A `peer`, the address of another
/// host's agent, is tried to be reached. Takes some seconds where somebody does not answer.
pub async fn examine(config: &Config, agent: Result<HostView, String>, peer: Option<&str>) -> Vec<Finding> {
    let probes = Probes::new(config.qemu.clone());
    let answers = match &agent {
        Ok(host) => Finding::ok("agent", format!("{} runs, vmferry {}", host.name, host.version)),
        Err(why) => Finding::problem(
            "agent",
            why,
            "without it this host's VMs are neither looked after nor moved",
        ),
    };
    let agent = agent.ok();
    let mut findings = vec![answers];
    findings.extend(processor::check());
    findings.extend(qemu::check(&config.qemu, &probes, agent.as_ref()).await);
    findings.extend(system::check(config, &probes, agent.as_ref()).await);
    findings.extend(storage::check(&config.state_dir));
    findings.extend(permits::check(&config.policy));
    findings.extend(cluster::check(config).await);
    findings.extend(network::check(config, agent.is_some(), peer).await);
    findings
}
