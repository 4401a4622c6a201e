//! The client against real QEMUs.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use vmferry_qmp::{Capability, Error, Event, EventKind, Events, MigrationStatus, Parameters, Qmp, RunState};

/// A QEMU that ends with the test. Its monitor `qmp` (and `qmp2`) listen in its own folder.
struct Qemu {
    child: Child,
    folder: TempDir,
}

impl Qemu {
    /// Starts it and waits until its monitors listen: it opens its sockets in order, and connects to the last one.
    async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ready = UnixListener::bind(folder.path().join("ready")).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.current_dir(folder.path()).stdin(Stdio::null());
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        for name in ["qmp", "qmp2"] {
            command
                .arg("-chardev")
                .arg(format!("socket,id={name},path={name},server=on,wait=off"));
            command.arg("-mon").arg(format!("chardev={name},mode=control"));
        }
        command.args(["-chardev", "socket,id=ready,path=ready"]);
        command.args(arguments);
        let child = command
            .spawn()
            .expect("qemu-system-x86_64 is needed: install qemu-system-x86");
        let qemu = Self { child, folder };
        ready.accept().await.unwrap();
        qemu
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(&self) -> Qmp {
        Qmp::connect(self.path("qmp")).await.unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const Q35: &[&str] = &["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "32", "-S"];

async fn wait_for(events: &mut Events, kind: &EventKind) -> Event {
    loop {
        let event = events.next().await.unwrap();
        if event.kind == *kind {
            return event;
        }
    }
}

/// Asks until the run state is no longer `transient`; then it must be `settled`.
async fn leave(qmp: &Qmp, transient: RunState, settled: RunState) {
    loop {
        let state = qmp.query_status().await.unwrap().status;
        if state != transient {
            assert_eq!(state, settled);
            return;
        }
    }
}

fn unix_uri(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[tokio::test]
async fn an_empty_machine_answers_what_it_offers() {
    let qemu = Qemu::start(&["-M", "none"]).await;
    let qmp = qemu.connect().await;
    assert_eq!(&qmp.query_version().await.unwrap(), qmp.version());
    assert!(qmp.version().major >= 6);

    let machines = qmp.query_machines().await.unwrap();
    let q35 = machines
        .iter()
        .find(|machine| machine.alias.as_deref() == Some("q35"))
        .unwrap();
    assert!(q35.name.starts_with("pc-q35-"));
    let models = qmp.query_cpu_definitions().await.unwrap();
    assert!(models.iter().any(|model| model.name == "max"));
}

#[tokio::test]
async fn a_paused_machine_describes_itself_and_runs_on_demand() {
    let qemu = Qemu::start(Q35).await;
    let qmp = qemu.connect().await;
    let mut events = qmp.events();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Prelaunch);
    assert_eq!(qmp.query_memory_size_summary().await.unwrap().base_memory, 32 << 20);
    assert_eq!(qmp.query_uuid().await.unwrap(), "00000000-0000-0000-0000-000000000000");
    assert_eq!(qmp.query_migrate().await.unwrap().status, None);
    assert!(qmp.query_block().await.unwrap().is_empty());
    assert!(qmp.query_named_block_nodes().await.unwrap().is_empty());
    let capabilities = qmp.query_migrate_capabilities().await.unwrap();
    assert!(capabilities.contains(&(Capability::ReturnPath, false)));

    let blocks = qmp.ram_blocks().await.unwrap();
    let ram = blocks.iter().find(|block| block.name == "pc.ram").unwrap();
    assert_eq!(ram.used_bytes, 32 << 20);
    if qmp.version().major >= 9 {
        assert!(ram.host_address.is_some());
    }

    let full = qmp.query_cpu_model_expansion("max").await.unwrap();
    assert!(full.features().any(|feature| feature == "sse2"));
    let less = qmp.query_cpu_model_expansion("max,sse2=off").await.unwrap();
    assert!(!less.features().any(|feature| feature == "sse2"));

    qmp.cont().await.unwrap();
    wait_for(&mut events, &EventKind::Resume).await;
    assert!(qmp.query_status().await.unwrap().running);
    qmp.announce_self(1, 50).await.unwrap();
    qmp.stop().await.unwrap();
    wait_for(&mut events, &EventKind::Stop).await;
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
}

#[tokio::test]
async fn a_refused_command_says_why_and_the_connection_goes_on() {
    let qemu = Qemu::start(&["-M", "none"]).await;
    let qmp = qemu.connect().await;
    let Err(Error::Refused { command, error }) = qmp.execute("not-a-command", serde_json::Value::Null).await else {
        panic!("accepted");
    };
    assert_eq!(
        (command.as_str(), error.class.as_str()),
        ("not-a-command", "CommandNotFound")
    );
    assert!(matches!(qmp.yank_migration().await, Err(Error::Refused { .. })));
    qmp.query_status().await.unwrap();
}

#[tokio::test]
async fn calls_at_once_each_get_their_own_answer() {
    let qemu = Qemu::start(Q35).await;
    let qmp = qemu.connect().await;
    let (status, machines, uuid, yank, memory) = tokio::join!(
        qmp.query_status(),
        qmp.query_machines(),
        qmp.query_uuid(),
        qmp.yank_migration(),
        qmp.query_memory_size_summary(),
    );
    assert_eq!(status.unwrap().status, RunState::Prelaunch);
    assert!(machines.unwrap().len() > 10);
    assert_eq!(uuid.unwrap().len(), 36);
    assert!(yank.is_err());
    assert_eq!(memory.unwrap().base_memory, 32 << 20);
}

#[tokio::test]
async fn when_qemu_ends_waiting_calls_and_events_are_told() {
    let mut qemu = Qemu::start(&["-M", "none"]).await;
    let qmp = qemu.connect().await;
    let mut events = qmp.events();
    // A stopped process answers nothing, so the call still waits when the kill comes.
    let pid = rustix::process::Pid::from_child(&qemu.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let call = qmp.query_status();
    let kill = async {
        qemu.child.kill().unwrap();
        qemu.child.wait().unwrap();
    };
    let (answer, ()) = tokio::join!(call, kill);
    assert!(matches!(answer, Err(Error::Closed { .. })), "{answer:?}");
    assert!(matches!(events.next().await, Err(Error::Closed { .. })));
    assert!(matches!(qmp.query_status().await, Err(Error::Closed { .. })));
    assert!(matches!(qmp.events().next().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn two_monitors_serve_two_clients_and_quit_ends_both() {
    let qemu = Qemu::start(&["-M", "none"]).await;
    let first = qemu.connect().await;
    let second = Qmp::connect(qemu.path("qmp2")).await.unwrap();
    let mut events = second.events();
    first.quit().await.unwrap();
    wait_for(&mut events, &EventKind::Shutdown).await;
    assert!(matches!(events.next().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn a_monitor_that_cannot_be_read_any_more_is_let_go() {
    let qemu = Qemu::start(&["-M", "none"]).await;
    let (from_qemu, mut to_qemu) = UnixStream::connect(qemu.path("qmp")).await.unwrap().into_split();
    let (client, between) = UnixStream::pair().unwrap();
    let (mut from_client, mut to_client) = between.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_qemu).await });
    let mut answers = BufReader::new(from_qemu).lines();
    let greet = async {
        for _ in ["greeting", "capabilities"] {
            let line = answers.next_line().await.unwrap().unwrap();
            to_client.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
    };
    let (qmp, ()) = tokio::join!(Qmp::over(client), greet);
    let qmp = qmp.unwrap();
    assert!(!qmp.is_closed());
    to_client.write_all(b"nonsense\n").await.unwrap();
    // Ends once the client has closed its side, and with it QEMU's.
    requests.await.unwrap().unwrap();
    assert!(qmp.is_closed());
    drop(answers);
    assert!(!qemu.connect().await.is_closed());
}

#[tokio::test]
async fn no_socket_and_no_monitor_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing");
    assert!(matches!(Qmp::connect(&path).await, Err(Error::Connect { .. })));

    let path = folder.path().join("other");
    let listener = UnixListener::bind(&path).unwrap();
    let serve = async { drop(listener.accept().await.unwrap()) };
    let (qmp, ()) = tokio::join!(Qmp::connect(&path), serve);
    assert!(matches!(qmp, Err(Error::Greeting { .. })));
}

#[tokio::test]
async fn a_machine_migrates_over_a_unix_socket() {
    let source = Qemu::start(Q35).await;
    let incoming = [Q35, &["-incoming", "defer"]].concat();
    let target = Qemu::start(&incoming).await;
    let (source_qmp, target_qmp) = (source.connect().await, target.connect().await);
    assert_eq!(target_qmp.query_status().await.unwrap().status, RunState::InMigrate);

    let capabilities = [(Capability::Events, true), (Capability::ReturnPath, true)];
    source_qmp.migrate_set_capabilities(&capabilities).await.unwrap();
    target_qmp.migrate_set_capabilities(&capabilities).await.unwrap();
    let parameters = Parameters {
        max_bandwidth: Some(0),
        downtime_limit: Some(300),
        ..Parameters::default()
    };
    source_qmp.migrate_set_parameters(&parameters).await.unwrap();

    source_qmp.cont().await.unwrap();
    let mut source_events = source_qmp.events();
    let mut target_events = target_qmp.events();
    let socket = target.path("incoming");
    target_qmp.migrate_incoming(&unix_uri(&socket), false).await.unwrap();
    source_qmp.migrate(&unix_uri(&socket)).await.unwrap();
    wait_for(&mut source_events, &EventKind::MigrationPass(1)).await;
    wait_for(&mut source_events, &EventKind::Stop).await;
    let completed = EventKind::Migration(MigrationStatus::Completed);
    wait_for(&mut source_events, &completed).await;
    wait_for(&mut target_events, &completed).await;

    let info = source_qmp.query_migrate().await.unwrap();
    assert_eq!(info.status, Some(MigrationStatus::Completed));
    assert!(info.downtime.is_some());
    let ram = info.ram.unwrap();
    assert_eq!(ram.page_size, 4096);
    assert!(
        ram.total >= 32 << 20 && ram.duplicate + ram.normal >= 32 << 8,
        "{ram:?}"
    );
    // No event tells when the last step of the run state is done.
    leave(&source_qmp, RunState::FinishMigrate, RunState::PostMigrate).await;
    leave(&target_qmp, RunState::InMigrate, RunState::Paused).await;
    target_qmp.cont().await.unwrap();
    wait_for(&mut target_events, &EventKind::Resume).await;
}

#[tokio::test]
async fn a_yank_ends_a_migration_that_nobody_reads_and_the_guest_runs_on() {
    let source = Qemu::start(Q35).await;
    let qmp = source.connect().await;
    let out_of_band = Qmp::connect(source.path("qmp2")).await.unwrap();
    qmp.cont().await.unwrap();
    qmp.migrate_set_capabilities(&[(Capability::Events, true)])
        .await
        .unwrap();
    let mut events = qmp.events();

    let path = source.path("sink");
    let sink = UnixListener::bind(&path).unwrap();
    qmp.migrate(&unix_uri(&path)).await.unwrap();
    let _unread = sink.accept().await.unwrap();
    wait_for(&mut events, &EventKind::Migration(MigrationStatus::Active)).await;
    out_of_band.yank_migration().await.unwrap();
    wait_for(&mut events, &EventKind::Migration(MigrationStatus::Failed)).await;
    let info = qmp.query_migrate().await.unwrap();
    assert!(info.error_desc.is_some_and(|reason| !reason.is_empty()));
    assert!(qmp.query_status().await.unwrap().running);
    // Harmless where nothing runs.
    qmp.migrate_cancel().await.unwrap();
}
