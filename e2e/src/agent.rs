//! A `vmferry agent` on one of the lab's hosts, and vmferry's command line against it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::net::{Host, Lab};
use crate::pki;

/// The port that agents listen on for each other.
pub const PORT: u16 = 7464;
/// The option with which an agent talks to others without encryption.
pub const IN_THE_CLEAR: &str = "--insecure-plaintext";
const READY_MAX: Duration = Duration::from_secs(20);

/// The policy of an agent that is given no configuration: a lab's hosts trust one another with all that its tests use.
const POLICY: &str = r#"
[policy]
disk-directories = ["/"]
serial-directories = ["/"]
disk-uris = ["nbd://10.213.0.3:10809", "nbd://10.213.0.3:10810", "nbd://10.213.0.3:10811", "nbd://10.213.0.3:10812"]
qemu-arguments = [["-global", "migration.x-xbzrle=on"], ["-global", "migration.x-postcopy-ram=on"]]
"#;

/// Builds vmferry as its users do (release) or quickly (debug) and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn built_vmferry(release: bool) -> Result<PathBuf> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    build_in(Path::new(env!("CARGO_MANIFEST_DIR")), profile)
}

/// Builds vmferry in the workspace around `folder` with further arguments of `cargo build`, and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn build_in(folder: &Path, arguments: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = Command::new(cargo);
    build
        .args(["build", "-p", "vmferry", "--bin", "vmferry"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(arguments)
        .current_dir(folder);
    let messages = crate::command::run(&mut build).context("compiling vmferry")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "vmferry")
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo named no executable of vmferry")
}

/// An agent on a host. Killed when dropped; its guests go with the [`Lab`].
pub struct Agent<'lab> {
    lab: &'lab Lab,
    host: Host,
    vmferry: PathBuf,
    command_line: PathBuf,
    folder: PathBuf,
    options: Vec<String>,
    process: Option<Child>,
}

impl<'lab> Agent<'lab> {
    /// Starts an agent on `host` and waits until it serves.
    ///
    /// # Errors
    /// When it does not; what it said is in the error.
    pub fn start(lab: &'lab Lab, host: Host, vmferry: &Path) -> Result<Self> {
        Self::start_with(lab, host, vmferry, &[])
    }

    /// Starts an agent on `host` with further `options` and waits until it serves. Unless it is to talk in the clear, the host
    /// gets a certificate first, if it has none.
    ///
    /// # Errors
    /// When it does not; what it said is in the error.
    pub fn start_with(lab: &'lab Lab, host: Host, vmferry: &Path, options: &[&str]) -> Result<Self> {
        let folder = pki::state_dir(lab, host);
        fs::create_dir_all(&folder)?;
        if !options.contains(&IN_THE_CLEAR) {
            pki::certify(lab, host, vmferry)?;
        }
        let mut agent = Self {
            lab,
            host,
            vmferry: vmferry.to_owned(),
            command_line: vmferry.to_owned(),
            folder,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            process: None,
        };
        agent.restart()?;
        Ok(agent)
    }

    /// Starts the agent again on the same folder, ending it first if it runs.
    ///
    /// # Errors
    /// When it does not serve; what it said is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let config = self.folder.join("agent.toml");
        fs::write(&config, POLICY)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut process = self
            .lab
            .command(self.host, &self.vmferry)
            .arg("agent")
            .args(["--listen", &format!("{}:{PORT}", self.host.address())])
            .args(["--name", self.host.name()])
            .arg("--state-dir")
            .arg(&self.folder)
            .arg("--socket")
            .arg(self.socket())
            .args(&self.options)
            .args(if self.has_config() {
                Vec::new()
            } else {
                vec![OsStr::new("--config"), config.as_os_str()]
            })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting the agent")?;
        let ready = await_ready_line(&mut process);
        self.process = Some(process);
        if let Err(error) = ready {
            self.kill()?;
            let said = fs::read_to_string(self.log()).unwrap_or_default();
            return Err(error.context(format!("the agent on {} said:\n{said}", self.host.name())));
        }
        Ok(())
    }

    fn has_config(&self) -> bool {
        self.options.iter().any(|option| option == "--config")
    }

    /// Starts the agent again on the same folder as the program `vmferry`, ending it first if it runs, as its administrator does
    /// with a new version.
    ///
    /// # Errors
    /// When it does not serve; what it said is in the error.
    pub fn upgrade(&mut self, vmferry: &Path) -> Result<()> {
        self.vmferry = vmferry.to_owned();
        self.command_line = vmferry.to_owned();
        self.restart()
    }

    /// Starts the agent again as on a host where none was before: all that it kept is gone but its certificate. It must have no
    /// guest.
    ///
    /// # Errors
    /// When its folder cannot be emptied or it does not serve.
    pub fn renew(&mut self) -> Result<()> {
        self.stop()?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let removed = match path.is_dir() {
                true if path.ends_with("pki") => Ok(()),
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        self.restart()
    }

    /// Ends the agent the way its administrator does (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        // Fails only for a process that ended already.
        let _ = kill_process(Pid::from_child(&process), Signal::TERM);
        let status = process.wait()?;
        ensure!(status.success(), "the agent ended: {status}");
        Ok(())
    }

    /// Ends the agent as a crash does (SIGKILL).
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            // Fails only for a process that ended already.
            let _ = process.kill();
            process.wait()?;
        }
        Ok(())
    }

    /// Has [`Agent::command`] use this program from now on, where the agent itself was started through another.
    pub fn set_command_line(&mut self, vmferry: &Path) {
        self.command_line = vmferry.to_owned();
    }

    /// The agent's process while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The host it is on.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    /// The socket of its local API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Its state folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its log goes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// vmferry's command line against this agent, to be run as the caller likes.
    #[must_use]
    pub fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = self.lab.command(self.host, &self.command_line);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs vmferry's command line with `--json` to its end.
    ///
    /// # Errors
    /// When it cannot be run, or prints something that is not JSON.
    pub fn cli(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Answer> {
        let output = self
            .command(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .output()
            .context("running vmferry")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let values = serde_json::Deserializer::from_str(&text)
            .into_iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("vmferry printed {text:?}"))?;
        Ok(Answer {
            code: output.status.code(),
            values,
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What a command line ended with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The JSON values on its standard output.
    pub values: Vec<Value>,
    /// Its standard error.
    pub said: String,
}

impl Answer {
    /// The last value, if the command succeeded.
    ///
    /// # Errors
    /// When it failed, with what it said and printed.
    pub fn success(self) -> Result<Value> {
        if self.code != Some(0) {
            let printed: Vec<String> = self.values.iter().map(Value::to_string).collect();
            bail!(
                "vmferry ended with {:?}: {}\n{}",
                self.code,
                self.said,
                printed.join("\n")
            );
        }
        Ok(self.values.into_iter().next_back().unwrap_or(Value::Null))
    }
}

/// An agent, or a tunnel, prints one line when it serves. Its output is read on, so that it never blocks.
pub(crate) fn await_ready_line(process: &mut Child) -> Result<()> {
    let output = process.stdout.take().context("no output of the agent")?;
    let (serves, wait) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.contains("listening on") {
                // Nobody waits any more for a second such line.
                let _ = serves.send(());
            }
        }
    });
    match wait.recv_timeout(READY_MAX) {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended before it served"),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("it did not serve within {READY_MAX:?}"),
    }
}
