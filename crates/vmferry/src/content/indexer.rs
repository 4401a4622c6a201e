//! Keeps the indexes up to date: of what the VMs on this host read, and of the operator's images.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vmferry_content::index::in_background;
use vmferry_content::{Cancel, Index, ScanOptions};

use super::{KnownContent, Source, State, storage};
use crate::agent::Agent;
use crate::api::types::{EventKind, VmState};

/// How often VMs are asked what they read: it changes when a disk is plugged in.
const LOOK: Duration = Duration::from_secs(5 * 60);
/// Blocks between two reports of progress: 64 MiB.
const PROGRESS_BLOCKS: u64 = 16 * 1024;

/// Indexes whatever is there to be indexed, one source at a time, until the agent ends.
pub(crate) async fn keep(agent: Arc<Agent>) {
    tokio::select! {
        // The scan that is under way is dropped, and so cancelled.
        () = agent.ending() => {}
        () = follow(&agent) => {}
        () = agent.content.index_all() => {}
    }
}

/// Looks for what is to be indexed, now and then and whenever a VM comes or goes.
async fn follow(agent: &Agent) {
    let mut events = agent.events.listen();
    loop {
        agent.content.look(agent).await;
        let news = async {
            while let Some(event) = events.next().await {
                let matters = matches!(
                    event.kind,
                    EventKind::VmGone { .. }
                        | EventKind::Missed { .. }
                        | EventKind::VmState {
                            state: VmState::Running | VmState::Stopped,
                            ..
                        }
                );
                if matters {
                    return;
                }
            }
            // The agent ends.
            std::future::pending().await
        };
        let _ = tokio::time::timeout(LOOK, news).await;
    }
}

/// Cancels a scan that nobody waits for any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl KnownContent {
    /// Finds out what is to be indexed now, and what need not be any more.
    pub(crate) async fn look(&self, agent: &Agent) {
        let running: Vec<_> = agent
            .registry
            .lock()
            .values()
            .filter_map(|vm| vm.running.clone())
            .collect();
        let mut wanted: BTreeSet<String> = self.images.clone();
        let mut all_told = true;
        for vm in running {
            match storage::of(&vm).await {
                Some(storage) => wanted.extend(storage),
                None => all_told = false,
            }
        }
        let now = Instant::now();
        self.sources.send_if_modified(|sources| {
            let before = sources.clone();
            // What is known may be of a VM that did not tell: a scan of hours is not given up for that.
            sources.retain(|source, _| wanted.contains(source) || !all_told);
            for source in wanted {
                let entry = sources.entry(source).or_insert(Source {
                    state: State::Waiting,
                    digest: None,
                    blocks: 0,
                    updated: None,
                    took: Duration::ZERO,
                });
                if entry.is_due(now) {
                    entry.state = State::Waiting;
                }
            }
            *sources != before
        });
    }

    /// Indexes what waits for it, for ever.
    async fn index_all(self: &Arc<Self>) {
        let mut changes = self.sources.subscribe();
        let next = |sources: &BTreeMap<String, Source>| {
            let mut waiting = sources.iter().filter(|(_, source)| source.state == State::Waiting);
            waiting.next().map(|(name, _)| name.clone())
        };
        let mut first = async || {
            changes
                .wait_for(|sources| next(sources).is_some())
                .await
                .ok()
                .and_then(|now| next(&now))
        };
        while let Some(name) = first().await {
            self.index(name).await;
        }
    }

    /// Brings the index of a source up to date, unless it is of no use any more before that is done.
    async fn index(self: &Arc<Self>, name: String) {
        self.set(&name, |source| source.state = State::Indexing { blocks_done: 0 });
        let began = Instant::now();
        let (tell, told) = oneshot::channel();
        let cancel = CancelOnDrop(Cancel::new());
        // A thread of its own, of low priority, and not one of the runtime's, for it may take hours.
        let started = in_background({
            let (content, name, cancel) = (self.clone(), name.clone(), cancel.0.clone());
            move || {
                // Fails when nobody waits any more.
                let _ = tell.send(content.update(&name, &cancel));
            }
        });
        let updated = async {
            started.map_err(|error| error.to_string())?;
            told.await
                .unwrap_or_else(|_| Err("it panicked, see the agent's log".to_owned()))
        };
        let mut changes = self.sources.subscribe();
        let updated = tokio::select! {
            updated = updated => updated,
            _ = changes.wait_for(|sources| !sources.contains_key(&name)) => return,
        };
        match updated {
            Ok(index) => self.set(&name, |source| {
                source.state = State::Ready;
                source.digest = index.header().digest;
                source.blocks = index.header().blocks;
                source.updated = Some(Instant::now());
                source.took = began.elapsed();
            }),
            Err(why) => {
                tracing::warn!(source = name, why, "no index");
                self.set(&name, |source| source.state = State::Failed(why, Instant::now()));
            }
        }
    }

    fn update(&self, name: &str, cancel: &Cancel) -> Result<Index, String> {
        let blocks = storage::open(name).map_err(|error| format!("it can't be opened: {error}"))?;
        self.set(name, |source| source.blocks = blocks.blocks());
        let options = ScanOptions {
            digest: self.images.contains(name),
            ..self.options.clone()
        };
        let mut told = 0;
        let progress = |blocks_done: u64| {
            if blocks_done >= told + PROGRESS_BLOCKS {
                told = blocks_done;
                self.set(name, |source| {
                    // What was dropped and is wanted again waits for another scan.
                    if matches!(source.state, State::Indexing { .. }) {
                        source.state = State::Indexing { blocks_done };
                    }
                });
            }
        };
        self.indexes
            .update(name, &*blocks, &options, cancel, progress)
            .map_err(|error| error.to_string())
    }

    pub(super) fn set(&self, name: &str, change: impl FnOnce(&mut Source)) {
        self.sources.send_if_modified(|sources| {
            let source = sources.get_mut(name);
            source.map(change).is_some()
        });
    }
}
