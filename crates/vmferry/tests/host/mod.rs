//! A host for a test: a folder, an agent in it, and the guests that the agent starts. Dropping it ends them all.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, Command},
};
use vmferry::{
    api::{
        migration::{MigrationView, Report},
        types::{Event, IndexState, IndexView, VmState, VmView},
    },
    cli::client::Client,
    vm::{Process, VmFolder},
};

const VMFERRY: &str = env!("CARGO_BIN_EXE_vmferry");

/// The definition of a small VM that boots its firmware and finds nothing to start.
pub(crate) fn vm(name: &str) -> Value {
    json!({
        "name": name, "machine": "pc-q35-10.0", "accel": "tcg", "cpu": "qemu64", "vcpus": 1, "memory": "64MiB",
    })
}

pub(crate) struct Host {
    folder: TempDir,
    arguments: &'static [&'static str],
    /// Where the agent's log goes: to the test's, if nothing is named.
    log: Option<&'static str>,
    agent: Option<Child>,
    /// Where other agents reach it.
    pub(crate) peers: SocketAddr,
}

/// How a command ended and what it said.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    pub(crate) async fn start() -> Host {
        Self::start_with(&[]).await
    }

    /// With further arguments of the agent.
    pub(crate) async fn start_with(arguments: &'static [&'static str]) -> Host {
        Self::start_logging(arguments, None).await
    }

    /// With an agent whose log goes to the file `log`.
    pub(crate) async fn start_logging_to(log: &'static str) -> Host {
        Self::start_logging(&[], Some(log)).await
    }

    async fn start_logging(arguments: &'static [&'static str], log: Option<&'static str>) -> Host {
        let mut host = Host {
            folder: TempDir::new().unwrap(),
            arguments,
            log,
            agent: None,
            peers: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        host.start_agent().await;
        host
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn agent_command(&self, socket: &Path) -> Command {
        let mut command = Command::new(VMFERRY);
        command
            .args([
                "agent",
                "--insecure-plaintext",
                "--listen",
                "127.0.0.1:0",
                "--name",
                "host-a",
                "--state-dir",
            ])
            .arg(self.folder.path())
            .arg("--socket")
            .arg(socket)
            .args(self.arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(log) = self.log {
            command.stderr(fs::File::options().write(true).open(log).unwrap());
        }
        command
    }

    /// Starts the agent and waits for its word that it is ready.
    pub(crate) async fn start_agent(&mut self) {
        let mut agent = self
            .agent_command(&self.socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(agent.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).await.unwrap();
        let words = line.strip_prefix("vmferry agent host-a listening on ");
        let address = words.and_then(|words| words.split([' ', ',', '\n']).next());
        self.peers = address.and_then(|address| address.parse().ok()).expect(&line);
        self.agent = Some(agent);
    }

    /// Runs another agent on the same state directory, which must end by itself.
    pub(crate) async fn run_agent_to_its_end(&self, socket: &Path) -> Ended {
        ended(self.agent_command(socket)).await
    }

    pub(crate) async fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().await.unwrap();
    }

    pub(crate) async fn terminate_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let pid = Pid::from_raw(agent.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert!(agent.wait().await.unwrap().success());
    }

    /// Runs a command of the command line, with `--json`.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Ended {
        ended(self.cli_command(arguments)).await
    }

    /// Starts a command whose end is not waited for yet.
    pub(crate) fn spawn_cli(&self, arguments: &[&str]) -> Running {
        let mut command = self.cli_command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running {
            child,
            stderr,
            said: String::new(),
        }
    }

    fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(VMFERRY);
        command.args(arguments).arg("--json").arg("--socket").arg(self.socket());
        command
    }

    /// Waits for the end of a migration.
    pub(crate) async fn report(&self, migration: &MigrationView) -> Report {
        let path = format!("/v1/migrations/{}/events", migration.id);
        let mut views = self.client().lines(&path).await.unwrap();
        while let Some(view) = views.next::<MigrationView>().await.unwrap() {
            if let Some(report) = view.report {
                return report;
            }
        }
        panic!("the agent ended before the migration did");
    }

    /// Writes the definition of a small VM to a file, and gives its path.
    pub(crate) fn definition(&self, name: &str) -> String {
        self.definition_of(&vm(name))
    }

    /// The same of a VM with one disk, which it reads: a raw file of so many MiB, none of them zeros.
    pub(crate) fn definition_with_disk(&self, name: &str, mib: usize) -> String {
        let disk = self.folder.path().join(format!("{name}.raw"));
        fs::write(&disk, vec![1; mib << 20]).unwrap();
        let mut definition = vm(name);
        definition["disk"] = json!([{ "id": "disk", "path": disk, "format": "raw" }]);
        self.definition_of(&definition)
    }

    fn definition_of(&self, vm: &Value) -> String {
        let path = self
            .folder
            .path()
            .join(format!("{}.toml", vm["name"].as_str().unwrap()));
        fs::write(&path, toml::to_string(vm).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Waits until the index of that VM's disk is so far; `None` when the agent is to know of no such disk.
    pub(crate) async fn index_in_state(&self, name: &str, state: Option<IndexState>) {
        let disk = format!("/{name}.raw");
        loop {
            let views: Vec<IndexView> = self.client().get("/v1/index").await.unwrap();
            let view = views.into_iter().find(|view| view.source.ends_with(&disk));
            if view.map(|view| view.state) == state {
                return;
            }
        }
    }

    pub(crate) async fn vm(&self, name: &str) -> VmView {
        self.client().get(&format!("/v1/vms/{name}")).await.unwrap()
    }

    /// Kills the VM's QEMU, and waits until it has ended.
    pub(crate) async fn kill_guest(&self, name: &str) {
        let folder = VmFolder::new(self.state_dir(), name);
        Process::find(&folder.pid())
            .unwrap()
            .expect("it runs")
            .kill()
            .await
            .unwrap();
    }

    /// Has the VM's QEMU do nothing any more, though it is there.
    pub(crate) async fn stall_guest(&self, name: &str) {
        let pid = self.vm(name).await.pid.unwrap();
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
    }

    /// Waits until the VM is in that state.
    pub(crate) async fn vm_in_state(&self, name: &str, state: VmState) -> VmView {
        let mut events = self.client().lines("/v1/events").await.unwrap();
        loop {
            let vm = self.vm(name).await;
            if vm.state == state {
                return vm;
            }
            events.next::<Event>().await.unwrap().expect("the agent lives");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let vms = fs::read_dir(self.folder.path().join("vms"))
            .into_iter()
            .flatten()
            .flatten();
        for vm in vms {
            let pid = fs::read_to_string(vm.path().join("qemu.pid"))
                .ok()
                .and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

async fn ended(mut command: Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command under way.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    /// Waits until it says a line that holds `text`.
    pub(crate) async fn wait_for_line(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.stderr.read_line(&mut line).await.unwrap(),
                0,
                "it only said: {}",
                self.said
            );
            self.said.push_str(&line);
            if line.contains(text) {
                return;
            }
        }
    }

    /// Does what Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        let pid = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(pid.try_into().unwrap()))
            .unwrap();
        rustix::process::kill_process(pid, Signal::INT).unwrap();
    }

    pub(crate) async fn ended(mut self) -> Ended {
        self.stderr.read_to_string(&mut self.said).await.unwrap();
        let output = self.child.wait_with_output().await.unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout,
            stderr: self.said,
        }
    }
}

/// Whether the process is there and has not ended; one that only waits for its parent to take notice has.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| state != 'Z')
}
