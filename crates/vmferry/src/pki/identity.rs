//! What a running agent shows, and whom it believes. Each connection begins with the files as they are then: what
//! `vmferry pki` changes, or this agent renews, counts from the next connection on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use vmferry_dataplane::transport::{Security, Tls};

use super::folder::Folder;

/// An agent's identity. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Identity(Option<Arc<Files>>);

#[derive(Debug)]
struct Files {
    folder: Folder,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Of which files it was made.
    of: [Option<Stamp>; 3],
    tls: Arc<Tls>,
}

/// Tells a file from the one that replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let file = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
            bytes: file.len(),
        })
    }
}

impl Identity {
    /// None: connections are plain, and anyone is believed.
    #[must_use]
    pub fn none() -> Identity {
        Identity(None)
    }

    /// That of the folder.
    ///
    /// # Errors
    /// That there is none, or a damaged one.
    pub fn open(folder: Folder) -> Result<Identity> {
        folder.certificate()?;
        let of = stamps(&folder);
        let known = Mutex::new(Known {
            of,
            tls: load(&folder)?,
        });
        Ok(Identity(Some(Arc::new(Files { folder, known }))))
    }

    /// Its folder, if there is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Folder> {
        self.0.as_ref().map(|files| &files.folder)
    }

    /// What the next connection is to use.
    #[must_use]
    pub fn security(&self) -> Security {
        let Some(files) = &self.0 else {
            return Security::Plaintext;
        };
        let Files { folder, known } = &**files;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(folder);
        if now != known.of {
            match load(folder) {
                Ok(tls) => (known.of, known.tls) = (now, tls),
                Err(error) => tracing::error!(error = format!("{error:#}"), "the certificate so far is used on"),
            }
        }
        Security::Tls(known.tls.clone())
    }

    /// The same, for a connection that may need several TCP connections.
    pub fn shown(&self) -> impl Fn() -> Security + Send + Sync + use<> {
        let identity = self.clone();
        move || identity.security()
    }
}

fn stamps(folder: &Folder) -> [Option<Stamp>; 3] {
    [folder.host(), folder.revoked(), folder.authority()].map(|path| Stamp::of(&path))
}

fn load(folder: &Folder) -> Result<Arc<Tls>> {
    let tls = Tls::new(folder.credentials()?).context("this host's certificate and key can't be used")?;
    Ok(Arc::new(tls))
}
