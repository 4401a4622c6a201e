//! QEMU: its version, what of its own confinement it can do, and what migrating takes of it.

use std::path::Path;

use vmferry_qmp::Capability;

use super::Finding;
use crate::{
    api::types::HostView,
    host::{Probes, QemuFacts, QemuVersion, capability::probe_capabilities},
};

/// The oldest that the tests move guests with.
const TESTED_FROM: QemuVersion = QemuVersion {
    major: 7,
    minor: 2,
    micro: 0,
};
/// What each migration turns on, or has to know to be off.
const NEEDED: [Capability; 3] = [Capability::Events, Capability::ReturnPath, Capability::PostcopyRam];

pub(super) async fn check(binary: &Path, probes: &Probes, agent: Option<&HostView>) -> Vec<Finding> {
    let facts = match probes.qemu().await {
        Ok(facts) => facts,
        Err(error) => return vec![Finding::problem("qemu", error.to_string(), "install qemu-system-x86")],
    };
    let capabilities = probe_capabilities(binary).await.map_err(|error| error.to_string());
    let at_start = agent.map(|host| host.qemu_version.as_str());
    vec![version(&facts, at_start), can_migrate(capabilities)]
}

fn version(facts: &QemuFacts, at_start: Option<&str>) -> Finding {
    let now = facts.version.to_string();
    match at_start {
        Some(before) if before != now => Finding::warning(
            "qemu",
            format!("QEMU {now} is installed, and the agent was started with {before}"),
            "systemctl restart vmferry-agent; the guests run on",
        ),
        _ if facts.version < TESTED_FROM => Finding::warning(
            "qemu",
            format!("QEMU {now} is older than those that vmferry is tested with, {TESTED_FROM} and later"),
            "upgrade QEMU; guests can be moved to a later one, and not back",
        ),
        _ => Finding::ok("qemu", format!("QEMU {now}, {} machine types", facts.machines.len())),
    }
}

fn can_migrate(capabilities: Result<Vec<Capability>, String>) -> Finding {
    let capabilities = match capabilities {
        Ok(capabilities) => capabilities,
        Err(why) => return Finding::problem("qemu-migration", why, "install another build of QEMU"),
    };
    let lacks: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !capabilities.contains(needed))
        .map(ToString::to_string)
        .collect();
    match lacks.is_empty() {
        true => Finding::ok("qemu-migration", "QEMU can do what a migration takes"),
        false => Finding::problem(
            "qemu-migration",
            format!("QEMU lacks the migration capabilities {}", lacks.join(", ")),
            format!("upgrade QEMU to {TESTED_FROM} or later"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn facts(major: u32) -> QemuFacts {
        QemuFacts {
            version: QemuVersion { major, ..TESTED_FROM },
            machines: ["pc-q35-7.2".to_owned()].into(),
            sandbox: true,
        }
    }

    #[test]
    fn a_qemu_is_old_or_not_the_agents_or_well() {
        assert_eq!(version(&facts(7), None).verdict, Verdict::Ok);
        assert_eq!(version(&facts(7), Some("7.2.0")).verdict, Verdict::Ok);
        assert_eq!(version(&facts(6), None).verdict, Verdict::Warning);
        let other = version(&facts(10), Some("7.2.0"));
        assert!(other.verdict == Verdict::Warning && other.remedy.unwrap().contains("restart"));
    }

    #[test]
    fn what_a_migration_takes_is_named_where_it_lacks() {
        assert_eq!(can_migrate(Ok(NEEDED.into())).verdict, Verdict::Ok);
        let lacks = can_migrate(Ok(vec![Capability::Events, Capability::PostcopyRam]));
        assert!(
            lacks.verdict == Verdict::Problem && lacks.found.contains("return-path"),
            "{lacks:?}"
        );
        assert_eq!(can_migrate(Err("no answer".to_owned())).verdict, Verdict::Problem);
    }
}
