//! Keeps the indexes up to date: of what the VMs on this host read, and of the operator's images.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use vmferry_content::index::in_background;
use vmferry_content::{Cancel, Index, ScanOptions};

use super::{KnownContent, REFRESH, Source, State, storage};
use crate::agent::Agent;
use crate::api::types::{EventKind, VmState};

/// Blocks between two reports of progress: 64 MiB.
const PROGRESS_BLOCKS: u64 = 16 * 1024;

/// Indexes whatever is there to be indexed, one source at a time, as long as the agent lives.
pub(crate) async fn keep(agent: Arc<Agent>) {
    let mut events = agent.events.listen();
    let mut sources = agent.content.sources.subscribe();
    loop {
        agent.content.look(&agent).await;
        while let Some(source) = agent.content.next_waiting() {
            agent.content.index(source).await;
            agent.content.look(&agent).await;
        }
        let news = async {
            while let Some(event) = events.next().await {
                let matters = matches!(
                    event.kind,
                    EventKind::VmGone { .. }
                        | EventKind::Missed { .. }
                        | EventKind::VmState {
                            state: VmState::Running,
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
        // Whoever looks in between, or finds an index unusable, leaves a source waiting.
        let waiting = async {
            let is_waiting = |source: &Source| source.state == State::Waiting;
            // It never fails: this agent has the sender.
            let _ = sources.wait_for(|sources| sources.values().any(is_waiting)).await;
        };
        tokio::select! {
            () = news => {}
            () = waiting => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
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
        for vm in running {
            wanted.extend(storage::of(&vm).await);
        }
        self.sources.send_if_modified(|sources| {
            let before = sources.clone();
            sources.retain(|source, _| wanted.contains(source));
            for source in wanted {
                let entry = sources.entry(source).or_insert(Source {
                    state: State::Waiting,
                    digest: None,
                    blocks: 0,
                    updated: None,
                });
                let looked_at = match entry.state {
                    State::Ready => entry.updated,
                    State::Failed(_, at) => Some(at),
                    State::Waiting | State::Indexing { .. } => continue,
                };
                if looked_at.is_none_or(|at| at.elapsed() >= REFRESH) {
                    entry.state = State::Waiting;
                }
            }
            *sources != before
        });
    }

    fn next_waiting(&self) -> Option<String> {
        let sources = self.sources.borrow();
        let mut waiting = sources.iter().filter(|(_, source)| source.state == State::Waiting);
        waiting.next().map(|(name, _)| name.clone())
    }

    /// Brings the index of a source up to date.
    async fn index(self: &Arc<Self>, name: String) {
        self.set(&name, |source| source.state = State::Indexing { blocks_done: 0 });
        let (tell, told) = oneshot::channel();
        let (content, source) = (self.clone(), name.clone());
        // A thread of its own, of low priority, and not one of the runtime's, for it may take hours.
        let started = in_background(move || {
            // Fails when nobody waits any more, as the agent ends.
            let _ = tell.send(content.update(&source));
        });
        let updated = match started {
            Ok(_) => told
                .await
                .unwrap_or_else(|_| Err("it panicked, see the agent's log".to_owned())),
            Err(error) => Err(error.to_string()),
        };
        match updated {
            Ok(index) => self.set(&name, |source| {
                source.state = State::Ready;
                source.digest = index.digest;
                source.blocks = index.hashes.len() as u64;
                source.updated = Some(Instant::now());
            }),
            Err(why) => {
                tracing::warn!(source = name, why, "no index");
                self.set(&name, |source| source.state = State::Failed(why, Instant::now()));
            }
        }
    }

    fn update(&self, name: &str) -> Result<Index, String> {
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
                self.set(name, |source| source.state = State::Indexing { blocks_done });
            }
        };
        self.indexes
            .update(name, &*blocks, &options, &Cancel::new(), progress)
            .map_err(|error| error.to_string())
    }

    pub(super) fn set(&self, name: &str, change: impl FnOnce(&mut Source)) {
        self.sources.send_if_modified(|sources| {
            let source = sources.get_mut(name);
            source.map(change).is_some()
        });
    }
}
