//! A shell that outlives its owner by the moment it takes to clean up.
//!
//! It waits for the end of its standard input, whose other end only the owner holds. So it cleans up
//! when the [`Guardian`] is dropped, and just the same when the owner panics, is interrupted or is
//! killed.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::command::{command, run};

/// Arguments: the folder to remove, with what is mounted in it, then the namespaces. A process that does not end within
/// 10 s of its SIGKILL is left to the kernel. The youngest are killed first: a command that waits for an agent
/// goes before the agent, and does not report its end to the terminal.
const SCRIPT: &str = r#"
cat >/dev/null
folder=$1; shift
for namespace in "$@"; do
    tries=500
    while pids=$(ip netns pids "$namespace" | tac) && [ -n "$pids" ] && [ $tries -gt 0 ]; do
        kill -9 $pids
        tries=$((tries - 1))
        sleep 0.02
    done
    ip netns delete "$namespace"
done
for mounted in "$folder"/*; do
    if mountpoint -q "$mounted"; then umount "$mounted" || umount -l "$mounted"; fi
done
rm -rf "$folder"
"#;

/// Cleans up when told to, at the latest when dropped.
pub(super) struct Guardian {
    /// Its standard input is open for as long as nothing is to be cleaned up.
    shell: Mutex<Option<Child>>,
}

impl Guardian {
    /// From here on, `namespaces` (which need not exist yet), every process in them, and `folder`
    /// go when this process does.
    pub(super) fn start(namespaces: &[String], folder: &Path) -> Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "guardian"])
            .arg(folder)
            .args(namespaces)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: the terminal's Ctrl-C must not reach it.
            .process_group(0)
            .spawn()
            .context("starting the guardian shell")?;
        Ok(Self {
            shell: Mutex::new(Some(shell)),
        })
    }

    /// Cleans up, and returns when all is gone.
    pub(super) fn clean_up(&self) {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut shell) = shell.take() {
            // Closes its standard input first, which is what it waits for.
            let _ = shell.wait();
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// What the names of lab `number` of process `pid` begin with.
pub(super) fn prefix(pid: u32, number: u32) -> String {
    format!("vf{pid}n{number}")
}

fn owner(namespace: &str) -> Option<(&str, u32)> {
    let (prefix, _) = namespace.split_once('-')?;
    let (pid, number) = prefix.strip_prefix("vf")?.split_once('n')?;
    number.parse::<u32>().ok()?;
    Some((prefix, pid.parse().ok()?))
}

/// Cleans up after owners that ended together with their guardian.
pub(super) fn sweep() -> Result<()> {
    let listed = run(&mut command("ip", ["netns", "list"]))
        .context("listing namespaces: run the set-up first, it installs iproute2")?;
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    let orphans: Vec<(&str, &str)> = names
        .filter_map(|name| owner(name).map(|(prefix, pid)| (prefix, pid, name)))
        .filter(|(_, pid, _)| !Path::new("/proc").join(pid.to_string()).exists())
        .map(|(prefix, _, name)| (prefix, name))
        .collect();
    let prefixes: BTreeSet<&str> = orphans.iter().map(|(prefix, _)| *prefix).collect();
    for prefix in prefixes {
        let namespaces: Vec<String> = orphans
            .iter()
            .filter(|(of, _)| *of == prefix)
            .map(|(_, name)| (*name).to_owned())
            .collect();
        drop(Guardian::start(&namespaces, &std::env::temp_dir().join(prefix))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{owner, prefix};

    #[test]
    fn a_namespace_tells_the_process_that_owns_it() {
        let name = format!("{}-host-a", prefix(4321, 7));
        assert_eq!(owner(&name), Some(("vf4321n7", 4321)));
    }

    #[test]
    fn namespaces_of_others_have_no_owner() {
        for name in ["vfprobe-a", "vf12-a", "vfxn1-a", "cni-1234", "vf12n3"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
