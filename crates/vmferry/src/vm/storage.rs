//! The files and exports under a disk, opened by the agent.
//!
//! QEMU is given them open and told how they stand on one another. It opens no path itself: as an unprivileged user it could
//! not, and what a header names it should not.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileExt, FileTypeExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fcntl_setfl, openat2},
    io::Errno,
};
use vmferry_content::{BLOCK_BYTES, Blocks, NbdExport, NbdServer, NbdUri};

use super::{
    definition::{Disk, DiskFormat},
    qcow2,
};
use crate::policy::Places;

/// Files on top of one another. QEMU itself would take more; a chain without end is a circle.
pub const DEPTH_MAX: usize = 32;

/// One image and what it is stored on.
#[derive(Debug)]
pub struct Layer {
    /// What is in it.
    pub format: DiskFormat,
    /// What it is on.
    pub medium: Medium,
}

/// A file, device or export.
#[derive(Debug)]
pub enum Medium {
    /// A file or block device.
    File {
        /// It.
        file: File,
        /// By what name it was found.
        path: PathBuf,
        /// Whether it is a block device.
        is_device: bool,
    },
    /// An NBD export.
    Nbd {
        /// Which.
        uri: NbdUri,
        /// A connection to a server on a unix socket, which QEMU could not reach.
        socket: Option<OwnedFd>,
    },
}

/// What it is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read headers.
    Look,
    /// To be handed to QEMU.
    Use,
}

/// Why a disk's files cannot be given to QEMU. Each goes on after "disk ID:".
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system does not open it.
    #[error("{} cannot be opened here: {source}", name(*.depth, what))]
    Open {
        /// How many images are on top of it.
        depth: usize,
        /// Its path or URI.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The policy does not let it be used.
    #[error("{} is not in `{list}` of this host's [policy]; have it listed", name(*.depth, what))]
    Forbidden {
        /// How many images are on top of it.
        depth: usize,
        /// Its path or URI.
        what: String,
        /// The key.
        list: &'static str,
    },
    /// Its header is not understood.
    #[error("{} cannot be used: {source}", name(*.depth, what))]
    Header {
        /// How many images are on top of it.
        depth: usize,
        /// Its path or URI.
        what: String,
        /// What is wrong.
        source: io::Error,
    },
    /// It needs something that cannot be had.
    #[error("{} {problem}", name(*.depth, what))]
    Unfit {
        /// How many images are on top of it.
        depth: usize,
        /// Its path or URI.
        what: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

fn name(depth: usize, what: &str) -> String {
    if depth == 0 {
        what.to_owned()
    } else {
        format!("its backing file {what}")
    }
}

/// Opens what is under a disk, the image on top first. With `places` only what is in these, found without following a link
/// that was not there when it was looked up. It blocks its thread.
///
/// # Errors
/// [`StorageError`].
pub fn open_chain(disk: &Disk, places: Option<&Places>, access: Access) -> Result<Vec<Layer>, StorageError> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = match (&disk.path, &disk.nbd) {
        (Some(path), _) => Some((Place::File(path.clone()), disk.format)),
        (None, Some(uri)) => Some((Place::Nbd(uri.clone()), disk.format)),
        (None, None) => None,
    };
    while let Some((place, format)) = next {
        let depth = layers.len();
        let what = place.to_string();
        if depth == DEPTH_MAX {
            let problem = format!("is one too many: {DEPTH_MAX} images on top of one another are taken");
            return Err(StorageError::Unfit { depth, what, problem });
        }
        let write = depth == 0 && !disk.readonly && access == Access::Use;
        let medium = open(&place, places, write, access, depth)?;
        next = match format {
            DiskFormat::Raw => None,
            DiskFormat::Qcow2 => {
                let header = header(&medium).map_err(|source| StorageError::Header {
                    depth,
                    what: what.clone(),
                    source,
                })?;
                backing(header, &place).map_err(|problem| StorageError::Unfit {
                    depth,
                    what: what.clone(),
                    problem,
                })?
            }
        };
        if let (Medium::File { file, .. }, Access::Use) = (&medium, access) {
            // QEMU takes a descriptor only with the very flags that it would have opened the file with.
            let flags = if disk.cache.is_direct() {
                OFlags::DIRECT
            } else {
                OFlags::empty()
            };
            fcntl_setfl(file, flags).map_err(|errno| StorageError::Open {
                depth,
                what,
                source: match errno {
                    Errno::INVAL => io::Error::other("its file system has no direct I/O; set another cache mode"),
                    errno => errno.into(),
                },
            })?;
        }
        layers.push(Layer { format, medium });
    }
    Ok(layers)
}

/// Where an image is.
#[derive(Debug, Clone)]
enum Place {
    File(PathBuf),
    Nbd(NbdUri),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

fn open(
    place: &Place,
    places: Option<&Places>,
    write: bool,
    access: Access,
    depth: usize,
) -> Result<Medium, StorageError> {
    let what = place.to_string();
    let forbidden = |list| StorageError::Forbidden {
        depth,
        what: what.clone(),
        list,
    };
    let failed = |source| StorageError::Open {
        depth,
        what: what.clone(),
        source,
    };
    match place {
        Place::File(path) => {
            let real = match places {
                Some(places) => Some(places.find(path).ok_or_else(|| forbidden("disk-directories"))?),
                None => None,
            };
            let file = match real {
                Some(real) => open_without_links(&real, write),
                None => open_file(path, write),
            };
            let file = file.map_err(failed)?;
            let kind = file.metadata().map_err(failed)?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Err(failed(io::Error::other("it is neither a file nor a block device")));
            }
            Ok(Medium::File {
                file,
                path: path.clone(),
                is_device: kind.is_block_device(),
            })
        }
        Place::Nbd(uri) => {
            if places.is_some_and(|places| !places.covers_export(uri)) {
                return Err(forbidden("disk-uris"));
            }
            let socket = match (&uri.server, access) {
                (NbdServer::Unix(path), Access::Use) => Some(UnixStream::connect(path).map_err(failed)?.into()),
                _ => None,
            };
            Ok(Medium::Nbd {
                uri: uri.clone(),
                socket,
            })
        }
    }
}

fn open_file(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        // A pipe by that name must not be waited for.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

/// Opens the very path, and nothing that a link put in its way since leads to.
pub(super) fn open_without_links(path: &Path, write: bool) -> io::Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), no_links)?.into())
}

fn header(medium: &Medium) -> io::Result<qcow2::Header> {
    match medium {
        Medium::File { file, .. } => qcow2::read_header(&|into, at| file.read_exact_at(into, at)),
        Medium::Nbd { uri, .. } => {
            let export = NbdExport::open(uri)?;
            qcow2::read_header(&|into, at| read_export(&export, into, at))
        }
    }
}

fn read_export(export: &NbdExport, into: &mut [u8], at: u64) -> io::Result<()> {
    let first = at / BLOCK_BYTES as u64;
    let skipped = (at % BLOCK_BYTES as u64) as usize;
    let mut blocks = vec![0; (skipped + into.len()).next_multiple_of(BLOCK_BYTES)];
    export.read(first, &mut blocks)?;
    into.copy_from_slice(&blocks[skipped..skipped + into.len()]);
    Ok(())
}

/// What stands under an image, or why it can't be had.
fn backing(header: qcow2::Header, image: &Place) -> Result<Option<(Place, DiskFormat)>, String> {
    if header.has_data_file {
        return Err("has its data in another file; convert it to an image of its own".to_owned());
    }
    let Some((name, format)) = header.backing else {
        return Ok(None);
    };
    let format = match format.as_deref() {
        Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2,
        Some(other) => {
            return Err(format!(
                "has a backing file in format {other:?}; only raw and qcow2 are taken"
            ));
        }
        // Guessed, it could be what the guest wrote.
        None => {
            return Err(format!(
                "does not say in which format its backing file {name} is; \
                 write it down with `qemu-img rebase -u -b {name} -F raw`, or qcow2"
            ));
        }
    };
    let unknown = || format!("has the backing file {name:?}; only paths and NBD URIs are taken");
    if name.starts_with("nbd://") || name.starts_with("nbd+unix://") {
        return Ok(Some((Place::Nbd(name.parse().map_err(|_| unknown())?), format)));
    }
    let path = name.strip_prefix("file:").unwrap_or(&name);
    // As QEMU sees it: a colon before the first slash is behind a protocol.
    let has_protocol = path.split('/').next().is_some_and(|first| first.contains(':'));
    let folder = match image {
        _ if path.starts_with('/') => Path::new("/"),
        Place::File(overlay) => overlay.parent().unwrap_or(Path::new("/")),
        Place::Nbd(_) => return Err(unknown()),
    };
    if has_protocol || path.is_empty() {
        return Err(unknown());
    }
    Ok(Some((Place::File(folder.join(path)), format)))
}

/// Opens a file to boot from, for reading. See [`open_chain`] for `places`: the path that was found, if it was to be looked up.
///
/// # Errors
/// The system's.
pub(super) fn open_to_read(path: &Path, found: Option<&Path>) -> io::Result<File> {
    let file = match found {
        Some(real) => open_without_links(real, false)?,
        None => open_file(path, false)?,
    };
    if !fs::File::metadata(&file)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
