//! One migration, captured by a reader that answers as a target's QEMU does.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vmferry_core::qemu::return_path;
use vmferry_qmp::{Capability, EventKind, MigrationStatus, Parameters};

use crate::source::{PATIENCE, Source};

/// Passes after which pages have been sent, cached and sent again as deltas.
const XBZRLE_PASSES: u64 = 5;
/// Bytes per second that leave time for what must happen during the first pass.
const SLOW_BYTES_PER_S: u64 = 16 << 20;

/// What is special about a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Precopy,
    /// Slow enough for the guest to hint its free pages.
    Slow,
    /// Deltas of QEMU's own, of pages that the guest dirties all the while.
    Xbzrle,
    /// With a disk's dirty bitmap.
    DirtyBitmaps,
    /// With the machine's UUID in the configuration.
    Uuid,
    /// Switched to post-copy at once; the guest is not run again.
    Postcopy,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    pub(crate) kind: Kind,
    return_path: bool,
}

impl Migration {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            return_path: false,
        }
    }

    pub(crate) const fn with_return_path(self) -> Self {
        Self {
            return_path: true,
            ..self
        }
    }

    fn answers(self) -> bool {
        self.return_path || self.kind == Kind::Postcopy
    }

    fn capabilities(self, on: bool) -> Vec<(Capability, bool)> {
        let special: &[&str] = match self.kind {
            Kind::Precopy | Kind::Slow => &[],
            Kind::Xbzrle => &["xbzrle"],
            Kind::DirtyBitmaps => &["dirty-bitmaps"],
            Kind::Uuid => &["validate-uuid"],
            Kind::Postcopy => &["postcopy-ram"],
        };
        let mut capabilities = vec![
            (Capability::Events, on),
            (Capability::ReturnPath, on && self.return_path),
        ];
        capabilities.extend(special.iter().map(|name| (Capability::from(*name), on)));
        capabilities
    }
}

/// A captured stream, and what QEMU says about it.
pub(crate) struct Capture {
    pub(crate) kind: Kind,
    pub(crate) stream: Vec<u8>,
    /// Pages sent whole (`normal`).
    pub(crate) pages: u64,
    /// Zero pages sent (`duplicate`).
    pub(crate) zeros: u64,
    /// Bytes of pages sent as deltas (`xbzrle-cache.bytes`), without the words in front of them. QEMU's count of the
    /// pages themselves has those in it that turned out unchanged and were not sent.
    pub(crate) delta_bytes: u64,
}

impl Source {
    /// Migrates the guest to a reader, then lets it run on here.
    pub(crate) fn capture(&self, migration: &Migration) -> Result<Capture> {
        let path = self.folder.path().join("migration");
        let listener = UnixListener::bind(&path)?;
        let answers = migration.answers();
        let reader = thread::spawn(move || read_stream(&listener, answers));
        if migration.kind == Kind::Xbzrle {
            self.guest("dirty counter 4194304 40000000")?;
        }
        let uri = format!("unix:{}", path.display());
        let patient = async { tokio::time::timeout(PATIENCE, self.migrate(migration, &uri)).await };
        let info = self
            .runtime
            .block_on(patient)
            .with_context(|| format!("{migration:?} did not end"))?
            .with_context(|| format!("{migration:?}"))?;
        let stream = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        std::fs::remove_file(&path)?;
        if migration.kind == Kind::Xbzrle {
            self.guest("stop-dirty")?;
        }
        let count = |pointer| info.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        Ok(Capture {
            kind: migration.kind,
            stream,
            pages: count("/ram/normal"),
            zeros: count("/ram/duplicate"),
            delta_bytes: count("/xbzrle-cache/bytes"),
        })
    }

    async fn migrate(&self, migration: &Migration, uri: &str) -> Result<Value> {
        let qmp = &self.qmp;
        let mut events = qmp.events();
        qmp.migrate_set_capabilities(&migration.capabilities(true)).await?;
        let mut parameters = Parameters {
            max_bandwidth: Some(0),
            downtime_limit: Some(300),
            ..Parameters::default()
        };
        match migration.kind {
            Kind::Slow => parameters.max_bandwidth = Some(SLOW_BYTES_PER_S),
            // It does not converge until it is told to.
            Kind::Xbzrle => {
                parameters.max_bandwidth = Some(SLOW_BYTES_PER_S);
                parameters.downtime_limit = Some(1);
            }
            Kind::DirtyBitmaps => {
                let bitmap = json!({ "node": "disk0", "name": "changes" });
                qmp.execute("block-dirty-bitmap-add", bitmap).await?;
            }
            Kind::Precopy | Kind::Uuid => {}
            // The first pass must not be over before the switch.
            Kind::Postcopy => parameters.max_bandwidth = Some(SLOW_BYTES_PER_S),
        }
        qmp.migrate_set_parameters(&parameters).await?;
        qmp.migrate(uri).await?;
        let mut completed = false;
        let mut stopped = false;
        // With a return path, the event that it is completed comes before the run state says so.
        while !completed || !stopped {
            match events.next().await?.kind {
                EventKind::MigrationPass(1) if migration.kind == Kind::Postcopy => {
                    qmp.execute("migrate-start-postcopy", Value::Null).await?;
                }
                EventKind::MigrationPass(XBZRLE_PASSES) if migration.kind == Kind::Xbzrle => {
                    let converge = Parameters {
                        downtime_limit: Some(10_000),
                        ..Parameters::default()
                    };
                    qmp.migrate_set_parameters(&converge).await?;
                }
                EventKind::Migration(MigrationStatus::Completed) => completed = true,
                EventKind::Migration(MigrationStatus::Failed) => bail!("it failed"),
                EventKind::Stop => stopped = true,
                _ => {}
            }
        }
        let info = qmp.execute("query-migrate", Value::Null).await?;
        if migration.kind != Kind::Postcopy {
            self.run_on().await?;
            qmp.migrate_set_capabilities(&migration.capabilities(false)).await?;
        }
        Ok(info)
    }

    /// Resumes the guest. `completed` comes an instant before the run state in which `cont` is allowed.
    async fn run_on(&self) -> Result<()> {
        while self.qmp.cont().await.is_err() {
            let status = self.qmp.query_migrate().await?.status;
            ensure!(
                status == Some(MigrationStatus::Completed),
                "the guest cannot go on: {status:?}"
            );
        }
        Ok(())
    }
}

/// Reads a stream to its end; if the source waits for an answer there, says that everything is loaded.
fn read_stream(listener: &UnixListener, answers: bool) -> Result<Vec<u8>> {
    let (mut socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = Vec::new();
    let mut piece = vec![0; 256 * 1024];
    let mut parser = Follower::default();
    loop {
        let read = match socket.read(&mut piece) {
            Ok(0) => return Ok(stream),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading the stream"),
        };
        stream.extend_from_slice(&piece[..read]);
        if answers {
            parser.answer(&stream, &mut socket)?;
        }
    }
}

/// Finds where a stream's end is, which nothing announces: the source only waits there.
#[derive(Default)]
struct Follower {
    parser: vmferry_core::qemu::Parser,
    postcopy: bool,
    shut: bool,
}

impl Follower {
    fn answer(&mut self, stream: &[u8], socket: &mut UnixStream) -> Result<()> {
        use vmferry_core::qemu::{Item, Mark};
        while !self.parser.is_opaque() {
            let front = usize::try_from(self.parser.position())?;
            match self.parser.next(&stream[front..]) {
                Some((_, Item::Mark(Mark::Blocks))) => socket.write_all(&return_path::pong(1))?,
                Some((_, Item::Mark(Mark::Postcopy))) => self.postcopy = true,
                Some(_) => {}
                None => return Ok(()),
            }
        }
        let tail = &stream[usize::try_from(self.parser.position())?..];
        let ended = if self.postcopy {
            tail == [0]
        } else {
            ends_with_description(tail)
        };
        if ended && !self.shut {
            self.shut = true;
            socket.write_all(&return_path::shut(0))?;
        }
        Ok(())
    }
}

/// Whether the device tail ends with all of QEMU's description of it: an end mark (0), its type (6), its length, JSON.
fn ends_with_description(tail: &[u8]) -> bool {
    const HEAD_BYTES: usize = 6;
    tail.ends_with(b"}")
        && tail.windows(HEAD_BYTES).enumerate().any(|(at, head)| {
            let json_bytes = (tail.len() - at - HEAD_BYTES) as u32;
            head.starts_with(&[0, 6])
                && head.ends_with(&json_bytes.to_be_bytes())
                && tail[at + HEAD_BYTES..].starts_with(b"{")
        })
}
