//! What an agent indexes in the background, and until when.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;
use vmferry::api::types::IndexState;
use vmferry_qmp::Qmp;

use crate::host::Host;

/// So slow that a second MiB would be read after days: what has more is indexed until that is cancelled.
const FOR_EVER: [&str; 2] = ["--index-bandwidth", "1"];

#[tokio::test]
async fn what_no_vm_reads_any_more_is_not_indexed_to_its_end() {
    let host = Host::start_with(&FOR_EVER).await;
    for (vm, mib) in [("a", 2), ("b", 2), ("c", 1)] {
        let run = host.cli(&["run", &host.definition_with_disk(vm, mib)]).await;
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    host.index_in_state("a", Some(IndexState::Indexing)).await;
    assert_eq!(host.cli(&["stop", "a"]).await.code, 0);
    host.index_in_state("a", None).await;
    host.index_in_state("b", Some(IndexState::Indexing)).await;
    host.kill_guest("b").await;
    host.index_in_state("c", Some(IndexState::Ready)).await;
    assert_eq!(host.cli(&["index", "--wait"]).await.code, 0);
}

#[tokio::test]
async fn neither_a_scan_nor_who_waits_for_it_holds_up_the_agents_end() {
    let mut host = Host::start_with(&FOR_EVER).await;
    let run = host.cli(&["run", &host.definition_with_disk("a", 2)]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    host.index_in_state("a", Some(IndexState::Indexing)).await;
    // Who waits has the agent look first, which shows that it was heard: nothing else tells the agent of this disk.
    // QEMU opens it by itself, so that its user has to come as far.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let disk = folder.path().join("b.raw");
    fs::write(&disk, [1; 4096]).unwrap();
    let monitor = Qmp::connect(host.state_dir().join("vms/a/qmp-oob.sock")).await.unwrap();
    let node = json!({ "driver": "file", "node-name": "plugged", "filename": disk, "read-only": true });
    monitor.execute("blockdev-add", node).await.unwrap();
    let waits = host.spawn_cli(&["index", "--wait"]);
    host.index_in_state("b", Some(IndexState::Waiting)).await;
    host.terminate_agent().await;
    waits.ended().await;
}

#[tokio::test]
async fn a_qemu_that_hangs_keeps_no_other_disk_from_being_indexed() {
    let host = Host::start_with(&[]).await;
    for vm in ["a", "b"] {
        let run = host.cli(&["run", &host.definition_with_disk(vm, 1)]).await;
        assert_eq!(run.code, 0, "{}", run.stderr);
        host.index_in_state(vm, Some(IndexState::Ready)).await;
        host.stall_guest(vm).await;
    }
    host.index_in_state("a", Some(IndexState::Ready)).await;
}
