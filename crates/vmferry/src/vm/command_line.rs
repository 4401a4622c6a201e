//! A definition as QEMU's arguments.
//!
//! Source and target are started by this one function, and nothing that the guest can see depends on the host: no default
//! devices, no user configuration, every device with its id and its PCI slot. Only names of taps and the paths of
//! QEMU's own sockets differ.
//!
//! | slot | device |
//! |---|---|
//! | 2 | balloon |
//! | 3 and up | disks, then NICs, in the definition's order |

use std::path::Path;

use serde_json::{Value, json};
use vmferry_content::NbdServer;

use super::{
    definition::{Accel, Disk, MemoryBackend, Nic, Serial, VmDefinition},
    folder::VmFolder,
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

/// The arguments for a completed `definition`, whose files are in `folder`. `taps` names the tap of each NIC in order. The
/// CPUs do not run before `cont`.
pub fn arguments(definition: &VmDefinition, folder: &VmFolder, taps: &[String], role: Role) -> Vec<String> {
    let mut arguments = Arguments(Vec::new());
    identity(&mut arguments, definition, folder);
    machine(&mut arguments, definition);
    let bus = if definition.machine.starts_with("pc-q35-") {
        "pcie.0"
    } else {
        "pci.0"
    };
    if definition.balloon {
        balloon(&mut arguments, definition.free_page_hint, bus);
    }
    let mut slots = FIRST_DEVICE_SLOT..;
    for (disk, slot) in definition.disk.iter().zip(&mut slots) {
        arguments.option("-blockdev", storage_node(disk).to_string());
        arguments.option("-blockdev", format_node(disk).to_string());
        arguments.option("-device", disk_device(disk, bus, slot));
    }
    for ((nic, tap), slot) in definition.nic.iter().zip(taps).zip(&mut slots) {
        let id = &nic.id;
        arguments.option(
            "-netdev",
            format!("tap,id=net-{id},ifname={tap},script=no,downscript=no,vhost=off"),
        );
        arguments.option("-device", nic_device(nic, bus, slot));
    }
    if let Some(serial) = &definition.serial {
        arguments.option("-chardev", serial_chardev(serial));
        arguments.option("-serial", "chardev:serial0");
    }
    boot(&mut arguments, definition);
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
}

fn identity(arguments: &mut Arguments, definition: &VmDefinition, folder: &VmFolder) {
    let name = &definition.name;
    arguments.option("-name", format!("guest={name},debug-threads=on"));
    if let Some(uuid) = &definition.uuid {
        arguments.option("-uuid", uuid);
    }
    for flag in ["-nodefaults", "-no-user-config", "-daemonize"] {
        arguments.flag(flag);
    }
    arguments.option("-display", "none");
    arguments.option("-pidfile", folder.pid().to_string_lossy());
    // A daemonized QEMU keeps its standard error only where some log category is on; this one is silent in a system
    // emulator.
    arguments.option("-d", "strace");
    arguments.option("-D", folder.log().to_string_lossy());
    arguments.option("-msg", "timestamp=on");
    for (id, path) in [("qmp", folder.qmp()), ("qmp-oob", folder.qmp_out_of_band())] {
        arguments.option(
            "-chardev",
            format!("socket,id={id},path={},server=on,wait=off", escape(&path)),
        );
        arguments.option("-mon", format!("chardev={id},mode=control"));
    }
}

fn machine(arguments: &mut Arguments, definition: &VmDefinition) {
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
            memory_backend(definition, "pc.ram", definition.memory.size.0),
        );
        return;
    }
    arguments.option("-machine", machine);
    for (index, node) in definition.numa.iter().enumerate() {
        let backend = format!("ram-node{index}");
        arguments.option("-object", memory_backend(definition, &backend, node.memory.0));
        let cpus: String = node.vcpus.iter().map(|vcpu| format!(",cpus={vcpu}")).collect();
        arguments.option("-numa", format!("node,nodeid={index},memdev={backend}{cpus}"));
    }
}

fn memory_backend(definition: &VmDefinition, id: &str, bytes: u64) -> String {
    let memory = &definition.memory;
    let (kind, more) = match memory.backend {
        MemoryBackend::Ram => ("ram", String::new()),
        MemoryBackend::Memfd => ("memfd", format!(",hugetlb={}", on_off(memory.hugepages))),
        MemoryBackend::File => {
            let path = memory.path.as_deref().unwrap_or(Path::new(""));
            ("file", format!(",mem-path={}", escape(path)))
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

/// The node that reads and writes the storage, as JSON because paths and export names may hold any character.
fn storage_node(disk: &Disk) -> Value {
    let mut node = json!({
        "node-name": format!("store-{}", disk.id),
        "read-only": disk.readonly,
        "cache": { "direct": disk.cache.is_direct(), "no-flush": false },
    });
    match (&disk.path, &disk.nbd) {
        (Some(path), _) => {
            let is_device = path.starts_with("/dev") && !path.starts_with("/dev/shm");
            let driver = if is_device { "host_device" } else { "file" };
            node["driver"] = driver.into();
            node["filename"] = path.to_string_lossy().into();
            // The image's lock keeps two QEMUs from writing to it, and shows a target that its file is the source's.
            node["locking"] = "on".into();
        }
        (None, Some(nbd)) => {
            node["driver"] = "nbd".into();
            node["export"] = nbd.export.as_str().into();
            node["server"] = match &nbd.server {
                NbdServer::Tcp { host, port } => {
                    json!({ "type": "inet", "host": host, "port": port.to_string() })
                }
                NbdServer::Unix(path) => json!({ "type": "unix", "path": path.to_string_lossy() }),
            };
        }
        (None, None) => {}
    }
    node
}

fn format_node(disk: &Disk) -> Value {
    json!({
        "driver": disk.format.as_str(),
        "node-name": format!("disk-{}", disk.id),
        "file": format!("store-{}", disk.id),
        "read-only": disk.readonly,
        "cache": { "direct": disk.cache.is_direct(), "no-flush": false },
    })
}

fn serial_chardev(serial: &Serial) -> String {
    match serial {
        Serial::Pty => "pty,id=serial0".to_owned(),
        Serial::File(path) => format!("file,id=serial0,path={},append=on", escape(path)),
        Serial::Socket(path) => {
            format!("socket,id=serial0,path={},server=on,wait=off", escape(path))
        }
    }
}

fn boot(arguments: &mut Arguments, definition: &VmDefinition) {
    if let Some(kernel) = &definition.kernel {
        arguments.option("-kernel", kernel.to_string_lossy());
    }
    if let Some(initrd) = &definition.initrd {
        arguments.option("-initrd", escape(initrd));
    }
    if let Some(append) = &definition.append {
        arguments.option("-append", append);
    }
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
