//! One end of a `vmferry tunnel`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::await_ready_line;
use crate::net::{Host, Lab};
use crate::pki;

/// The port on which targets' ends listen.
pub const PORT: u16 = 7466;

const LOG_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One end of a tunnel. Killed when dropped.
pub struct TunnelEnd {
    process: Child,
    log: PathBuf,
}

impl TunnelEnd {
    /// Starts an end on `host`, by `command`, which runs vmferry there with `arguments` behind `tunnel`, and waits until it serves.
    /// The host gets a certificate first, if it has none.
    ///
    /// # Errors
    /// When it does not serve; what it said is in the error.
    pub fn start(lab: &Lab, host: Host, vmferry: &Path, mut command: Command, arguments: &[&str]) -> Result<Self> {
        pki::certify(lab, host, vmferry)?;
        let (said, log) = tempfile::Builder::new()
            .prefix(&format!("tunnel-{}-", host.name()))
            .tempfile_in(lab.folder())?
            .keep()?;
        let mut process = command
            .arg("tunnel")
            .args(arguments)
            .arg("--state-dir")
            .arg(pki::state_dir(lab, host))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .context("starting a tunnel's end")?;
        let ready = await_ready_line(&mut process);
        let mut end = Self { process, log };
        match ready {
            Ok(()) => Ok(end),
            Err(error) => {
                end.kill()?;
                Err(error.context("a tunnel's end"))
            }
        }
    }

    /// Ends it as a crash does (SIGKILL).
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // Fails only for a process that ended already.
        let _ = self.process.kill();
        self.process.wait()?;
        Ok(())
    }

    /// Waits until its log has this.
    ///
    /// # Errors
    /// When it does not come.
    pub fn until_logged(&self, what: &str) -> Result<()> {
        let started = Instant::now();
        while !fs::read_to_string(&self.log)?.contains(what) {
            if started.elapsed() > LOG_MAX {
                bail!("{} did not come to have {what:?}", self.log.display());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

impl Drop for TunnelEnd {
    /// A test that fails shows what its tunnels said; of one that passes nobody sees it.
    fn drop(&mut self) {
        let _ = self.kill();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        eprintln!("{}:\n{log}", self.log.display());
    }
}
