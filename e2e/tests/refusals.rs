//! A target that cannot take the guest says why, every reason at once, and nothing has changed anywhere.

#[path = "stream_capture/debian12.rs"]
mod debian12;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use vmferry_e2e::definition::pinned_machine;
use vmferry_e2e::guest::Guest;
use vmferry_e2e::image::ext4_disk;
use vmferry_e2e::migration::reasons;
use vmferry_e2e::net::{BRIDGE, Host, Lab};
use vmferry_e2e::qemu::Disk;
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

/// A guest on host A that needs all that can be refused: memory, a machine type, processor features, a disk, a bridge, a
/// name, its kernel.
struct Demanding<'lab> {
    scenario: Scenario<'lab>,
    guest: Guest,
    disk: PathBuf,
    kernel: PathBuf,
}

impl<'lab> Demanding<'lab> {
    fn on_a(lab: &'lab Lab) -> Result<Self> {
        let folder = lab.folder().join("disks");
        fs::create_dir(&folder)?;
        let disk = folder.join("disk.raw");
        ext4_disk(&disk, 32 << 20, None)?;
        let file = disk.display().to_string();
        let disks = vec![Disk {
            file,
            format: "raw".to_owned(),
            read_only: false,
            mount: "/disk".to_owned(),
        }];
        let scenario = Scenario::set_up(lab)?;
        let spec = small_guest(0, disks)?;
        let guest = scenario.run(Host::A, "web", &spec)?;
        Ok(Self {
            scenario,
            guest,
            disk,
            kernel: spec.image.kernel,
        })
    }

    /// Tries to move it to a host B that `preparation` and `options` have changed.
    fn is_refused(&mut self, preparation: &str, options: &[&str], expected: &[&str]) -> Result<()> {
        self.scenario.replace_b(preparation, options)?;
        self.is_refused_for(expected)
    }

    /// Expects one reason that contains each of `expected`, and no other.
    fn is_refused_for(&self, expected: &[&str]) -> Result<()> {
        let answer = self.scenario.a.cli(["migrate", "web", "--to", &address(Host::B)])?;
        ensure!(answer.code == Some(3), "{expected:?}: {answer:?}");
        let report = &answer.values[0];
        assert_eq!(report["outcome"], "refused", "{report:#}");
        let reasons = reasons(report);
        assert_eq!(reasons.len(), expected.len(), "{expected:?}: {reasons:#?}");
        for words in expected {
            assert!(
                reasons.iter().any(|reason| reason.contains(words)),
                "{words:?}: {reasons:#?}"
            );
        }
        Ok(())
    }

    /// The host has a VM that has nothing but the same name.
    fn is_refused_by_another_of_its_name(&mut self) -> Result<()> {
        self.scenario.replace_b("", &[])?;
        let path = self.scenario.lab.folder().join("namesake.toml");
        let machine = pinned_machine()?;
        let namesake = format!(
            "name = \"web\"\nmachine = \"{machine}\"\naccel = \"tcg\"\ncpu = \"max\"\nvcpus = 1\nmemory = \"16MiB\"\n"
        );
        fs::write(&path, namesake)?;
        self.scenario.b.cli(["run".as_ref(), path.as_os_str()])?.success()?;
        self.is_refused_for(&["the name web is taken"])?;
        self.scenario.b.cli(["stop", "web"])?.success()?;
        Ok(())
    }
}

/// QEMU whose processors lack a feature, as a program of its own.
fn qemu_without(lab: &Lab, feature: &str) -> Result<String> {
    let script = format!("exec qemu-system-x86_64 \"$@\" -global max-x86_64-cpu.{feature}=off");
    program(lab, &format!("qemu-without-{feature}"), &script)
}

/// QEMU that ends before it takes a guest in.
fn qemu_that_takes_nothing_in(lab: &Lab) -> Result<String> {
    let script = "case \"$*\" in *'-incoming defer'*) exit 1;; esac\nexec qemu-system-x86_64 \"$@\"";
    program(lab, "qemu-that-takes-nothing-in", script)
}

fn program(lab: &Lab, name: &str, script: &str) -> Result<String> {
    let path = lab.folder().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn rename_bridge(from: &str, to: &str) -> String {
    format!("ip link set {from} down; ip link set {from} name {to}; ip link set {to} up")
}

fn bind(other: &Path, over: &Path) -> String {
    format!("mount --bind {} {}", other.display(), over.display())
}

#[test]
fn a_target_refuses_with_every_reason_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let mut vm = Demanding::on_a(&lab)?;
    let (disk, kernel) = (vm.disk.clone(), vm.kernel.clone());
    let copy = lab.folder().join("copy.raw");
    fs::copy(&disk, &copy)?;
    let no_rdrand = qemu_without(&lab, "rdrand")?;
    let little_memory = ["--memory-limit", "200MiB"];
    let hide_disk = format!("mount -t tmpfs none {}", disk.parent().unwrap_or(&disk).display());
    let other_kernel = bind(Path::new("/etc/hostname"), &kernel);

    vm.is_refused("", &little_memory, &["not enough memory"])?;
    vm.is_refused("", &["--qemu", &no_rdrand], &["CPU lacks rdrand"])?;
    vm.is_refused(&hide_disk, &[], &["disk \"disk0\" cannot be read here"])?;
    vm.is_refused(&bind(&copy, &disk), &[], &["disk \"disk0\" is another file here"])?;
    vm.is_refused(&other_kernel, &[], &["differs from the source's"])?;
    vm.is_refused(
        &[hide_disk, other_kernel, rename_bridge(BRIDGE, "other0")].join("\n"),
        &[&little_memory[..], &["--qemu", &no_rdrand]].concat(),
        &[
            "not enough memory",
            "CPU lacks rdrand",
            "cannot be read here",
            "differs from the source's",
            "no bridge br0",
        ],
    )?;
    vm.is_refused("", &[], &["no bridge br0"])?;
    let stillborn = qemu_that_takes_nothing_in(&lab)?;
    vm.is_refused(
        &rename_bridge("other0", BRIDGE),
        &["--qemu", &stillborn],
        &["QEMU does not start VM web"],
    )?;
    let files = vm.scenario.b.folder().join("vms").join("web");
    assert!(!files.exists(), "{} is left over", files.display());
    vm.is_refused_by_another_of_its_name()?;
    // The distribution may have no older QEMU to try.
    if let Some(qemu) = debian12::qemu()? {
        let qemu = qemu.display().to_string();
        vm.is_refused(
            "",
            &["--qemu", &qemu],
            &["is older than the source's", "has no machine type"],
        )?;
    }

    // Nothing of all that has left a trace.
    vm.scenario.replace_b("", &[])?;
    vm.scenario.settles(&["web"], &[])?;
    ensure_alive(&mut vm.guest)?;
    vm.scenario.moves("web", Host::A, Host::B, &[])?;
    vm.scenario.settles(&[], &["web"])?;
    ensure_alive(&mut vm.guest)
}
