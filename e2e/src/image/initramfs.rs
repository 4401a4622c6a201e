//! The guest's file system in memory: our guest program as `/init`, busybox, drivers, Redis.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Cpio;
use super::kernel::Kernel;
use super::{Cache, Extras, workspace};
use crate::command::{command, run};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guests of the tests use. `crc32c_generic` is a need of ext4 that modules do not declare.
const MODULES: [&str; 7] = [
    "crc32c_generic",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_mem",
    "ext4",
];

/// Builds the archive; the same inputs give the same bytes.
pub(super) fn build(cache: &Cache, kernel: &Kernel, extras: Extras) -> Result<Vec<u8>> {
    let mut archive = Cpio::default();
    // The kernel opens it for the first process before anything is mounted.
    archive.device("/dev/console", 5, 1)?;
    let guest = build_guest(cache)?;
    archive.file("/init", &read(&guest)?)?;
    archive.file("/bin/busybox", &read(&busybox()?)?)?;
    let mut order = String::new();
    for (name, module) in kernel.modules(&MODULES)? {
        let path = format!("/modules/{name}.ko");
        archive.file(&path, &module)?;
        order.push_str(&path);
        order.push('\n');
    }
    archive.file("/modules/order", order.as_bytes())?;
    if extras == Extras::Redis {
        add_redis(&mut archive)?;
    }
    archive.finish()
}

/// Compiles the guest program as a static binary, which a folder with no libraries can run.
fn build_guest(cache: &Cache) -> Result<PathBuf> {
    let target_dir = cache.root.join("build");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    run(command(
        &cargo,
        ["build", "--release", "-p", "vmferry-guest", "--target", TARGET],
    )
    .arg("--target-dir")
    .arg(&target_dir)
    .env_remove("CARGO_ENCODED_RUSTFLAGS")
    .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
    .current_dir(workspace()))
    .context("compiling the guest program")?;
    Ok(target_dir.join(TARGET).join("release/vmferry-guest"))
}

fn busybox() -> Result<PathBuf> {
    let path = Path::new("/bin/busybox").canonicalize();
    let path = path.context("no busybox: run the set-up first, it installs busybox-static")?;
    let linkage = Command::new("ldd").arg(&path).output()?;
    if linkage.status.success() {
        bail!("{} is not static: install busybox-static", path.display());
    }
    Ok(path)
}

/// Debian's `redis-server` is a name of the program in `redis-tools`, which acts by its own name.
fn add_redis(archive: &mut Cpio) -> Result<()> {
    let program = ["/usr/bin/redis-server", "/usr/bin/redis-check-rdb"]
        .iter()
        .find_map(|path| Path::new(path).canonicalize().ok())
        .context("no Redis: run the set-up first, it installs redis-tools")?;
    archive.file("/usr/bin/redis-server", &read(&program)?)?;
    for library in libraries(&program)? {
        let path = library.to_str().context("a path that is not UTF-8")?;
        archive.file(path, &read(&library)?)?;
    }
    Ok(())
}

/// The shared libraries that `program` is loaded with, and the loader.
pub(super) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = run(Command::new("ldd").arg(program))?;
    // `name => /path (address)`, or for the loader `/path (address)`
    let path = |line: &str| {
        Some(PathBuf::from(
            line.split_whitespace().find(|word| word.starts_with('/'))?,
        ))
    };
    Ok(listed.lines().filter_map(path).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
