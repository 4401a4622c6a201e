//! A QEMU with a booted guest, to be migrated.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vmferry_e2e::accel::READY_LINE;
use vmferry_e2e::image::{Extras, image};
use vmferry_qmp::Qmp;

/// How long anything that the test waits for may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest program serves on.
const GUEST_PORT: u16 = 7000;

/// A machine to boot the guest on.
pub(crate) struct Machine {
    program: PathBuf,
    kind: &'static str,
    cpu: &'static str,
    vcpus: u8,
    arguments: Vec<&'static str>,
}

impl Machine {
    /// 128 MiB, one processor, the installed QEMU.
    pub(crate) fn new(kind: &'static str) -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            kind,
            cpu: "max",
            vcpus: 1,
            arguments: vec!["-m", "128M"],
        }
    }

    pub(crate) fn with(mut self, arguments: &[&'static str]) -> Self {
        self.arguments.extend(arguments);
        self
    }

    pub(crate) fn with_vcpus(self, vcpus: u8) -> Self {
        Self { vcpus, ..self }
    }

    pub(crate) fn with_cpu(self, cpu: &'static str) -> Self {
        Self { cpu, ..self }
    }

    pub(crate) fn with_program(self, program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            ..self
        }
    }
}

/// The running QEMU, killed when dropped.
pub(crate) struct Source {
    process: Child,
    pub(crate) folder: TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) qmp: Qmp,
    guest_port: u16,
}

impl Source {
    /// Boots the guest and awaits its ready line.
    pub(crate) fn boot(machine: &Machine) -> Result<Self> {
        let image = image(Extras::None)?;
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("qmp");
        let guest_port = free_port()?;
        let mut process = Command::new(&machine.program)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-accel", "tcg", "-cpu", machine.cpu, "-M", machine.kind])
            .args(["-smp", &machine.vcpus.to_string()])
            .args(&machine.arguments)
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 init_on_alloc=0 vmferry.ip=10.0.2.15/24",
            ])
            .args([
                "-netdev",
                &format!("user,id=net0,hostfwd=tcp:127.0.0.1:{guest_port}-:{GUEST_PORT}"),
            ])
            .args(["-device", "virtio-net-pci,netdev=net0", "-serial", "stdio"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", machine.program.display()))?;
        let serial = process.stdout.take().context("no serial port")?;
        if let Err(error) = await_ready(serial) {
            let _ = process.kill();
            process.wait()?;
            return Err(error.context(format!("booting {}", machine.kind)));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let qmp = runtime.block_on(Qmp::connect(&socket))?;
        Ok(Self {
            process,
            folder,
            runtime,
            qmp,
            guest_port,
        })
    }

    /// Asks the program inside the guest.
    pub(crate) fn guest(&self, request: &str) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.guest_port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{request}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if !answer.contains(r#""ok":true"#) {
            bail!("the guest answered {answer:?} to {request:?}");
        }
        Ok(())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the serial port up to the ready line, then leaves it to a thread to drain.
fn await_ready(serial: std::process::ChildStdout) -> Result<()> {
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if String::from_utf8_lossy(&line).contains(READY_LINE) {
                // Nobody waits for a second one.
                let _ = ready.send(());
            }
        }
    });
    wait.recv_timeout(PATIENCE)
        .context("the guest never said that it is ready")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
