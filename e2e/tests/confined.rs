//! A guest that breaks out of its QEMU is somebody who has nothing but the VM's own; and what a peer's definition names is weighed
//! before it is touched.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::definition::console;
use vmferry_e2e::image::{ext4_disk, overlay_of};
use vmferry_e2e::migration::reasons;
use vmferry_e2e::net::{BRIDGE, Host, Lab};
use vmferry_e2e::qemu::{Disk, Spec};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

/// A disk with a backing file, in a folder that is only root's, and a guest that has it.
struct Ground {
    folder: PathBuf,
    base: PathBuf,
    overlay: PathBuf,
    spec: Spec,
}

impl Ground {
    fn new(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().join("disks");
        fs::create_dir(&folder)?;
        let (base, overlay) = (folder.join("base.raw"), folder.join("disk.qcow2"));
        ext4_disk(&base, 64 << 20, None)?;
        overlay_of(&base, &overlay)?;
        for path in [&base, &overlay] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let disk = Disk {
            file: overlay.display().to_string(),
            format: "qcow2".to_owned(),
            read_only: false,
            mount: "/disk".to_owned(),
        };
        Ok(Self {
            folder,
            base,
            overlay,
            spec: small_guest(0, vec![disk])?,
        })
    }

    /// A policy that covers this guest and nothing else.
    fn policy(&self, lab: &Lab) -> String {
        let image = self.spec.image.kernel.parent().unwrap_or(Path::new("/"));
        let initrd = self.spec.image.initrd.parent().unwrap_or(Path::new("/"));
        format!(
            "disk-directories = [{:?}, {image:?}, {initrd:?}]\nserial-directories = [{:?}]\nbridges = [{BRIDGE:?}]\n\
             senders = [\"host-a\", \"host-b\"]\nmemory-max = \"1GiB\"\nvms-max = 1\n",
            self.folder,
            lab.folder()
        )
    }

    /// Owner, group, mode and number of access lists of the disk's files.
    fn facts(&self) -> Result<Vec<(u32, u32, u32, usize)>> {
        let facts = |path: &PathBuf| {
            let found = path.metadata()?;
            let lists = rustix::fs::listxattr(path, &mut [0u8; 4096][..])?;
            Ok((found.uid(), found.gid(), found.mode(), lists))
        };
        [&self.base, &self.overlay, &self.folder]
            .map(facts)
            .into_iter()
            .collect()
    }
}

fn write_config(lab: &Lab, name: &str, policy: &str) -> Result<String> {
    let path = lab.folder().join(name);
    fs::write(&path, format!("[policy]\n{policy}"))?;
    Ok(path.display().to_string())
}

/// Shows that the VM's QEMU on `host` is somebody of his own, who may do little and has open what is the VM's, and says who.
fn confined_user(scenario: &Scenario, host: Host, ground: &Ground) -> Result<u32> {
    let pid = scenario.qemu(host, "web")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.split_whitespace().collect::<Vec<_>>())
            .context("no such field")
    };
    let users = field("Uid:")?;
    let uid: u32 = users[0].parse()?;
    assert!(
        (300_000..=365_535).contains(&uid) && users.iter().all(|other| *other == users[0]),
        "{status}"
    );
    assert_eq!(field("Gid:")?, users, "a group of its own");
    assert_eq!(field("Groups:")?, [""; 0], "{status}");
    assert_eq!((field("Seccomp:")?, field("NoNewPrivs:")?), (vec!["2"], vec!["1"]));
    assert_eq!(u64::from_str_radix(field("CapEff:")?[0], 16)?, 0);

    let agent = scenario.agent(host).folder();
    let own = [
        ground.base.clone(),
        ground.overlay.clone(),
        console(scenario.lab.folder(), "web"),
        agent.join("vms/web/qemu.log"),
        agent.join("vms/web/run"),
        ground.spec.image.kernel.clone(),
        ground.spec.image.initrd.clone(),
    ];
    let mut disks = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let file = fs::read_link(entry?.path())?;
        // What is no file on a disk: sockets, events, devices that make something new for each who opens them.
        let is_unnamed = !file.starts_with("/") || file.starts_with("/memfd:");
        let is_device = ["/dev/null", "/dev/net/tun", "/dev/urandom"]
            .iter()
            .any(|device| file == Path::new(device));
        assert!(
            is_unnamed || is_device || own.contains(&file),
            "it has {} open",
            file.display()
        );
        disks += usize::from(file == ground.base || file == ground.overlay);
    }
    assert!(disks >= 2, "the image and what is under it");
    assert!(!agent.join("vms/web/run/in").exists(), "it has no folder to write to");
    for path in [&ground.overlay, &agent.join("vms/web/qmp.sock"), &agent.join("journal")] {
        ensure!(!can_reach(uid, path)?, "user {uid} reaches {}", path.display());
    }
    Ok(uid)
}

/// Whether that user finds something under this path.
fn can_reach(uid: u32, path: &Path) -> Result<bool> {
    let uid = uid.to_string();
    let mut test = std::process::Command::new("setpriv");
    test.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "test", "-e"]);
    Ok(test.arg(path).status()?.success())
}

#[test]
fn a_guest_is_somebody_of_its_own_on_each_host_and_its_disks_stay_as_they_were() -> Result<()> {
    let lab = Lab::new()?;
    let ground = Ground::new(&lab)?;
    let config = write_config(&lab, "agents.toml", &ground.policy(&lab))?;
    let options = ["--config", &config];
    let before = ground.facts()?;
    let scenario = Scenario::set_up_with(&lab, &options, &options)?;
    let mut guest = scenario.run(Host::A, "web", &ground.spec)?;
    let mut written = guest.ask_number("disk-write /disk/log 20", "acknowledged")?;
    let mut user = confined_user(&scenario, Host::A, &ground)?;
    for (from, to, on_a, on_b) in [
        (Host::A, Host::B, &[][..], &["web"][..]),
        (Host::B, Host::A, &["web"], &[]),
    ] {
        let report = scenario.moves("web", from, to, &[])?;
        assert!(
            report["placed_bytes"].as_u64() > Some(0),
            "its memory is written from outside: {report:#}"
        );
        scenario.settles(on_a, on_b)?;
        ensure_alive(&mut guest)?;
        let there = confined_user(&scenario, to, &ground)?;
        // Both hosts are one machine here, on which the user was taken.
        assert_ne!(there, user);
        user = there;
        ensure!(
            !scenario.agent(from).folder().join("vms/web").exists(),
            "files are left on {}",
            from.name()
        );
        assert_eq!(ground.facts()?, before);
        assert_eq!(guest.ask_number("disk-check /disk/log", "records")?, written);
        written = guest.ask_number("disk-write /disk/log 20", "acknowledged")?;
    }
    scenario.a.cli(["stop", "web"])?.success()?;
    assert_eq!(ground.facts()?, before);
    Ok(())
}

#[test]
fn a_definition_that_names_what_it_may_not_is_refused_with_every_reason() -> Result<()> {
    let lab = Lab::new()?;
    let ground = Ground::new(&lab)?;
    let mut scenario = Scenario::set_up(&lab)?;
    let xbzrle = ["-global", "migration.x-xbzrle=on"];
    let mut guest = scenario.run_with(Host::A, "web", &ground.spec, &xbzrle)?;
    let mut refused = |name: &str, policy: &str, expected: &[&str]| -> Result<()> {
        let config = write_config(&lab, name, policy)?;
        scenario.replace_b("", &["--config", &config])?;
        let answer = scenario.a.cli(["migrate", "web", "--to", &address(Host::B)])?;
        ensure!(answer.code == Some(3), "{answer:?}");
        let reasons = reasons(&answer.values[0]);
        for words in expected {
            assert!(
                reasons.iter().any(|reason| reason.contains(words)),
                "{words:?}: {reasons:#?}"
            );
        }
        assert_eq!(reasons.len(), expected.len(), "{reasons:#?}");
        Ok(())
    };
    let network = "bridges = [\"other0\"]\nmemory-max = \"64MiB\"\nvms-max = 0\n";
    refused(
        "strict.toml",
        &format!("disk-directories = [\"/nowhere\"]\n{network}"),
        &[
            "disk.qcow2 is not in `disk-directories`",
            &format!("boots from {}", ground.spec.image.kernel.display()),
            &format!("boots from {}", ground.spec.image.initrd.display()),
            "`serial-directories`",
            "may not be on bridge br0",
            "has 160MiB of memory and may have 64MiB",
            "`vms-max`",
            "free QEMU arguments",
        ],
    )?;
    // The image may be used, and not what it stands on.
    let alone = lab.folder().join("alone");
    fs::create_dir(&alone)?;
    fs::rename(&ground.base, alone.join("base.raw"))?;
    std::os::unix::fs::symlink(alone.join("base.raw"), &ground.base)?;
    let arguments = "qemu-arguments = [[\"-global\", \"migration.x-xbzrle=on\"]]\n";
    let policy = format!("{}{arguments}", ground.policy(&lab));
    refused("backing.toml", &policy, &["its backing file"])?;
    fs::remove_file(&ground.base)?;
    fs::rename(alone.join("base.raw"), &ground.base)?;
    // A host that may not send is told nothing else.
    refused(
        "senders.toml",
        &format!("senders = [\"host-c\"]\n{network}"),
        &["host-a may not send VMs"],
    )?;

    ensure_alive(&mut guest)?;
    let config = write_config(&lab, "enough.toml", &policy)?;
    scenario.replace_b("", &["--config", &config])?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

#[test]
fn another_user_of_the_host_cannot_use_the_api() -> Result<()> {
    const NOBODY: &str = "65534";
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let (socket, folder) = (scenario.a.socket(), scenario.a.folder().to_owned());
    let vmferry = built_vmferry(false)?;
    let as_nobody = || {
        let mut setpriv = lab.command(Host::A, "setpriv");
        setpriv.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        setpriv.arg(&vmferry).arg("ps").arg("--socket").arg(&socket).output()
    };
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    open(&folder, 0o755)?;
    let refused = as_nobody()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(6) && said.contains("Permission denied"),
        "{refused:?}"
    );
    // Even where the file's mode does not keep him out.
    open(&socket, 0o666)?;
    let refused = as_nobody()?;
    ensure!(
        refused.status.code() != Some(0) && refused.stdout.is_empty(),
        "{refused:?}"
    );
    let log = fs::read_to_string(scenario.a.log())?;
    assert!(
        log.contains("may not use the API") && log.contains("uid=65534"),
        "{log}"
    );
    scenario.settles(&[], &[])
}
