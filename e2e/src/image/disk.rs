//! Disk images with an ext4 file system, and their check.
//!
//! | module | what |
//! |---|---|
//! | [`page_cache`] | an image full of the host's own files |

mod page_cache;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

pub use page_cache::page_cache_disk;

use crate::command::run;

/// Creates the raw image `path` of `bytes` bytes with an ext4 file system that holds what is in
/// `content`, or nothing.
///
/// # Errors
/// When the content does not fit or the file cannot be written.
pub fn ext4_disk(path: &Path, bytes: u64, content: Option<&Path>) -> Result<()> {
    let mut make = Command::new("/sbin/mke2fs");
    // For a small image mke2fs would take blocks of 1 KiB. With those of a real disk each page of a file is one block.
    make.args(["-q", "-F", "-t", "ext4", "-b", "4096"]);
    if let Some(folder) = content {
        make.arg("-d").arg(folder);
    }
    make.arg(path).arg(format!("{}k", bytes / 1024));
    run(&mut make)?;
    Ok(())
}

/// Converts the raw image `raw` to qcow2 at `path`.
///
/// # Errors
/// When `qemu-img` fails; its message is in the error.
pub fn qcow2_of(raw: &Path, path: &Path) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    run(convert.arg(raw).arg(path))?;
    Ok(())
}

/// As [`qcow2_of`], with its clusters compressed.
///
/// # Errors
/// As there.
pub fn compressed_qcow2_of(raw: &Path, path: &Path) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]);
    run(convert.arg(raw).arg(path))?;
    Ok(())
}

/// Creates an empty qcow2 at `path` whose backing file is the raw image `raw`.
///
/// # Errors
/// When `qemu-img` fails; its message is in the error.
pub fn overlay_of(raw: &Path, path: &Path) -> Result<()> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    run(create.arg(raw).arg(path))?;
    Ok(())
}

/// Checks the ext4 file system in the image `path` of format `format` (`raw` or `qcow2`), which no
/// QEMU may have open.
///
/// # Errors
/// When the file system has errors: e2fsck's findings are in the message.
pub fn fsck(path: &Path, format: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let raw = folder.path().join("disk.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", format, "-O", "raw"]);
    run(convert.arg(path).arg(&raw))?;
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(&raw))
        .with_context(|| format!("the file system in {} has errors", path.display()))?;
    Ok(())
}

/// Checks the ext4 file system in the raw image `path` that a running guest has mounted and does not write to: on a copy,
/// after what its journal holds was replayed there, as the next mount would.
///
/// # Errors
/// When the file system has errors: e2fsck's findings are in the message.
pub fn fsck_mounted(path: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("disk.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", "raw", "-O", "raw"]);
    run(convert.arg(path).arg(&copy))?;
    run(Command::new("/sbin/e2fsck")
        .args(["-E", "journal_only", "-y"])
        .arg(&copy))
    .with_context(|| format!("the journal of the file system in {} can't be replayed", path.display()))?;
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(&copy))
        .with_context(|| format!("the file system in {} has errors", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::ext4_disk;

    /// A page of a file is then one block of the disk, however small the disk is.
    #[test]
    fn pages_of_files_are_aligned_on_a_small_disk() {
        const PAGE_BYTES: usize = 4096;
        let folder = tempfile::tempdir().unwrap();
        let (content, disk) = (folder.path().join("content"), folder.path().join("disk"));
        fs::create_dir(&content).unwrap();
        let page = |number: u8| vec![number; PAGE_BYTES];
        for number in 1..=9 {
            // Where blocks are smaller than pages, the next file begins within one.
            let file = [page(number), b"a little more".to_vec()].concat();
            fs::write(content.join(format!("file{number}")), file).unwrap();
        }
        ext4_disk(&disk, 32 << 20, Some(&content)).unwrap();
        let image = fs::read(&disk).unwrap();
        for number in 1..=9 {
            assert!(
                image.chunks_exact(PAGE_BYTES).any(|block| block == page(number)),
                "{number}"
            );
        }
    }
}
