//! What a migration asks of QEMU over QMP.

use std::path::Path;
use std::time::Duration;

use vmferry_dataplane::guest_memory::{GuestMemory, HostBlock};
use vmferry_qmp::{Capability, Error, MigrationStatus, Parameters, Qmp, RunState};

use crate::vm::RunningVm;

/// `downtime-limit` while the guest has to go on, ms: QEMU then stops it only when as good as nothing is left. Never 0,
/// at which QEMU stops after the first pass, however much is left.
const DOWNTIME_LIMIT_HELD_MS: u64 = 1;
/// `downtime-limit` that lets QEMU stop at its next look, ms: the largest that it takes.
const DOWNTIME_LIMIT_RELEASED_MS: u64 = 2_000_000;
/// How long a QEMU may take to let its guest go on after its migration was ended.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
/// How long a QEMU may be silent before its migration's socket is shut down out of band.
const YANK_AFTER: Duration = Duration::from_secs(3);
/// Pause between two looks at a state that QEMU tells by no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Announcements of a guest's new place, and the first pause between two of them, ms (QEMU's own defaults).
const ANNOUNCEMENTS: (u32, u32) = (5, 50);

/// Why a migration can't be verified where [`guest_memory`] is none.
pub(super) const UNVERIFIABLE: &str = "this host's agent can't read its guests' memory, so it can't be verified: let it \
    trace QEMU (CAP_SYS_PTRACE), or migrate without --verify";

/// Has QEMU migrate into the socket at `path`, held back from stopping its guest.
pub(super) async fn begin(qmp: &Qmp, path: &Path) -> Result<(), Error> {
    qmp.migrate_set_capabilities(&[
        (Capability::Events, true),
        (Capability::ReturnPath, true),
        (Capability::PostcopyRam, false),
    ])
    .await?;
    qmp.migrate_set_parameters(&Parameters {
        // The lanes' back-pressure is the limit; QEMU's own would be counted uncompressed.
        max_bandwidth: Some(0),
        downtime_limit: Some(DOWNTIME_LIMIT_HELD_MS),
        ..Parameters::default()
    })
    .await?;
    qmp.migrate(&format!("unix:{}", path.display())).await
}

/// Lets QEMU stop its guest at its next chance.
pub(super) async fn let_stop(qmp: &Qmp) -> Result<(), Error> {
    let parameters = Parameters {
        downtime_limit: Some(DOWNTIME_LIMIT_RELEASED_MS),
        ..Parameters::default()
    };
    qmp.migrate_set_parameters(&parameters).await
}

/// Has a QEMU that was started for it wait for its stream on the socket at `path`, paused after loading.
pub(super) async fn await_stream(qmp: &Qmp, path: &Path) -> Result<(), Error> {
    let has = qmp.query_migrate_capabilities().await?;
    let late = has
        .iter()
        .any(|(capability, _)| *capability == Capability::LateBlockActivate);
    // With post-copy QEMU empties its guest's memory when the stream says so, which may be after pages were placed there.
    let mut capabilities = vec![(Capability::Events, true), (Capability::PostcopyRam, false)];
    if late {
        // Before 10.0 a paused target would take the disks' locks at the end of loading.
        capabilities.push((Capability::LateBlockActivate, true));
    }
    qmp.migrate_set_capabilities(&capabilities).await?;
    let uri = format!("unix:{}", path.display());
    // One that stays when its agent ends, and its stream with it, still has the guest's memory: the next agent keeps that.
    match qmp.migrate_incoming(&uri, true).await {
        Err(Error::Refused { .. }) => qmp.migrate_incoming(&uri, false).await,
        waits => waits,
    }
}

/// Waits until the source's QEMU, given its SHUT, is in `postmigrate`; `false` if its migration failed instead.
pub(super) async fn reaches_postmigrate(qmp: &Qmp) -> Result<bool, Error> {
    loop {
        match qmp.query_status().await?.status {
            RunState::PostMigrate => return Ok(true),
            RunState::FinishMigrate => tokio::time::sleep(LOOK_AGAIN).await,
            _ => return Ok(false),
        }
    }
}

/// Ends whatever migration there is, and sees that the guest runs. The migration's socket has to be closed before: a
/// QEMU that is writing to it answers nobody.
pub(super) async fn resume(vm: &RunningVm) -> Result<(), String> {
    let anew = match vm.qmp.is_closed() {
        true => Some(reconnect(vm).await?),
        false => None,
    };
    let qmp = anew.as_ref().unwrap_or(&vm.qmp);
    if let Ok(resumed) = tokio::time::timeout(YANK_AFTER, cancel_and_run(qmp)).await {
        return resumed.map_err(|error| error.to_string());
    }
    // Its main loop hangs on the migration's socket: shut that down out of band.
    let yanked = match Qmp::connect(vm.folder.qmp_out_of_band()).await {
        Ok(out_of_band) => out_of_band.yank_migration().await,
        Err(error) => Err(error),
    };
    match tokio::time::timeout(RESUME_LIMIT, cancel_and_run(qmp)).await {
        Ok(resumed) => resumed.map_err(|error| error.to_string()),
        Err(_) => Err(format!(
            "QEMU did not let its guest go on within {RESUME_LIMIT:?} (yank: {yanked:?})"
        )),
    }
}

async fn cancel_and_run(qmp: &Qmp) -> Result<(), Error> {
    qmp.migrate_cancel().await?;
    loop {
        match qmp.query_status().await?.status {
            RunState::Running => return Ok(()),
            RunState::PostMigrate => qmp.cont().await?,
            RunState::Paused if is_over(qmp).await? => qmp.cont().await?,
            _ => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// A connection of its own to a QEMU whose monitor broke.
async fn reconnect(vm: &RunningVm) -> Result<Qmp, String> {
    match tokio::time::timeout(RESUME_LIMIT, Qmp::connect(vm.folder.qmp())).await {
        Ok(connected) => connected.map_err(|error| format!("its monitor broke: {error}")),
        Err(_) => Err(format!(
            "its monitor broke, and it greets nobody within {RESUME_LIMIT:?}"
        )),
    }
}

async fn is_over(qmp: &Qmp) -> Result<bool, Error> {
    let status = qmp.query_migrate().await?.status;
    Ok(matches!(
        status,
        None | Some(MigrationStatus::None | MigrationStatus::Failed | MigrationStatus::Cancelled)
    ))
}

/// Tells the guest's networks where it is now.
pub(super) async fn announce(qmp: &Qmp) {
    let (rounds, step_ms) = ANNOUNCEMENTS;
    if let Err(error) = qmp.announce_self(rounds, step_ms).await {
        // The guest's own traffic will tell them.
        tracing::warn!(%error, "announce-self");
    }
}

/// The guest's memory, if this process may read it and QEMU says where it is.
pub(super) async fn guest_memory(vm: &RunningVm) -> Option<GuestMemory> {
    let blocks = vm.qmp.ram_blocks().await.ok()?;
    let host = blocks.into_iter().filter_map(|block| {
        Some(HostBlock {
            name: block.name,
            address: block.host_address?,
            bytes: block.total_bytes,
        })
    });
    let pid = u32::try_from(vm.process.pid()).ok()?;
    match GuestMemory::open(pid, host.collect()) {
        Ok(memory) => Some(memory),
        Err(error) => {
            tracing::info!(%error, vm = vm.definition.name, "the guest's memory can't be read from outside");
            None
        }
    }
}
