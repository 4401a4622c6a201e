use std::collections::BTreeSet;

use super::*;
use crate::host::{
    capability::{MemoryFacts, QemuFacts},
    disk::Proof,
    offer::BootFile,
};
use crate::vm::definition::MemoryBackend;

const GIB: u64 = 1 << 30;
const VERSION: QemuVersion = QemuVersion {
    major: 10,
    minor: 0,
    micro: 2,
};
const NO_LIMIT: MemoryPolicy = MemoryPolicy {
    limit: None,
    headroom: 0,
};

fn named(name: &str) -> VmDefinition {
    let text = format!(
        r#"
        name = "{name}"
        machine = "pc-q35-10.0"
        cpu = "max"
        vcpus = 1
        memory = "1GiB"
        kernel = "/boot/vmlinuz"

        [[disk]]
        id = "root"
        path = "/images/root"
        format = "raw"

        [[nic]]
        id = "lan"
        bridge = "br0"

        [[nic]]
        id = "wan"
        tap = "tap0"
        "#
    );
    let mut definition = VmDefinition::from_toml(&text).unwrap();
    definition.complete(Accel::Kvm, [name.len() as u8; 16]);
    definition
}

fn offer() -> Offer {
    Offer {
        definition: named("web"),
        qemu: VERSION,
        cpu_features: ["sse2", "avx2"].map(String::from).into(),
        disks: Vec::new(),
        boot_files: vec![BootFile {
            path: "/boot/vmlinuz".into(),
            hash: "aa".into(),
        }],
        arbiter: None,
        contents: Vec::new(),
    }
}

/// A host that can take it.
fn facts() -> TargetFacts {
    TargetFacts {
        memory: MemoryFacts {
            total: 4 * GIB,
            available: 3 * GIB,
            huge_free: 0,
        },
        qemu: Ok(QemuFacts {
            version: VERSION,
            machines: ["pc-q35-10.0".to_owned()].into(),
            sandbox: true,
        }),
        kvm: true,
        cpu_features: Some(Ok(["sse2", "avx2", "avx512f"].map(String::from).into())),
        disks: [("root".to_owned(), Ok(Proof::Lock))].into(),
        boot_files: [("/boot/vmlinuz".into(), Ok("aa".to_owned()))].into(),
        interfaces: [("br0".to_owned(), true), ("tap0".to_owned(), false)].into(),
        objections: Vec::new(),
    }
}

fn refusals(change: impl FnOnce(&mut Offer, &mut TargetFacts)) -> Vec<Refusal> {
    let (mut offer, mut facts) = (offer(), facts());
    change(&mut offer, &mut facts);
    check(&offer, &facts, &Occupancy::default(), NO_LIMIT)
}

fn reasons(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("{refusal}\n")).collect()
}

/// The one reason, as its sentence.
fn reason(change: impl FnOnce(&mut Offer, &mut TargetFacts)) -> String {
    let refusals = refusals(change);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    reasons(&refusals)
}

#[test]
fn a_host_that_has_everything_takes_the_vm() {
    assert_eq!(refusals(|_, _| {}), []);
}

#[test]
fn each_lack_is_a_reason_of_its_own() {
    let said = reason(|_, facts| facts.memory.available = GIB);
    assert!(
        said.contains("not enough memory") && said.contains("1GiB are free"),
        "{said}"
    );
    let said = reason(|offer, facts| {
        offer.definition.memory.backend = MemoryBackend::Memfd;
        offer.definition.memory.hugepages = true;
        // Only QEMU itself needs ordinary memory.
        facts.memory.available = GIB / 2;
    });
    assert!(said.contains("1GiB of huge pages"), "{said}");
    let said = reason(|_, facts| facts.qemu = Err("install QEMU".into()));
    assert!(said.contains("install QEMU"));
    let said = reason(|offer, _| offer.qemu.micro = 3);
    assert!(said.contains("10.0.2") && said.contains("10.0.3"));
    let said = reason(|_, facts| {
        if let Ok(qemu) = &mut facts.qemu {
            qemu.machines = BTreeSet::new();
        }
        facts.cpu_features = None;
    });
    assert!(said.contains("no machine type pc-q35-10.0"));
    let said = reason(|_, facts| facts.kvm = false);
    assert!(said.contains("KVM"));
    let said = reason(|offer, _| offer.cpu_features.extend(["amx".to_owned(), "la57".to_owned()]));
    assert!(said.contains("lacks amx, la57"));
    let said = reason(|_, facts| facts.cpu_features = Some(Err("no such model".into())));
    assert!(said.contains("CPU model max") && said.contains("no such model"));
    let said = reason(|_, facts| {
        facts.disks.insert("root".into(), Err(DiskProblem::NothingToCompare));
    });
    assert!(said.contains("disk \"root\" has no lock"));
    let said = reason(|_, facts| {
        let (id, problem) = ("root".to_owned(), "/images/root is nowhere".to_owned());
        facts.objections.push(Objection::Disk { id, problem });
        // What the policy is against was not looked at.
        facts.disks.clear();
    });
    assert!(said.contains("disk \"root\": /images/root is nowhere"), "{said}");
    let said = reason(|_, facts| facts.disks.clear());
    assert!(said.contains("does not describe disk \"root\""));
    let said = reason(|_, facts| {
        facts.interfaces.insert("br0".into(), false);
    });
    assert!(said.contains("no bridge br0 for NIC \"lan\""));
    let said = reason(|_, facts| {
        facts.interfaces.remove("tap0");
    });
    assert!(said.contains("no tap tap0 for NIC \"wan\""));
    let said = reason(|_, facts| drop(facts.boot_files.insert("/boot/vmlinuz".into(), Err("gone".into()))));
    assert!(said.contains("/boot/vmlinuz") && said.contains("gone"));
    let said = reason(|_, facts| drop(facts.boot_files.insert("/boot/vmlinuz".into(), Ok("bb".into()))));
    assert!(said.contains("differs"));
    let said = reason(|offer, _| offer.definition.append = Some("a\0b".into()));
    assert!(said.contains("not valid here"));
}

#[test]
fn all_reasons_come_at_once() {
    let refusals = refusals(|offer, facts| {
        offer.cpu_features.insert("amx".into());
        facts.memory.available = 0;
        facts.interfaces.clear();
        facts.boot_files.insert("/boot/vmlinuz".into(), Ok("bb".into()));
        facts
            .disks
            .insert("root".into(), Err(DiskProblem::Unreachable { reason: "gone".into() }));
        facts.objections.push(Objection::Vms { here: 2, most: 2 });
    });
    assert_eq!(refusals.len(), 7, "{refusals:?}");
    let json = serde_json::to_string(&refusals).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Refusal>>(&json).unwrap(), refusals);
}

#[test]
fn name_and_uuid_of_vms_and_reservations_are_taken() {
    let offer = offer();
    let mut reservations = Reservations::default();
    let copy = VmDefinition {
        name: "copy".into(),
        ..offer.definition.clone()
    };
    reservations.hold("copy", reservation_for(&copy));
    let occupancy = Occupancy::new([&named("web")], &reservations);
    let said = reasons(&check(&offer, &facts(), &occupancy, NO_LIMIT));
    assert!(said.contains("name web is taken"), "{said}");
    assert!(said.contains("taken by VM copy"), "{said}");
}

#[test]
fn memory_promised_to_others_counts() {
    let offer = offer();
    let fits = |vms: &[VmDefinition], reserved: &[&str], policy| {
        let mut reservations = Reservations::default();
        for name in reserved {
            reservations.hold(name, reservation_for(&named(name)));
        }
        let occupancy = Occupancy::new(vms, &reservations);
        !check(&offer, &facts(), &occupancy, policy)
            .iter()
            .any(|refusal| matches!(refusal, Refusal::Memory { .. }))
    };
    let headroom = |headroom| MemoryPolicy { headroom, ..NO_LIMIT };
    // 4 GiB in all, 3 GiB available; each VM needs a little more than 1 GiB.
    assert!(fits(&[], &[], NO_LIMIT));
    assert!(fits(&[], &["a"], NO_LIMIT));
    assert!(!fits(&[], &["a", "bb"], NO_LIMIT));
    // VMs that run have taken what they touched out of what is available, but not yet all they were promised.
    assert!(fits(&[named("a"), named("bb")], &[], NO_LIMIT));
    assert!(!fits(&[named("a"), named("bb"), named("ccc")], &[], NO_LIMIT));
    // A VM that was launched for its reservation counts once.
    assert!(fits(&[named("a")], &["a"], NO_LIMIT));
    assert!(!fits(&[], &[], headroom(2 * GIB)));
    assert!(!fits(
        &[named("a")],
        &[],
        MemoryPolicy {
            limit: Some(2 * GIB),
            ..NO_LIMIT
        }
    ));
}
