//! The QEMU 7.2 of Debian 12, unpacked beside the installed one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The program, its data, and the firmware that it loads.
const PACKAGES: [&str; 5] = [
    "qemu-system-x86=1:7.2*",
    "qemu-system-common=1:7.2*",
    "qemu-system-data=1:7.2*",
    "seabios=1.16*",
    "ipxe-qemu",
];

/// The program, fetched and unpacked first if it is not there; `None` if the system's package lists do not have it. It
/// finds its data and modules relative to itself. Its libraries are the system's: those of the installed QEMU serve it.
pub(crate) fn qemu() -> Result<Option<PathBuf>> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu-7.2");
    let program = root.join("usr/bin/qemu-system-x86_64");
    if program.exists() {
        return Ok(Some(program));
    }
    let versions = run(Command::new("apt-cache").args(["madison", "qemu-system-x86"]))?;
    if !versions.contains("1:7.2+dfsg") {
        return Ok(None);
    }
    let parent = root.parent().context("no folder for it")?;
    fs::create_dir_all(parent)?;
    let archives = tempfile::tempdir()?;
    let unpacked = tempfile::tempdir_in(parent)?;
    run(Command::new("apt-get")
        .arg("download")
        .args(PACKAGES)
        .current_dir(archives.path()))?;
    for archive in fs::read_dir(archives.path())? {
        run(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(unpacked.path()))?;
    }
    // QEMUs run as users of their own.
    fs::set_permissions(unpacked.path(), fs::Permissions::from_mode(0o755))?;
    // Whole or not at all: an interrupted run leaves nothing under the name that is looked for.
    fs::rename(unpacked.keep(), &root)?;
    Ok(Some(program))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
