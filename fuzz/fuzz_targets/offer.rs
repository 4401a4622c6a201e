//! What a source offers, as its message brings it: refused with reasons, or a VM that this host has room for, whose QEMU's arguments
//! can be made and whose record reads back. Names of content are read however odd they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use vmferry::agent::record::Record;
use vmferry::content::name::ContentName;
use vmferry::host::{
    Offer, QemuFacts, QemuVersion, Reservations, TargetFacts,
    capability::MemoryFacts,
    check::{MemoryPolicy, Occupancy, check, reservation_for},
    disk::{DiskFacts, Proof},
};
use vmferry::vm::{Role, VmDefinition, VmFolder, command_line::arguments};
use vmferry_core::wire::{hello::MigrationId, message::Message};
use vmferry_fuzz::{given_to, within};

const MEMORY_BYTES: u64 = 4 << 30;

/// In front of an offer and behind it, in the message.
const RESERVE: (&[u8], &[u8]) = (
    br#"{"message":"reserve","handover":{"migration":"00000000000000000000000000000007","vm":"web","epoch":2},"transfer":{"lanes":1,"coders":[{"codec":"raw","level":1,"window_log":19}],"fingerprint_key":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"verify_memory":false},"offer":"#,
    b"}",
);

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    within((256 << 10) + 1024 * bytes.len(), || {
        if way % 4 == 0 {
            let _ = serde_json::from_slice::<Vec<DiskFacts>>(bytes);
            return;
        }
        let Ok(Message::Reserve { offer, .. }) = Message::read(&[RESERVE.0, bytes, RESERVE.1].concat()) else {
            return;
        };
        let Ok(offer) = serde_json::from_value::<Offer>(offer) else {
            return;
        };
        let _: Vec<String> = offer.contents.iter().map(ContentName::to_string).collect();
        weigh(&offer);
    });
});

/// Weighs it on a host that has everything but more memory.
fn weigh(offer: &Offer) {
    let definition = &offer.definition;
    let boot_files = offer
        .boot_files
        .iter()
        .map(|file| (file.path.clone(), Ok(file.hash.clone())));
    let bridges = definition
        .nic
        .iter()
        .filter_map(|nic| nic.bridge.clone())
        .map(|name| (name, true));
    let taps = definition
        .nic
        .iter()
        .filter_map(|nic| nic.tap.clone())
        .map(|name| (name, false));
    let version = QemuVersion {
        major: 10,
        minor: 0,
        micro: 2,
    };
    let facts = TargetFacts {
        memory: MemoryFacts {
            total: MEMORY_BYTES,
            available: MEMORY_BYTES,
            huge_free: MEMORY_BYTES,
        },
        qemu: Ok(QemuFacts {
            version,
            machines: BTreeSet::from([definition.machine.clone()]),
            sandbox: true,
        }),
        kvm: true,
        cpu_features: Some(Ok(offer.cpu_features.clone())),
        disks: definition
            .disk
            .iter()
            .map(|disk| (disk.id.clone(), Ok(Proof::Lock)))
            .collect(),
        boot_files: BTreeMap::from_iter(boot_files),
        interfaces: BTreeMap::from_iter(bridges.chain(taps)),
        objections: Vec::new(),
    };
    let policy = MemoryPolicy {
        limit: None,
        headroom: 1 << 20,
    };
    let refusals = check(offer, &facts, &Occupancy::new([], &Reservations::default()), policy);
    if !refusals.is_empty() {
        assert!(refusals.iter().all(|refusal| !refusal.to_string().is_empty()));
        return;
    }
    taken(definition);
}

fn taken(definition: &VmDefinition) {
    let room = if definition.memory.hugepages {
        2 * MEMORY_BYTES
    } else {
        MEMORY_BYTES
    };
    assert!(reservation_for(definition).memory_bytes <= room);
    let folder = VmFolder::new(Path::new("/state"), &definition.name);
    assert_eq!(folder.path().components().count(), 4);
    let arguments = arguments(definition, &folder, &given_to(definition), true, Role::Incoming);
    assert!(arguments.iter().all(|argument| !argument.contains('\0')));
    let record = Record::Incoming {
        migration: MigrationId(7),
        definition: Box::new(definition.clone()),
    };
    let json = serde_json::to_vec(&record).expect("it has a JSON form");
    assert_eq!(serde_json::from_slice::<Record>(&json).expect("it reads back"), record);
}
