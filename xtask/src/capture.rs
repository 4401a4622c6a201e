//! `cargo xtask capture`: QEMU's migration stream of a guest at work, kept in a file for the studies of `vmferry-core`.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::Qemu;
use vmferry_qmp::{Capability, EventKind, MigrationStatus, Parameters, Qmp};

use crate::bench::load::{Contents, FILES};
use crate::bench::plan::Workload;
use crate::bench::world::spec;

const BOOT_MAX: Duration = Duration::from_secs(120);
/// Until the last round QEMU must not find that the rest fits.
const DOWNTIME_MIN_MS: u64 = 1;
/// In the last round it must.
const DOWNTIME_MAX_MS: u64 = 600_000;
/// Records that Python changes at a time, and the time between.
const CHANGES: (u64, Duration) = (100, Duration::from_millis(100));

/// What the guest does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Redis and its client, as in the benchmark.
    Redis,
    /// A Python of whose heap a thousand records a second change, beside files in the page cache.
    Python,
    /// The benchmark's counters in each page of a heap.
    Counter,
    /// The benchmark's pages of text that are replaced.
    Text,
}

/// The arguments of `capture`.
#[derive(Args)]
pub(crate) struct CaptureArgs {
    /// What the guest does meanwhile.
    #[arg(value_enum)]
    load: Load,
    /// The file to write [default: target/captures/LOAD.bin].
    #[arg(long)]
    out: Option<PathBuf>,
    /// The rate that QEMU is held to, million bytes of stream a second.
    #[arg(long, default_value_t = 12)]
    mb_per_s: u64,
    /// The guest is stopped when this round begins: it is the last.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..))]
    rounds: u64,
}

impl CaptureArgs {
    fn path(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let name = self.load.to_possible_value();
        let name = name.as_ref().map_or("stream", |value| value.get_name());
        let default = || root.join("target/captures").join(name).with_extension("bin");
        self.out.clone().unwrap_or_else(default)
    }
}

/// Boots the guest, starts its load, and writes what QEMU sends; then the guest runs on, and is checked as the benchmark does.
///
/// # Errors
/// When the guest does not boot, the migration fails, or what the guest holds is not what was written there.
pub(crate) fn run(args: &CaptureArgs) -> Result<()> {
    let path = args.path();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let workload = match args.load {
        Load::Redis => Workload::Redis,
        Load::Python => Workload::PageCache,
        Load::Counter => Workload::Counter,
        Load::Text => Workload::Text,
    };
    let lab = Lab::new()?;
    let spec = spec(workload)?;
    let qemu = Qemu::boot(&lab, Host::A, &spec)?;
    let connect = || Guest::connect(&lab, Host::Client, spec.address(), BOOT_MAX);
    let mut guest = connect()?;
    let mut contents = Contents::fill(&lab, &mut guest, workload)?;
    let mut changes = None;
    if args.load == Load::Python {
        guest.ask(&format!("python {FILES} {}", Workload::PYTHON_BYTES))?;
        changes = Some(Changes::start(connect()?));
    }
    let load = contents.start(&lab, &mut guest)?;

    let bytes = capture(&qemu, &lab.folder().join("capture"), &path, args)?;
    println!("{bytes} bytes in {}", path.display());

    qemu.block_on(qemu.qmp().cont())?;
    if let Some(changes) = changes {
        changes.finish()?;
    }
    contents.stop(&mut guest, load)?;
    contents.check(&lab, &mut guest)
}

/// Migrates the guest into the file at `path`; returns the stream's length.
fn capture(qemu: &Qemu, socket: &Path, path: &Path, args: &CaptureArgs) -> Result<u64> {
    let listener = UnixListener::bind(socket)?;
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let reader = thread::spawn(move || io::copy(&mut listener.accept()?.0, &mut file));
    let uri = format!("unix:{}", socket.display());
    qemu.block_on(migrate(qemu.qmp(), &uri, args))?;
    Ok(reader.join().map_err(|_| anyhow!("the reader panicked"))??)
}

async fn migrate(qmp: &Qmp, uri: &str, args: &CaptureArgs) -> Result<()> {
    let mut events = qmp.events();
    qmp.migrate_set_capabilities(&[(Capability::Events, true)]).await?;
    let limits = |downtime_ms| Parameters {
        max_bandwidth: Some(args.mb_per_s * 1_000_000),
        downtime_limit: Some(downtime_ms),
        ..Parameters::default()
    };
    qmp.migrate_set_parameters(&limits(DOWNTIME_MIN_MS)).await?;
    qmp.migrate(uri).await?;
    loop {
        match events.next().await?.kind {
            EventKind::MigrationPass(round) if round == args.rounds => {
                qmp.migrate_set_parameters(&limits(DOWNTIME_MAX_MS)).await?;
            }
            EventKind::Migration(MigrationStatus::Completed) => return Ok(()),
            EventKind::Migration(MigrationStatus::Failed) => bail!("the migration failed"),
            _ => {}
        }
    }
}

/// What makes Python change its heap.
struct Changes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Changes {
    fn start(mut guest: Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (records, interval) = CHANGES;
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                guest.ask(&format!("python-change {records}"))?;
                thread::sleep(interval);
            }
            Ok(())
        });
        Self { stop, thread }
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("who makes Python change panicked"))?
    }
}
