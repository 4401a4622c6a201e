//! What a guest holds, what goes on in it while it is moved, and the proof that nothing of it changed.

use anyhow::{Context, Result, ensure};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::net::Lab;

use super::plan::{Dirtier, Workload};
use super::records::{Load, Records};

/// Where the guest mounts the disk of [`vmferry_e2e::image::page_cache_disk`].
pub(crate) const FILES: &str = "/files";

/// A guest's contents by the account of those who made them.
pub(crate) struct Contents {
    workload: Workload,
    dirtier: Option<Dirtier>,
    /// Away while the client of Redis runs.
    records: Option<Records>,
    /// Python's checksum over its heap.
    python: Option<u64>,
}

/// What runs.
pub(crate) enum Running {
    Nothing,
    Dirtier,
    Redis(Load),
}

impl Contents {
    /// Fills a guest that has just booted.
    pub(crate) fn fill(lab: &Lab, guest: &mut Guest, workload: Workload) -> Result<Self> {
        if workload.dirtier().is_some() {
            guest.ask(&format!("fill heap {}", Workload::STEADY_HEAP_BYTES))?;
        }
        if workload.has_files() {
            guest.ask(&format!("readall {FILES}"))?;
        }
        let mut records = None;
        if workload.has_redis() {
            guest.ask("redis --save \"\" --protected-mode no")?;
            records = Some(Records::fill(lab, guest.address(), Workload::REDIS_RECORDS)?);
        }
        let mut python = None;
        if workload == Workload::Mixed {
            guest.ask(&format!("python {FILES} {}", Workload::PYTHON_BYTES))?;
            python = Some(guest.ask_number("python-sum", "sum")?);
        }
        Ok(Self {
            workload,
            dirtier: workload.dirtier(),
            records,
            python,
        })
    }

    /// Has the dirtier write so many bytes of pages a second from its next start on.
    pub(crate) fn set_dirty_rate(&mut self, bytes_per_s: u64) {
        if let Some(dirtier) = &mut self.dirtier {
            dirtier.bytes_per_s = bytes_per_s;
        }
    }

    /// Starts what the workload does.
    pub(crate) fn start(&mut self, lab: &Lab, guest: &mut Guest) -> Result<Running> {
        if let Some(Dirtier {
            kind,
            bytes,
            bytes_per_s,
        }) = self.dirtier
        {
            guest.ask(&format!("dirty {kind} {bytes} {bytes_per_s}"))?;
            return Ok(Running::Dirtier);
        }
        if self.workload.has_redis() {
            let records = self.records.take().context("its client failed before")?;
            return Ok(Running::Redis(Load::start(lab, records)?));
        }
        Ok(Running::Nothing)
    }

    /// Ends it, and gives the bytes of pages that a dirtier wrote a second.
    pub(crate) fn stop(&mut self, guest: &mut Guest, running: Running) -> Result<Option<f64>> {
        match running {
            Running::Nothing => Ok(None),
            Running::Dirtier => Ok(guest.ask("stop-dirty")?["bytes_per_s"].as_f64()),
            Running::Redis(load) => {
                self.records = Some(load.finish()?);
                Ok(None)
            }
        }
    }

    /// Has all that was written compared with what is there.
    pub(crate) fn check(&self, lab: &Lab, guest: &mut Guest) -> Result<()> {
        let pages = guest.check_memory()?["pages"].as_u64();
        ensure!(self.dirtier.is_none() || pages > Some(0), "the guest checked no memory");
        if self.workload.has_redis() {
            let records = self.records.as_ref().context("the client of Redis failed")?;
            records.check(lab)?;
        }
        if let Some(expected) = self.python {
            let sum = guest.ask_number("python-sum", "sum")?;
            ensure!(
                sum == expected,
                "Python's heap is not what it was: {sum}, not {expected}"
            );
        }
        Ok(())
    }
}
