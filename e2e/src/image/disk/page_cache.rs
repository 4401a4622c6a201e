//! A disk like a server's root: programs, libraries and documents of the host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::ext4_disk;
use crate::image::Cache;
use crate::image::initramfs::libraries;

/// Several times what the modules take.
const MODULES_BYTES_MAX: u64 = 8 << 20;

/// A cached raw ext4 image that holds about `bytes` bytes of the host's own libraries, programs and
/// documents: what a guest's page cache is made of. Python is among them and runs with the image as its root.
/// Attach it read-only.
///
/// # Errors
/// When the host has no Python or fewer bytes of such files, or the image cannot be built.
pub fn page_cache_disk(bytes: u64) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let path = cache.root.join(format!("root-{bytes}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let staging = tempfile::tempdir_in(&cache.root)?;
    let content = staging.path().join("content");
    fs::create_dir(&content)?;
    let python = add_python(&content)?;
    let bytes = bytes
        .checked_sub(python)
        .with_context(|| format!("Python alone takes {python} bytes"))?;
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
    ext4_disk(&partial, python + bytes + bytes / 3 + (64 << 20), Some(&content))?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

/// Copies Python, the libraries it needs and the modules without which it does not start; returns how many bytes those
/// are.
fn add_python(content: &Path) -> Result<u64> {
    let program = Path::new("/usr/bin/python3")
        .canonicalize()
        .context("no Python: run the set-up first, it installs python3-minimal")?;
    let mut bytes = copy(&program, &content.join("usr/bin/python3"))?;
    for library in libraries(&program)? {
        bytes += copy(&library, &below(content, &library))?;
    }
    let name = program.file_name().context("a program without a name")?;
    let modules = Path::new("/usr/lib").join(name).join("encodings");
    let left = gather(&modules, content, MODULES_BYTES_MAX)?;
    Ok(bytes + MODULES_BYTES_MAX - left)
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
                let place = below(content, &path);
                // What Python brought is there and was counted.
                if !place.exists() {
                    left -= copy(&path, &place)?;
                }
            }
        }
        if left == 0 {
            break;
        }
    }
    Ok(left)
}

/// The absolute `path` with `root` as its root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Copies one file and returns its size.
fn copy(file: &Path, place: &Path) -> Result<u64> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(file, place).with_context(|| format!("copying {}", file.display()))
}
