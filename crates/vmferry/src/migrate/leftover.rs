//! What is left of a VM that was on its way here when the agent ended.

use std::time::Duration;

use super::monitor;
use crate::agent::Agent;
use crate::vm::find_again;

/// How long its QEMU may take to say where its memory is.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Keeps the memory of its QEMU, if that still lives, for the next attempt. What of it is whole is not known, and does not matter:
/// a page is used if it is the one that is wanted.
pub async fn keep(agent: &Agent, vm: &str) {
    let Some(kept) = agent.content.kept() else {
        return;
    };
    let memory = async {
        let found = find_again(agent.folder(vm)).await.ok()??;
        monitor::guest_memory(&found).await
    };
    let Ok(Some(memory)) = tokio::time::timeout(ANSWER_LIMIT, memory).await else {
        tracing::info!(vm, "nothing is left of a VM that was on its way here");
        return;
    };
    let name = vm.to_owned();
    let keep = move || kept.keep(&name, |each| memory.read_held(each));
    if let Err(panic) = tokio::task::spawn_blocking(keep).await {
        tracing::error!(%panic, "keeping a guest's memory");
    }
}
