//! A stock libvirtd on one of the lab's hosts, and virsh against it.
//!
//! A [`Lab`]'s host is a network namespace; libvirtd has a mount and a UTS namespace of its own beside that, in which all that
//! it writes to is this host's alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::run;
use crate::definition::pinned_machine;
use crate::net::{BRIDGE, Host, Lab};
use crate::qemu::Spec;

const START_MAX: Duration = Duration::from_secs(60);
/// How long libvirt may take to clean up after a migration.
const SETTLE_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where a host has the sockets of a tunnel; on each host it is another folder.
pub const SOCKETS: &str = "/run/migrations";
/// Where a host has disks; on each host it is another folder.
pub const IMAGES: &str = "/var/lib/libvirt/images";

/// Folders that each host has to itself, beside `/run`.
const FOLDERS: [&str; 4] = [
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
];

/// A libvirtd, killed when dropped; its guests go with the [`Lab`].
pub struct Libvirt<'lab> {
    lab: &'lab Lab,
    host: Host,
    folder: PathBuf,
    process: Child,
}

impl<'lab> Libvirt<'lab> {
    /// Starts libvirtd on `host` and waits until it knows its QEMU.
    ///
    /// # Errors
    /// When it does not serve; what it said is in the error.
    pub fn start(lab: &'lab Lab, host: Host) -> Result<Self> {
        let folder = lab.folder().join(format!("libvirt-{}", host.name()));
        fs::create_dir_all(&folder)?;
        let script = folder.join("start");
        fs::write(&script, start_script(host, &folder))?;
        let log = File::create(folder.join("libvirtd.log"))?;
        let process = lab
            .command(host, "unshare")
            .args(["--mount", "--uts", "sh", "-e"])
            .arg(&script)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting libvirtd: run the set-up first, it installs it")?;
        let mut libvirt = Self {
            lab,
            host,
            folder,
            process,
        };
        match libvirt.await_ready() {
            Ok(()) => Ok(libvirt),
            Err(error) => {
                let said = fs::read_to_string(libvirt.folder.join("libvirtd.log")).unwrap_or_default();
                Err(error.context(format!("libvirtd on {} said:\n{said}", host.name())))
            }
        }
    }

    /// What a QEMU can do it finds out when it is first asked: not in the middle of a migration then.
    fn await_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = self.virsh(&["domcapabilities", "--virttype", "qemu"]) else {
                return Ok(());
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended: {status}");
            }
            ensure!(started.elapsed() < START_MAX, "not within {START_MAX:?}: {error:#}");
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// The host it is on.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    /// A command that will run where this libvirtd does: with its files and its network.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.lab.command(self.host, "nsenter");
        command
            .args(["--mount", "--uts", "--target", &self.process.id().to_string()])
            .arg(program);
        command
    }

    /// Runs virsh to its end and returns what it printed.
    ///
    /// # Errors
    /// What virsh said.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .command("virsh")
            .args(["--quiet", "--connect", "qemu:///system"])
            .args(arguments))
    }

    /// How another host's virsh and libvirtd reach this one.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+tcp://{}/system", self.host.address())
    }

    /// Waits until these VMs are here and running, and no others are here in whatever state.
    ///
    /// # Errors
    /// When it does not come to that, or what virsh said.
    pub fn until_has(&self, vms: &[&str]) -> Result<()> {
        let started = Instant::now();
        loop {
            let here = self.names(&["list", "--name"])?;
            if here == vms && self.names(&["list", "--name", "--state-running"])? == vms {
                return Ok(());
            }
            ensure!(
                started.elapsed() < SETTLE_MAX,
                "{here:?} are on {}, not {vms:?} running",
                self.host.name()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// The names of the VMs that are defined here, whether they run or not.
    ///
    /// # Errors
    /// What virsh said.
    pub fn defined(&self) -> Result<Vec<String>> {
        self.names(&["list", "--name", "--all", "--persistent"])
    }

    fn names(&self, list: &[&str]) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.virsh(list)?.lines().map(str::to_owned).collect();
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        Ok(names)
    }

    /// Defines `spec` as the VM `name`, and starts it.
    ///
    /// # Errors
    /// What virsh said.
    pub fn start_vm(&self, name: &str, spec: &Spec) -> Result<()> {
        let path = self.folder.join(format!("{name}.xml"));
        fs::write(&path, domain(name, spec)?)?;
        self.virsh(&["define", &path.display().to_string()])?;
        self.virsh(&["start", name])?;
        Ok(())
    }

    /// Where a file of [`IMAGES`] on this host is for everybody else.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        own(&self.folder, IMAGES).join(name)
    }
}

impl Drop for Libvirt<'_> {
    /// A test that fails shows what libvirtd and its QEMUs said; of one that passes nobody sees it.
    fn drop(&mut self) {
        let logs = own(&self.folder, "/var/log/libvirt").join("qemu");
        let logs = fs::read_dir(logs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for log in [self.folder.join("libvirtd.log")].into_iter().chain(logs) {
            eprintln!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
        }
        // Fails only for a process that ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What stands for this host's folder of that path, outside of its namespace.
fn own(folder: &Path, path: &str) -> PathBuf {
    folder.join(path.trim_start_matches('/'))
}

/// Makes the host's folders its own, then becomes libvirtd.
fn start_script(host: Host, folder: &Path) -> String {
    let mut script = String::from("mount --make-rprivate /\nmount -t tmpfs tmpfs /run\n");
    script.push_str(&format!("mkdir -p /run/lock {SOCKETS}\nhostname {}\n", host.name()));
    for path in FOLDERS {
        let own = own(folder, path);
        let own = own.display();
        script.push_str(&format!("mkdir -p {own} {path}\nmount --bind {own} {path}\n"));
    }
    script.push_str(&format!(
        "mkdir -p {IMAGES} /var/log/libvirt/qemu\n\
         cat > /etc/libvirt/libvirtd.conf <<END\n\
         listen_tls = 0\n\
         listen_tcp = 1\n\
         auth_tcp = \"none\"\n\
         auth_unix_rw = \"none\"\n\
         host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"\n\
         END\n\
         cat > /etc/libvirt/qemu.conf <<END\n\
         user = \"root\"\n\
         group = \"root\"\n\
         stdio_handler = \"file\"\n\
         security_driver = \"none\"\n\
         cgroup_controllers = []\n\
         namespaces = []\n\
         remember_owner = 0\n\
         migration_host = \"{}\"\n\
         END\n\
         exec libvirtd --listen\n",
        host.address()
    ));
    script
}

/// The machine that [`Qemu`](crate::qemu::Qemu) runs as libvirt describes it. A disk's `file` is a path.
fn domain(name: &str, spec: &Spec) -> Result<String> {
    let disks: String = spec
        .disks
        .iter()
        .zip('a'..='z')
        .map(|(disk, letter)| {
            format!(
                "<disk type='file' device='disk'>\
                   <driver name='qemu' type='{}' cache='none' discard='unmap'/>\
                   <source file='{}'/><target dev='vd{letter}' bus='virtio'/>{}\
                 </disk>",
                disk.format,
                disk.file,
                if disk.read_only { "<readonly/>" } else { "" }
            )
        })
        .collect();
    Ok(format!(
        "<domain type='qemu'>\
           <name>{name}</name>\
           <memory unit='MiB'>{}</memory>\
           <vcpu>{}</vcpu>\
           <os>\
             <type arch='x86_64' machine='{}'>hvm</type>\
             <kernel>{}</kernel><initrd>{}</initrd><cmdline>{}</cmdline>\
           </os>\
           <features><acpi/></features>\
           <devices>\
             {disks}\
             <controller type='usb' model='none'/>\
             <interface type='bridge'><source bridge='{BRIDGE}'/><mac address='{}'/><model type='virtio'/></interface>\
             <serial type='file'><source path='/var/log/libvirt/qemu/{name}.console' append='on'/></serial>\
             <memballoon model='none'/>\
           </devices>\
         </domain>",
        spec.memory_mib,
        spec.vcpus,
        pinned_machine()?,
        spec.image.kernel.display(),
        spec.image.initrd.display(),
        spec.kernel_command_line(),
        spec.mac()
    ))
}
