//! The agent as its users meet it: a real process, its command line and API, and a real QEMU.

mod host;
mod indexing;

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use host::{Host, vm};
use serde_json::Value;
use vmferry::{
    api::{
        error::{ErrorCode, ErrorView},
        migration::{MigrateRequest, MigrationView, Outcome, Report},
        types::{Event, EventKind, HostView, VmState, VmView},
    },
    cli::exit::Failure,
};
use vmferry_qmp::Qmp;

fn refusal(failure: Failure) -> ErrorView {
    match failure {
        Failure::Agent(error) => error,
        other => panic!("not from the agent: {other}"),
    }
}

#[tokio::test]
async fn a_vm_runs_is_listed_and_stops() {
    let host = Host::start().await;
    let run = host.cli(&["run", &host.definition("web")]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let started: VmView = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((started.state, started.epoch), (VmState::Running, 1));

    let ps = host.cli(&["ps"]).await;
    let listed: VmView = serde_json::from_str(&ps.stdout).unwrap();
    assert_eq!((listed.name.as_str(), listed.pid), ("web", started.pid));
    assert_eq!(listed.memory_bytes, 64 << 20);

    let stop = host.cli(&["stop", "web"]).await;
    assert_eq!(stop.code, 0, "{}", stop.stderr);
    assert_eq!(host.cli(&["ps"]).await.stdout, "");
    assert!(!host::is_alive(started.pid.unwrap()));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let host = Host::start_logging_to("/dev/full").await;
    let run = host.cli(&["run", &host.definition("web")]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let stop = host.cli(&["stop", "web"]).await;
    assert_eq!(stop.code, 0, "{}", stop.stderr);
    assert_eq!(host.cli(&["ps"]).await.stdout, "");
}

#[tokio::test]
async fn the_exit_code_says_what_is_wrong() {
    let host = Host::start().await;
    assert_eq!(host.cli(&["stop", "nobody"]).await.code, 7);
    assert_eq!(host.cli(&["migrate", "nobody", "--to", "b"]).await.code, 7);
    assert_eq!(host.cli(&["cancel", "nobody"]).await.code, 7);
    assert_eq!(host.cli(&["migrate", "nobody"]).await.code, 2);
    assert_eq!(host.cli(&["run", "/nowhere.toml"]).await.code, 2);

    let definition = host.definition("web");
    assert_eq!(host.cli(&["run", &definition]).await.code, 0);
    let taken = host.cli(&["run", &definition]).await;
    assert_eq!(taken.code, 8);
    assert!(taken.stderr.contains("name-taken"), "{}", taken.stderr);
    assert_eq!(host.cli(&["cancel", "web"]).await.code, 8);
    assert_eq!(host.cli(&["migrate", "web", "--to", "b", "--lanes", "0"]).await.code, 2);

    let mut host = host;
    host.kill_agent().await;
    let unreachable = host.cli(&["ps"]).await;
    assert_eq!(unreachable.code, 6);
    assert!(unreachable.stderr.contains("vmferry agent"), "{}", unreachable.stderr);
}

#[tokio::test]
async fn a_guest_outlives_its_agent_and_is_found_again() {
    let mut host = Host::start().await;
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let before = host.vm("web").await;

    host.terminate_agent().await;
    assert!(
        host::is_alive(before.pid.unwrap()),
        "a graceful end leaves the guest running"
    );
    host.start_agent().await;
    assert_eq!(host.vm_in_state("web", VmState::Running).await.pid, before.pid);

    host.kill_agent().await;
    host.start_agent().await;
    let after = host.vm_in_state("web", VmState::Running).await;
    assert_eq!(
        (after.pid, after.uuid, after.epoch),
        (before.pid, before.uuid, before.epoch)
    );
    assert_eq!(
        host.cli(&["stop", "web"]).await.code,
        0,
        "a guest found again is controlled again"
    );
}

#[tokio::test]
async fn a_guest_that_ended_unwatched_is_reported_and_can_be_run_again() {
    let mut host = Host::start().await;
    let definition = host.definition("web");
    assert_eq!(host.cli(&["run", &definition]).await.code, 0);
    host.kill_agent().await;
    host.kill_guest("web").await;

    host.start_agent().await;
    let gone = host.vm("web").await;
    assert_eq!((gone.state, gone.pid), (VmState::Stopped, None));
    assert!(gone.reason.unwrap().contains("no agent watched"));
    assert_eq!(host.cli(&["run", &definition]).await.code, 0);
    assert_eq!(host.vm("web").await.state, VmState::Running);
}

#[tokio::test]
async fn the_state_follows_the_guest() {
    let host = Host::start().await;
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let mut events = host.client().lines("/v1/events").await.unwrap();
    let mut states = async || loop {
        let event: Event = events.next().await.unwrap().expect("the agent lives");
        if let EventKind::VmState { vm, state, reason } = event.kind {
            assert_eq!(vm, "web");
            return (state, reason);
        }
    };

    let monitor = Qmp::connect(host.state_dir().join("vms/web/qmp-oob.sock"))
        .await
        .unwrap();
    monitor.stop().await.unwrap();
    assert_eq!(states().await.0, VmState::Paused);
    assert_eq!(host.vm("web").await.state, VmState::Paused);
    monitor.cont().await.unwrap();
    assert_eq!(states().await.0, VmState::Running);

    host.kill_guest("web").await;
    let (state, reason) = states().await;
    assert_eq!(state, VmState::Stopped);
    assert!(reason.is_some(), "an end nobody asked for has a reason");
}

#[tokio::test]
async fn a_guest_is_followed_again_after_its_monitor_broke() {
    let host = Host::start().await;
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let pid = host.vm("web").await.pid;
    let mut events = host.client().lines("/v1/events").await.unwrap();
    let mut state = async || {
        let event: Event = events.next().await.unwrap().expect("the agent lives");
        let EventKind::VmState { state, .. } = event.kind else {
            panic!("{event:?}");
        };
        state
    };
    let monitor = Qmp::connect(host.state_dir().join("vms/web/qmp-oob.sock"))
        .await
        .unwrap();
    let broken = serde_json::json!({ "instances": [{ "type": "chardev", "id": "qmp" }] });
    monitor.execute("yank", broken).await.unwrap();
    assert_eq!(state().await, VmState::Running);
    monitor.stop().await.unwrap();
    assert_eq!(state().await, VmState::Paused);
    assert_eq!(host.vm("web").await.pid, pid);
}

#[tokio::test]
async fn two_agents_cannot_share_a_state_directory() {
    let host = Host::start().await;
    let other_socket = host.state_dir().join("other.sock");
    let second = host.run_agent_to_its_end(&other_socket).await;
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("in use by another process"), "{}", second.stderr);
    assert_eq!(host.cli(&["ps"]).await.code, 0, "the first one is untouched");
}

#[tokio::test]
async fn a_key_that_others_can_read_stops_the_agent_before_it_serves() {
    let mut host = Host::start().await;
    host.terminate_agent().await;
    let key = host.state_dir().join("content.key");
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    let refused = host.run_agent_to_its_end(&host.state_dir().join("agent.sock")).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    for said in [key.to_str().unwrap(), "chmod 600"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    mode(0o600);
    host.start_agent().await;
}

#[tokio::test]
async fn a_bad_definition_is_refused_with_all_its_problems() {
    let host = Host::start().await;
    let mut definition = vm("we b");
    definition["machine"] = "q35".into();
    definition["vcpus"] = 0.into();
    let error = refusal(host.client().post::<VmView>("/v1/vms", &definition).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::BadDefinition);
    for field in ["name", "machine", "vcpus"] {
        assert!(
            error.reasons.iter().any(|reason| reason.starts_with(field)),
            "{field}: {error:?}"
        );
    }
    assert_eq!(host.cli(&["ps"]).await.stdout, "");

    let file = host.state_dir().join("bad.toml");
    fs::write(&file, "name = \"web\"\nmachin = \"pc-q35-10.0\"\n").unwrap();
    let run = host.cli(&["run", file.to_str().unwrap()]).await;
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("bad.toml:2:1") && run.stderr.contains("did you mean"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_qemu_that_does_not_start_leaves_no_vm_and_says_why() {
    let host = Host::start().await;
    let mut definition = vm("web");
    definition["extra_args"] = vec!["-device", "no-such-device"].into();
    let error = refusal(host.client().post::<VmView>("/v1/vms", &definition).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::Qemu);
    assert!(error.message.contains("no-such-device"), "{}", error.message);
    assert_eq!(host.cli(&["ps"]).await.stdout, "");
}

#[tokio::test]
async fn the_api_describes_itself_and_its_host() {
    let host = Host::start().await;
    let document: Value = host.client().get("/v1/openapi.json").await.unwrap();
    assert!(document["paths"]["/v1/vms/{name}/migrate"]["post"].is_object());
    let view: HostView = host.client().get("/v1/host").await.unwrap();
    assert_eq!(view.name, "host-a");
    assert!(view.memory_available_bytes > 0 && view.qemu_version.starts_with(|c: char| c.is_ascii_digit()));

    let no_route = refusal(host.client().get::<Value>("/v2/vms").await.unwrap_err());
    assert_eq!(no_route.code, ErrorCode::NoSuchRoute);
    let no_migration = refusal(
        host.client()
            .get::<Value>("/v1/migrations/17/events")
            .await
            .unwrap_err(),
    );
    assert_eq!(no_migration.code, ErrorCode::UnknownMigration);
    let request = serde_json::json!({ "to": "b", "speed": "high" });
    let bad = refusal(
        host.client()
            .post::<Value>("/v1/vms/web/migrate", &request)
            .await
            .unwrap_err(),
    );
    assert_eq!(bad.code, ErrorCode::BadRequest);
    assert!(bad.message.contains("speed"), "{}", bad.message);
}

#[tokio::test]
async fn a_migration_to_where_nobody_listens_ends_with_the_guest_running_here() {
    let host = Host::start().await;
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    // Port 1 of the loopback: nobody listens there, and the kernel says so at once.
    let migrate = host.cli(&["migrate", "web", "--to", "127.0.0.1:1"]).await;
    assert_eq!(migrate.code, 1, "{}", migrate.stderr);
    let vm = host.vm("web").await;
    assert_eq!((vm.state, vm.migration), (VmState::Running, None));
    let known: Vec<MigrationView> = host.client().get("/v1/migrations").await.unwrap();
    assert_eq!(known.len(), 1);
    assert!(known[0].report.is_some());
}

#[tokio::test]
async fn a_paused_vm_is_not_migrated() {
    let host = Host::start().await;
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let monitor = Qmp::connect(host.state_dir().join("vms/web/qmp-oob.sock"))
        .await
        .unwrap();
    monitor.stop().await.unwrap();
    host.vm_in_state("web", VmState::Paused).await;
    let request = MigrateRequest::to("127.0.0.1:1");
    let error = refusal(
        host.client()
            .post::<MigrationView>("/v1/vms/web/migrate", &request)
            .await
            .unwrap_err(),
    );
    assert_eq!(error.code, ErrorCode::WrongState);
}

/// An address where connections are taken and nothing is ever said: a migration to it stays in its first stage.
fn silent_peer() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn a_vm_under_migration_is_left_alone_until_it_is_cancelled() {
    let host = Host::start().await;
    let (_peer, to) = silent_peer();
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let begun = host.cli(&["migrate", "web", "--to", &to, "--detach"]).await;
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    let begun: MigrationView = serde_json::from_str(&begun.stdout).unwrap();
    assert_eq!(host.vm("web").await.migration, Some(begun.id));

    let again = host.cli(&["migrate", "web", "--to", &to]).await;
    assert_eq!(again.code, 8);
    assert!(again.stderr.contains(&begun.id.to_string()), "{}", again.stderr);
    assert_eq!(host.cli(&["stop", "web"]).await.code, 8);

    assert_eq!(host.cli(&["cancel", "web"]).await.code, 0);
    let report = host.report(&begun).await;
    assert_eq!(report.outcome, Outcome::Cancelled);
    let vm = host.vm("web").await;
    assert_eq!((vm.state, vm.migration), (VmState::Running, None));
}

#[tokio::test]
async fn a_forced_stop_cancels_the_migration_first() {
    let host = Host::start().await;
    let (_peer, to) = silent_peer();
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let begun = host.cli(&["migrate", "web", "--to", &to, "--detach"]).await;
    let begun: MigrationView = serde_json::from_str(&begun.stdout).unwrap();
    assert_eq!(host.cli(&["stop", "web", "--force"]).await.code, 0);
    assert_eq!(host.report(&begun).await.outcome, Outcome::Cancelled);
    assert_eq!(host.cli(&["ps"]).await.stdout, "");
}

#[tokio::test]
async fn an_interrupted_migrate_cancels_the_migration_and_says_so() {
    let host = Host::start().await;
    let (_peer, to) = silent_peer();
    assert_eq!(host.cli(&["run", &host.definition("web")]).await.code, 0);
    let mut migrate = host.spawn_cli(&["migrate", "web", "--to", &to]);
    migrate.wait_for_line("reserve").await;
    migrate.interrupt();
    let ended = migrate.ended().await;
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    let report: Report = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report.outcome, Outcome::Cancelled);
    assert_eq!(host.vm("web").await.state, VmState::Running);
}
