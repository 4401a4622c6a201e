//! Disks that both hosts share: what the guest was told is on them is on them, once, and the file system is clean.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use vmferry_e2e::api::{Next, Stream};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::image::{ext4_disk, fsck, qcow2_of};
use vmferry_e2e::nbd::NbdExport;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Disk, Spec};
use vmferry_e2e::scenario::{BOOT_MAX, Scenario, address, ensure_alive, small_guest};

const LOG: &str = "/disk/log";
const DISK_BYTES: u64 = 64 << 20;

/// Appends synced records over one connection until told to stop.
struct Appender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Appender {
    fn start(mut guest: Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut acknowledged = 0;
            while !stopped.load(Ordering::Relaxed) {
                acknowledged = guest.ask_number(&format!("disk-write {LOG} 2"), "acknowledged")?;
            }
            Ok(acknowledged)
        });
        Self { stop, thread }
    }

    /// Ends after the records under way, and says how many were acknowledged.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the appender panicked"))?
    }
}

fn disk(file: String, format: &str) -> Disk {
    Disk {
        file,
        format: format.to_owned(),
        read_only: false,
        mount: "/disk".to_owned(),
    }
}

/// A -> B -> A while records are appended; then the guest powers off, and the disk is free.
fn there_and_back_while_appending(lab: &Lab, spec: &Spec) -> Result<u64> {
    let scenario = Scenario::set_up(lab)?;
    let mut guest = scenario.run(Host::A, "db", spec)?;
    guest.ask("fill text 16777216")?;
    let appender = Appender::start(Guest::connect(lab, Host::Client, spec.address(), BOOT_MAX)?);
    let mut before = guest.ask_number(&format!("disk-check {LOG}"), "records").unwrap_or(0);
    for (from, to, on_a, on_b) in [
        (Host::A, Host::B, &[][..], &["db"][..]),
        (Host::B, Host::A, &["db"], &[]),
    ] {
        scenario.moves("db", from, to, &[])?;
        scenario.settles(on_a, on_b)?;
        ensure_alive(&mut guest)?;
        let now = guest
            .ask_number(&format!("disk-write {LOG}.other 1"), "acknowledged")
            .and_then(|_| records(&mut guest))?;
        assert!(now > before, "nothing was appended during the migration");
        before = now;
    }
    let acknowledged = appender.finish()?;
    assert_eq!(records(&mut guest)?, acknowledged);

    let mut events = Stream::open(&scenario.a.socket(), "/v1/events")?;
    guest.power_off()?;
    loop {
        match events.next(BOOT_MAX)? {
            Next::Object(event) if event["state"] == "stopped" => break,
            Next::Object(_) => {}
            other => panic!("the guest does not power off: {other:?}"),
        }
    }
    scenario.a.cli(["stop", "db"])?.success()?;
    Ok(acknowledged)
}

fn records(guest: &mut Guest) -> Result<u64> {
    guest.ask_number(&format!("disk-check {LOG}"), "records")
}

/// A guest that was never moved reads the disk back.
fn check_afterwards(lab: &Lab, spec: &Spec, acknowledged: u64) -> Result<()> {
    let mut qemu = vmferry_e2e::qemu::Qemu::boot(lab, Host::B, spec)?;
    let mut guest = Guest::connect(lab, Host::Client, spec.address(), BOOT_MAX)?;
    assert_eq!(records(&mut guest)?, acknowledged);
    guest.power_off()?;
    qemu.wait()
}

#[test]
fn a_shared_file_keeps_every_acknowledged_record_once() -> Result<()> {
    let lab = Lab::new()?;
    let (raw, path) = (lab.folder().join("disk.raw"), lab.folder().join("disk.qcow2"));
    ext4_disk(&raw, DISK_BYTES, None)?;
    qcow2_of(&raw, &path)?;
    let spec = small_guest(0, vec![disk(path.display().to_string(), "qcow2")])?;
    let acknowledged = there_and_back_while_appending(&lab, &spec)?;
    fsck(&path, "qcow2")?;
    check_afterwards(&lab, &spec, acknowledged)
}

#[test]
fn an_nbd_export_keeps_every_acknowledged_record_once() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.folder().join("disk.raw");
    ext4_disk(&path, DISK_BYTES, None)?;
    let export = NbdExport::start(&lab, Path::new(&path), "raw", 10809)?;
    let spec = small_guest(0, vec![disk(export.uri(), "raw")])?;
    let acknowledged = there_and_back_while_appending(&lab, &spec)?;
    check_afterwards(&lab, &spec, acknowledged)?;
    export.stop()?;
    fsck(&path, "raw")
}

/// The target looks at the disk only once the guest's journal has gone through every block that the source sampled in it.
#[test]
fn a_disk_that_its_guest_writes_to_between_both_hosts_looks_is_compared_again() -> Result<()> {
    const RECORDS: u64 = 600;
    let lab = Lab::new()?;
    let path = lab.folder().join("disk.raw");
    ext4_disk(&path, DISK_BYTES, None)?;
    let export = NbdExport::start(&lab, &path, "raw", 10809)?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = scenario.run(Host::A, "db", &small_guest(0, vec![disk(export.uri(), "raw")])?)?;
    // Without any content there is nothing to tell the disk by.
    guest.ask_number(&format!("disk-write {LOG} {RECORDS}"), "acknowledged")?;

    let target = scenario.b.pid().and_then(|pid| Pid::from_raw(pid as i32));
    let target = target.ok_or_else(|| anyhow!("host-b has no agent"))?;
    let mut events = Stream::open(&scenario.a.socket(), "/v1/events")?;
    kill_process(target, Signal::STOP)?;
    let mut moves = scenario
        .a
        .command(["migrate", "db", "--to", &address(Host::B)])
        .spawn()?;
    while !matches!(events.next(BOOT_MAX)?, Next::Object(event) if event["type"] == "migration-started") {}
    // The source has its description ready when it waits for the target's hello.
    let written = guest.ask_number(&format!("disk-write {LOG} {RECORDS}"), "acknowledged");
    kill_process(target, Signal::CONT)?;
    written?;
    assert!(moves.wait()?.success());
    scenario.settles(&[], &["db"])?;
    let log = fs::read_to_string(scenario.b.log())?;
    assert!(log.contains("disks were written to while they were compared"), "{log}");
    assert_eq!(records(&mut guest)?, 2 * RECORDS);
    guest.power_off()
}
