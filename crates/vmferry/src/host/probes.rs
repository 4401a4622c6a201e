//! What the QEMU binary answered before, for as long as it is the same file: asking means starting a QEMU, which takes longer
//! than all other checks together.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use super::capability::{ProbeError, QemuFacts, probe_cpu, probe_qemu};
use crate::vm::{VmDefinition, definition::Accel};

/// A QEMU binary, and its answers.
#[derive(Debug)]
pub struct Probes {
    binary: PathBuf,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    /// Of which file: device, inode, and time of change.
    file: Option<(u64, u64, i64, i64)>,
    qemu: Option<QemuFacts>,
    /// By machine type, accelerator and CPU model.
    cpus: BTreeMap<(String, &'static str, String), BTreeSet<String>>,
}

impl Probes {
    /// Of this binary, a path or a name to look up in `PATH`.
    pub fn new(binary: PathBuf) -> Probes {
        Probes {
            binary,
            answers: Mutex::default(),
        }
    }

    /// What it is.
    ///
    /// # Errors
    /// [`ProbeError`]; asked again, it is tried again.
    pub async fn qemu(&self) -> Result<QemuFacts, ProbeError> {
        let mut answers = self.answers.lock().await;
        answers.keep_only_of(&self.binary);
        if let Some(facts) = &answers.qemu {
            return Ok(facts.clone());
        }
        let facts = probe_qemu(&self.binary).await?;
        answers.qemu = Some(facts.clone());
        Ok(facts)
    }

    /// Which CPU features the VM would have on this host.
    ///
    /// # Errors
    /// [`ProbeError`]; asked again, it is tried again.
    pub async fn cpu(&self, definition: &VmDefinition) -> Result<BTreeSet<String>, ProbeError> {
        let accel = definition.accel.unwrap_or(Accel::Tcg).as_str();
        let model = (definition.machine.clone(), accel, definition.cpu.clone());
        let mut answers = self.answers.lock().await;
        answers.keep_only_of(&self.binary);
        if let Some(features) = answers.cpus.get(&model) {
            return Ok(features.clone());
        }
        let features = probe_cpu(&self.binary, definition).await?;
        answers.cpus.insert(model, features.clone());
        Ok(features)
    }
}

impl Answers {
    /// Forgets everything if the file is another one than last time.
    fn keep_only_of(&mut self, binary: &Path) {
        let file = find(binary)
            .and_then(|path| path.metadata().ok())
            .map(|file| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec()));
        if file.is_none() || file != self.file {
            *self = Answers {
                file,
                ..Answers::default()
            };
        }
    }
}

/// The file that running `binary` runs.
fn find(binary: &Path) -> Option<PathBuf> {
    if binary.components().count() > 1 {
        return Some(binary.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(binary))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_remembered_until_the_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("qemu");
        let probes = Probes::new(binary.clone());
        assert!(probes.qemu().await.is_err(), "there is no file");
        let real = find(Path::new("qemu-system-x86_64")).unwrap();
        std::os::unix::fs::symlink(&real, &binary).unwrap();
        let facts = probes.qemu().await.unwrap();
        assert_eq!(probes.qemu().await.unwrap(), facts);
        std::fs::remove_file(&binary).unwrap();
        assert!(
            probes.qemu().await.is_err(),
            "what is not there any more is not remembered"
        );
    }
}
