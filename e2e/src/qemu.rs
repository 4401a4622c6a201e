//! A plain QEMU with a guest on one of the lab's hosts, with no vmferry about it.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use vmferry_qmp::Qmp;

use crate::accel::Accel;
use crate::image::Image;
use crate::memory::GuestMemory;
use crate::net::{Host, Lab, PREFIX_BITS, guest_address};

const START_MAX: Duration = Duration::from_secs(20);

/// A disk of a guest.
#[derive(Clone, Debug)]
pub struct Disk {
    /// A path, or an NBD URI.
    pub file: String,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Whether the guest only reads it.
    pub read_only: bool,
    /// Where the guest mounts it.
    pub mount: String,
}

/// A guest's machine, the same on both sides of a migration.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it boots.
    pub image: Image,
    /// How it runs.
    pub accel: Accel,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// Number of the guest in the lab, from 0: decides its address and MAC.
    pub index: u8,
    /// Its disks, `vda` onwards.
    pub disks: Vec<Disk>,
}

impl Spec {
    /// The guest's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        guest_address(self.index)
    }

    /// The MAC of the guest's NIC.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("52:54:00:fe:77:{:02x}", self.index)
    }

    /// The kernel's command line: console, address and mounts, as the guest program reads them.
    #[must_use]
    pub fn kernel_command_line(&self) -> String {
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 vmferry.ip={}/{PREFIX_BITS}",
            self.address()
        );
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            let mode = if disk.read_only { ":ro" } else { "" };
            line.push_str(&format!(" vmferry.mount=vd{letter}:{}{mode}", disk.mount));
        }
        line
    }
}

/// A running QEMU, killed when dropped.
pub struct Qemu {
    process: Child,
    runtime: Runtime,
    qmp: Qmp,
    serial: PathBuf,
}

impl Qemu {
    /// Starts the guest on `host`.
    ///
    /// # Errors
    /// When QEMU does not start; its message is in the error.
    pub fn boot(lab: &Lab, host: Host, spec: &Spec) -> Result<Self> {
        Self::start(lab, host, spec, &[])
    }

    /// Starts a QEMU on `host` that awaits a migration of the guest, which then runs at once.
    ///
    /// # Errors
    /// When QEMU does not start; its message is in the error.
    pub fn await_guest(lab: &Lab, host: Host, spec: &Spec) -> Result<Self> {
        Self::start(lab, host, spec, &["-incoming", "defer"])
    }

    fn start(lab: &Lab, host: Host, spec: &Spec, extra: &[&str]) -> Result<Self> {
        let tap = format!("g{}", spec.index);
        // A QEMU of this guest that ran here before has left its tap.
        if !lab.has_interface(host, &tap)? {
            lab.add_tap(host, &tap)?;
        }
        let folder = tempfile::Builder::new()
            .prefix(&format!("qemu-{}-", host.name()))
            .tempdir_in(lab.folder())?
            .keep();
        let (socket, serial) = (folder.join("qmp"), folder.join("serial"));
        let errors = folder.join("errors");
        let mut qemu = lab.command(host, "qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35", "-no-reboot"])
            .args(["-accel", spec.accel.name(), "-cpu", spec.accel.cpu()])
            .args(["-m", &spec.memory_mib.to_string()])
            .args(["-smp", &spec.vcpus.to_string()])
            .args(["-name", &format!("guest{},debug-threads=on", spec.index)])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(&spec.image.kernel)
            .arg("-initrd")
            .arg(&spec.image.initrd)
            .args(["-append", &spec.kernel_command_line()])
            .arg("-netdev")
            .arg(format!("tap,id=net0,ifname={tap},script=no,downscript=no,vhost=off"))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=net0,mac={}", spec.mac()));
        for disk in &spec.disks {
            let mode = if disk.read_only { "on" } else { "off" };
            qemu.arg("-drive").arg(format!(
                "file={},format={},readonly={mode},if=virtio,cache=none,discard=unmap",
                disk.file, disk.format
            ));
        }
        let mut process = qemu
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("starting qemu-system-x86_64: run the set-up first, it installs QEMU")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let qmp = match connect(&runtime, &mut process, &socket) {
            Ok(qmp) => qmp,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                let said = fs::read_to_string(&errors).unwrap_or_default();
                return Err(error.context(format!("QEMU on {}: {said}", host.name())));
            }
        };
        Ok(Self {
            process,
            runtime,
            qmp,
            serial,
        })
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the guest has written to its console so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.serial)?).into_owned())
    }

    /// The monitor, for [`Qemu::block_on`].
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Runs `work` with the monitor to its end.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    /// The guest's memory, for a comparison. The guest should be stopped.
    ///
    /// # Errors
    /// When the monitor fails or the process's memory cannot be opened.
    pub fn memory(&self) -> Result<GuestMemory> {
        let blocks = self.block_on(self.qmp.ram_blocks())?;
        GuestMemory::open(self.pid(), blocks)
    }

    /// Waits until QEMU has ended by itself, as after the guest's power-off.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.process.wait()?;
        if !status.success() {
            bail!("QEMU ended: {status}");
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails only for a process that ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects to the monitor as soon as QEMU listens on its socket, some moments after it has created that.
fn connect(runtime: &Runtime, process: &mut Child, socket: &Path) -> Result<Qmp> {
    let started = Instant::now();
    loop {
        let error = match runtime.block_on(Qmp::connect(socket)) {
            Ok(qmp) => return Ok(qmp),
            Err(error @ vmferry_qmp::Error::Connect { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        if let Some(status) = process.try_wait()? {
            bail!("ended at once: {status}");
        }
        if started.elapsed() > START_MAX {
            return Err(anyhow::Error::from(error).context(format!("no monitor within {START_MAX:?}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
