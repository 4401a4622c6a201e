//! The system: the kernel, memory, limits of the agent's process, users of QEMUs, the clock.

use std::{fs, process::Command};

use tokio::net::UnixStream;

use super::Finding;
use crate::{
    agent::Config,
    api::types::HostView,
    cli::units::bytes,
    host::{
        Probes,
        capability::{self, MemoryFacts},
    },
    vm::{ByteSize, Confinement, UserRange, confine::field},
};

/// `openat2`, without which no disk of another host's VM is opened.
const KERNEL_NEEDED: (u32, u32) = (5, 6);
/// `cgroup.kill`, by which all of a QEMU is ended.
const KERNEL_WANTED: (u32, u32) = (5, 14);
/// `CAP_SYS_PTRACE` (`linux/capability.h`).
const CAP_SYS_PTRACE: u32 = 19;
/// Files that an agent with some dozens of VMs has open: each VM takes a few, each migration under way some dozens.
const FILES_MIN: u64 = 4096;
/// Who may have numbers of QEMUs' users: the package gives them to it, so that no container gets them.
const KEEPER: &str = "vmferry";

pub(super) async fn check(config: &Config, probes: &Probes, agent: Option<&HostView>) -> Vec<Finding> {
    let process = agent_process(config)
        .await
        .map_or("self".to_owned(), |pid| pid.to_string());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read(&format!("/proc/{process}/status"));
    let scope = read("/proc/sys/kernel/yama/ptrace_scope");
    let limits = read(&format!("/proc/{process}/limits"));
    let mut findings = vec![
        kernel(&read("/proc/sys/kernel/osrelease")),
        guest_memory(scope.trim().parse().ok(), can_trace(&status)),
        open_files(&limits),
        users(config.qemu_users, &read("/etc/passwd"), &read("/etc/subuid")),
        clock(&clock_state()),
    ];
    findings.push(match capability::memory() {
        Ok(facts) => memory(facts, config.memory_headroom),
        Err(error) => Finding::problem("memory", error.to_string(), "mount /proc"),
    });
    let lacks = match agent {
        Some(host) => host.unconfined.clone(),
        None => {
            let sandbox = probes.qemu().await.is_ok_and(|qemu| qemu.sandbox);
            Confinement::find(config.qemu_users, sandbox).lacks
        }
    };
    findings.extend(confinement(&lacks));
    findings
}

/// Who listens on the agent's socket.
async fn agent_process(config: &Config) -> Option<i32> {
    let stream = UnixStream::connect(&config.socket).await.ok()?;
    stream.peer_cred().ok()?.pid()
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|word| word.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (needed, wanted) = (KERNEL_NEEDED, KERNEL_WANTED);
    match version {
        _ if version < needed => Finding::problem(
            "kernel",
            format!("Linux {release} has no openat2: VMs from other hosts can't be taken in"),
            format!("upgrade to {}.{} or later", wanted.0, wanted.1),
        ),
        _ if version < wanted => Finding::warning(
            "kernel",
            format!("Linux {release} can't kill a cgroup: a QEMU that hangs is ended by its process alone"),
            format!("upgrade to {}.{} or later", wanted.0, wanted.1),
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

/// By Yama's scope, where there is Yama: 0 own processes, 1 and 2 whoever has the capability, 3 nobody.
fn guest_memory(scope: Option<u32>, can_trace: bool) -> Finding {
    const CHECK: &str = "guest-memory";
    const SLOWER: &str = "pages go to QEMU through a socket instead, and --verify can't be done";
    match (scope, can_trace) {
        (Some(3..), _) => Finding::warning(
            CHECK,
            format!("kernel.yama.ptrace_scope is 3, so nobody may read and write QEMUs' memory: {SLOWER}"),
            "set it to 2 or less in /etc/sysctl.d, and reboot: it can't be lowered before",
        ),
        (_, false) => Finding::warning(
            CHECK,
            format!("the agent may not read and write QEMUs' memory: {SLOWER}"),
            "run the agent as root, with CAP_SYS_PTRACE",
        ),
        _ => Finding::ok(CHECK, "the agent may read and write QEMUs' memory"),
    }
}

fn can_trace(status: &str) -> bool {
    let capabilities = field(status, "CapEff:").and_then(|word| u64::from_str_radix(word, 16).ok());
    capabilities.is_some_and(|capabilities| capabilities >> CAP_SYS_PTRACE & 1 == 1)
}

fn open_files(limits: &str) -> Finding {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft.map(|soft| (soft, soft.parse::<u64>())) {
        Some((_, Ok(soft))) if soft < FILES_MIN => Finding::warning(
            "open-files",
            format!("the agent may have {soft} files open, which some dozens of VMs can exceed"),
            format!("LimitNOFILE={FILES_MIN} or more in the agent's unit, or ulimit -n before it is started"),
        ),
        Some((soft, _)) => Finding::ok("open-files", format!("the agent may have {soft} files open")),
        None => Finding::warning(
            "open-files",
            "it can't be read how many files the agent may have open",
            "run this as root",
        ),
    }
}

fn users(range: UserRange, passwd: &str, subuid: &str) -> Finding {
    let remedy = "give the agent other numbers (--qemu-users), the same on every host";
    let of_user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        range.overlaps(uid, 1).then_some((name, uid))
    });
    if let Some((name, uid)) = of_user {
        let found = format!("user {name} has the number {uid}, which a QEMU may get: then it could reach that guest");
        return Finding::problem("qemu-users", found, remedy);
    }
    let of_container = subuid.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, first, count) = (
            fields.next()?,
            fields.next()?.parse().ok()?,
            fields.next()?.parse().ok()?,
        );
        (name != KEEPER && range.overlaps(first, count)).then_some(name)
    });
    match of_container {
        Some(name) => Finding::warning(
            "qemu-users",
            format!("containers of {name} may get numbers of QEMUs' users, {range} (/etc/subuid)"),
            remedy,
        ),
        None => Finding::ok("qemu-users", format!("QEMUs' users, {range}, are nobody else's")),
    }
}

fn memory(facts: MemoryFacts, headroom: ByteSize) -> Finding {
    let available = bytes(facts.available);
    match facts.available.checked_sub(headroom.0) {
        None | Some(0) => Finding::problem(
            "memory",
            format!("{available} are available, of which {headroom} are to stay free: no VM can come"),
            "stop or move a VM, or lower --memory-headroom",
        ),
        Some(room) => Finding::ok(
            "memory",
            format!(
                "{available} of {} are available: VMs of {} can come",
                bytes(facts.total),
                bytes(room)
            ),
        ),
    }
}

fn confinement(lacks: &[String]) -> Vec<Finding> {
    if lacks.is_empty() {
        return vec![Finding::ok(
            "confinement",
            "each QEMU has a user, a filter of system calls and a cgroup",
        )];
    }
    let remedy = "docs/security.md, \"Confinement\", says what each takes";
    lacks
        .iter()
        .map(|lack| Finding::warning("confinement", lack, remedy))
        .collect()
}

/// What systemd says of the kernel's word on it, whichever program disciplines the clock: `yes`, `no`, or nothing.
fn clock_state() -> String {
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output();
    asked
        .map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn clock(synchronized: &str) -> Finding {
    const MATTERS: &str = "where clocks are five minutes apart, certificates are not accepted";
    match synchronized {
        "yes" => Finding::ok("clock", "the clock is synchronized"),
        "no" => Finding::warning(
            "clock",
            format!("the clock is not synchronized; {MATTERS}"),
            "install and start chrony or systemd-timesyncd",
        ),
        _ => Finding::warning(
            "clock",
            format!("timedatectl does not tell whether the clock is synchronized; {MATTERS}"),
            "see with chronyc tracking, or compare with another host",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict::{Ok, Problem, Warning};

    #[test]
    fn a_kernel_lacks_nothing_or_something_or_too_much() {
        for (release, verdict) in [
            ("6.18.44-cloud\n", Ok),
            ("5.14.0", Ok),
            ("5.13.9", Warning),
            ("5.5.1", Problem),
            ("", Problem),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn guests_memory_needs_the_capability_and_a_yama_that_lets() {
        assert_eq!(guest_memory(None, true).verdict, Ok);
        assert_eq!(guest_memory(Some(2), true).verdict, Ok);
        assert_eq!(guest_memory(Some(3), true).verdict, Warning);
        assert_eq!(guest_memory(Some(0), false).verdict, Warning);
        assert!(can_trace("Name:\ta\nCapEff:\t0000000000080000\n"));
        assert!(!can_trace("CapEff:\t000001fffff7ffff\n") && !can_trace(""));
    }

    #[test]
    fn few_files_are_not_enough() {
        let limits = |soft: &str| {
            format!("Limit      Soft Limit  Hard Limit  Units\nMax open files   {soft}   1048576   files\n")
        };
        assert_eq!(open_files(&limits("1024")).verdict, Warning);
        assert_eq!(open_files(&limits("4096")).verdict, Ok);
        assert_eq!(open_files(&limits("unlimited")).verdict, Ok);
        assert_eq!(open_files("").verdict, Warning);
    }

    #[test]
    fn numbers_of_qemus_are_nobody_elses() {
        let of = |passwd, subuid| users(UserRange::default(), passwd, subuid);
        assert_eq!(
            of("root:x:0:0::/:/bin/sh\n", "ann:100000:65536\nvmferry:300000:65536\n").verdict,
            Ok
        );
        let guest = of("root:x:0:0::/:/bin/sh\nann:x:300007:1::/:/bin/sh\n", "");
        assert!(guest.verdict == Problem && guest.found.contains("ann"), "{guest:?}");
        let container = of("", "ann:100000:65536\nbob:296608:65536\n");
        assert!(
            container.verdict == Warning && container.found.contains("bob"),
            "{container:?}"
        );
        assert_eq!(of("nonsense\n::\n", "a:b\n").verdict, Ok);
    }

    #[test]
    fn memory_has_to_be_left_beyond_the_headroom() {
        let of = |available| {
            let facts = MemoryFacts {
                total: 1 << 34,
                available,
                huge_free: 0,
            };
            memory(facts, ByteSize(1 << 28)).verdict
        };
        assert_eq!(of(1 << 30), Ok);
        assert_eq!(of(1 << 28), Problem);
        assert_eq!(of(0), Problem);
    }

    #[test]
    fn each_lack_of_confinement_is_told() {
        assert_eq!(confinement(&[]).first().map(|found| found.verdict), Some(Ok));
        let lacks = confinement(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(lacks.iter().filter(|found| found.verdict == Warning).count(), 2);
    }

    #[test]
    fn a_clock_is_right_or_not_or_unknown() {
        assert_eq!(clock("yes").verdict, Ok);
        assert_eq!(clock("no").verdict, Warning);
        assert!(clock("").found.contains("does not tell"));
    }
}
