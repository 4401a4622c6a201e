//! Disk images with an ext4 file system, and their check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Cache;
use crate::command::run;

/// Creates the raw image `path` of `bytes` bytes with an ext4 file system that holds what is in
/// `content`, or nothing.
///
/// # Errors
/// When the content does not fit or the file cannot be written.
pub fn ext4_disk(path: &Path, bytes: u64, content: Option<&Path>) -> Result<()> {
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-F", "-t", "ext4"]);
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

/// A cached raw ext4 image that holds about `bytes` bytes of the host's own libraries, programs and
/// documents: what a guest's page cache is made of. Attach it read-only.
///
/// # Errors
/// When the host has fewer bytes of such files, or the image cannot be built.
pub fn page_cache_disk(bytes: u64) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let path = cache.root.join(format!("page-cache-{bytes}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let staging = tempfile::tempdir_in(&cache.root)?;
    let content = staging.path().join("content");
    fs::create_dir(&content)?;
    let mut left = bytes;
    for folder in ["/usr/lib", "/usr/bin", "/usr/share"] {
        // A third from each, and from the last whatever is then still missing.
        let share = if folder == "/usr/share" {
            left
        } else {
            left.min(bytes / 3)
        };
        left -= share - gather(Path::new(folder), &content, share)?;
    }
    ensure!(
        left < bytes / 20,
        "this host lacks {left} of {bytes} bytes of files under /usr"
    );
    let partial = staging.path().join("disk");
    ext4_disk(&partial, bytes + bytes / 4 + (64 << 20), Some(&content))?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

/// Copies files under `folder` into `content`, up to `bytes` bytes; returns how many are missing.
fn gather(folder: &Path, content: &Path, bytes: u64) -> Result<u64> {
    const FILE_BYTES_MAX: u64 = 16 << 20;
    let mut left = bytes;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.sort();
        for path in paths {
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() && (1..=left.min(FILE_BYTES_MAX)).contains(&metadata.len()) {
                let copy = content.join(path.strip_prefix("/").unwrap_or(&path));
                if let Some(parent) = copy.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::copy(&path, &copy).with_context(|| format!("copying {}", path.display()))?;
                left -= metadata.len();
            }
        }
        if left == 0 {
            break;
        }
    }
    Ok(left)
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
