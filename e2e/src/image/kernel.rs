//! The distribution's cloud kernel, unpacked from its package and never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Cache;
use crate::command::{command, run};

/// The package that depends on the current cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub(super) struct Kernel {
    root: PathBuf,
}

impl Kernel {
    /// The kernel in the cache, fetched first if there is none.
    pub(super) fn fetch(cache: &Cache) -> Result<Self> {
        let root = cache.root.join("kernel");
        if !root.exists() {
            // A folder beside it, renamed when complete: a run that was interrupted leaves nothing
            // that looks finished.
            let unpacked = tempfile::tempdir_in(&cache.root)?;
            download(unpacked.path())?;
            fs::rename(unpacked.path(), &root)?;
        }
        Ok(Self { root })
    }

    /// The bootable kernel.
    pub(super) fn vmlinuz(&self) -> Result<PathBuf> {
        let boot = self.root.join("boot");
        fs::read_dir(&boot)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| file_name(path).starts_with("vmlinuz"))
            .with_context(|| format!("no vmlinuz in {}", boot.display()))
    }

    /// The modules called `names` and all that they depend on, each after its dependencies, with
    /// their content. A name with no file is a driver built into the kernel.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut paths = BTreeMap::new();
        for folder in ["lib/modules", "usr/lib/modules"] {
            find_modules(&self.root.join(folder), &mut paths)?;
        }
        let mut order = Order {
            paths,
            seen: BTreeSet::new(),
            modules: Vec::new(),
        };
        for name in names {
            order.add(name)?;
        }
        Ok(order.modules)
    }
}

struct Order {
    paths: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<(String, Vec<u8>)>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<()> {
        let Some(path) = self.paths.get(name) else {
            return Ok(());
        };
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let module = read_module(path)?;
        for dependency in dependencies(&module) {
            self.add(&dependency)?;
        }
        self.modules.push((name.to_owned(), module));
        Ok(())
    }
}

fn download(folder: &Path) -> Result<()> {
    let depends = run(&mut command("apt-cache", ["depends", META_PACKAGE]))
        .context("run the set-up first: it updates the package lists")?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{META_PACKAGE} names no kernel: is this Debian on x86-64?"))?;
    let archives = tempfile::tempdir()?;
    run(command("apt-get", ["download", package]).current_dir(archives.path()))
        .with_context(|| format!("fetching {package}"))?;
    let archive = fs::read_dir(archives.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get download left no package")?;
    run(Command::new("dpkg").arg("-x").arg(archive).arg(folder))?;
    Ok(())
}

fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, found)?;
        } else if let Some((name, _)) = file_name(&path).split_once(".ko") {
            // The kernel takes `-` and `_` in a module's name for the same.
            found.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output = Command::new(unpacker).arg("-dc").arg(path).output()?;
    ensure!(
        output.status.success(),
        "{unpacker} could not unpack {}",
        path.display()
    );
    Ok(output.stdout)
}

/// The names after `depends=` in the module's `.modinfo` section, a run of NUL-ended strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(value.get(..end).unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn dependencies_are_read_from_the_module_information() {
        let module = b"ELF\0license=GPL\0depends=virtio_ring,net-failover\0name=virtio_net\0";
        assert_eq!(dependencies(module), ["virtio_ring", "net_failover"]);
        assert!(dependencies(b"\0depends=\0name=virtio\0").is_empty());
        assert!(dependencies(b"no information at all").is_empty());
    }
}
