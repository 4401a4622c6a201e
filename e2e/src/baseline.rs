//! QEMU's own migrations, tuned fairly and measured, to stand beside vmferry's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmferry_qmp::{Capability, EventKind, Events, MigrationStatus, Parameters};

use crate::net::{Host, Lab};
use crate::qemu::Qemu;
use crate::usage::{Cpu, peak_memory_bytes};

const PORT: u16 = 4444;
/// As large as the largest of the benchmark's guests: every page that is dirtied again is found there. QEMU's default is
/// 64 MiB; it takes memory only for pages that it holds.
const XBZRLE_CACHE_BYTES: u64 = 1 << 30;

/// How QEMU migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One stream, pages as they are.
    Plain,
    /// One stream, pages sent before as differences.
    Xbzrle,
    /// Two streams, one a core of the benchmark's machine, zstd at level 1.
    MultifdZstd,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Xbzrle, Self::MultifdZstd];

    /// The mode's name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Xbzrle => "xbzrle",
            Self::MultifdZstd => "multifd-zstd",
        }
    }

    fn capabilities(self) -> Vec<(Capability, bool)> {
        vec![
            (Capability::Events, true),
            (Capability::Xbzrle, self == Self::Xbzrle),
            (Capability::Multifd, self == Self::MultifdZstd),
        ]
    }

    fn parameters(self) -> Parameters {
        let mut parameters = Parameters {
            max_bandwidth: Some(0),
            downtime_limit: Some(300),
            ..Parameters::default()
        };
        match self {
            Self::Plain => {}
            Self::Xbzrle => parameters.xbzrle_cache_size = Some(XBZRLE_CACHE_BYTES),
            Self::MultifdZstd => {
                parameters.multifd_channels = Some(channels());
                parameters.multifd_compression = Some("zstd".to_owned());
                parameters.multifd_zstd_level = Some(1);
            }
        }
        parameters
    }
}

/// Connections and threads of multifd: as many as vmferry has lanes, one a processor; QEMU's own default is two.
fn channels() -> u8 {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    processors.clamp(2, 8) as u8
}

/// A migration's figures.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Whether it completed; else it was cancelled when its time was up and the guest runs at the
    /// source.
    pub completed: bool,
    /// From the command to the guest running at the target, or to the cancellation.
    pub total: Duration,
    /// How long the guest was stopped by QEMU's own account.
    pub downtime: Duration,
    /// Bytes that the source's host sent to the switch meanwhile, whatever they were.
    pub link_bytes: u64,
    /// Processor time of both QEMUs meanwhile.
    pub cpu: Cpu,
    /// Peak resident memory of both QEMUs added up, bytes.
    pub peak_memory_bytes: u64,
    /// Passes over memory.
    pub rounds: u64,
}

/// Migrates the guest of `source` on host A to `target` (from [`Qemu::await_guest`]) on host B, or
/// the other way when `from` is [`Host::B`]. Cancels when it takes longer than `time_max`.
///
/// # Errors
/// When a QEMU refuses or the migration fails.
pub fn migrate(lab: &Lab, from: Host, source: &Qemu, target: &Qemu, mode: Mode, time_max: Duration) -> Result<Figures> {
    let to = match from {
        Host::A => Host::B,
        Host::B => Host::A,
        Host::Storage | Host::Client => bail!("no guests run on {}", from.name()),
    };
    let uri = format!("tcp:{}:{PORT}", to.address());
    for qemu in [source, target] {
        qemu.block_on(async {
            qemu.qmp().migrate_set_capabilities(&mode.capabilities()).await?;
            qemu.qmp().migrate_set_parameters(&mode.parameters()).await
        })?;
    }
    target.block_on(target.qmp().migrate_incoming(&uri, false))?;

    let link_before = lab.tx_bytes(from)?;
    let cpu_before = (Cpu::of(source.pid())?, Cpu::of(target.pid())?);
    let mut source_events = source.qmp().events();
    let mut target_events = target.qmp().events();
    let started = Instant::now();
    let completed = source.block_on(async {
        source.qmp().migrate(&uri).await?;
        let outcome = tokio::time::timeout(time_max, finished(&mut source_events)).await;
        let Ok(status) = outcome else {
            source.qmp().migrate_cancel().await?;
            return Ok(finished(&mut source_events).await? == MigrationStatus::Completed);
        };
        match status? {
            MigrationStatus::Completed => Ok(true),
            status => {
                let why = source.qmp().query_migrate().await?.error_desc;
                bail!("{status:?}: {}", why.unwrap_or_default());
            }
        }
    });
    let completed = completed.with_context(|| format!("QEMU's {} migration", mode.name()))?;
    if completed {
        target.block_on(running(&mut target_events))?;
    }
    let total = started.elapsed();

    let info = source.block_on(source.qmp().query_migrate())?;
    // A target whose migration was cancelled has ended.
    let target_cpu = Cpu::of(target.pid()).unwrap_or(cpu_before.1) - cpu_before.1;
    let source_cpu = Cpu::of(source.pid())? - cpu_before.0;
    Ok(Figures {
        completed,
        total,
        downtime: Duration::from_millis(info.downtime.unwrap_or(0)),
        link_bytes: lab.tx_bytes(from)? - link_before,
        cpu: Cpu {
            total: source_cpu.total + target_cpu.total,
            vcpus: source_cpu.vcpus + target_cpu.vcpus,
        },
        peak_memory_bytes: peak_memory_bytes(source.pid())? + peak_memory_bytes(target.pid()).unwrap_or(0),
        rounds: info.ram.map_or(0, |ram| ram.dirty_sync_count),
    })
}

/// Awaits the end of the migration, whichever it is.
async fn finished(events: &mut Events) -> Result<MigrationStatus> {
    loop {
        if let EventKind::Migration(status) = events.next().await?.kind
            && matches!(
                status,
                MigrationStatus::Completed | MigrationStatus::Failed | MigrationStatus::Cancelled
            )
        {
            return Ok(status);
        }
    }
}

/// Awaits the guest's start.
async fn running(events: &mut Events) -> Result<()> {
    while events.next().await?.kind != EventKind::Resume {}
    Ok(())
}
