//! One guest, what it does, and one measured move of it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::guest::{Guest, Ticks};
use vmferry_e2e::image::{Extras, image, page_cache_disk};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Disk, Spec};

use super::movers::Mover;
use super::plan::{Mode, Workload, time_max};
use super::records;
use super::results::{Run, Status};
use super::usage::Watch;

/// Memory of each guest.
pub(crate) const MEMORY_MIB: u32 = 512;
const BOOT_MAX: Duration = Duration::from_secs(120);
const TICK_INTERVAL: Duration = Duration::from_millis(1);
const FILES: &str = "/files";

/// The machine that `workload` runs on.
pub(crate) fn spec(workload: Workload) -> Result<Spec> {
    let extras = if workload == Workload::Redis {
        Extras::Redis
    } else {
        Extras::None
    };
    let image = image(extras)?;
    let mut disks = Vec::new();
    if workload == Workload::PageCache {
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
        memory_mib: MEMORY_MIB,
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
    at: Host,
}

/// What goes on in the guest while it is moved.
enum Load {
    Nothing,
    Dirtier,
    Redis(records::Load),
}

impl<'lab> World<'lab> {
    /// A guest that vmferry, release build `binary`, moves.
    pub(crate) fn of_vmferry(lab: &'lab Lab, workload: Workload, binary: &Path) -> Result<Self> {
        let spec = spec(workload)?;
        Self::fill(lab, workload, Mover::vmferry(lab, binary, &spec)?, &spec)
    }

    /// A guest that QEMU moves.
    pub(crate) fn of_qemu(lab: &'lab Lab, workload: Workload) -> Result<Self> {
        let spec = spec(workload)?;
        Self::fill(lab, workload, Mover::qemu(lab, &spec)?, &spec)
    }

    fn fill(lab: &'lab Lab, workload: Workload, mover: Mover<'lab>, spec: &Spec) -> Result<Self> {
        let mut guest = Guest::connect(lab, Host::Client, spec.address(), BOOT_MAX)?;
        match workload {
            Workload::Idle => {}
            Workload::PageCache => {
                guest.ask(&format!("readall {FILES}"))?;
            }
            Workload::Redis => {
                guest.ask("redis --save \"\" --protected-mode no")?;
                records::fill(lab, guest.address(), Workload::REDIS_RECORDS)?;
            }
            Workload::Counter | Workload::Text | Workload::Random => {
                guest.ask(&format!("fill heap {}", Workload::STEADY_HEAP_BYTES))?;
            }
        }
        Ok(Self {
            lab,
            workload,
            mover,
            guest,
            at: Host::A,
        })
    }

    /// Limits the link between the hosts, in both directions.
    pub(crate) fn set_rate(&self, mbit: u32) -> Result<()> {
        for host in [Host::A, Host::B] {
            self.lab.set_rate(host, Some(mbit))?;
        }
        Ok(())
    }

    /// Bytes a second on the hosts' links while the workload runs and nothing is moved: part of every figure.
    pub(crate) fn background_bytes_per_s(&mut self) -> Result<u64> {
        const SPAN: Duration = Duration::from_secs(1);
        let load = self.start_load()?;
        let ticks = Ticks::start(self.lab, Host::Client, &mut self.guest, TICK_INTERVAL)?;
        let before = self.sent_bytes()?;
        thread::sleep(SPAN);
        let bytes = self.sent_bytes()? - before;
        self.guest.ask("stop-tick")?;
        ticks.finish()?;
        self.stop_load(load)?;
        Ok(bytes)
    }

    /// Moves the guest to the other host and measures that.
    pub(crate) fn measure(&mut self, mode: Mode, link_mbit: u32) -> Result<Run> {
        let to = if self.at == Host::A { Host::B } else { Host::A };
        let load = self.start_load()?;
        let ticks = Ticks::start(self.lab, Host::Client, &mut self.guest, TICK_INTERVAL)?;
        let watch = Watch::start(self.lab)?;
        let sent_before = self.sent_bytes()?;

        let moved = self
            .mover
            .migrate(self.at, to, mode.means(), time_max(link_mbit))
            .with_context(|| format!("moving with {}", mode.name()))?;

        let bytes = self.sent_bytes()? - sent_before;
        let usage = watch.finish()?;
        if moved.completed {
            self.at = to;
        }
        // The silence has an end only with the tick after it: an answer shows that the guest is back, and within
        // some intervals the receiver has its tick.
        self.guest.ask("ping")?;
        thread::sleep(20 * TICK_INTERVAL);
        let silence = ticks.finish()?;
        self.guest.ask("stop-tick")?;
        self.stop_load(load)?;
        Ok(Run {
            workload: self.workload,
            link_mbit,
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
            vmferry_rss_mb: usage.vmferry_memory_bytes as f64 / 1e6,
            rounds: moved.rounds,
        })
    }

    /// Has the guest check all that it wrote: after all those moves nothing may differ.
    pub(crate) fn check(mut self) -> Result<()> {
        ensure!(self.workload.dirtier().is_none() || self.guest.check_memory()?["pages"].as_u64() > Some(0));
        Ok(())
    }

    fn sent_bytes(&self) -> Result<u64> {
        Ok(self.lab.tx_bytes(Host::A)? + self.lab.tx_bytes(Host::B)?)
    }

    fn start_load(&mut self) -> Result<Load> {
        if let Some(dirtier) = self.workload.dirtier() {
            self.guest.ask(&format!(
                "dirty {} {} {}",
                dirtier.kind, dirtier.bytes, dirtier.bytes_per_s
            ))?;
            return Ok(Load::Dirtier);
        }
        match self.workload {
            Workload::Redis => Ok(Load::Redis(records::Load::start(
                self.lab,
                self.guest.address(),
                Workload::REDIS_RECORDS,
            )?)),
            _ => Ok(Load::Nothing),
        }
    }

    fn stop_load(&mut self, load: Load) -> Result<()> {
        match load {
            Load::Nothing => {}
            Load::Dirtier => {
                self.guest.ask("stop-dirty")?;
            }
            Load::Redis(load) => load.finish()?,
        }
        Ok(())
    }
}

/// With a precision of a microsecond: more digits would only pretend.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
