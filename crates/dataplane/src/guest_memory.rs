//! The guest's memory, read from outside its QEMU through `/proc/PID/mem`, at the host addresses that QEMU's `info ramblock`
//! prints. Reading it takes the right to trace the process: the same user with no dumpable restriction, or root.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vmferry_core::page::PageSet;
use vmferry_core::qemu::{Block, BlockId};
use vmferry_core::wire::message::MemoryHash;

/// Bytes read at once while hashing.
const CHUNK_BYTES: usize = 1 << 20;

/// Where a RAM block lies in its QEMU's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBlock {
    /// QEMU's name for it.
    pub name: String,
    /// Address of its first byte.
    pub address: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

/// A QEMU's guest memory.
#[derive(Debug)]
pub struct GuestMemory {
    memory: File,
    host: Vec<HostBlock>,
    /// The host block of each stream block, once the stream's list is known.
    blocks: Vec<Option<usize>>,
}

impl GuestMemory {
    /// Opens the memory of process `pid`, and reads a byte of each block to see that it may.
    pub fn open(pid: u32, host: Vec<HostBlock>) -> io::Result<GuestMemory> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        for block in &host {
            memory.read_exact_at(&mut [0], block.address)?;
        }
        if host.is_empty() {
            return Err(io::Error::other("this QEMU does not say where its RAM blocks are"));
        }
        Ok(GuestMemory {
            memory,
            host,
            blocks: Vec::new(),
        })
    }

    /// Takes the block list of the stream, whose numbers are used from here on.
    pub fn set_blocks(&mut self, blocks: &[Block]) {
        let find = |block: &Block| self.host.iter().position(|host| host.name == block.name.as_str());
        self.blocks = blocks.iter().map(find).collect();
    }

    /// Reads from a block.
    pub fn read(&self, block: BlockId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let host = self
            .blocks
            .get(usize::from(block.0))
            .and_then(|index| self.host.get((*index)?))
            .ok_or_else(|| io::Error::other(format!("block {} of the stream is not in this QEMU", block.0)))?;
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > host.bytes) {
            return Err(io::Error::other(format!("{} has no byte {offset}", host.name)));
        }
        self.memory.read_exact_at(into, host.address + offset)
    }

    /// Hashes the pages of a set, block by block, in address order.
    pub fn hash(&self, pages: &PageSet, page_bytes: usize) -> io::Result<MemoryHash> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let per_chunk = (CHUNK_BYTES / page_bytes.max(1)).max(1) as u64;
        let mut pages = pages.iter().peekable();
        let mut bytes = 0;
        while let Some((block, first)) = pages.next() {
            let mut count = 1;
            while count < per_chunk && pages.next_if_eq(&(block, first + count)).is_some() {
                count += 1;
            }
            let part = &mut chunk[..count as usize * page_bytes];
            self.read(block, first * page_bytes as u64, part)?;
            hasher.update(part);
            bytes += part.len() as u64;
        }
        Ok(MemoryHash {
            bytes,
            hash: *hasher.finalize().as_bytes(),
        })
    }
}
