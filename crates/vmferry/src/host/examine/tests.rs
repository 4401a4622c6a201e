//! A VM that really runs, offered to the host it runs on and to hosts that differ from it.

use std::{fs, path::PathBuf};

use super::*;
use crate::{
    host::{
        check::{MemoryPolicy, Occupancy, Refusal, check},
        offer::{describe, describe_disks},
    },
    vm::{Confinement, Launcher, Role, RunningVm, VmDefinition, VmFolder},
};
use tempfile::TempDir;

const QEMU: &str = "qemu-system-x86_64";

struct Running {
    vm: RunningVm,
    folder: TempDir,
}

impl Running {
    /// A VM with a disk of 1 MiB, whose QEMU has opened it, and with a kernel.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::write(&disk, [5; 1 << 20]).unwrap();
        let text = format!(
            r#"
            name = "offered"
            machine = "pc-q35-7.2"
            cpu = "max"
            vcpus = 1
            memory = "16MiB"

            [[disk]]
            id = "root"
            path = "{}"
            format = "raw"
            cache = "writeback"
            "#,
            disk.display()
        );
        let mut definition = VmDefinition::from_toml(&text).unwrap();
        definition.complete(Accel::Tcg, [3; 16]);
        let vm_folder = VmFolder::new(folder.path(), &definition.name);
        let launcher = Launcher {
            qemu: QEMU.into(),
            confinement: Confinement::default(),
        };
        let vm = launcher.launch(definition, vm_folder, Role::Boot, None).await.unwrap();
        vm.qmp.cont().await.unwrap();
        Self { vm, folder }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

async fn refusals(offer: &Offer) -> Vec<Refusal> {
    let facts = examine(&Probes::new(QEMU.into()), offer, Vec::new()).await.unwrap();
    let policy = MemoryPolicy {
        limit: None,
        headroom: 0,
    };
    check(offer, &facts, &Occupancy::default(), policy)
}

#[tokio::test]
async fn the_host_that_runs_a_vm_could_take_it_and_sees_its_lock() {
    let running = Running::start().await;
    let offer = describe(&running.vm).await.unwrap();
    let json = serde_json::to_vec(&offer).unwrap();
    let offer: Offer = serde_json::from_slice(&json).unwrap();
    let facts = examine(&Probes::new(QEMU.into()), &offer, Vec::new()).await.unwrap();
    assert_eq!(facts.disks.get("root"), Some(&Ok(Proof::Lock)));
    assert_eq!(refusals(&offer).await, []);
    running.vm.end().await.unwrap();
}

#[tokio::test]
async fn a_copy_of_the_disk_at_its_path_is_refused() {
    let running = Running::start().await;
    let offer = describe(&running.vm).await.unwrap();
    let original = running.folder.path().join("original");
    fs::rename(running.disk(), &original).unwrap();
    fs::copy(&original, running.disk()).unwrap();
    let refusals = refusals(&offer).await;
    assert!(
        matches!(
            refusals.as_slice(),
            [Refusal::Disk {
                problem: DiskProblem::OtherFile { .. },
                ..
            }]
        ),
        "{refusals:?}"
    );
    running.vm.end().await.unwrap();
}

#[tokio::test]
async fn what_the_host_lacks_is_told_all_at_once() {
    let running = Running::start().await;
    let mut offer = describe(&running.vm).await.unwrap();
    offer.qemu.major += 1;
    offer.cpu_features.insert("of-the-future".into());
    offer.definition.kernel = Some("/no/such/kernel".into());
    let nic = toml::from_str("id = 'lan'\nbridge = 'vmf-no-bridge'").unwrap();
    offer.definition.nic.push(nic);
    fs::remove_file(running.disk()).unwrap();
    let refusals = refusals(&offer).await;
    assert!(
        matches!(
            refusals.as_slice(),
            [
                Refusal::OldQemu { .. },
                Refusal::CpuFeatures { .. },
                Refusal::Disk {
                    problem: DiskProblem::Unreachable { .. },
                    ..
                },
                Refusal::NoBridge { .. },
                Refusal::NoBootFile { .. }
            ]
        ),
        "{refusals:?}"
    );
    running.vm.end().await.unwrap();
}

#[tokio::test]
async fn a_machine_type_that_is_not_there_is_told_without_asking_for_its_cpu() {
    let running = Running::start().await;
    let mut offer = describe(&running.vm).await.unwrap();
    offer.definition.machine = "pc-q35-99.0".into();
    let refusals = refusals(&offer).await;
    assert!(matches!(refusals.as_slice(), [Refusal::Machine { .. }]), "{refusals:?}");
    running.vm.end().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_was_written_to_between_both_looks_is_the_same_at_the_next() {
    let running = Running::start().await;
    let mut offer = describe(&running.vm).await.unwrap();
    // As on storage whose locks the hosts don't share.
    offer.disks[0].locked = false;
    fs::write(running.disk(), vec![6; 1 << 20]).unwrap();
    let mut facts = examine(&Probes::new(QEMU.into()), &offer, Vec::new()).await.unwrap();
    assert!(facts.content_differs(), "{facts:?}");

    offer.disks = describe_disks(&running.vm).await.unwrap();
    offer.disks[0].locked = false;
    facts.look_again(&offer).await;
    assert!(!facts.content_differs());
    assert_eq!(facts.disks.get("root"), Some(&Ok(Proof::Content)));
    running.vm.end().await.unwrap();
}
