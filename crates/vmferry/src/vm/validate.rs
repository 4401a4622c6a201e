//! What a definition must hold besides well-formed fields. Every problem is found in one go.

use std::{collections::BTreeSet, fmt::Display};

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
/// QEMU is given these as arguments, which end with one.
const ZERO_BYTE: &str = "it cannot contain a zero byte";

/// Something that is wrong, and in which field.
#[derive(Debug)]
pub(super) struct Problem {
    /// The field, such as `memory.size`.
    pub(super) key: &'static str,
    /// Of which disk or NIC, counted from 0.
    pub(super) item: Option<usize>,
    /// A sentence that begins with the field, or the disk or NIC.
    pub(super) what: String,
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: &'static str, what: impl Display) {
        let what = format!("{key}: {what}");
        self.0.push(Problem { key, item: None, what });
    }

    /// Of a disk or NIC, which the sentence names.
    fn add_to_item(&mut self, key: &'static str, item: usize, what: String) {
        let item = Some(item);
        self.0.push(Problem { key, item, what });
    }
}

/// All that is wrong with `definition`.
pub(super) fn problems(definition: &VmDefinition) -> Vec<Problem> {
    let mut problems = Problems::default();
    name(definition, &mut problems);
    machine(definition, &mut problems);
    memory(definition, &mut problems);
    numa(definition, &mut problems);
    devices(definition, &mut problems);
    boot(definition, &mut problems);
    problems.0
}

fn name(definition: &VmDefinition, problems: &mut Problems) {
    if !is_name(&definition.name, NAME_BYTES_MAX) {
        problems.add(
            "name",
            format!(
                "{:?} is not a name; {} at most {NAME_BYTES_MAX}",
                definition.name, NAME_RULE
            ),
        );
    }
    if let Some(uuid) = &definition.uuid
        && parse_uuid(uuid).is_none()
    {
        problems.add(
            "uuid",
            format!("{uuid:?} is not a UUID; leave it out to have one drawn"),
        );
    }
}

fn machine(definition: &VmDefinition, problems: &mut Problems) {
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
        problems.add(
            "machine",
            format!(
                "{machine:?} means another machine in every QEMU; pin a version, such as {pinned:?} \
             (`qemu-system-x86_64 -machine help` shows what {machine} stands for)"
            ),
        );
    } else if !version.is_some_and(is_machine_version) {
        problems.add(
            "machine",
            format!(
                "{machine:?} is not a versioned PC; write pc-q35-VERSION or pc-i440fx-VERSION, such as \"pc-q35-10.0\""
            ),
        );
    }
    if definition.cpu.is_empty() || !definition.cpu.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.add("cpu", "name a model that every host has, as in QEMU's -cpu");
    }
    if !(1..=VCPUS_MAX).contains(&definition.vcpus) {
        problems.add(
            "vcpus",
            format!("{} is not between 1 and {VCPUS_MAX}", definition.vcpus),
        );
    }
}

fn memory(definition: &VmDefinition, problems: &mut Problems) {
    let memory = &definition.memory;
    let bytes = memory.size.0;
    if bytes == 0 || !bytes.is_multiple_of(MEMORY_STEP) || bytes > GUEST_BYTES_MAX {
        problems.add(
            "memory.size",
            format!("{} is not a positive whole number of MiB up to 64TiB", memory.size),
        );
    }
    match (memory.backend, &memory.path) {
        (MemoryBackend::File, Some(path)) if !path.is_absolute() => {
            problems.add("memory.path", format!("{} is relative", path.display()));
        }
        (MemoryBackend::File, None) => problems.add("memory.path", "backend \"file\" needs a path"),
        (MemoryBackend::Ram | MemoryBackend::Memfd, Some(_)) => {
            problems.add("memory.path", "only backend \"file\" has a path");
        }
        _ => {}
    }
    if memory.hugepages && memory.backend != MemoryBackend::Memfd {
        problems.add(
            "memory.hugepages",
            "only backend \"memfd\" takes it; for \"file\", let the path be on a hugetlbfs",
        );
    }
}

fn numa(definition: &VmDefinition, problems: &mut Problems) {
    if definition.numa.is_empty() {
        return;
    }
    let node_bytes = definition
        .numa
        .iter()
        .try_fold(0u64, |sum, node| sum.checked_add(node.memory.0));
    if node_bytes != Some(definition.memory.size.0) {
        problems.add(
            "numa",
            format!("the nodes' memory does not add up to {}", definition.memory.size),
        );
    }
    if definition
        .numa
        .iter()
        .any(|node| node.memory.0 == 0 || !node.memory.0.is_multiple_of(MEMORY_STEP))
    {
        problems.add("numa", "every node needs a positive whole number of MiB");
    }
    let mut vcpus: Vec<u32> = definition
        .numa
        .iter()
        .flat_map(|node| node.vcpus.iter().copied())
        .collect();
    vcpus.sort_unstable();
    if vcpus.len() != definition.vcpus as usize || !vcpus.iter().copied().eq(0..definition.vcpus) {
        problems.add(
            "numa",
            format!(
                "each vCPU from 0 to {} must be in exactly one node",
                definition.vcpus.saturating_sub(1)
            ),
        );
    }
}

fn devices(definition: &VmDefinition, problems: &mut Problems) {
    if definition.disk.len() + definition.nic.len() > PCI_DEVICES_MAX {
        problems.add(
            "disk",
            format!("it and nic have at most {PCI_DEVICES_MAX} PCI slots together"),
        );
    }
    let mut ids = BTreeSet::new();
    let disks = definition.disk.iter().map(|disk| ("disk.id", &disk.id)).enumerate();
    let nics = definition.nic.iter().map(|nic| ("nic.id", &nic.id)).enumerate();
    for (item, (key, id)) in disks.chain(nics) {
        if !is_name(id, ID_BYTES_MAX) {
            let what = format!("id: {id:?} is not an id; {NAME_RULE} at most {ID_BYTES_MAX}");
            problems.add_to_item(key, item, what);
        }
        if !ids.insert(id) {
            let what = format!("id: {id:?} is used twice; disks and NICs share their ids");
            problems.add_to_item(key, item, what);
        }
    }
    for (item, disk) in definition.disk.iter().enumerate() {
        check_disk(item, disk, problems);
    }
    let mut macs = BTreeSet::new();
    for (item, nic) in definition.nic.iter().enumerate() {
        check_nic(item, nic, problems);
        if let Some(mac) = &nic.mac
            && !macs.insert(mac.to_ascii_lowercase())
        {
            problems.add_to_item("nic.mac", item, format!("nic.mac: {mac} is used twice"));
        }
    }
    if definition.free_page_hint && !definition.balloon {
        problems.add(
            "free_page_hint",
            "it is the balloon that gives hints; set balloon = true as well",
        );
    }
}

fn check_disk(item: usize, disk: &Disk, problems: &mut Problems) {
    let id = &disk.id;
    let (key, what) = match (&disk.path, &disk.nbd) {
        (Some(path), None) if !path.is_absolute() => {
            let path = path.display();
            let what = format!("path {path} is relative; hosts share only absolute paths");
            ("disk.path", what)
        }
        (Some(_), None) | (None, Some(_)) => return,
        (None, None) => ("disk", "give it a path or an nbd URI".to_owned()),
        (Some(_), Some(_)) => ("disk.nbd", "it has a path and an nbd URI; keep one".to_owned()),
    };
    problems.add_to_item(key, item, format!("disk {id:?}: {what}"));
}

fn check_nic(item: usize, nic: &Nic, problems: &mut Problems) {
    let id = &nic.id;
    let mut add = |key, what: String| problems.add_to_item(key, item, format!("nic {id:?}: {what}"));
    let interface = match (&nic.bridge, &nic.tap) {
        (Some(bridge), None) => Some(("nic.bridge", bridge)),
        (None, Some(tap)) => Some(("nic.tap", tap)),
        (None, None) => {
            add("nic", "give it a bridge or a tap".to_owned());
            None
        }
        (Some(_), Some(_)) => {
            add("nic.tap", "it has a bridge and a tap; keep one".to_owned());
            None
        }
    };
    if let Some((key, interface)) = interface.filter(|(_, interface)| !is_name(interface, INTERFACE_BYTES_MAX)) {
        let what = format!("{interface:?} is not an interface's name (at most {INTERFACE_BYTES_MAX} bytes)");
        add(key, what);
    }
    let Some(mac) = &nic.mac else { return };
    match parse_mac(mac) {
        None => add(
            "nic.mac",
            format!("{mac:?} is not a MAC address such as 52:54:00:12:34:56"),
        ),
        Some([first, ..]) if first & 1 != 0 => {
            add(
                "nic.mac",
                format!("{mac} is a group address; the second digit must be even"),
            );
        }
        Some(_) => {}
    }
}

fn boot(definition: &VmDefinition, problems: &mut Problems) {
    for (field, path) in [("kernel", &definition.kernel), ("initrd", &definition.initrd)] {
        if let Some(path) = path
            && !path.is_absolute()
        {
            problems.add(
                field,
                format!("{} is relative; hosts share only absolute paths", path.display()),
            );
        }
    }
    if definition.kernel.is_none() && (definition.initrd.is_some() || definition.append.is_some()) {
        problems.add("kernel", "initrd and append belong to a kernel");
    }
    let serial = definition.serial.as_ref().and_then(|serial| match serial {
        Serial::File(path) | Serial::Socket(path) => Some(path),
        Serial::Pty => None,
    });
    let paths = [
        ("kernel", definition.kernel.as_ref()),
        ("initrd", definition.initrd.as_ref()),
        ("memory.path", definition.memory.path.as_ref()),
        ("serial", serial),
    ];
    for (field, path) in paths {
        if path.is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
            problems.add(field, ZERO_BYTE);
        }
    }
    let texts = [
        ("append", definition.append.as_slice()),
        ("extra_args", &definition.extra_args),
    ];
    for (field, texts) in texts {
        if texts.iter().any(|text| text.contains('\0')) {
            problems.add(field, ZERO_BYTE);
        }
    }
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
