//! Waiting for the step of a migration at which a fault is to come.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use vmferry_e2e::migration::Migration;

use super::plan::{Side, Step};

/// The longest wait for a step of a migration that is under way.
const REACHED_MAX: Duration = Duration::from_secs(60);

/// Both agents' journals, watched from before a migration on.
pub(crate) struct Journals {
    source: Watched,
    target: Watched,
}

impl Journals {
    /// Watches the journals in these state folders from here on.
    pub(crate) fn watch(source: &Path, target: &Path) -> Result<Self> {
        Ok(Self {
            source: Watched::open(source)?,
            target: Watched::open(target)?,
        })
    }

    /// Waits for `step` of the migration; `false` if it ends or is stuck before.
    pub(crate) fn reach(&self, step: Step, migration: &mut Migration) -> Result<bool> {
        let (side, record) = match step {
            // A migration that ends before says so as an error; whatever else is wrong with it shows when the run is judged.
            Step::PreCopy => {
                let crossing = migration.until("its pre-copy", |progress| {
                    progress["stage"] == "precopy" && progress["wire_bytes"].as_u64() > Some(0)
                });
                return Ok(crossing.is_ok());
            }
            Step::SecondRound => {
                let second = migration.until("its second round", |progress| progress["round"].as_u64() >= Some(2));
                return Ok(second.is_ok());
            }
            Step::StopAndCopy => {
                let stop = migration.until("its guest's stop", |progress| progress["stage"] == "stop-and-copy");
                return Ok(stop.is_ok());
            }
            Step::Offered => (Side::Source, "offered"),
            Step::Prepared => (Side::Target, "prepared"),
            Step::Released => (Side::Source, "released"),
            Step::Owned => (Side::Target, "owned"),
            Step::TakenOver => (Side::Target, "taken-over"),
        };
        let started = Instant::now();
        while started.elapsed() < REACHED_MAX {
            if self.has(side, record)? {
                return Ok(true);
            }
            if self.has(Side::Source, "rolled-back")? || self.has(Side::Source, "handed-over")? {
                return Ok(false);
            }
            self.changed()?;
        }
        Ok(false)
    }

    /// Whether the journal of `side` has the handover's record `name` since it is watched.
    pub(crate) fn has(&self, side: Side, name: &str) -> Result<bool> {
        match side {
            Side::Source => self.source.has(name),
            Side::Target => self.target.has(name),
        }
    }

    /// Waits until either journal is written to, or for a moment.
    fn changed(&self) -> Result<()> {
        let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut watched = [&self.source, &self.target].map(|journal| PollFd::new(&journal.events, PollFlags::IN));
        poll(&mut watched, Some(&moment))?;
        self.source.forget_events();
        self.target.forget_events();
        Ok(())
    }
}

struct Watched {
    events: OwnedFd,
    journal: File,
    /// Its length when the watch began.
    from: u64,
}

impl Watched {
    fn open(state: &Path) -> Result<Self> {
        let path = state.join("journal");
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        add_watch(&events, &path, WatchFlags::MODIFY).with_context(|| format!("watching {}", path.display()))?;
        let journal = File::open(&path)?;
        let from = journal.metadata()?.len();
        Ok(Self { events, journal, from })
    }

    fn has(&self, name: &str) -> Result<bool> {
        let end = self.journal.metadata()?.len();
        let mut written = vec![0; usize::try_from(end.saturating_sub(self.from))?];
        self.journal.read_exact_at(&mut written, self.from)?;
        let words = format!("\"record\":\"{name}\"").into_bytes();
        Ok(written.windows(words.len()).any(|window| window == words))
    }

    fn forget_events(&self) {
        let mut room = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(&self.events, &mut room);
        while events.next().is_ok() {}
    }
}
