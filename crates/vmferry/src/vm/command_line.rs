//! A definition as QEMU's arguments.
//!
//! Source and target are started by this one function, and nothing that the guest can see depends on the host: no default
//! devices, no user configuration, every device with its id and its PCI slot. Only the numbers of what QEMU is
//! [given](super::given) open differ.
//!
//! | slot | device |
//! |---|---|
//! | 2 | balloon |
//! | 3 and up | disks, then NICs, in the definition's order |

use std::{
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use vmferry_content::NbdServer;

use super::{
    confine::SANDBOX,
    definition::{Accel, Disk, DiskFormat, MemoryBackend, Nic, Serial, VmDefinition},
    folder::VmFolder,
    given::{Given, GivenLayer, GivenMedium},
    process::marker,
};

/// Slots 0, 1 and 31 hold the chipset of one machine type or the other.
const BALLOON_SLOT: usize = 2;
const FIRST_DEVICE_SLOT: usize = 3;
const _: () = assert!(FIRST_DEVICE_SLOT + super::validate::PCI_DEVICES_MAX <= 31);

/// What a QEMU is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To boot the VM.
    Boot,
    /// To take it over from another host: it waits for a migration, and stays paused after it.
    Incoming,
}

/// The arguments for a completed `definition`, whose files are in `folder`, and what it is `given`. With `sandbox` QEMU filters
/// its system calls. The CPUs do not run before `cont`.
pub fn arguments(
    definition: &VmDefinition,
    folder: &VmFolder,
    given: &Given,
    sandbox: bool,
    role: Role,
) -> Vec<String> {
    let mut arguments = Arguments(Vec::new());
    if sandbox {
        arguments.option("-sandbox", SANDBOX);
    }
    identity(&mut arguments, definition, folder, given);
    machine(&mut arguments, definition, given);
    let bus = if definition.machine.starts_with("pc-q35-") {
        "pcie.0"
    } else {
        "pci.0"
    };
    if definition.balloon {
        balloon(&mut arguments, definition.free_page_hint, bus);
    }
    let mut slots = FIRST_DEVICE_SLOT..;
    for ((disk, layers), slot) in definition.disk.iter().zip(&given.disks).zip(&mut slots) {
        disk_nodes(&mut arguments, disk, layers);
        arguments.option("-device", disk_device(disk, bus, slot));
    }
    for ((nic, tap), slot) in definition.nic.iter().zip(&given.taps).zip(&mut slots) {
        let id = &nic.id;
        arguments.option("-netdev", format!("tap,id=net-{id},fd={tap},vhost=off"));
        arguments.option("-device", nic_device(nic, bus, slot));
    }
    if let Some(serial) = &definition.serial {
        serial_chardev(&mut arguments, serial, given.serial);
        arguments.option("-serial", "chardev:serial0");
    }
    boot(&mut arguments, definition, given);
    arguments.flag("-S");
    if role == Role::Incoming {
        arguments.option("-incoming", "defer");
    }
    arguments.0.extend_from_slice(&definition.extra_args);
    arguments.0
}

struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }

    /// Has QEMU know a file that it is given under the number of its descriptor, and tells by what name it was found.
    fn add_fd(&mut self, fd: RawFd, path: &Path) -> String {
        self.option("-add-fd", format!("fd={fd},set={fd},opaque={}", escape(path)));
        format!("/dev/fdset/{fd}")
    }
}

fn identity(arguments: &mut Arguments, definition: &VmDefinition, folder: &VmFolder, given: &Given) {
    let name = &definition.name;
    arguments.option("-name", format!("guest={name},debug-threads=on"));
    if let Some(uuid) = &definition.uuid {
        arguments.option("-uuid", uuid);
    }
    for flag in ["-nodefaults", "-no-user-config"] {
        arguments.flag(flag);
    }
    arguments.option("-display", "none");
    // By this a restarted agent knows it.
    let run_folder = given.run_folder;
    let marker = marker(&folder.pid());
    arguments.option("-add-fd", format!("fd={run_folder},set={run_folder}{marker}"));
    arguments.option("-msg", "timestamp=on");
    for (id, fd) in ["qmp", "qmp-oob"].iter().zip(given.monitors) {
        arguments.option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
        arguments.option("-mon", format!("chardev={id},mode=control"));
    }
}

fn machine(arguments: &mut Arguments, definition: &VmDefinition, given: &Given) {
    let VmDefinition {
        machine, cpu, vcpus, ..
    } = definition;
    let accel = definition.accel.unwrap_or(Accel::Tcg).as_str();
    arguments.option("-accel", accel);
    arguments.option("-cpu", cpu);
    arguments.option("-smp", format!("cpus={vcpus},maxcpus={vcpus}"));
    arguments.option("-m", format!("{}B", definition.memory.size.0));
    if definition.numa.is_empty() {
        // The id is the block's name in the migration stream: QEMU's own name for a PC's memory.
        arguments.option("-machine", format!("{machine},memory-backend=pc.ram"));
        arguments.option(
            "-object",
            memory_backend(definition, "pc.ram", definition.memory.size.0, given.memory.first()),
        );
        return;
    }
    arguments.option("-machine", machine);
    for (index, node) in definition.numa.iter().enumerate() {
        let backend = format!("ram-node{index}");
        let file = given.memory.get(index);
        arguments.option("-object", memory_backend(definition, &backend, node.memory.0, file));
        let cpus: String = node.vcpus.iter().map(|vcpu| format!(",cpus={vcpu}")).collect();
        arguments.option("-numa", format!("node,nodeid={index},memdev={backend}{cpus}"));
    }
}

fn memory_backend(definition: &VmDefinition, id: &str, bytes: u64, file: Option<&RawFd>) -> String {
    let memory = &definition.memory;
    let (kind, more) = match memory.backend {
        MemoryBackend::Ram => ("ram", String::new()),
        MemoryBackend::Memfd => ("memfd", format!(",hugetlb={}", on_off(memory.hugepages))),
        MemoryBackend::File => {
            let path = match file {
                Some(file) => opened_anew(*file),
                None => memory.path.clone().unwrap_or_default(),
            };
            ("file", format!(",mem-path={}", escape(&path)))
        }
    };
    let (prealloc, share) = (on_off(memory.prealloc), on_off(memory.share));
    format!("memory-backend-{kind},id={id},size={bytes},prealloc={prealloc},share={share}{more}")
}

fn balloon(arguments: &mut Arguments, free_page_hint: bool, bus: &str) {
    let mut device = format!("virtio-balloon-pci,id=balloon,bus={bus},addr={BALLOON_SLOT:#x}");
    if free_page_hint {
        arguments.option("-object", "iothread,id=balloon-hints");
        device.push_str(",free-page-hint=on,iothread=balloon-hints");
    }
    arguments.option("-device", device);
}

/// Boots in the order of the slots; 0 is left to a kernel given directly.
fn disk_device(disk: &Disk, bus: &str, slot: usize) -> String {
    let id = &disk.id;
    let write_cache = on_off(disk.cache.has_write_cache());
    format!(
        "virtio-blk-pci,id=disk-{id},drive=disk-{id},serial={id},write-cache={write_cache},\
         bootindex={slot},bus={bus},addr={slot:#x}"
    )
}

/// Without its boot ROM: that is a file of the host's, and another version of it would not take the migrated one's place.
fn nic_device(nic: &Nic, bus: &str, slot: usize) -> String {
    let (id, mac) = (&nic.id, nic.mac.as_deref().unwrap_or_default());
    format!("virtio-net-pci,id=nic-{id},netdev=net-{id},mac={mac},romfile=,bus={bus},addr={slot:#x}")
}

/// The images of a disk, the lowest first, each on a node for its storage. The one on top is `disk-ID`. That of a backing file
/// is named here, so that QEMU does not look into the header for it.
fn disk_nodes(arguments: &mut Arguments, disk: &Disk, layers: &[GivenLayer]) {
    let name = |kind: &str, depth: usize| match depth {
        0 => format!("{kind}-{}", disk.id),
        _ => format!("{kind}{depth}-{}", disk.id),
    };
    for (depth, layer) in layers.iter().enumerate().rev() {
        let read_only = disk.readonly || depth > 0;
        let cache = json!({ "direct": disk.cache.is_direct(), "no-flush": false });
        let mut storage = storage_node(arguments, &layer.medium);
        storage["node-name"] = name("store", depth).into();
        storage["read-only"] = read_only.into();
        storage["cache"] = cache.clone();
        let mut format = json!({
            "driver": layer.format.as_str(),
            "node-name": name("disk", depth),
            "file": name("store", depth),
            "read-only": read_only,
            "cache": cache,
        });
        if layer.format == DiskFormat::Qcow2 {
            let has_backing = depth + 1 < layers.len();
            format["backing"] = has_backing.then(|| name("disk", depth + 1)).into();
        }
        arguments.option("-blockdev", storage.to_string());
        arguments.option("-blockdev", format.to_string());
    }
}

/// The node that reads and writes the storage, as JSON because paths and export names may hold any character.
fn storage_node(arguments: &mut Arguments, medium: &GivenMedium) -> Value {
    match medium {
        GivenMedium::File { fd, path, is_device } => json!({
            "driver": if *is_device { "host_device" } else { "file" },
            "filename": arguments.add_fd(*fd, path),
            // The image's lock keeps two QEMUs from writing to it, and shows a target that its file is the source's.
            "locking": "on",
        }),
        GivenMedium::Nbd { uri, fd } => {
            let server = match (fd, &uri.server) {
                (Some(fd), _) => json!({ "type": "fd", "str": fd.to_string() }),
                (None, NbdServer::Tcp { host, port }) => {
                    json!({ "type": "inet", "host": host, "port": port.to_string() })
                }
                (None, NbdServer::Unix(path)) => json!({ "type": "unix", "path": path.to_string_lossy() }),
            };
            json!({ "driver": "nbd", "export": uri.export, "server": server })
        }
    }
}

fn serial_chardev(arguments: &mut Arguments, serial: &Serial, fd: Option<RawFd>) {
    let chardev = match (serial, fd) {
        (Serial::File(path), Some(fd)) => {
            let file = arguments.add_fd(fd, path);
            format!("file,id=serial0,path={file},append=on")
        }
        (Serial::Socket(_), Some(fd)) => format!("socket,id=serial0,fd={fd},server=on,wait=off"),
        _ => "pty,id=serial0".to_owned(),
    };
    arguments.option("-chardev", chardev);
}

fn boot(arguments: &mut Arguments, definition: &VmDefinition, given: &Given) {
    if let Some(kernel) = given.kernel {
        arguments.option("-kernel", opened_anew(kernel).to_string_lossy());
    }
    if let Some(initrd) = given.initrd {
        arguments.option("-initrd", escape(&opened_anew(initrd)));
    }
    if let Some(append) = &definition.append {
        arguments.option("-append", append);
    }
}

/// A descriptor's name, for what QEMU opens by no other means.
fn opened_anew(fd: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}

/// A path as a value among QEMU's comma-separated options.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests;
