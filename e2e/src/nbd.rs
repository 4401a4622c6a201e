//! A disk exported over NBD by the storage host.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::net::{Host, Lab};

const READY_MAX: Duration = Duration::from_secs(20);
/// Hosts and QEMUs that may have the export open at once: two of each, and one that only looks.
const CLIENTS_MAX: &str = "8";

/// A running `qemu-nbd` on [`Host::Storage`]. Killed when dropped.
pub struct NbdExport {
    server: Child,
    address: SocketAddr,
}

impl NbdExport {
    /// Exports the image `path` of format `format` (`raw` or `qcow2`: clients see what is in it) for reading and
    /// writing on `port`, and returns once clients can connect.
    ///
    /// # Errors
    /// When `qemu-nbd` does not serve within 20 s; its message is on standard error.
    pub fn start(lab: &Lab, path: &Path, format: &str, port: u16) -> Result<Self> {
        let address = SocketAddr::from((Host::Storage.address(), port));
        let server = lab
            .command(Host::Storage, "qemu-nbd")
            .args(["--persistent", "--shared", CLIENTS_MAX, "--format", format])
            .args(["--bind", &address.ip().to_string(), "--port", &port.to_string()])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting qemu-nbd: run the set-up first, it installs qemu-utils")?;
        let mut export = Self { server, address };
        lab.within(Host::Storage, || export.await_ready())?;
        Ok(export)
    }

    fn await_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.server.try_wait()? {
                anyhow::bail!("qemu-nbd ended: {status}");
            }
            ensure!(
                started.elapsed() < READY_MAX,
                "qemu-nbd did not serve within {READY_MAX:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The export's URI, the same from every host.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd://{}/", self.address)
    }

    /// Ends the server the way its administrator does: the image is whole and closed afterwards.
    ///
    /// # Errors
    /// When its end cannot be awaited.
    pub fn stop(mut self) -> Result<()> {
        // Fails only for a process that ended already.
        let _ = kill_process(Pid::from_child(&self.server), Signal::TERM);
        self.server.wait()?;
        Ok(())
    }
}

impl Drop for NbdExport {
    fn drop(&mut self) {
        // Fails only for a process that ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
