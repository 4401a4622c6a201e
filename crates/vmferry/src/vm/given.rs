//! What a QEMU is given open.
//!
//! An unprivileged QEMU could open neither the VM's disks nor a tap, and it should not be able to open anybody else's. So the
//! agent opens what the definition names, and QEMU inherits exactly that. Nothing about the files changes: they keep their
//! owner, mode and access lists, whatever ends first, and it does not matter whether both hosts use the same number for the
//! VM's user, or whether the file system knows access lists at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Seek},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, memfd_create, openat2};
use vmferry_content::NbdUri;

use super::{
    definition::{DiskFormat, MemoryBackend, Serial, VmDefinition},
    folder::VmFolder,
    network,
    storage::{self, Access, Medium, StorageError},
};
use crate::policy::Policy;

/// All descriptors by what they are for; the numbers are the agent's and QEMU's.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Given {
    /// The folder that QEMU is started in.
    pub run_folder: RawFd,
    /// What it listens on: the agent's monitor, and that for out-of-band commands.
    pub monitors: [RawFd; 2],
    /// The images of each disk, the one on top first.
    pub disks: Vec<Vec<GivenLayer>>,
    /// The tap of each NIC.
    pub taps: Vec<RawFd>,
    /// The serial port's file, or what its socket listens on.
    pub serial: Option<RawFd>,
    /// A file for each of the guest's memory backends, where the definition names a folder for them.
    pub memory: Vec<RawFd>,
    /// The kernel to boot.
    pub kernel: Option<RawFd>,
    /// Its RAM disk.
    pub initrd: Option<RawFd>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenLayer {
    /// What is in it.
    pub format: DiskFormat,
    /// What it is on.
    pub medium: GivenMedium,
}

/// What an image is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenMedium {
    /// A file or block device.
    File {
        /// It.
        fd: RawFd,
        /// By what name it was found.
        path: PathBuf,
        /// Whether it is a block device.
        is_device: bool,
    },
    /// An export. Of a server on a unix socket QEMU is given a connection.
    Nbd {
        /// Which.
        uri: NbdUri,
        /// That connection.
        fd: Option<RawFd>,
    },
}

/// Why a VM's files cannot be given to its QEMU.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// A disk.
    #[error("disk {id:?}: {source}")]
    Disk {
        /// Which.
        id: String,
        /// Why.
        source: StorageError,
    },
    /// Something else that the definition names.
    #[error("cannot open {what}: {source}")]
    Open {
        /// What.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// This host's policy does not let a VM from a peer have it.
    #[error("{what} is not covered by this host's [policy]")]
    Forbidden {
        /// What.
        what: String,
    },
}

/// Opens what descriptors name, and holds it until QEMU has inherited it.
#[derive(Debug, Default)]
pub struct Opened {
    /// What is what.
    pub given: Given,
    /// The descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Opened {
    /// Opens everything for a VM whose QEMU runs as `owner` (none: as the agent itself), in a folder that was just made; one
    /// that `waits` for a stream gets room for its socket. Of a definition from a peer only what `policy` covers. It blocks its
    /// thread.
    ///
    /// # Errors
    /// [`GivenError`], for the first that cannot be had.
    pub fn open(
        definition: &VmDefinition,
        folder: &VmFolder,
        taps: &[String],
        policy: Option<&Policy>,
        owner: Option<u32>,
        waits: bool,
    ) -> Result<Self, GivenError> {
        let mut opened = Self::default();
        opened.given.run_folder = opened.keep(open_run_folder(folder, owner, waits).map_err(failed(&folder.run()))?);
        for (monitor, path) in [folder.qmp(), folder.qmp_out_of_band()].iter().enumerate() {
            let listener = UnixListener::bind(path).map_err(failed(path))?;
            opened.given.monitors[monitor] = opened.keep(listener);
        }
        for disk in &definition.disk {
            let places = policy.map(|policy| &policy.disks);
            let layers = storage::open_chain(disk, places, Access::Use).map_err(|source| GivenError::Disk {
                id: disk.id.clone(),
                source,
            })?;
            let layers = layers.into_iter().map(|layer| opened.keep_layer(layer)).collect();
            opened.given.disks.push(layers);
        }
        for tap in taps {
            let fd = network::open_tap(tap).map_err(failed(&format!("tap {tap}")))?;
            let fd = opened.keep(fd);
            opened.given.taps.push(fd);
        }
        opened.given.kernel = opened.boot_file(definition.kernel.as_deref(), policy, owner)?;
        opened.given.initrd = opened.boot_file(definition.initrd.as_deref(), policy, owner)?;
        opened.serial(definition, policy)?;
        opened.memory(definition, owner)?;
        Ok(opened)
    }

    fn keep(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    fn keep_layer(&mut self, layer: storage::Layer) -> GivenLayer {
        let medium = match layer.medium {
            Medium::File { file, path, is_device } => GivenMedium::File {
                fd: self.keep(file),
                path,
                is_device,
            },
            Medium::Nbd { uri, socket } => GivenMedium::Nbd {
                uri,
                fd: socket.map(|socket| self.keep(socket)),
            },
        };
        GivenLayer {
            format: layer.format,
            medium,
        }
    }

    /// QEMU opens these by name, and so it opens the descriptor's name anew. Of a file that not everybody may read it is given a
    /// copy.
    fn boot_file(
        &mut self,
        path: Option<&Path>,
        policy: Option<&Policy>,
        owner: Option<u32>,
    ) -> Result<Option<RawFd>, GivenError> {
        let Some(path) = path else { return Ok(None) };
        let found = match policy {
            Some(policy) => Some(policy.find_boot_file(path).ok_or_else(|| forbidden(path))?),
            None => None,
        };
        let opened = || -> io::Result<File> {
            let mut file = storage::open_to_read(path, found.as_deref())?;
            let is_for_everybody = file.metadata()?.mode() & 0o004 != 0;
            if owner.is_none() || is_for_everybody {
                return Ok(file);
            }
            let mut copy = File::from(memfd_create("boot-file", MemfdFlags::CLOEXEC)?);
            io::copy(&mut file, &mut copy)?;
            copy.rewind()?;
            Ok(copy)
        };
        let file = opened().map_err(failed(path))?;
        Ok(Some(self.keep(file)))
    }

    fn serial(&mut self, definition: &VmDefinition, policy: Option<&Policy>) -> Result<(), GivenError> {
        let (Some(Serial::File(path)) | Some(Serial::Socket(path))) = &definition.serial else {
            return Ok(());
        };
        let place = match policy {
            None => path.clone(),
            Some(policy) => {
                let folder = path.parent().and_then(|folder| policy.serials.find(folder));
                let place = folder.zip(path.file_name()).map(|(folder, name)| folder.join(name));
                place.ok_or_else(|| forbidden(path))?
            }
        };
        self.given.serial = Some(match &definition.serial {
            Some(Serial::Socket(_)) => {
                let listener = bind_anew(&place).map_err(failed(path))?;
                self.keep(listener)
            }
            _ => {
                let file = open_log(&place, policy.is_some()).map_err(failed(path))?;
                self.keep(file)
            }
        });
        Ok(())
    }

    fn memory(&mut self, definition: &VmDefinition, owner: Option<u32>) -> Result<(), GivenError> {
        let (MemoryBackend::File, Some(path)) = (definition.memory.backend, &definition.memory.path) else {
            return Ok(());
        };
        if !path.is_dir() {
            return Ok(());
        }
        for backend in 0..definition.numa.len().max(1) {
            let file = unnamed_file(path, backend, owner).map_err(failed(path))?;
            let file = self.keep(file);
            self.given.memory.push(file);
        }
        Ok(())
    }
}

fn failed(what: &(impl AsRef<Path> + ?Sized)) -> impl FnOnce(io::Error) -> GivenError {
    let what = what.as_ref().display().to_string();
    move |source| GivenError::Open { what, source }
}

fn forbidden(path: &Path) -> GivenError {
    GivenError::Forbidden {
        what: path.display().to_string(),
    }
}

/// Makes the folder that QEMU is started in: it finds the agent's socket there, and if it is to wait for a stream, it can make
/// its own in one folder of it, where the agent can reach it.
fn open_run_folder(folder: &VmFolder, owner: Option<u32>, waits: bool) -> io::Result<OwnedFd> {
    let make = |path: &Path, mode| -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    // Nobody else comes as far as this.
    make(&folder.run(), 0o711)?;
    if waits {
        make(&folder.run_incoming(), 0o700)?;
    }
    if let (true, Some(owner)) = (waits, owner) {
        chown(folder.run_incoming(), Some(owner), None)?;
        // What is made in it belongs to the agent's group.
        fs::set_permissions(folder.run_incoming(), fs::Permissions::from_mode(0o2770))?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder.run(), flags, Mode::empty())?)
}

fn bind_anew(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn open_log(path: &Path, without_links: bool) -> io::Result<File> {
    if !without_links {
        return OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(CWD, path, flags, Mode::from_raw_mode(0o640), no_links)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// A file in `folder` that has no name any more. QEMU opens it by its descriptor's name, so it has to be its user's.
fn unnamed_file(folder: &Path, number: usize, owner: Option<u32>) -> io::Result<File> {
    let path = folder.join(format!(".vmferry-{}-{number}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    fchown(&file, owner, None)?;
    Ok(file)
}
