//! The definition by which `vmferry run` starts the same machine that [`Qemu`](crate::qemu::Qemu) runs.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::net::BRIDGE;
use crate::qemu::{Disk, Spec};

impl Spec {
    /// The machine as a vmferry definition called `name`, TOML. Its console goes to the file `console`: the guest program
    /// needs one, as its standard output.
    ///
    /// # Errors
    /// When QEMU does not tell its current machine type.
    pub fn definition(&self, name: &str, console: &Path) -> Result<String> {
        let mut toml = format!(
            "name = {name:?}\nmachine = {:?}\naccel = {:?}\ncpu = {:?}\nvcpus = {}\nmemory = \"{}MiB\"\n\
             kernel = {:?}\ninitrd = {:?}\nappend = {:?}\nserial = {{ file = {console:?} }}\n",
            pinned_machine()?,
            self.accel.name(),
            self.accel.cpu(),
            self.vcpus,
            self.memory_mib,
            self.image.kernel,
            self.image.initrd,
            self.kernel_command_line(),
        );
        for (disk, number) in self.disks.iter().zip(0..) {
            toml.push_str(&disk_table(disk, number));
        }
        let _ = write!(
            toml,
            "\n[[nic]]\nid = \"net0\"\nmac = {:?}\nbridge = {BRIDGE:?}\n",
            self.mac()
        );
        Ok(toml)
    }

    /// Writes [`Spec::definition`] into `folder`, where the [`console`] will be, too, and returns the file's path.
    ///
    /// # Errors
    /// As there, or when the file cannot be written.
    pub fn write_definition(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        let path = folder.join(format!("{name}.toml"));
        let text = self.definition(name, &console(folder, name))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Where the console of the guest `name` goes, whose definition is in `folder`; appended to at each start of a QEMU.
#[must_use]
pub fn console(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.console"))
}

fn disk_table(disk: &Disk, number: usize) -> String {
    let place = if disk.file.starts_with("nbd") { "nbd" } else { "path" };
    format!(
        "\n[[disk]]\nid = \"disk{number}\"\n{place} = {:?}\nformat = {:?}\nreadonly = {}\n",
        disk.file, disk.format, disk.read_only
    )
}

/// The versioned name of the machine type that QEMU calls `q35`.
///
/// # Errors
/// When QEMU cannot be run, or lists no such alias.
pub fn pinned_machine() -> Result<String> {
    let listed = run(&mut command("qemu-system-x86_64", ["-machine", "help"]))
        .context("run the set-up first, it installs QEMU")?;
    alias(&listed).with_context(|| format!("QEMU lists no version of q35:\n{listed}"))
}

fn alias(listed: &str) -> Option<String> {
    let line = listed.lines().find(|line| line.starts_with("q35 "))?;
    let (_, name) = line.split_once("(alias of ")?;
    Some(name.trim_end().trim_end_matches(')').to_owned())
}

#[cfg(test)]
mod tests {
    use super::alias;

    #[test]
    fn the_version_behind_q35_is_found() {
        let listed = "Supported machines are:\n\
             pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n\
             q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n";
        assert_eq!(alias(listed).as_deref(), Some("pc-q35-10.0"));
        assert_eq!(alias("none"), None);
    }
}
