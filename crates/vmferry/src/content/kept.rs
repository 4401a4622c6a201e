//! Memory that VMs left on this host, encrypted: when one comes back, or is offered again after an attempt that failed, little of
//! it has to be sent. What stands on disks and in images that both hosts read is left out where a VM left.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_content::{Blocks, CheckpointError, CheckpointFolder, CheckpointWriter};
use vmferry_core::page::{Place, earlier};

/// How long a migration may be held up at its end to keep memory. What was kept until then is of use.
const KEEP_MAX: Duration = Duration::from_secs(10);

/// Takes a part of a VM's memory, and where it is.
type Each<'a> = dyn FnMut(Place, &[u8]) -> io::Result<()> + 'a;

/// The memory that VMs left here.
#[derive(Debug, Clone)]
pub struct KeptMemory(CheckpointFolder);

/// Kept memory of one VM, for the source of a migration to refer to.
#[derive(Debug)]
pub struct Kept {
    /// The memory.
    pub blocks: Arc<dyn Blocks>,
    /// What the source is sent of its blocks ([`earlier::pack`]).
    pub table: Vec<u8>,
}

impl KeptMemory {
    pub(super) fn new(folder: CheckpointFolder) -> Self {
        Self(folder)
    }

    /// Keeps the memory of a VM, in the place of what was kept of it before, unless that is more. `read` gives it part by part.
    /// It blocks its thread.
    pub fn keep(&self, vm: &str, read: impl FnOnce(&mut Each<'_>) -> io::Result<()>) {
        let began = Instant::now();
        let kept = self.0.begin(vm).and_then(|mut writer| {
            let stopped = fill(&mut writer, began, read);
            let blocks = writer.blocks();
            let earlier = self.0.checkpoint(vm).ok().flatten();
            // Of an attempt that ended early there is little.
            if blocks >= earlier.map_or(0, |earlier| earlier.blocks()) {
                writer.finish()?;
            }
            Ok((blocks, stopped))
        });
        match kept {
            Ok((blocks, stopped)) => {
                tracing::info!(vm, blocks, stopped, took = ?began.elapsed(), "kept the memory that the VM left");
            }
            Err(error) => tracing::warn!(vm, %error, "the memory that the VM left is not kept"),
        }
    }

    /// What is kept of a VM, with a table of at most `table_bytes_max` bytes. It blocks its thread.
    pub fn of(&self, vm: &str, table_bytes_max: usize) -> Option<Kept> {
        let open = || -> Result<Option<Kept>, CheckpointError> {
            let Some(checkpoint) = self.0.checkpoint(vm)? else {
                return Ok(None);
            };
            let blocks = checkpoint.blocks();
            let packed = earlier::pack(blocks, table_bytes_max, |each| checkpoint.read_records(each));
            let table = match packed {
                Ok(table) => table.filter(|_| blocks > 0),
                Err(error) => {
                    tracing::warn!(vm, %error, "memory that was kept can't be read");
                    self.0.remove(vm)?;
                    return Ok(None);
                }
            };
            Ok(table.map(|table| Kept {
                blocks: Arc::new(checkpoint),
                table,
            }))
        };
        open().unwrap_or_else(|error| {
            tracing::warn!(vm, %error, "no memory of the VM is kept");
            None
        })
    }

    /// Keeps nothing of a VM any more, which runs here now. It blocks its thread.
    pub fn forget(&self, vm: &str) {
        if let Err(error) = self.0.remove(vm) {
            tracing::warn!(vm, %error, "memory that was kept is left behind");
        }
    }
}

/// Fills a checkpoint; returns why it was stopped before the end, if it was.
fn fill(
    writer: &mut CheckpointWriter,
    began: Instant,
    read: impl FnOnce(&mut Each<'_>) -> io::Result<()>,
) -> Option<String> {
    let filled = read(&mut |place, pages| {
        if began.elapsed() > KEEP_MAX {
            return Err(io::Error::other("it takes too long"));
        }
        writer.add(place, pages).map_err(io::Error::other)
    });
    filled.err().map(|error| error.to_string())
}
