//! The guest's memory, read and written from outside its QEMU at the host addresses that QEMU's `info ramblock` prints. It
//! takes the right to trace the process: the same user with no dumpable restriction, or root.

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::iter;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use vmferry_core::page::{PageSet, Place};
use vmferry_core::qemu::{Block, BlockId};
use vmferry_core::wire::message::MemoryHash;

/// Bytes read at once while hashing.
const CHUNK_BYTES: usize = 1 << 20;

/// Pages in one system call; the kernel takes up to 1024 (`IOV_MAX`).
const WRITES_AT_ONCE: usize = 512;

/// In an entry of `/proc/PID/pagemap` (the kernel's `admin-guide/mm/pagemap`): the page is in memory, or swapped out.
const PAGEMAP_HELD: u64 = 1 << 63 | 1 << 62;

/// Where a RAM block lies in its QEMU's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBlock {
    /// QEMU's name for it.
    pub name: String,
    /// Address of its first byte.
    pub address: u64,
    /// Its length, bytes, the room to grow included.
    pub bytes: u64,
}

/// A QEMU's guest memory.
#[derive(Debug)]
pub struct GuestMemory {
    pid: Pid,
    /// Says whether `pid` is still that process, and not one that was given its number since.
    process: OwnedFd,
    host: Vec<HostBlock>,
    /// The host block of each stream block, once the stream's list is known.
    blocks: Vec<Option<usize>>,
}

impl GuestMemory {
    /// Opens the memory of process `pid`, and reads a byte of each block to see that it may.
    pub fn open(pid: u32, host: Vec<HostBlock>) -> io::Result<GuestMemory> {
        let number = i32::try_from(pid).map_err(io::Error::other)?;
        let process = rustix::process::Pid::from_raw(number).ok_or_else(|| io::Error::other("0 is no process"))?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let memory = GuestMemory {
            process,
            pid: Pid::from_raw(number),
            host,
            blocks: Vec::new(),
        };
        for block in &memory.host {
            memory.read_at(block.address, &mut [0])?;
        }
        if memory.host.is_empty() {
            return Err(io::Error::other("this QEMU does not say where its RAM blocks are"));
        }
        Ok(memory)
    }

    fn check_alive(&self) -> io::Result<()> {
        let ended = poll(
            &mut [PollFd::new(&self.process, PollFlags::IN)],
            Some(&Timespec::default()),
        )?;
        if ended > 0 {
            return Err(io::Error::other("its QEMU has ended"));
        }
        Ok(())
    }

    /// Takes the block list of the stream, whose numbers are used from here on.
    pub fn set_blocks(&mut self, blocks: &[Block]) {
        let find = |block: &Block| self.host.iter().position(|host| host.name == block.name.as_str());
        self.blocks = blocks.iter().map(find).collect();
    }

    /// Reads from a block.
    pub fn read(&self, block: BlockId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_at(self.address(block, offset, into.len())?, into)
    }

    /// Half as many copies as by `/proc/PID/mem`, which takes each page through a buffer of the kernel's.
    fn read_at(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let (base, len) = (address as usize, into.len());
        let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(into)], &[RemoteIoVec { base, len }])?;
        if read < len {
            return Err(io::Error::other(format!(
                "only {read} of {len} bytes could be read from the guest's memory"
            )));
        }
        // Had it ended before, another process could have its number, and these bytes be that one's.
        self.check_alive()
    }

    /// Writes to blocks, in this order.
    pub fn write(&self, pages: &[(BlockId, u64, &[u8])]) -> io::Result<()> {
        for pages in pages.chunks(WRITES_AT_ONCE) {
            self.check_alive()?;
            let mut local = Vec::with_capacity(pages.len());
            let mut remote: Vec<RemoteIoVec> = Vec::new();
            for &(block, offset, page) in pages {
                let base = self.address(block, offset, page.len())? as usize;
                local.push(IoSlice::new(page));
                match remote.last_mut() {
                    Some(last) if last.base + last.len == base => last.len += page.len(),
                    _ => remote.push(RemoteIoVec { base, len: page.len() }),
                }
            }
            let wanted: usize = pages.iter().map(|(_, _, page)| page.len()).sum();
            let written = process_vm_writev(self.pid, &local, &remote)?;
            if written < wanted {
                return Err(io::Error::other(format!(
                    "only {written} of {wanted} bytes could be written into the guest's memory"
                )));
            }
        }
        Ok(())
    }

    /// Fails unless a block of the stream can be written from outside: it is there, it has room for what the source has in
    /// it (QEMU gives a block that can grow, such as ACPI tables, the source's length within that room), and the kernel
    /// lets it be written.
    pub(crate) fn check_writable(&self, block: BlockId, bytes: u64) -> io::Result<()> {
        let host = self.host_of(block)?;
        if host.bytes < bytes {
            let (name, room) = (&host.name, host.bytes);
            return Err(io::Error::other(format!(
                "{name} has {bytes} bytes at the source and room for {room} here"
            )));
        }
        if bytes > 0 {
            let mut first = [0];
            self.read(block, 0, &mut first)
                .and_then(|()| self.write(&[(block, 0, &first)]))
                .map_err(|error| io::Error::other(format!("{} can't be written: {error}", host.name)))?;
        }
        Ok(())
    }

    /// Those parts of a block that may hold something else than zeros. A page of private anonymous memory that was never
    /// touched holds zeros; of any other kind of memory (a file, memory shared with another process) nothing is known.
    pub(crate) fn held(&self, block: BlockId) -> io::Result<Vec<Range<u64>>> {
        self.held_of(self.host_of(block)?)
    }

    fn held_of(&self, host: &HostBlock) -> io::Result<Vec<Range<u64>>> {
        if !self.is_private_anonymous(host)? {
            return Ok(iter::once(0..host.bytes).collect());
        }
        let page_bytes = rustix::param::page_size() as u64;
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        self.check_alive()?;
        let mut held: Vec<Range<u64>> = Vec::new();
        let mut entries = vec![0; CHUNK_BYTES];
        let pages = host.bytes.div_ceil(page_bytes);
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min((CHUNK_BYTES / 8) as u64);
            let part = &mut entries[..count as usize * 8];
            pagemap.read_exact_at(part, (host.address / page_bytes + page) * 8)?;
            for (entry, number) in part.as_chunks().0.iter().zip(page..) {
                if u64::from_ne_bytes(*entry) & PAGEMAP_HELD == 0 {
                    continue;
                }
                let range = number * page_bytes..(number + 1) * page_bytes;
                match held.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => held.push(range),
                }
            }
            page += count;
        }
        Ok(held)
    }

    /// Whether all of a block is memory that belongs to its process alone and to no file (`/proc/PID/maps`).
    fn is_private_anonymous(&self, host: &HostBlock) -> io::Result<bool> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let end = host.address + host.bytes;
        let mut covered = host.address;
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, mode, inode) = (fields.next(), fields.next(), fields.nth(2));
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let Some((from, to)) = range
                .and_then(|range| range.split_once('-'))
                .and_then(|(from, to)| Some((hex(from)?, hex(to)?)))
            else {
                continue;
            };
            // Lines are in the order of addresses; a block may lie in several, when parts of it were given other advice.
            if covered < end && from <= covered && covered < to {
                if !mode.is_some_and(|mode| mode.ends_with('p')) || inode != Some("0") {
                    return Ok(false);
                }
                covered = to;
            }
        }
        Ok(covered >= end)
    }

    fn host_of(&self, block: BlockId) -> io::Result<&HostBlock> {
        self.blocks
            .get(usize::from(block.0))
            .and_then(|index| self.host.get((*index)?))
            .ok_or_else(|| io::Error::other(format!("block {} of the stream is not in this QEMU", block.0)))
    }

    fn address(&self, block: BlockId, offset: u64, bytes: usize) -> io::Result<u64> {
        let host = self.host_of(block)?;
        let end = offset.checked_add(bytes as u64);
        if end.is_none_or(|end| end > host.bytes) {
            return Err(io::Error::other(format!("{} has no byte {offset}", host.name)));
        }
        Ok(host.address + offset)
    }

    /// Hashes the pages of a set, block by block, in address order.
    pub fn hash(&self, pages: &PageSet, page_bytes: usize) -> io::Result<MemoryHash> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        self.read_all(pages, page_bytes, &mut |_, part| {
            hasher.update(part);
            bytes += part.len() as u64;
            Ok(())
        })?;
        Ok(MemoryHash {
            bytes,
            hash: *hasher.finalize().as_bytes(),
        })
    }

    /// Reads the pages of a set, block by block, in address order, some at once; with them comes the place of the first.
    pub(crate) fn read_all(
        &self,
        pages: &PageSet,
        page_bytes: usize,
        each: &mut dyn FnMut(Place, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let per_chunk = (CHUNK_BYTES / page_bytes.max(1)).max(1) as u64;
        let mut pages = pages.iter().peekable();
        while let Some((block, first)) = pages.next() {
            let mut count = 1;
            while count < per_chunk && pages.next_if_eq(&(block, first + count)).is_some() {
                count += 1;
            }
            let part = &mut chunk[..count as usize * page_bytes];
            let offset = first * page_bytes as u64;
            self.read(block, offset, part)?;
            each(Place::new(&self.host_of(block)?.name, offset), part)?;
        }
        Ok(())
    }

    /// Reads everything that may hold something else than zeros, where no stream tells which pages there are. Whole pages, some at
    /// once, with the place of the first.
    pub fn read_held(&self, each: &mut dyn FnMut(Place, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        for host in &self.host {
            for range in self.held_of(host)? {
                let mut offset = range.start;
                while offset < range.end {
                    let part = &mut chunk[..(range.end - offset).min(CHUNK_BYTES as u64) as usize];
                    self.read_at(host.address + offset, part)?;
                    each(Place::new(&host.name, offset), part)?;
                    offset += part.len() as u64;
                }
            }
        }
        Ok(())
    }
}
