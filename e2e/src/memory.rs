//! The memory of two stopped guests compared byte for byte, from outside their QEMUs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vmferry_qmp::ramblock::RamBlock;

/// Read and compared at a time.
const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Pages that differ beyond this many are counted only.
const LISTED_MAX: usize = 16;

/// The guest memory of a running QEMU process. Stop the guest before comparing.
pub struct GuestMemory {
    process: File,
    blocks: Vec<RamBlock>,
}

impl GuestMemory {
    /// The memory of QEMU process `pid`, whose `info ramblock` gave `blocks`.
    ///
    /// # Errors
    /// Without the right to read that process's memory (root has it).
    pub fn open(pid: u32, blocks: Vec<RamBlock>) -> Result<Self> {
        let path = Path::new("/proc").join(pid.to_string()).join("mem");
        let process = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { process, blocks })
    }

    /// Compares every block with the one of the same name in `other`.
    ///
    /// # Errors
    /// When the two have not the same blocks, or memory cannot be read (QEMU before 8.1 does not
    /// tell where a block is).
    pub fn compare(&self, other: &Self) -> Result<Comparison> {
        ensure!(
            self.blocks.len() == other.blocks.len(),
            "{} blocks of memory against {}",
            self.blocks.len(),
            other.blocks.len()
        );
        let mut comparison = Comparison::default();
        for block in &self.blocks {
            let twin = other
                .blocks
                .iter()
                .find(|twin| twin.name == block.name)
                .with_context(|| format!("only one guest has the block {}", block.name))?;
            ensure!(
                twin.used_bytes == block.used_bytes,
                "{}: {} bytes against {}",
                block.name,
                block.used_bytes,
                twin.used_bytes
            );
            self.compare_block(other, block, twin, &mut comparison)?;
        }
        Ok(comparison)
    }

    fn compare_block(
        &self,
        other: &Self,
        block: &RamBlock,
        twin: &RamBlock,
        comparison: &mut Comparison,
    ) -> Result<()> {
        let (mut ours, mut theirs) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut offset = 0;
        while offset < block.used_bytes {
            let left = usize::try_from(block.used_bytes - offset).unwrap_or(usize::MAX);
            let length = left.min(CHUNK_BYTES);
            let (ours, theirs) = (&mut ours[..length], &mut theirs[..length]);
            self.read(block, offset, ours)?;
            other.read(twin, offset, theirs)?;
            if ours != theirs {
                comparison.note(&block.name, offset, ours, theirs);
            }
            offset += length as u64;
            comparison.bytes += length as u64;
        }
        Ok(())
    }

    fn read(&self, block: &RamBlock, offset: u64, into: &mut [u8]) -> Result<()> {
        let start = block
            .host_address
            .with_context(|| format!("QEMU does not tell where {} is", block.name))?;
        self.process
            .read_exact_at(into, start + offset)
            .with_context(|| format!("reading {} at {offset:#x}", block.name))
    }
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes compared.
    pub bytes: u64,
    /// Pages of 4 KiB that differ.
    pub pages_different: u64,
    /// The first of them: block and offset.
    pub first: Vec<(String, u64)>,
}

impl Comparison {
    /// Whether every byte is the same, and any were compared at all.
    #[must_use]
    pub fn equal(&self) -> bool {
        self.bytes > 0 && self.pages_different == 0
    }

    fn note(&mut self, block: &str, offset: u64, ours: &[u8], theirs: &[u8]) {
        let pages = ours.chunks(PAGE_BYTES).zip(theirs.chunks(PAGE_BYTES));
        for ((our_page, their_page), number) in pages.zip(0u64..) {
            if our_page != their_page {
                self.pages_different += 1;
                if self.first.len() < LISTED_MAX {
                    let at = offset + number * PAGE_BYTES as u64;
                    self.first.push((block.to_owned(), at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_of_this_process(content: &[u8]) -> GuestMemory {
        let block = RamBlock {
            name: "pc.ram".to_owned(),
            used_bytes: content.len() as u64,
            total_bytes: content.len() as u64,
            host_address: Some(content.as_ptr().addr() as u64),
        };
        GuestMemory::open(std::process::id(), vec![block]).unwrap()
    }

    #[test]
    fn equal_memory_is_equal_to_the_last_byte() {
        let content: Vec<u8> = (0..CHUNK_BYTES + 3 * PAGE_BYTES).map(|at| (at % 251) as u8).collect();
        let twin = content.clone();
        let comparison = memory_of_this_process(&content)
            .compare(&memory_of_this_process(&twin))
            .unwrap();
        assert!(comparison.equal());
        assert_eq!(comparison.bytes, content.len() as u64);
    }

    #[test]
    fn a_single_different_byte_is_found_and_placed() {
        let content = vec![7u8; CHUNK_BYTES + 3 * PAGE_BYTES];
        let mut twin = content.clone();
        twin[CHUNK_BYTES + 2 * PAGE_BYTES + 9] = 8;
        let comparison = memory_of_this_process(&content)
            .compare(&memory_of_this_process(&twin))
            .unwrap();
        assert!(!comparison.equal());
        assert_eq!(comparison.pages_different, 1);
        let place = (CHUNK_BYTES + 2 * PAGE_BYTES) as u64;
        assert_eq!(comparison.first, [("pc.ram".to_owned(), place)]);
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let (content, twin) = (vec![0u8; PAGE_BYTES], vec![0u8; 2 * PAGE_BYTES]);
        let error = memory_of_this_process(&content)
            .compare(&memory_of_this_process(&twin))
            .unwrap_err();
        assert!(error.to_string().contains("pc.ram"), "{error}");
    }
}
