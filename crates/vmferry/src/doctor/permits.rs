//! What the policy lets other hosts do, as far as it lets them do nothing.

use std::path::PathBuf;

use super::Finding;
use crate::policy::Policy;

const CHECK: &str = "policy";

pub(super) fn check(policy: &Policy) -> Vec<Finding> {
    let there: Vec<PathBuf> = policy
        .disks
        .directories
        .iter()
        .filter(|path| path.is_dir())
        .cloned()
        .collect();
    weigh(policy, &there)
}

/// `there` are those of the directories for disks that exist.
fn weigh(policy: &Policy, there: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if policy.senders.as_ref().is_some_and(|senders| senders.is_empty()) {
        let found = "no host may send VMs here: senders is empty";
        findings.push(Finding::problem(
            CHECK,
            found,
            "name hosts in senders of [policy], or leave it out for all of the cluster",
        ));
    }
    if policy.vms_max == Some(0) || policy.memory_max == Some(0) {
        let found = "no VM may come: vms-max or memory-max is 0";
        findings.push(Finding::problem(CHECK, found, "raise it, or leave it out, in [policy]"));
    }
    if there.is_empty() && policy.disks.uris.is_empty() {
        let listed: Vec<String> = policy
            .disks
            .directories
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let found = match listed.is_empty() {
            true => "VMs with disks can't come: no place for disks is listed".to_owned(),
            false => format!("VMs with disks can't come: none of {} exists", listed.join(", ")),
        };
        let remedy = "list where disks of other hosts' VMs are, in disk-directories or disk-uris of [policy]";
        findings.push(Finding::warning(CHECK, found, remedy));
    }
    if policy.bridges.as_ref().is_some_and(|names| names.is_empty())
        && policy.taps.as_ref().is_some_and(|names| names.is_empty())
    {
        let found = "VMs with NICs can't come: bridges and taps are empty";
        findings.push(Finding::warning(
            CHECK,
            found,
            "list one, or leave both out for all, in [policy]",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "the policy lets VMs of other hosts come"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::Verdict, policy::PolicySettings};

    fn verdicts(lines: &str, there: &[&str]) -> Vec<Verdict> {
        let policy = toml::from_str::<PolicySettings>(lines).unwrap().resolve();
        let there: Vec<PathBuf> = there.iter().map(PathBuf::from).collect();
        weigh(&policy, &there).into_iter().map(|found| found.verdict).collect()
    }

    #[test]
    fn a_policy_that_permits_nothing_is_told() {
        for (lines, there, expected) in [
            ("", &["/var/lib/vmferry/images"][..], vec![Verdict::Ok]),
            ("senders = []", &["/d"], vec![Verdict::Problem]),
            ("vms-max = 0", &["/d"], vec![Verdict::Problem]),
            ("memory-max = \"0B\"", &["/d"], vec![Verdict::Problem]),
            ("", &[], vec![Verdict::Warning]),
            ("disk-directories = []", &[], vec![Verdict::Warning]),
            (
                "disk-directories = []\ndisk-uris = [\"nbd://storage\"]",
                &[],
                vec![Verdict::Ok],
            ),
            ("bridges = []\ntaps = []", &["/d"], vec![Verdict::Warning]),
            ("bridges = []", &["/d"], vec![Verdict::Ok]),
            (
                "senders = []\ntaps = []\nbridges = []",
                &["/d"],
                vec![Verdict::Problem, Verdict::Warning],
            ),
        ] {
            assert_eq!(verdicts(lines, there), expected, "{lines}");
        }
    }
}
