//! The distribution's packages that the guests and their hosts are made of.

mod backports;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{command, run};

/// A program that is needed and the packages that bring it.
struct Need {
    program: &'static str,
    packages: &'static [&'static str],
}

/// Redis comes as `redis-tools`, which holds the server's program without its service.
const NEEDS: [Need; 15] = [
    need("qemu-system-x86_64", &["qemu-system-x86"]),
    need("qemu-img", &["qemu-utils"]),
    need("qemu-nbd", &["qemu-utils"]),
    need("busybox", &["busybox-static"]),
    need("redis-check-rdb", &["redis-tools"]),
    need("python3", &["python3-minimal"]),
    need("mke2fs", &["e2fsprogs"]),
    need("ip", &["iproute2"]),
    need("xz", &["xz-utils"]),
    need("faketime", &["faketime"]),
    need("cc", &["gcc", "libc6-dev"]),
    need("etcd", &["etcd-server"]),
    need("nft", &["nftables"]),
    need("libvirtd", &["libvirt-daemon", "libvirt-daemon-driver-qemu"]),
    need("virsh", &["libvirt-clients"]),
];

const fn need(program: &'static str, packages: &'static [&'static str]) -> Need {
    Need { program, packages }
}

/// The package that leads to the guests' kernel, which is unpacked later and never installed.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Installs what is missing; `say` is told first. Does nothing where nothing is missing.
///
/// # Errors
/// Where packages are missing and there is no apt, no root, or apt fails: the message says what to
/// install by hand.
pub fn setup(say: &mut dyn FnMut(&str)) -> Result<()> {
    let packages = missing();
    let kernel_known = apt_knows(KERNEL_PACKAGE);
    if packages.is_empty() && kernel_known {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(
        find("apt-get").is_some(),
        "this needs Debian's apt; install by your distribution's means: {list}"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "installing packages needs root. Run this as root, or: apt-get install {list}"
    );
    if packages.is_empty() {
        say("Updating the package lists, to find the guests' kernel.");
    } else {
        say(&format!("Installing packages: {list}"));
    }
    apt_get(&["update"])?;
    if !packages.is_empty() {
        install(&packages, say)?;
    }
    let still = missing();
    ensure!(
        still.is_empty(),
        "apt-get succeeded, but these are still missing: {}",
        still.join(" ")
    );
    if !apt_knows(KERNEL_PACKAGE) {
        bail!("the package lists have no {KERNEL_PACKAGE}: the guests' kernel is Debian's");
    }
    Ok(())
}

fn missing() -> Vec<&'static str> {
    let mut packages: Vec<&str> = NEEDS
        .iter()
        .filter(|need| find(need.program).is_none())
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    if find("busybox").is_some_and(|path| is_dynamic(&path)) {
        packages.push("busybox-static");
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The release's QEMU and one from its backports hold the same files, which apt's own dependencies
/// do not tell: dpkg fails half way. Where a part is from backports, the rest must be.
fn install(packages: &[&str], say: &mut dyn FnMut(&str)) -> Result<()> {
    let install = ["install", "--no-install-recommends", "-y"];
    let from_backports = ["qemu-utils", "qemu-system-common", "qemu-system-data"]
        .iter()
        .filter_map(|package| installed_version(package))
        .any(|version| version.contains("~bpo"));
    if !from_backports {
        return apt_get(&[&install[..], packages].concat());
    }
    let suite = backports::suite()?;
    say(&format!(
        "This machine has parts of QEMU from {suite}: the rest comes from there, too."
    ));
    if backports::enable(&suite)? {
        say(&format!("Adding the package suite {suite}."));
        apt_get(&["update"])?;
    }
    apt_get(&[&install[..], &["-t", &suite], packages].concat())
}

fn installed_version(package: &str) -> Option<String> {
    let mut query = command("dpkg-query", ["-W", "-f", "${db:Status-Status} ${Version}"]);
    let answer = run(query.arg(package)).ok()?;
    Some(answer.strip_prefix("installed ")?.to_owned())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["-q", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("starting apt-get")?;
    ensure!(
        status.success(),
        "apt-get {}: {status}; its messages are above",
        arguments.join(" ")
    );
    Ok(())
}

fn apt_knows(package: &str) -> bool {
    run(&mut command("apt-cache", ["show", package])).is_ok()
}

fn is_dynamic(program: &Path) -> bool {
    run(&mut command("ldd", [program])).is_ok()
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}
