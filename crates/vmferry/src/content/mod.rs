//! What this host knows of content outside its guests' memory: what stands on their disks, in the files that they booted from,
//! in images that the operator named.
//!
//! A source refers its pages to blocks that its indexes say have their content; the target reads those blocks for itself. So
//! only the source of a migration needs indexes. They are made in the background, of what the VMs here read.
//!
//! | module | what |
//! |---|---|
//! | [`name`] | what two hosts call the same content |
//! | `storage` | what a VM reads |
//! | `indexer` | keeps the indexes up to date |
//! | `table` | what a migration looks up of them |
//! | [`kept`] | memory that VMs left here |

mod indexer;
pub mod kept;
pub mod name;
mod storage;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch as latest;
use vmferry_content::{BLOCK_BYTES, Blocks, CheckpointFolder, HostKey, IndexError, IndexFolder, ScanOptions};
use vmferry_core::page::BlockTable;

use crate::agent::Config;
use crate::api::types::{IndexState, IndexView};
use crate::vm::RunningVm;
use kept::KeptMemory;
use name::ContentName;

pub(crate) use indexer::keep;

/// How long an index serves before its source is looked at again.
const REFRESH: Duration = Duration::from_secs(30 * 60);
/// And for how many times as long as it took to read that: one that is written without end takes an eighth of the time.
const REST: u32 = 7;

/// The known content of one host.
#[derive(Debug)]
pub struct KnownContent {
    indexes: IndexFolder,
    images: BTreeSet<String>,
    options: ScanOptions,
    /// Memory for all tables of a migration together, bytes.
    tables_bytes_max: u64,
    kept: Option<KeptMemory>,
    sources: latest::Sender<BTreeMap<String, Source>>,
}

/// Something that is indexed, by its path or URI.
#[derive(Debug, Clone, PartialEq)]
struct Source {
    state: State,
    /// Of the index that there is.
    digest: Option<[u8; 32]>,
    blocks: u64,
    updated: Option<Instant>,
    /// What it took then.
    took: Duration,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting,
    Indexing { blocks_done: u64 },
    Ready,
    Failed(String, Instant),
}

impl Source {
    /// Whether it is to be looked at again.
    fn is_due(&self, now: Instant) -> bool {
        let has_passed = |since: Instant, time| now.saturating_duration_since(since) >= time;
        match &self.state {
            State::Ready => self
                .updated
                .is_none_or(|at| has_passed(at, REFRESH.max(self.took * REST))),
            State::Failed(_, at) => has_passed(*at, REFRESH),
            State::Waiting | State::Indexing { .. } => false,
        }
    }
}

/// Content that this host has an index of.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the target calls it, too.
    pub name: ContentName,
    source: String,
    content: Arc<KnownContent>,
    blocks: u64,
}

impl Known {
    /// The table of its blocks; empty if the index is gone meanwhile or can't be used, and then a new one is made for the next
    /// migration. It takes a while for large ones.
    fn table(&self, bytes_max: u64) -> Arc<BlockTable> {
        let index = self.content.indexes.load(&self.source);
        let table = index.and_then(|index| index.map(|index| table::table(&index, bytes_max)).transpose());
        match table {
            Ok(Some(table)) => return Arc::new(table),
            Ok(None) => tracing::warn!(source = self.source, "an index is gone"),
            Err(error) => {
                tracing::warn!(source = self.source, %error, "an index can't be used");
                if let IndexError::Unusable { .. } = error
                    && let Err(error) = self.content.indexes.discard(&self.source)
                {
                    tracing::warn!(source = self.source, %error, "it stays");
                }
            }
        }
        self.content.set(&self.source, |source| source.state = State::Waiting);
        Arc::default()
    }
}

/// The table of each, made one after the other in `bytes_max` bytes of memory for all.
pub fn tables(known: &[&Known], bytes_max: u64) -> Vec<Arc<BlockTable>> {
    let blocks: Vec<u64> = known.iter().map(|known| known.blocks).collect();
    let shares = table::shares(bytes_max, &blocks);
    known
        .iter()
        .zip(shares)
        .map(|(known, share)| known.table(share))
        .collect()
}

impl KnownContent {
    /// As an agent's settings have it.
    ///
    /// # Errors
    /// A folder or the key can't be used; the sentence says what to do.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let folder = config.state_dir.join("content");
        let kept = match config.kept_memory.0 {
            0 => None,
            quota => {
                let key = HostKey::load(&config.kept_memory_key)?;
                let checkpoints = CheckpointFolder::open(folder.join("memory"), key, quota)?;
                Some(KeptMemory::new(checkpoints))
            }
        };
        Ok(Self {
            indexes: IndexFolder::open(folder.join("indexes"), config.index_space.0)?,
            images: config.images.iter().map(|path| path.display().to_string()).collect(),
            options: ScanOptions {
                bytes_per_second: Some(config.index_bandwidth.0),
                digest: false,
            },
            tables_bytes_max: config.index_memory.0,
            kept,
            sources: latest::Sender::new(BTreeMap::new()),
        })
    }

    /// What pages of a VM that runs here may be referred to: what it reads, and images, as far as there are indexes.
    pub async fn of(self: &Arc<Self>, vm: &RunningVm) -> Vec<Known> {
        let storage = storage::of(vm).await.unwrap_or_default();
        let sources = self.sources.borrow();
        let usable = |source: &String| sources.get(source).filter(|known| known.updated.is_some());
        let disks = storage.iter().filter(|source| usable(source).is_some()).map(|source| {
            let name = ContentName::Storage { source: source.clone() };
            (name, source.clone())
        });
        let images = self
            .images
            .iter()
            .filter(|image| !storage.contains(*image))
            .filter_map(|source| {
                let digest = usable(source)?.digest?;
                Some((ContentName::image(&digest), source.clone()))
            });
        let known = |(name, source): (ContentName, String)| Known {
            name,
            blocks: sources.get(&source).map_or(0, |known| known.blocks),
            source,
            content: self.clone(),
        };
        disks.chain(images).map(known).collect()
    }

    /// Memory that the operator allows for all tables of a migration together, bytes.
    pub fn tables_bytes_max(&self) -> u64 {
        self.tables_bytes_max
    }

    /// Opens what a source refers its VM's pages to. It may name what this host's copy of the VM reads itself, and images that
    /// the operator named here; all else stays closed.
    pub async fn open_for(&self, vm: &RunningVm, names: &[ContentName]) -> Vec<Option<Arc<dyn Blocks>>> {
        let storage = storage::of(vm).await.unwrap_or_default();
        let images: BTreeMap<ContentName, String> = {
            let sources = self.sources.borrow();
            let image = |source: &String| Some((ContentName::image(&sources.get(source)?.digest?), source.clone()));
            self.images.iter().filter_map(image).collect()
        };
        let source = |name: &ContentName| match name {
            ContentName::Storage { source } => storage.get(source).cloned(),
            ContentName::Image { .. } => images.get(name).cloned(),
            ContentName::Unknown => None,
        };
        let wanted: Vec<Option<String>> = names.iter().map(source).collect();
        let opened = tokio::task::spawn_blocking(move || {
            let open = |source: String| match storage::open(&source) {
                Ok(blocks) => Some(blocks),
                Err(error) => {
                    tracing::warn!(source, %error, "known content can't be read here");
                    None
                }
            };
            wanted.into_iter().map(|source| source.and_then(open)).collect()
        });
        opened.await.unwrap_or_default()
    }

    /// The memory that VMs left here, if any is kept.
    pub fn kept(&self) -> Option<KeptMemory> {
        self.kept.clone()
    }

    /// What is indexed, and how far it is.
    pub fn views(&self) -> Vec<IndexView> {
        let sources = self.sources.borrow();
        let view = |(name, source): (&String, &Source)| IndexView {
            source: name.clone(),
            is_image: self.images.contains(name),
            state: match &source.state {
                State::Waiting => IndexState::Waiting,
                State::Indexing { .. } => IndexState::Indexing,
                State::Ready => IndexState::Ready,
                State::Failed(..) => IndexState::Failed,
            },
            bytes: source.blocks * BLOCK_BYTES as u64,
            bytes_done: match source.state {
                State::Indexing { blocks_done } => blocks_done * BLOCK_BYTES as u64,
                _ => 0,
            },
            age_s: source.updated.map(|at| at.elapsed().as_secs()),
            reason: match &source.state {
                State::Failed(why, _) => Some(why.clone()),
                _ => None,
            },
        };
        sources.iter().map(view).collect()
    }

    /// Waits until nothing is waiting to be indexed or being so.
    pub async fn settled(&self) {
        let is_settled = |source: &Source| matches!(source.state, State::Ready | State::Failed(..));
        // Ends only with the agent.
        let _ = self
            .sources
            .subscribe()
            .wait_for(|sources| sources.values().all(is_settled))
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_to_read_is_read_less_often() {
        let began = Instant::now();
        let due = |state, took| {
            let source = Source {
                state,
                digest: None,
                blocks: 0,
                updated: Some(began),
                took,
            };
            let mut minutes = (0u64..).map(|minute| minute * 60);
            minutes.find(|after| source.is_due(began + Duration::from_secs(*after)))
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(due(State::Ready, Duration::ZERO), Some(30 * 60));
        assert_eq!(due(State::Ready, hour), Some(7 * 3600));
        assert_eq!(due(State::Failed("it is lost".to_owned(), began), hour), Some(30 * 60));
    }
}
