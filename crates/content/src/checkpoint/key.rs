//! The host's key, and what follows from it for a file.
//!
//! AES-256-GCM comes from aws-lc-rs. It uses what the processor has for it, which counts for gigabytes of memory (the example
//! `checkpoint_speed` prints how much), and it is what rustls encrypts with: a TLS of the lanes needs no second library.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    rand,
};

use crate::durable::Draft;

/// Bytes of a key, and of a file's salt.
pub const KEY_BYTES: usize = 32;
/// Bytes that tell whether what was decrypted is what was encrypted.
pub(super) const TAG_BYTES: usize = 16;

/// Separate what is derived from the host's key from all else that BLAKE3 derives anywhere.
const CONTEXT_ENCRYPTION: &str = "vmferry 2026-11-25 checkpoint encryption";
const CONTEXT_HEADER: &str = "vmferry 2026-11-25 checkpoint header";

/// The key of all checkpoints on this host. Who has it and the files can read the guests' memory.
#[derive(Clone)]
pub struct HostKey([u8; KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused.
    #[error("cannot read or make the key {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others than its owner may use the file.
    #[error(
        "others than its owner can use the key {} (mode {mode:o}): run `chmod 600` on it, or make a new one if they may \
         have read it", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no key.
    #[error(
        "the key {} has to be a file of {KEY_BYTES} random bytes; remove it to have a new one made",
        path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
}

impl HostKey {
    /// A key that the operator gives.
    pub fn new(key: [u8; KEY_BYTES]) -> Self {
        Self(key)
    }

    /// The key in the file `path`, which is made with mode 0600 if it is absent.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io_error = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        match File::open(path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::make(path).map_err(io_error)?;
                Self::read(File::open(path).map_err(io_error)?, path)
            }
            Err(error) => Err(io_error(error)),
        }
    }

    fn read(mut file: File, path: &Path) -> Result<Self, KeyError> {
        let io_error = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        let not_a_key = || KeyError::NotAKey { path: path.to_owned() };
        let metadata = file.metadata().map_err(io_error)?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        if !metadata.is_file() || metadata.len() != KEY_BYTES as u64 {
            return Err(not_a_key());
        }
        let mut key = [0; KEY_BYTES];
        file.read_exact(&mut key).map_err(io_error)?;
        Ok(Self(key))
    }

    /// Of two that make it at once, one wins, and both use that one's.
    fn make(path: &Path) -> io::Result<()> {
        let draft = Draft::create(path)?;
        let mut file = draft.file();
        file.write_all(&random()?)?;
        file.sync_all()?;
        match fs::hard_link(draft.path(), path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// What the header of the file with this salt is authenticated with.
    pub(super) fn header_key(&self, salt: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
        self.derive(CONTEXT_HEADER, salt)
    }

    /// What the content of the file with this salt is encrypted with.
    pub(super) fn file_key(&self, salt: &[u8; KEY_BYTES]) -> io::Result<FileKey> {
        let key = UnboundKey::new(&AES_256_GCM, &self.derive(CONTEXT_ENCRYPTION, salt)).map_err(failed)?;
        Ok(FileKey(LessSafeKey::new(key)))
    }

    fn derive(&self, context: &str, salt: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
        blake3::Hasher::new_derive_key(context)
            .update(&self.0)
            .update(salt)
            .finalize()
            .into()
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey")
    }
}

/// Random bytes that nobody can guess.
pub(super) fn random() -> io::Result<[u8; KEY_BYTES]> {
    let mut bytes = [0; KEY_BYTES];
    rand::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn failed(_: Unspecified) -> io::Error {
    io::Error::other("the cryptographic library failed")
}

/// What a part of a file is. Under one key each part is encrypted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The block of this number.
    Block(u64),
    /// The records of the group of this number.
    Records(u64),
}

impl Part {
    fn nonce(self) -> Nonce {
        let (kind, number) = match self {
            Part::Block(number) => (0u32, number),
            Part::Records(number) => (1, number),
        };
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&kind.to_le_bytes());
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The key of one file.
#[derive(Debug)]
pub(super) struct FileKey(LessSafeKey);

impl FileKey {
    /// Encrypts a part in place.
    pub(super) fn encrypt(&self, part: Part, bytes: &mut [u8]) -> io::Result<[u8; TAG_BYTES]> {
        let tag = self
            .0
            .seal_in_place_separate_tag(part.nonce(), Aad::empty(), bytes)
            .map_err(failed)?;
        tag.as_ref().try_into().map_err(io::Error::other)
    }

    /// Decrypts a part of `from` into `into`, of the same length.
    pub(super) fn decrypt(&self, part: Part, from: &[u8], tag: &[u8; TAG_BYTES], into: &mut [u8]) -> io::Result<()> {
        self.0
            .open_separate_gather(part.nonce(), Aad::empty(), from, tag, into)
            .map_err(|Unspecified| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checkpoint is damaged here: remove it, or leave it to the next one",
                )
            })
    }
}
