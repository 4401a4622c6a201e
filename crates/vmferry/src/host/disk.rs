//! Whether two hosts see one and the same disk, not just the same path.
//!
//! What is compared, from the strongest proof to the weakest:
//! 1. A file has the same size and inode number on both hosts; file systems that several hosts share (NFS, CephFS, GFS2,
//!    OCFS2, a bind mount) number inodes alike for all.
//! 2. The target sees the image lock that the source's running QEMU holds. A lock is seen only on the very file, so this
//!    proves it, on every file system that shares locks between hosts, and on one host.
//! 3. Where locks are not shared (a LUN; NFS mounted `nolock`; an NBD export), blocks spread over the disk are read past
//!    the page cache and compared by BLAKE3. The guest goes on writing meanwhile, so a quarter of them may differ, and where
//!    more do, the source looks again and the target compares again: a journal that its guest fills goes through many sampled
//!    blocks at once, but soon is past them. **This does not tell a disk from a fresh copy of it**; for these, that both
//!    hosts name the same storage stays the administrator's word. On a local file system a lock that is not seen is proof
//!    enough of another file.

use std::{io, path::Path};

use nix::{fcntl, libc};
use serde::{Deserialize, Serialize};

use vmferry_content::{BLOCK_BYTES, Blocks, Identity, ImageFile, NbdExport, NbdUri};

use crate::vm::definition::{Disk, DiskFormat};

/// Blocks sampled at the start of a disk, where partition tables, superblocks and image headers are.
const LEADING_BLOCKS: u64 = 32;
/// Blocks sampled at even distances over the whole.
const SPREAD_BLOCKS: u64 = 96;
/// Where QEMU locks an image, per permission in use and per permission denied to others (`block/file-posix.c`).
const IMAGE_LOCK_START: i64 = 100;
const IMAGE_LOCK_BYTES: i64 = 200;

/// A disk as its source sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Its id in the definition.
    pub id: String,
    /// Bytes of the file, device or export.
    pub bytes: u64,
    /// Inode number of a regular file.
    pub inode: Option<u64>,
    /// Whether a QEMU's image lock is on it.
    pub locked: bool,
    /// Sampled blocks that are not all zero.
    pub samples: Vec<Sample>,
}

/// One block's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Where it begins, bytes.
    pub offset: u64,
    /// BLAKE3-256 of it, hexadecimal.
    pub hash: String,
}

/// What shows that a disk is the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The lock of the source's QEMU is on it.
    Lock,
    /// Its content is alike.
    Content,
}

/// Why a disk will not do. Each completes a sentence that begins with the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum DiskProblem {
    /// It cannot be opened or read here.
    #[error("cannot be read here ({reason}); make it reachable from this host by the same path or URI")]
    Unreachable {
        /// The system's or the server's reason.
        reason: String,
    },
    /// It has another size here.
    #[error("has {target} bytes here and {source_bytes} on the source: this is another disk")]
    OtherSize {
        /// At the source.
        source_bytes: u64,
        /// Here.
        target: u64,
    },
    /// It is another file here.
    #[error("is another file here, perhaps a copy ({reason}); share the source's file instead")]
    OtherFile {
        /// What tells.
        reason: String,
    },
    /// Its content is another one.
    #[error("has other content here ({differ} of {compared} sampled blocks differ): this is another disk")]
    OtherContent {
        /// Blocks that differ.
        differ: usize,
        /// Blocks compared.
        compared: usize,
    },
    /// Nothing to compare.
    #[error(
        "has no lock and only zeros here, so nothing proves that it is the source's; write a file system to it first"
    )]
    NothingToCompare,
}

/// Describes a disk on the source, whose QEMU runs. It blocks its thread.
///
/// # Errors
/// The disk cannot be read by the agent.
pub fn describe(disk: &Disk) -> io::Result<DiskFacts> {
    let view = View::open(disk)?;
    Ok(DiskFacts {
        id: disk.id.clone(),
        bytes: view.bytes,
        inode: view.inode,
        locked: view.is_locked()?,
        samples: view.samples()?,
    })
}

/// Whether `disk` on this host is what `facts` describes. It blocks its thread.
///
/// # Errors
/// [`DiskProblem`].
pub fn compare(disk: &Disk, facts: &DiskFacts) -> Result<Proof, DiskProblem> {
    let unreachable = |error: io::Error| DiskProblem::Unreachable {
        reason: error.to_string(),
    };
    let view = View::open(disk).map_err(unreachable)?;
    // An image that is allocated as its guest writes may have grown since the source looked at it.
    let has_its_size = match disk.format {
        DiskFormat::Raw => view.bytes == facts.bytes,
        DiskFormat::Qcow2 => view.bytes >= facts.bytes,
    };
    if !has_its_size {
        return Err(DiskProblem::OtherSize {
            source_bytes: facts.bytes,
            target: view.bytes,
        });
    }
    if view.inode != facts.inode {
        let number = |inode: Option<u64>| inode.map_or("none".to_owned(), |inode| inode.to_string());
        return Err(DiskProblem::OtherFile {
            reason: format!(
                "inode {} here, {} on the source",
                number(view.inode),
                number(facts.inode)
            ),
        });
    }
    if facts.locked && view.is_locked().map_err(unreachable)? {
        return Ok(Proof::Lock);
    }
    if facts.locked && view.is_local().map_err(unreachable)? {
        return Err(DiskProblem::OtherFile {
            reason: "the source's QEMU has locked its file, this one is not locked".to_owned(),
        });
    }
    compare_content(&view, &facts.samples)
}

fn compare_content(view: &View, samples: &[Sample]) -> Result<Proof, DiskProblem> {
    if samples.is_empty() {
        return Err(DiskProblem::NothingToCompare);
    }
    let compared = samples.len();
    let mut differ = 0;
    for sample in samples {
        let hash = view.hash_at(sample.offset).map_err(|error| DiskProblem::Unreachable {
            reason: error.to_string(),
        })?;
        differ += usize::from(hash.as_ref() != Some(&sample.hash));
    }
    if differ > compared / 4 {
        return Err(DiskProblem::OtherContent { differ, compared });
    }
    Ok(Proof::Content)
}

/// A disk that is open for looking at.
struct View {
    medium: Medium,
    bytes: u64,
    inode: Option<u64>,
}

enum Medium {
    File(ImageFile),
    Nbd(NbdExport),
}

impl View {
    fn open(disk: &Disk) -> io::Result<Self> {
        match (&disk.path, &disk.nbd) {
            (Some(path), _) => Self::open_file(path),
            (None, Some(uri)) => Self::open_export(uri),
            (None, None) => Err(io::Error::other("the disk has neither a path nor a URI")),
        }
    }

    fn open_file(path: &Path) -> io::Result<Self> {
        let file = ImageFile::open(path)?;
        let (bytes, inode) = match file.identity()? {
            Identity::File { bytes, inode, .. } => (bytes, Some(inode)),
            Identity::Device { bytes, .. } | Identity::Export { bytes } => (bytes, None),
        };
        Ok(Self {
            medium: Medium::File(file),
            bytes,
            inode,
        })
    }

    fn open_export(uri: &NbdUri) -> io::Result<Self> {
        let export = NbdExport::open(uri)?;
        let bytes = export.bytes();
        Ok(Self {
            medium: Medium::Nbd(export),
            bytes,
            inode: None,
        })
    }

    /// Whether someone else has locked one of the bytes that QEMU locks.
    fn is_locked(&self) -> io::Result<bool> {
        let Medium::File(file) = &self.medium else {
            return Ok(false);
        };
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: IMAGE_LOCK_START,
            l_len: IMAGE_LOCK_BYTES,
            l_pid: 0,
        };
        fcntl::fcntl(file, fcntl::FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    /// Whether it is a file on a file system that only this host writes to, so that every lock on it is seen here.
    fn is_local(&self) -> io::Result<bool> {
        const LOCAL: [i64; 7] = [
            0xef53,      // ext2, ext3, ext4
            0x5846_5342, // XFS
            0x9123_683e, // Btrfs
            0xf2f5_2010, // F2FS
            0x2fc1_2fc1, // ZFS
            0x0102_1994, // tmpfs
            0x794c_7630, // overlayfs
        ];
        match &self.medium {
            Medium::File(file) if self.inode.is_some() => Ok(LOCAL.contains(&rustix::fs::fstatfs(file)?.f_type)),
            _ => Ok(false),
        }
    }

    fn samples(&self) -> io::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for offset in sample_offsets(self.bytes) {
            if let Some(hash) = self.hash_at(offset)? {
                samples.push(Sample { offset, hash });
            }
        }
        Ok(samples)
    }

    /// The hash of the block at `offset`; `None` if it is all zero, or not wholly on the disk.
    fn hash_at(&self, offset: u64) -> io::Result<Option<String>> {
        let end = offset.checked_add(BLOCK_BYTES as u64);
        if end.is_none_or(|end| end > self.bytes) || !offset.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(None);
        }
        let content: &dyn Blocks = match &self.medium {
            Medium::File(file) => file,
            Medium::Nbd(export) => export,
        };
        let mut block = [0; BLOCK_BYTES];
        content.read(offset / BLOCK_BYTES as u64, &mut block)?;
        let is_zero = block.iter().all(|&byte| byte == 0);
        Ok((!is_zero).then(|| blake3::hash(&block).to_hex().to_string()))
    }
}

/// Offsets of whole blocks on a disk of `bytes`, without repetition.
fn sample_offsets(bytes: u64) -> Vec<u64> {
    let blocks = bytes / BLOCK_BYTES as u64;
    let leading = 0..blocks.min(LEADING_BLOCKS);
    let step = blocks.div_ceil(SPREAD_BLOCKS).max(1);
    let spread = (0..blocks).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    let mut indices: Vec<u64> = leading.chain(spread).chain(blocks.checked_sub(1)).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.iter().map(|index| index * BLOCK_BYTES as u64).collect()
}

#[cfg(test)]
mod tests;
