//! What an agent indexes in the background, and until when.

use vmferry::api::types::{IndexState, IndexView};

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
    let client = host.client();
    let waits = tokio::spawn(async move { client.get::<Vec<IndexView>>("/v1/index?wait=true").await });
    // Answered after that was asked, so that it is under way.
    host.index_in_state("a", Some(IndexState::Indexing)).await;
    host.terminate_agent().await;
    let told = waits.await.unwrap().unwrap();
    assert_eq!(told[0].state, IndexState::Indexing);
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
