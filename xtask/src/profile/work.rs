//! What a sample's time went to, by its call chain.
//!
//! The kernel keeps track of its own stack, so there the whole chain tells, the system call included. Programs are compiled
//! without frame pointers: of what they ran only the innermost function is known for sure.

use super::script::Frame;

/// What processor time goes to, [`Work::name`] in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    Tcp,
    Tls,
    Unix,
    Copying,
    Comparing,
    Fingerprints,
    LineHashes,
    BlockHashes,
    Tables,
    Coding,
    Reading,
    GuestMemory,
    GuestMemoryCleared,
    FaultsCleared,
    Faults,
    Kept,
    Waiting,
    Processes,
    GuestNetwork,
    Allocating,
    OwnCode,
    Rest,
}

impl Work {
    /// All, in the order of the table.
    pub(super) const ALL: [Self; 22] = [
        Self::Tcp,
        Self::Tls,
        Self::Unix,
        Self::Copying,
        Self::Comparing,
        Self::Fingerprints,
        Self::LineHashes,
        Self::BlockHashes,
        Self::Tables,
        Self::Coding,
        Self::Reading,
        Self::GuestMemory,
        Self::GuestMemoryCleared,
        Self::FaultsCleared,
        Self::Faults,
        Self::Kept,
        Self::Waiting,
        Self::Processes,
        Self::GuestNetwork,
        Self::Allocating,
        Self::OwnCode,
        Self::Rest,
    ];

    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "reading and writing sockets: TCP",
            Self::Tls => "TLS (AES-GCM and records, less their copying)",
            Self::Unix => "reading and writing sockets: unix",
            Self::Copying => "copying in user space (memmove, memcpy)",
            Self::Comparing => "comparing and filling in user space (memcmp, memset)",
            Self::Fingerprints => "fingerprints (BLAKE3)",
            Self::LineHashes => "line hashes",
            Self::BlockHashes => "checksums and block hashes (XXH3)",
            Self::Tables => "tables (hash maps, known content, versions)",
            Self::Coding => "coding (zstd, LZ, differences)",
            Self::Reading => "reading files (known content, indexes)",
            Self::GuestMemory => "the guest's memory by process_vm_*: without clearing",
            Self::GuestMemoryCleared => "the guest's memory by process_vm_*: clearing what was not used before",
            Self::FaultsCleared => "page faults: clearing what was not used before",
            Self::Faults => "page faults: the rest",
            Self::Kept => "encrypting and writing kept memory",
            Self::Waiting => "waiting and waking",
            Self::Processes => "starting and ending processes, mapping memory",
            Self::GuestNetwork => "the guest's own network (tun)",
            Self::Allocating => "allocating in user space (malloc, free)",
            Self::OwnCode => "other code of QEMU or the agent",
            Self::Rest => "the rest",
        }
    }

    /// What the thread `comm` did, `frames` its stack with the innermost first. None for a vCPU's thread: that is the guest's
    /// own work, and the benchmark does not count it either.
    pub(super) fn of(comm: &str, frames: &[Frame<'_>]) -> Option<Self> {
        if comm.starts_with("CPU ") {
            return None;
        }
        let depth = frames.iter().take_while(|frame| frame.in_kernel).count();
        Some(match (&frames[..depth], frames.first()) {
            ([], Some(innermost)) => Self::of_user(comm, innermost),
            (kernel, _) => Self::of_kernel(kernel),
        })
    }

    fn of_kernel(frames: &[Frame<'_>]) -> Self {
        let any = |is: fn(&str) -> bool| frames.iter().any(|frame| is(frame.symbol));
        if any(waits) {
            return Self::Waiting;
        }
        // The outermost function that tells, first of what an interrupt or a fault brought, then of what it came upon.
        let entry = frames.iter().position(|frame| frame.symbol.starts_with("asm_"));
        let (brought, met) = frames.split_at(entry.map_or(frames.len(), |entry| entry + 1));
        let mut outermost_first = brought.iter().rev().chain(met.iter().rev());
        match outermost_first.find_map(|frame| of_kernel_function(frame.symbol)) {
            Some(Self::Faults) if any(clears) => Self::FaultsCleared,
            Some(Self::GuestMemory) if any(clears) => Self::GuestMemoryCleared,
            Some(work) => work,
            None => Self::Rest,
        }
    }

    fn of_user(comm: &str, innermost: &Frame<'_>) -> Self {
        let Frame { symbol, module, .. } = innermost;
        let found = USER_FUNCTIONS.iter().find(|(part, _)| symbol.contains(part));
        let of_file = || FILES.iter().find(|(part, _)| module.contains(part));
        match found.or_else(of_file) {
            // What is kept is encrypted in the same way, by other threads.
            Some((AES_GCM, _)) if TALKING_THREADS.iter().any(|start| comm.starts_with(start)) => Self::Tls,
            Some((_, work)) => *work,
            None => Self::Rest,
        }
    }
}

/// Part of the names of the functions that encrypt.
const AES_GCM: &str = "aes_gcm";
/// How threads are named that write to connections, or read them.
const TALKING_THREADS: [&str; 4] = ["lane-", "acks-", "control-", "writer"];

/// Parts of names; the first that is found decides.
const USER_FUNCTIONS: &[(&str, Work)] = &[
    ("__memmove_", Work::Copying),
    ("__memcpy_", Work::Copying),
    ("__memset_", Work::Comparing),
    ("__memcmp_", Work::Comparing),
    ("blake3", Work::Fingerprints),
    ("::fingerprint::", Work::Fingerprints),
    ("::hash_pages::", Work::Fingerprints),
    ("::page::digest::", Work::Fingerprints),
    ("::page::lines::", Work::LineHashes),
    ("xxh3", Work::BlockHashes),
    ("::page::content::", Work::BlockHashes),
    ("hashbrown::", Work::Tables),
    ("::page::catalog::", Work::Tables),
    ("::page::known::", Work::Tables),
    ("::page::versions::", Work::Tables),
    ("::page::ring::", Work::Tables),
    ("::page::sparse::", Work::Tables),
    ("::page::page_set::", Work::Tables),
    ("ZSTD_", Work::Coding),
    ("HUF_", Work::Coding),
    ("FSE_", Work::Coding),
    ("HIST_", Work::Coding),
    ("lz4_flex::", Work::Coding),
    ("::page::lz::", Work::Coding),
    ("::page::delta::", Work::Coding),
    ("xbzrle_", Work::Coding),
    (AES_GCM, Work::Kept),
    ("rustls::", Work::Tls),
    ("::checkpoint::", Work::Kept),
    ("crossbeam_channel::", Work::Waiting),
    ("pthread_", Work::Waiting),
    ("lll_lock", Work::Waiting),
    ("ppoll", Work::Waiting),
    ("g_main_context_", Work::Waiting),
    ("main_loop_wait", Work::Waiting),
    ("std::sys::sync::", Work::Waiting),
    ("std::thread::functions::park", Work::Waiting),
    ("malloc", Work::Allocating),
    ("realloc", Work::Allocating),
    ("calloc", Work::Allocating),
    ("_int_free", Work::Allocating),
    ("cfree@", Work::Allocating),
    ("unlink_chunk", Work::Allocating),
];

/// Parts of the paths of files: what their functions do that have no other place, or no name.
const FILES: &[(&str, Work)] = &[
    ("/libzstd", Work::Coding),
    ("/ld-linux", Work::Processes),
    ("/qemu-system", Work::OwnCode),
    ("/release/vmferry", Work::OwnCode),
];

fn waits(symbol: &str) -> bool {
    const WHOLE: [&str; 8] = [
        "__schedule",
        "try_to_wake_up",
        "do_futex",
        "__x64_sys_futex",
        "__x64_sys_ppoll",
        "__x64_sys_poll",
        "__x64_sys_clock_nanosleep",
        "asm_sysvec_reschedule_ipi",
    ];
    WHOLE.contains(&symbol)
        || ["schedule", "__x64_sys_sched_yield", "__x64_sys_epoll_"]
            .iter()
            .any(|start| symbol.starts_with(start))
}

fn clears(symbol: &str) -> bool {
    symbol.starts_with("clear_page") || symbol == "folio_zero_user"
}

/// What a function of the kernel is for, if it is for one thing.
fn of_kernel_function(symbol: &str) -> Option<Work> {
    const STARTS: &[(&str, Work)] = &[
        ("tun_", Work::GuestNetwork),
        ("unix_", Work::Unix),
        ("tcp_", Work::Tcp),
        ("inet_", Work::Tcp),
        ("net_rx_action", Work::Tcp),
        ("process_vm_rw", Work::GuestMemory),
        ("asm_exc_page_fault", Work::Faults),
        ("__x64_sys_pread", Work::Reading),
        ("filemap_read", Work::Reading),
        ("__x64_sys_pwrite", Work::Kept),
        ("__x64_sys_fadvise64", Work::Kept),
        ("do_fsync", Work::Kept),
        ("__x64_sys_execve", Work::Processes),
        ("__x64_sys_exit", Work::Processes),
        ("do_exit", Work::Processes),
        ("kernel_clone", Work::Processes),
        ("kernel_wait4", Work::Processes),
        ("do_wait", Work::Processes),
        ("ksys_mmap_pgoff", Work::Processes),
        ("__x64_sys_munmap", Work::Processes),
        ("__x64_sys_mprotect", Work::Processes),
        ("__x64_sys_madvise", Work::Processes),
    ];
    let found = STARTS.iter().find(|(start, _)| symbol.starts_with(start));
    found.map(|(_, work)| *work)
}

#[cfg(test)]
mod tests;
