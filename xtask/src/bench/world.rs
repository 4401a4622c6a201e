//! One guest, what it does, and one measured move of it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::guest::{Guest, Ticks};
use vmferry_e2e::image::{Extras, image, page_cache_disk};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Disk, Spec};

use super::load::{Contents, FILES};
use super::mode::Mode;
use super::movers::{Moved, Mover};
use super::plan::{Link, Workload};
use super::results::{Run, Status};
use super::usage::{Observer, Watch};

const BOOT_MAX: Duration = Duration::from_secs(120);
const TICK_INTERVAL: Duration = Duration::from_millis(1);

/// What a move takes beside the guest's memory at the target: agents, QEMU itself, files.
const MEMORY_BESIDE_MIB: u32 = 512;

/// A virtual machine gives memory that it left unused for two seconds back to its host (free page reporting), and whoever then
/// uses it waits for the host, many times as long as for memory that was used a moment ago. How long before a move
/// which other process ended should not decide what the move costs, so each one finds as much memory as it takes used a
/// moment ago: by a QEMU that takes it the way a guest's QEMU does, and ends.
fn have_memory_at_hand(mib: u32) -> Result<()> {
    let memory = format!("memory-backend-ram,id=memory,size={mib}M,prealloc=on");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "none", "-nodefaults", "-display", "none"])
        .args(["-object", &memory, "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let told = qemu
        .stdin
        .take()
        .map_or(Ok(()), |mut monitor| monitor.write_all(b"quit\n"));
    let ended = qemu.wait()?;
    told?;
    ensure!(
        ended.success(),
        "the QEMU that was to use {mib} MiB of memory ended with {ended}"
    );
    Ok(())
}

/// The machine that `workload` runs on.
pub(crate) fn spec(workload: Workload) -> Result<Spec> {
    let image = image(if workload.has_redis() {
        Extras::Redis
    } else {
        Extras::None
    })?;
    let mut disks = Vec::new();
    if workload.has_files() {
        disks.push(Disk {
            file: page_cache_disk(Workload::PAGE_CACHE_BYTES)?.display().to_string(),
            format: "raw".to_owned(),
            read_only: true,
            mount: FILES.to_owned(),
        });
    }
    Ok(Spec {
        accel: Accel::probed(&image)?,
        image,
        memory_mib: workload.memory_mib(),
        vcpus: 1,
        index: 0,
        disks,
    })
}

/// A guest with its workload on hosts of its own.
pub(crate) struct World<'lab> {
    lab: &'lab Lab,
    workload: Workload,
    mover: Mover<'lab>,
    guest: Guest,
    contents: Contents,
    at: Host,
}

impl<'lab> World<'lab> {
    /// A guest that vmferry, release build `binary`, moves, by agents with these options.
    pub(crate) fn of_vmferry(
        lab: &'lab Lab,
        workload: Workload,
        binary: &Path,
        agent_options: &[&str],
    ) -> Result<Self> {
        let spec = spec(workload)?;
        let mover = Mover::vmferry(lab, binary, agent_options, &spec)?;
        Self::fill(lab, workload, mover, &spec)
    }

    /// A guest that QEMU moves.
    pub(crate) fn of_qemu(lab: &'lab Lab, workload: Workload) -> Result<Self> {
        let spec = spec(workload)?;
        Self::fill(lab, workload, Mover::qemu(lab, &spec)?, &spec)
    }

    fn fill(lab: &'lab Lab, workload: Workload, mover: Mover<'lab>, spec: &Spec) -> Result<Self> {
        let mut guest = Guest::connect(lab, Host::Client, spec.address(), BOOT_MAX)?;
        let contents = Contents::fill(lab, &mut guest, workload)?;
        Ok(Self {
            lab,
            workload,
            mover,
            guest,
            contents,
            at: Host::A,
        })
    }

    /// Has the dirtier write so many bytes of pages a second from the next measurement on.
    pub(crate) fn set_dirty_rate(&mut self, bytes_per_s: u64) {
        self.contents.set_dirty_rate(bytes_per_s);
    }

    /// Whether the guest can be moved so.
    pub(crate) fn can(&self, mode: Mode) -> Result<bool> {
        self.mover.can(mode.means())
    }

    /// Limits the link between the hosts, in both directions.
    fn set_link(&self, link: Link) -> Result<()> {
        for host in [Host::A, Host::B] {
            self.lab.set_rate(host, link.mbit())?;
        }
        Ok(())
    }

    /// Bytes a second on the hosts' links while the workload runs and nothing is moved: part of every figure.
    pub(crate) fn background_bytes_per_s(&mut self) -> Result<u64> {
        const SPAN: Duration = Duration::from_secs(1);
        let load = self.contents.start(self.lab, &mut self.guest)?;
        let ticks = Ticks::start(self.lab, Host::Client, &mut self.guest, TICK_INTERVAL)?;
        let before = self.sent_bytes()?;
        thread::sleep(SPAN);
        let bytes = self.sent_bytes()? - before;
        self.guest.ask("stop-tick")?;
        ticks.finish()?;
        self.contents.stop(&mut self.guest, load)?;
        Ok(bytes)
    }

    /// Moves the guest to the other host and measures that; for [`Workload::Return`], after it came from there.
    pub(crate) fn measure(&mut self, mode: Mode, link: Link) -> Result<Run> {
        self.measure_under(mode, link, &mut ())
    }

    /// The same while `observer` looks on.
    pub(crate) fn measure_under(&mut self, mode: Mode, link: Link, observer: &mut impl Observer) -> Result<Run> {
        if self.workload == Workload::Return {
            self.set_link(Link::UNLIMITED)?;
            self.mover.prepare(self.at, self.other(), true)?;
            let there = self.migrate(mode, Link::UNLIMITED).context("on the way there")?;
            ensure!(there.completed, "{} did not converge on the way there", mode.name());
        }
        self.set_link(link)?;
        self.mover
            .prepare(self.at, self.other(), self.workload != Workload::Return)?;
        let load = self.contents.start(self.lab, &mut self.guest)?;
        if self.workload == Workload::Return {
            // What is measured is how much a minute of work changes: there is no event to await.
            thread::sleep(Workload::AWAY);
        }
        have_memory_at_hand(self.workload.memory_mib() + MEMORY_BESIDE_MIB)?;
        let ticks = Ticks::start(self.lab, Host::Client, &mut self.guest, TICK_INTERVAL)?;
        observer.begins(self.at)?;
        let watch = Watch::start(self.lab, self.mover.agents(self.at, self.other())?)?;
        let sent_before = self.sent_bytes()?;

        let moved = self.migrate(mode, link)?;

        let bytes = self.sent_bytes()? - sent_before;
        let usage = watch.finish()?;
        observer.ends(&usage)?;
        // The silence has an end only with the tick after it: an answer shows that the guest is back, and within
        // some intervals the receiver has its tick.
        self.guest.ask("ping")?;
        thread::sleep(20 * TICK_INTERVAL);
        let silence = ticks.finish()?;
        self.guest.ask("stop-tick")?;
        let written_bytes_per_s = self.contents.stop(&mut self.guest, load)?;
        Ok(Run {
            workload: self.workload,
            link_mbit: link,
            mode,
            status: if moved.completed {
                Status::Completed
            } else {
                Status::NoConverge
            },
            bytes,
            total_ms: milliseconds(moved.total),
            reserve_ms: milliseconds(moved.reserve),
            blackout_guest_ms: milliseconds(silence.gap_max),
            cpu_s: usage.cpu.as_secs_f64(),
            rss_mb: usage.memory_bytes as f64 / 1e6,
            source_agent_mb: usage.source_agent_bytes as f64 / 1e6,
            target_agent_mb: usage.target_agent_bytes as f64 / 1e6,
            rounds: moved.rounds,
            written_bytes_per_s,
        })
    }

    /// Has all that was written compared with what is there: after all those moves nothing may differ.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.contents.check(self.lab, &mut self.guest)
    }

    fn migrate(&mut self, mode: Mode, link: Link) -> Result<Moved> {
        let to = self.other();
        let moved = self
            .mover
            .migrate(self.at, to, mode.means(), self.workload.time_max(link))
            .with_context(|| format!("moving with {}", mode.name()))?;
        if moved.completed {
            self.at = to;
        }
        Ok(moved)
    }

    /// The host where the guest is not.
    fn other(&self) -> Host {
        if self.at == Host::A { Host::B } else { Host::A }
    }

    fn sent_bytes(&self) -> Result<u64> {
        Ok(self.lab.tx_bytes(Host::A)? + self.lab.tx_bytes(Host::B)?)
    }
}

/// With a precision of a microsecond: more digits would only pretend.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
