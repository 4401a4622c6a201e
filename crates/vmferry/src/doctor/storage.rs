//! The state directory's disk, on which each step of a handover waits, and the disks of the VMs here.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use super::{
    Finding,
    mounts::{Mount, Reach},
};
use crate::{
    cli::units::{bytes, milliseconds},
    vm::{
        VmDefinition, VmFolder,
        definition::{CacheMode, Disk},
    },
};

/// Journal records that are synced while a guest is paused (docs/handover.md).
const SYNCS_IN_PAUSE: u32 = 3;
/// Of a pause, what the journal may take before it is worth a word.
const SYNCS_MAX: Duration = Duration::from_millis(50);
/// A record is shorter.
const RECORD_BYTES: usize = 4096;
/// How many are tried; the median counts.
const TRIES: usize = 9;
/// A journal, indexes and VMs' logs come to less.
const FREE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn check(state_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![state(state_dir), room(state_dir)];
    let folders = fs::read_dir(state_dir.join("vms")).into_iter().flatten().flatten();
    for folder in folders {
        let name = folder.file_name().to_string_lossy().into_owned();
        let definition = fs::read(VmFolder::new(state_dir, &name).definition());
        // One that is no definition is the agent's to complain about.
        let definition = definition.ok().and_then(|json| VmDefinition::from_json(&json).ok());
        let disks = definition.into_iter().flat_map(|definition| definition.disk);
        findings.extend(disks.map(|found| disk(&name, &found, &Place::of(&found))));
    }
    findings
}

fn state(path: &Path) -> Finding {
    const CHECK: &str = "state-disk";
    let measured = || Ok::<_, io::Error>((Mount::of(path)?, time_syncs(path)?));
    match measured() {
        Ok((mount, sync)) => weigh_state(path, &mount, sync),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::warning(
            CHECK,
            format!("{} is not there: nothing is known of its disk", path.display()),
            "it is made when the agent starts; check again then",
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("{}: {error}; nothing is known of how fast it syncs", path.display()),
            "run this as root, on a host whose state directory is on a local disk",
        ),
    }
}

fn weigh_state(path: &Path, mount: &Mount, sync: Duration) -> Finding {
    const CHECK: &str = "state-disk";
    let place = format!("{} is on {}", path.display(), mount.kind);
    let kept = "let it be on a local disk (--state-dir)";
    let pause = sync * SYNCS_IN_PAUSE;
    match mount.reach() {
        Reach::Memory => Finding::problem(
            CHECK,
            format!("{place}, which is gone with the power: nobody would know then who has a VM"),
            kept,
        ),
        Reach::Server | Reach::Cluster => Finding::warning(
            CHECK,
            format!("{place}: while that can't be reached, no VM is started or moved"),
            kept,
        ),
        Reach::Host if mount.ignores_syncs() => Finding::problem(
            CHECK,
            format!("{place}, mounted so that syncs are not waited for: a power cut can make a handover unknown"),
            "mount it without nobarrier or barrier=0",
        ),
        Reach::Host if pause > SYNCS_MAX => Finding::warning(
            CHECK,
            format!(
                "{place}, which takes {} for a sync: {} of each guest's pause",
                time(sync),
                time(pause)
            ),
            "let it be on a faster disk (--state-dir), such as one with a cache that outlives a power cut",
        ),
        Reach::Host => Finding::ok(CHECK, format!("{place}, which takes {} for a sync", time(sync))),
    }
}

fn time(time: Duration) -> String {
    milliseconds(time.as_secs_f64() * 1e3)
}

/// As the journal does it: appended, then synced. By a file without a name, of which nothing is left.
fn time_syncs(folder: &Path) -> io::Result<Duration> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?;
    let mut times = Vec::with_capacity(TRIES);
    for _ in 0..TRIES {
        let started = Instant::now();
        rustix::io::write(&file, &[0; RECORD_BYTES])?;
        rustix::fs::fdatasync(&file)?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[TRIES / 2])
}

fn room(path: &Path) -> Finding {
    let free = rustix::fs::statvfs(path).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    match free {
        Ok(free) if free < FREE_BYTES_MIN => Finding::problem(
            "state-room",
            format!(
                "{} has {} left: without room for the journal, nothing is moved",
                path.display(),
                bytes(free)
            ),
            "make room, or give indexes and kept memory less (--index-space, --kept-memory)",
        ),
        Ok(free) => Finding::ok("state-room", format!("{} has {} left", path.display(), bytes(free))),
        Err(error) => Finding::warning(
            "state-room",
            format!("{}: {error}", path.display()),
            "check again as root",
        ),
    }
}

/// What a VM's disk is on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Export,
    BlockDevice,
    On(Mount),
    Unknown(String),
}

impl Place {
    fn of(disk: &Disk) -> Place {
        let Some(path) = &disk.path else { return Place::Export };
        let find = || {
            let is_block = fs::metadata(path)?.file_type().is_block_device();
            Ok::<_, io::Error>(if is_block {
                Place::BlockDevice
            } else {
                Place::On(Mount::of(path)?)
            })
        };
        find().unwrap_or_else(|error| Place::Unknown(error.to_string()))
    }
}

fn disk(vm: &str, disk: &Disk, place: &Place) -> Finding {
    const CHECK: &str = "disk";
    let name = format!("{vm}'s disk {}", disk.id);
    let cached = !disk.cache.is_direct() && !disk.readonly;
    let stale = |place: &str| {
        let mode = match disk.cache {
            CacheMode::Writethrough => "directsync",
            _ => "none",
        };
        Finding::warning(
            CHECK,
            format!(
                "{name} is on {place} and goes through this host's page cache: a host that it comes back to may read what was there before"
            ),
            format!("stop {vm}, write cache = \"{mode}\" for this disk in its definition, and run it again"),
        )
    };
    match place {
        Place::Unknown(why) => Finding::problem(CHECK, format!("{name}: {why}"), "see whether its storage is there"),
        Place::BlockDevice if cached => stale("a block device"),
        Place::On(mount) if cached && mount.reach() == Reach::Server => stale(&mount.kind),
        Place::On(mount) if matches!(mount.reach(), Reach::Host | Reach::Memory) => Finding::warning(
            CHECK,
            format!(
                "{name} is on {} of this host, so {vm} can't be moved to another one",
                mount.kind
            ),
            "put it on storage that the hosts share: NFS, a cluster file system, a block device, NBD",
        ),
        Place::BlockDevice | Place::Export => Finding::ok(
            CHECK,
            format!(
                "{name} is on storage that carries no locks between hosts: only vmferry keeps two copies from writing"
            ),
        ),
        Place::On(mount) => Finding::ok(
            CHECK,
            format!("{name} is on {}, which carries its locks to other hosts", mount.kind),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn mount(kind: &str, options: &str) -> Mount {
        Mount::parse(&format!("1 1 0:1 / / rw - {kind} none {options}")).unwrap()
    }

    #[test]
    fn state_has_to_outlive_a_power_cut_and_be_synced_fast() {
        let of = |kind, options, ms| {
            let found = weigh_state(Path::new("/s"), &mount(kind, options), Duration::from_millis(ms));
            (found.verdict, found.found)
        };
        assert_eq!(of("ext4", "rw", 2).0, Verdict::Ok);
        assert_eq!(of("tmpfs", "rw", 0).0, Verdict::Problem);
        assert_eq!(of("nfs4", "rw", 2).0, Verdict::Warning);
        assert_eq!(of("ext4", "rw,barrier=0", 0).0, Verdict::Problem);
        let (verdict, found) = of("ext4", "rw", 20);
        assert!(verdict == Verdict::Warning && found.contains("60 ms"), "{found}");
    }

    #[test]
    fn syncs_are_timed_and_leave_nothing() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(time_syncs(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(state(&folder.path().join("none")).verdict, Verdict::Warning);
        assert_ne!(room(folder.path()).verdict, Verdict::Warning);
        assert_eq!(room(&folder.path().join("none")).verdict, Verdict::Warning);
    }

    #[test]
    fn a_disk_has_to_be_seen_by_others_as_it_is() {
        let of = |cache, place: &Place| {
            let found = Disk {
                id: "root".to_owned(),
                path: Some("/d".into()),
                nbd: None,
                format: crate::vm::definition::DiskFormat::Raw,
                cache,
                readonly: false,
            };
            disk("web", &found, place)
        };
        let nfs = Place::On(mount("nfs4", "rw"));
        assert_eq!(of(CacheMode::None, &nfs).verdict, Verdict::Ok);
        let stale = of(CacheMode::Writeback, &nfs);
        assert!(stale.verdict == Verdict::Warning && stale.remedy.unwrap().contains("cache = \"none\""));
        assert_eq!(
            of(CacheMode::Writeback, &Place::On(mount("ceph", "rw"))).verdict,
            Verdict::Ok
        );
        assert_eq!(
            of(CacheMode::Writethrough, &Place::BlockDevice).verdict,
            Verdict::Warning
        );
        assert_eq!(of(CacheMode::None, &Place::BlockDevice).verdict, Verdict::Ok);
        assert_eq!(of(CacheMode::Writeback, &Place::Export).verdict, Verdict::Ok);
        assert_eq!(
            of(CacheMode::None, &Place::On(mount("xfs", "rw"))).verdict,
            Verdict::Warning
        );
        assert_eq!(
            of(CacheMode::None, &Place::Unknown("gone".to_owned())).verdict,
            Verdict::Problem
        );
    }
}
