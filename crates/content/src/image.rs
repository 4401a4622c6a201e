//! Files and block devices, read past the page cache.
//!
//! What a file holds is not interpreted. A qcow2 image's clusters begin at multiples of 4 KiB, so the guest's blocks stand in
//! it as they are, unless it is compressed or encrypted.

use std::{
    fs::{self, File, OpenOptions},
    io,
    num::NonZeroU64,
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{Advice, OFlags, SeekFrom, fadvise, major, minor, seek},
    io::Errno,
};

use crate::{
    BLOCK_BYTES, Blocks, Identity,
    aligned::{AlignedBuffer, is_aligned},
    blocks::offset_of,
    identity::Timestamp,
};

/// A raw file, an image of any format, or a block device, open for reading.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    bytes: u64,
    /// Whether the file system reads past its cache by itself.
    direct: bool,
}

impl ImageFile {
    /// Opens it. A file that is put in its place later is another one.
    ///
    /// # Errors
    /// The system's; or it is neither a file nor a block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        match Self::open_with(path, OFlags::DIRECT) {
            // Not every file system can read past its cache (tmpfs on older kernels).
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Self::open_with(path, OFlags::empty()),
            opened => opened,
        }
    }

    fn open_with(path: &Path, direct: OFlags) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            // A pipe by that name must not be waited for.
            .custom_flags((direct | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)?;
        let kind = file.metadata()?.file_type();
        let bytes = if kind.is_file() {
            file.metadata()?.len()
        } else if kind.is_block_device() {
            seek(&file, SeekFrom::End(0))?
        } else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is neither a file nor a block device",
            ));
        };
        Ok(Self {
            file,
            bytes,
            direct: !direct.is_empty(),
        })
    }

    fn read_direct(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if is_aligned(into) {
            return self.file.read_exact_at(into, offset);
        }
        let mut buffer = AlignedBuffer::new(into.len());
        self.file.read_exact_at(buffer.bytes(), offset)?;
        into.copy_from_slice(buffer.bytes());
        Ok(())
    }
}

/// For what a host asks of a file besides its content, such as who has locked it.
impl AsFd for ImageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Blocks for ImageFile {
    fn blocks(&self) -> u64 {
        self.bytes / BLOCK_BYTES as u64
    }

    fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = offset_of(first, into.len(), self.blocks())?;
        if self.direct {
            return self.read_direct(into, offset);
        }
        if let Some(length) = NonZeroU64::new(into.len() as u64) {
            fadvise(&self.file, offset, Some(length), Advice::DontNeed)?;
        }
        self.file.read_exact_at(into, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let blocks = self.blocks();
        if from >= blocks {
            return Ok(None);
        }
        // Several threads may move the file's position: only what each call returns is used.
        let start = match seek(&self.file, SeekFrom::Data(from * BLOCK_BYTES as u64)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A device, or a file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..blocks)),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // Cut shorter meanwhile.
            Err(Errno::NXIO) => start,
            Err(error) => return Err(error.into()),
        };
        let range = (start / BLOCK_BYTES as u64).max(from)..end.div_ceil(BLOCK_BYTES as u64).min(blocks);
        Ok((!range.is_empty()).then_some(range))
    }

    fn identity(&self) -> io::Result<Identity> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(Identity::Device {
                device: metadata.rdev(),
                sequence: disk_sequence(metadata.rdev()),
                bytes: seek(&self.file, SeekFrom::End(0))?,
            });
        }
        Ok(Identity::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: Timestamp {
                seconds: metadata.mtime(),
                nanoseconds: metadata.mtime_nsec(),
            },
            changed: Timestamp {
                seconds: metadata.ctime(),
                nanoseconds: metadata.ctime_nsec(),
            },
        })
    }
}

/// The number that Linux gave the disk when it attached it; 0 before Linux 5.15 and for partitions, which have none.
fn disk_sequence(device: u64) -> u64 {
    let path = format!("/sys/dev/block/{}:{}/diskseq", major(device), minor(device));
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way of a file system that refuses `O_DIRECT`, whether or not the one here does.
    #[test]
    fn without_direct_reads_what_was_written_last_is_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, [1; 4 * BLOCK_BYTES]).unwrap();
        let image = ImageFile::open_with(&path, OFlags::empty()).unwrap();
        let mut buffer = [0; 2 * BLOCK_BYTES + 1];
        for byte in 1..5 {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[byte; 4 * BLOCK_BYTES], 0).unwrap();
            image.read(2, &mut buffer[1..]).unwrap();
            assert_eq!(buffer[1..], [byte; 2 * BLOCK_BYTES]);
        }
    }
}
