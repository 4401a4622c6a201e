//! What a definition must hold besides well-formed fields. Every problem is found in one go.

use std::{collections::BTreeSet, path::Path};

use vmferry_core::limits::GUEST_BYTES_MAX;

use super::definition::{Disk, MemoryBackend, Nic, Serial, VmDefinition, parse_uuid};

/// What [`is_name`] asks for.
const NAME_RULE: &str = "begin with a letter or digit, go on with these or '-', '_' and '.',";
/// Longest name of a VM: it is a folder, and part of the paths of unix sockets, which have 107 bytes.
const NAME_BYTES_MAX: usize = 63;
/// Longest id of a disk or NIC: QEMU's block node names have 31 bytes, virtio-blk's serial number has 20.
const ID_BYTES_MAX: usize = 20;
/// Longest name of a network interface (Linux, `IFNAMSIZ` - 1).
const INTERFACE_BYTES_MAX: usize = 15;
/// PCI slots left for disks and NICs.
pub(super) const PCI_DEVICES_MAX: usize = 24;
/// QEMU's page-aligned RAM sizes; smaller steps are refused by its backends.
const MEMORY_STEP: u64 = 1 << 20;
/// Most vCPUs that a definition may ask for; the machine type may allow fewer.
const VCPUS_MAX: u32 = 4096;

/// All that is wrong with `definition`, each problem a sentence that begins with the field.
pub(super) fn problems(definition: &VmDefinition) -> Vec<String> {
    let mut problems = Vec::new();
    name(definition, &mut problems);
    machine(definition, &mut problems);
    memory(definition, &mut problems);
    numa(definition, &mut problems);
    devices(definition, &mut problems);
    boot(definition, &mut problems);
    problems
}

fn name(definition: &VmDefinition, problems: &mut Vec<String>) {
    if !is_name(&definition.name, NAME_BYTES_MAX) {
        problems.push(format!(
            "name: {:?} is not a name; {} at most {NAME_BYTES_MAX}",
            definition.name, NAME_RULE
        ));
    }
    if let Some(uuid) = &definition.uuid
        && parse_uuid(uuid).is_none()
    {
        problems.push(format!("uuid: {uuid:?} is not a UUID; leave it out to have one drawn"));
    }
}

fn machine(definition: &VmDefinition, problems: &mut Vec<String>) {
    let machine = &definition.machine;
    let version = ["pc-q35-", "pc-i440fx-"]
        .iter()
        .find_map(|family| machine.strip_prefix(family));
    let pinned = match machine.as_str() {
        "q35" => Some("pc-q35-10.0"),
        "pc" => Some("pc-i440fx-10.0"),
        _ => None,
    };
    if let Some(pinned) = pinned {
        problems.push(format!(
            "machine: {machine:?} means another machine in every QEMU; pin a version, such as {pinned:?} \
             (`qemu-system-x86_64 -machine help` shows what {machine} stands for)"
        ));
    } else if !version.is_some_and(is_machine_version) {
        problems.push(format!(
            "machine: {machine:?} is not a versioned PC; write pc-q35-VERSION or pc-i440fx-VERSION, such as \"pc-q35-10.0\""
        ));
    }
    if definition.cpu.is_empty() || !definition.cpu.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.push("cpu: name a model that every host has, as in QEMU's -cpu".to_owned());
    }
    if !(1..=VCPUS_MAX).contains(&definition.vcpus) {
        problems.push(format!("vcpus: {} is not between 1 and {VCPUS_MAX}", definition.vcpus));
    }
}

fn memory(definition: &VmDefinition, problems: &mut Vec<String>) {
    let memory = &definition.memory;
    let bytes = memory.size.0;
    if bytes == 0 || !bytes.is_multiple_of(MEMORY_STEP) || bytes > GUEST_BYTES_MAX {
        problems.push(format!(
            "memory.size: {} is not a positive whole number of MiB up to 64TiB",
            memory.size
        ));
    }
    match (memory.backend, &memory.path) {
        (MemoryBackend::File, Some(path)) if !path.is_absolute() => {
            problems.push(format!("memory.path: {} is relative", path.display()));
        }
        (MemoryBackend::File, None) => problems.push("memory.path: backend \"file\" needs a path".to_owned()),
        (MemoryBackend::Ram | MemoryBackend::Memfd, Some(_)) => {
            problems.push("memory.path: only backend \"file\" has a path".to_owned());
        }
        _ => {}
    }
    if memory.hugepages && memory.backend != MemoryBackend::Memfd {
        problems.push(
            "memory.hugepages: only backend \"memfd\" takes it; for \"file\", let the path be on a hugetlbfs"
                .to_owned(),
        );
    }
}

fn numa(definition: &VmDefinition, problems: &mut Vec<String>) {
    if definition.numa.is_empty() {
        return;
    }
    let node_bytes = definition
        .numa
        .iter()
        .try_fold(0u64, |sum, node| sum.checked_add(node.memory.0));
    if node_bytes != Some(definition.memory.size.0) {
        problems.push(format!(
            "numa: the nodes' memory does not add up to {}",
            definition.memory.size
        ));
    }
    if definition
        .numa
        .iter()
        .any(|node| node.memory.0 == 0 || !node.memory.0.is_multiple_of(MEMORY_STEP))
    {
        problems.push("numa: every node needs a positive whole number of MiB".to_owned());
    }
    let mut vcpus: Vec<u32> = definition
        .numa
        .iter()
        .flat_map(|node| node.vcpus.iter().copied())
        .collect();
    vcpus.sort_unstable();
    if vcpus.len() != definition.vcpus as usize || !vcpus.iter().copied().eq(0..definition.vcpus) {
        problems.push(format!(
            "numa: each vCPU from 0 to {} must be in exactly one node",
            definition.vcpus.saturating_sub(1)
        ));
    }
}

fn devices(definition: &VmDefinition, problems: &mut Vec<String>) {
    if definition.disk.len() + definition.nic.len() > PCI_DEVICES_MAX {
        problems.push(format!("disk, nic: at most {PCI_DEVICES_MAX} together have a PCI slot"));
    }
    let mut ids = BTreeSet::new();
    let all_ids = definition
        .disk
        .iter()
        .map(|disk| &disk.id)
        .chain(definition.nic.iter().map(|nic| &nic.id));
    for id in all_ids {
        if !is_name(id, ID_BYTES_MAX) {
            problems.push(format!("id: {id:?} is not an id; {NAME_RULE} at most {ID_BYTES_MAX}"));
        }
        if !ids.insert(id) {
            problems.push(format!("id: {id:?} is used twice; disks and NICs share their ids"));
        }
    }
    definition.disk.iter().for_each(|disk| check_disk(disk, problems));
    definition.nic.iter().for_each(|nic| check_nic(nic, problems));
    let mut macs = BTreeSet::new();
    for mac in definition.nic.iter().filter_map(|nic| nic.mac.as_ref()) {
        if !macs.insert(mac.to_ascii_lowercase()) {
            problems.push(format!("nic.mac: {mac} is used twice"));
        }
    }
    if definition.free_page_hint && !definition.balloon {
        problems.push("free_page_hint: it is the balloon that gives hints; set balloon = true as well".to_owned());
    }
}

fn check_disk(disk: &Disk, problems: &mut Vec<String>) {
    let id = &disk.id;
    match (&disk.path, &disk.nbd) {
        (Some(path), None) if !path.is_absolute() => {
            problems.push(format!(
                "disk {id:?}: path {} is relative; hosts share only absolute paths",
                path.display()
            ));
        }
        (Some(_), None) | (None, Some(_)) => {}
        (None, None) => problems.push(format!("disk {id:?}: give it a path or an nbd URI")),
        (Some(_), Some(_)) => problems.push(format!("disk {id:?}: it has a path and an nbd URI; keep one")),
    }
}

fn check_nic(nic: &Nic, problems: &mut Vec<String>) {
    let id = &nic.id;
    match (&nic.bridge, &nic.tap) {
        (Some(interface), None) | (None, Some(interface)) => {
            if !is_name(interface, INTERFACE_BYTES_MAX) {
                problems.push(format!(
                    "nic {id:?}: {interface:?} is not an interface's name (at most {INTERFACE_BYTES_MAX} bytes)"
                ));
            }
        }
        (None, None) => problems.push(format!("nic {id:?}: give it a bridge or a tap")),
        (Some(_), Some(_)) => problems.push(format!("nic {id:?}: it has a bridge and a tap; keep one")),
    }
    if let Some(mac) = &nic.mac {
        match parse_mac(mac) {
            None => problems.push(format!(
                "nic {id:?}: {mac:?} is not a MAC address such as 52:54:00:12:34:56"
            )),
            Some([first, ..]) if first & 1 != 0 => {
                problems.push(format!(
                    "nic {id:?}: {mac} is a group address; the second digit must be even"
                ));
            }
            Some(_) => {}
        }
    }
}

fn boot(definition: &VmDefinition, problems: &mut Vec<String>) {
    for (field, path) in [("kernel", &definition.kernel), ("initrd", &definition.initrd)] {
        if let Some(path) = path
            && !path.is_absolute()
        {
            problems.push(format!(
                "{field}: {} is relative; hosts share only absolute paths",
                path.display()
            ));
        }
    }
    if definition.kernel.is_none() && (definition.initrd.is_some() || definition.append.is_some()) {
        problems.push("kernel: initrd and append belong to a kernel".to_owned());
    }
    let serial = definition.serial.as_ref().map(|serial| match serial {
        Serial::File(path) | Serial::Socket(path) => Some(path),
        Serial::Pty => None,
    });
    let paths = [&definition.kernel, &definition.initrd, &definition.memory.path];
    let paths = paths.into_iter().flatten().chain(serial.flatten());
    let mut texts = definition.extra_args.iter().chain(&definition.append);
    if texts.any(|text| text.contains('\0')) || paths.into_iter().any(|path| has_zero_byte(path)) {
        problems.push(
            "kernel, initrd, append, memory.path, serial, extra_args: an argument cannot contain a zero byte"
                .to_owned(),
        );
    }
}

fn has_zero_byte(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

/// See [`NAME_RULE`]. It keeps out everything that QEMU's option parser or a path would take for syntax.
fn is_name(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_machine_version(version: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    version
        .split_once('.')
        .is_some_and(|(major, minor)| is_number(major) && minor.split('.').all(is_number))
}

fn parse_mac(mac: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|part| {
            let is_octet = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_octet {
                u8::from_str_radix(part, 16).ok()
            } else {
                None
            }
        })
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}
