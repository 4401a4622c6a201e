//! What a VM is. People write it in TOML, agents send and keep it as JSON.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;
use vmferry_content::NbdUri;

use super::{size::ByteSize, validate::Problem};
use crate::config::{Document, Mistake};

/// A virtual machine: all that decides what its guest sees, and what of its host it uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    /// Unique on a host and between hosts that migrate to each other: letters, digits, `-`, `_`, `.`, at most 63.
    pub name: String,
    /// The machine's UUID. Drawn at random when the VM is first started, then kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// A machine type pinned to a version, such as `pc-q35-10.0`.
    pub machine: String,
    /// Who runs the CPUs. Chosen when the VM is first started, then kept: KVM where the host has it, else TCG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accel>,
    /// CPU model as in QEMU's `-cpu`, with features if need be.
    pub cpu: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory: a size, or a table with a size and how to provide it.
    pub memory: Memory,
    /// NUMA nodes; together they have all vCPUs and all memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaNode>,
    /// Disks, in the order of their PCI addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<Disk>,
    /// Network interfaces, in the order of their PCI addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nic: Vec<Nic>,
    /// A Linux kernel to boot without firmware's help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Where the first serial port goes; without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Whether there is a virtio balloon.
    #[serde(default)]
    pub balloon: bool,
    /// Whether the balloon tells a migration which pages are free.
    #[serde(default)]
    pub free_page_hint: bool,
    /// Further QEMU arguments, put last: the way out for what a definition has no field for. They must be valid on
    /// every host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_args: Vec<String>,
}

/// Who runs the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// QEMU's translator.
    Tcg,
    /// The kernel.
    Kvm,
}

impl Accel {
    /// The name `-accel` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// A VM's memory and its backend on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Memory {
    /// How much.
    #[schema(value_type = String)]
    pub size: ByteSize,
    /// Where it comes from.
    pub backend: MemoryBackend,
    /// For `file`: a file, or a folder (such as a hugetlbfs) in which QEMU makes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// For `memfd`: whether to take huge pages.
    pub hugepages: bool,
    /// Whether all of it is allocated at start.
    pub prealloc: bool,
    /// Whether other processes can map it.
    pub share: bool,
}

impl<'de> Deserialize<'de> for Memory {
    /// From a size alone, or from a table. Not by an untagged enum, whose errors name neither field nor line.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            size: ByteSize,
            #[serde(default)]
            backend: MemoryBackend,
            #[serde(default)]
            path: Option<PathBuf>,
            #[serde(default)]
            hugepages: bool,
            #[serde(default)]
            prealloc: bool,
            #[serde(default)]
            share: bool,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Memory;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size such as \"1GiB\", or a table with `size` and `backend`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                text.parse::<ByteSize>().map(Memory::from).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Memory, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Memory {
                    size: table.size,
                    backend: table.backend,
                    path: table.path,
                    hugepages: table.hugepages,
                    prealloc: table.prealloc,
                    share: table.share,
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl From<ByteSize> for Memory {
    fn from(size: ByteSize) -> Self {
        Self {
            size,
            backend: MemoryBackend::default(),
            path: None,
            hugepages: false,
            prealloc: false,
            share: false,
        }
    }
}

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryBackend {
    /// Anonymous memory.
    #[default]
    Ram,
    /// An unnamed file in memory, which other processes can be given.
    Memfd,
    /// A file.
    File,
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Its vCPUs, counted from 0.
    pub vcpus: Vec<u32>,
    /// Its memory.
    #[schema(value_type = String)]
    pub memory: ByteSize,
}

/// One disk, always on virtio-blk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Unique in the VM; the guest sees it as the disk's serial number.
    pub id: String,
    /// A file or block device, by the same path on every host. This or `nbd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// An NBD export. This or `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub nbd: Option<NbdUri>,
    /// What is in it. Never guessed: a guest could write another format's header into a raw disk.
    pub format: DiskFormat,
    /// How the host caches it.
    #[serde(default)]
    pub cache: CacheMode,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub readonly: bool,
}

/// A disk image's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The guest's bytes.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name of the driver.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk's cache mode, by QEMU's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Past the host's page cache. The only mode that is safe on storage where hosts don't keep each other's caches true.
    #[default]
    None,
    /// Through the host's page cache; the guest's flushes are carried out.
    Writeback,
    /// Through the host's page cache, each write flushed.
    Writethrough,
    /// Past the host's page cache, each write flushed.
    Directsync,
}

impl CacheMode {
    /// Whether it goes past the host's page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether the guest sees a write cache that it must flush.
    pub fn has_write_cache(self) -> bool {
        matches!(self, Self::None | Self::Writeback)
    }
}

/// One network interface, always virtio-net.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Unique in the VM.
    pub id: String,
    /// Its address, such as `52:54:00:12:34:56`. Derived from the UUID when the VM is first started, then kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// A bridge to which vmferry connects it by a tap of its own. This or `tap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// A tap that exists on every host under this name. This or `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
}

/// Where a serial port goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Serial {
    /// A pseudo-terminal, whose name QEMU chooses.
    Pty,
    /// Appended to a file.
    #[schema(value_type = String)]
    File(PathBuf),
    /// A unix socket that QEMU listens on.
    #[schema(value_type = String)]
    Socket(PathBuf),
}

/// Why a definition is none.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not TOML, of a later version, or a field is missing, unknown or of the wrong kind; the message shows the line.
    #[error(transparent)]
    Toml(#[from] Mistake),
    /// The same, for JSON.
    #[error("not a VM definition: {0}")]
    Json(#[from] serde_json::Error),
    /// Every field is of the right kind, but these say something impossible.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

impl DefinitionError {
    /// Each problem by itself.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Invalid(problems) => problems.clone(),
            other => vec![other.to_string()],
        }
    }
}

impl VmDefinition {
    /// Reads and validates a TOML file.
    ///
    /// # Errors
    /// [`DefinitionError`], with all problems at once where each field by itself is well-formed.
    pub fn from_toml_file(path: &Path) -> Result<Self, DefinitionError> {
        let text = std::fs::read_to_string(path).map_err(|source| DefinitionError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::read(&text, Some(path))
    }

    /// Reads and validates TOML.
    ///
    /// # Errors
    /// As [`VmDefinition::from_toml_file`].
    pub fn from_toml(text: &str) -> Result<Self, DefinitionError> {
        Self::read(text, None)
    }

    fn read(text: &str, file: Option<&Path>) -> Result<Self, DefinitionError> {
        let document = Document::parse(text, file)?;
        let definition: Self = document.read()?;
        let problems = super::validate::problems(&definition);
        if problems.is_empty() {
            return Ok(definition);
        }
        let shown = |problem: Problem| document.mistake(problem.key, problem.item, problem.what).to_string();
        Err(DefinitionError::Invalid(problems.into_iter().map(shown).collect()))
    }

    /// Reads and validates JSON.
    ///
    /// # Errors
    /// As [`VmDefinition::from_toml_file`].
    pub fn from_json(text: &[u8]) -> Result<Self, DefinitionError> {
        serde_json::from_slice::<Self>(text)?.validated()
    }

    /// The definition itself, if it holds together.
    ///
    /// # Errors
    /// [`DefinitionError::Invalid`] with all problems.
    pub fn validated(self) -> Result<Self, DefinitionError> {
        let problems = super::validate::problems(&self);
        if problems.is_empty() {
            Ok(self)
        } else {
            Err(DefinitionError::Invalid(
                problems.into_iter().map(|problem| problem.what).collect(),
            ))
        }
    }

    /// Fills in what is chosen once in a VM's life: accelerator, UUID (from `random`) and MAC addresses (from the UUID).
    /// What results goes with the VM to every host.
    pub fn complete(&mut self, accel: Accel, random: [u8; 16]) {
        self.accel.get_or_insert(accel);
        let uuid = self.uuid.get_or_insert_with(|| uuid_v4(random));
        let digits = parse_uuid(uuid).unwrap_or(random);
        for (index, nic) in self.nic.iter_mut().enumerate() {
            nic.mac.get_or_insert_with(|| derive_mac(digits, index));
        }
    }
}

fn uuid_v4(random: [u8; 16]) -> String {
    let bits = u128::from_be_bytes(random);
    let bits = bits & !(0xf << 76) | (4 << 76);
    let bits = bits & !(0b11 << 62) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// The bytes of a UUID in its usual form.
pub(super) fn parse_uuid(uuid: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = uuid.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hex = groups.concat();
    if lengths != [8, 4, 4, 4, 12] || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&hex, 16).ok().map(u128::to_be_bytes)
}

/// 0x52 marks a locally administered unicast address.
fn derive_mac(uuid: [u8; 16], index: usize) -> String {
    let [a, b, c, d, e, ..] = uuid;
    let e = e.wrapping_add(index as u8);
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

#[cfg(test)]
mod tests;
