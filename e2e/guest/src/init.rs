//! The first process of the guest: mounts, drivers, the static address, then the server.
//!
//! What differs between guests comes from the kernel's command line:
//! `vmferry.ip=ADDRESS/PREFIX` for `eth0`, and any number of `vmferry.mount=DEVICE:FOLDER[:ro]`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};

/// Lists the drivers of the image, one path a line, in the order in which they must be loaded.
const MODULE_LIST: &str = "/modules/order";

/// Prepares the machine, starts the server, and reaps children until the server ends.
///
/// Returning ends the first process, which the kernel answers with a panic: the host sees it on the
/// serial port, and with `panic=-1` QEMU ends.
pub(crate) fn run() -> Result<()> {
    mount_kernel_filesystems()?;
    load_modules()?;
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading the kernel command line")?;
    busybox(&["ip", "link", "set", "lo", "up"])?;
    for option in cmdline.split_whitespace() {
        if let Some(address) = option.strip_prefix("vmferry.ip=") {
            busybox(&["ip", "address", "add", address, "dev", "eth0"])?;
            busybox(&["ip", "link", "set", "eth0", "up"])?;
        } else if let Some(spec) = option.strip_prefix("vmferry.mount=") {
            mount_disk(spec)?;
        }
    }
    let server = Command::new("/proc/self/exe")
        .arg("serve")
        .spawn()
        .context("starting the server")?;
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else {
            continue;
        };
        if pid.as_raw_nonzero().get().unsigned_abs() == server.id() {
            bail!("the server ended: {status:?}");
        }
    }
}

fn mount_kernel_filesystems() -> Result<()> {
    for (kind, folder) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        fs::create_dir_all(folder)?;
        mount(kind, folder, kind, MountFlags::empty(), None).with_context(|| format!("mounting {kind} on {folder}"))?;
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    let order = fs::read_to_string(MODULE_LIST).with_context(|| format!("reading {MODULE_LIST}"))?;
    for path in order.lines() {
        let file = fs::File::open(path).with_context(|| format!("opening {path}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // `crc32c-intel` and its like refuse processors without the instruction.
            Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => {}
            Err(error) => bail!("loading {path}: {error}"),
        }
    }
    Ok(())
}

fn mount_disk(spec: &str) -> Result<()> {
    let mut parts = spec.split(':');
    let (Some(device), Some(folder)) = (parts.next(), parts.next()) else {
        bail!("vmferry.mount={spec}: expected DEVICE:FOLDER[:ro]");
    };
    let flags = match parts.next() {
        Some("ro") => MountFlags::RDONLY,
        _ => MountFlags::empty(),
    };
    fs::create_dir_all(folder)?;
    let device = Path::new("/dev").join(device);
    mount(&device, folder, "ext4", flags | MountFlags::NOATIME, None)
        .with_context(|| format!("mounting {} on {folder}", device.display()))
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(arguments)
        .status()
        .context("running busybox")?;
    ensure!(status.success(), "busybox {arguments:?}: {status}");
    Ok(())
}
