//! Kernel, initramfs and disks of the guests, built once and cached.
//!
//! The cache is `target/vmferry-images` in the workspace, or where `VMFERRY_CACHE` says.

mod cpio;
mod disk;
mod initramfs;
mod kernel;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

pub use disk::{compressed_qcow2_of, ext4_disk, fsck, fsck_mounted, overlay_of, page_cache_disk, qcow2_of};

/// What a guest boots from.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel, for QEMU's `-kernel`.
    pub kernel: PathBuf,
    /// The initramfs, for QEMU's `-initrd`.
    pub initrd: PathBuf,
}

/// What the guest's initramfs holds besides the guest program, busybox and the virtio drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extras {
    /// Nothing: the smallest guest.
    None,
    /// The host's Redis server and the libraries it needs (about 15 MB).
    Redis,
}

/// Builds what is missing of the guest image and returns its paths.
///
/// The first call fetches the distribution's cloud kernel package and compiles the guest program
/// (about half a minute); later calls only check that the program is up to date.
///
/// # Errors
/// When a package cannot be fetched, a program that [`crate::setup`] installs is missing, or the
/// guest program does not compile.
pub fn image(extras: Extras) -> Result<Image> {
    let cache = Cache::open()?;
    let kernel = kernel::Kernel::fetch(&cache)?;
    let archive = initramfs::build(&cache, &kernel, extras)?;
    let folder = cache.folder(blake3::hash(&archive).to_hex().get(..16).unwrap_or_default())?;
    let initrd = folder.join("initramfs.cpio");
    if !initrd.exists() {
        write_whole(&initrd, &archive)?;
    }
    Ok(Image {
        kernel: kernel.vmlinuz()?,
        initrd,
    })
}

/// The cache, locked against other processes that would build the same things.
struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let root = match std::env::var_os("VMFERRY_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => workspace().join("target/vmferry-images"),
        };
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let lock = File::create(root.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("locking the image cache")?;
        Ok(Self { root, _lock: lock })
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

fn workspace() -> &'static Path {
    let e2e = Path::new(env!("CARGO_MANIFEST_DIR"));
    e2e.parent().unwrap_or(e2e)
}

/// Writes a file that is either whole or absent, whenever the process ends.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path)?;
    Ok(())
}
