//! The files: `STATE_DIR/pki`, which only its owner can read. Each is replaced as a whole, and durably.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use vmferry_dataplane::transport::Credentials;

use super::certificate::Certificate;

/// Where a host of the cluster finds the authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The host that has the authority.
    pub authority_host: String,
    /// Where that host's agent is reached.
    pub authority_address: String,
}

/// The folder of a host's certificates.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The one in that state directory; it need not be there.
    #[must_use]
    pub fn new(state_dir: &Path) -> Folder {
        Folder {
            path: state_dir.join("pki"),
        }
    }

    /// Whether this host has a certificate.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.host().exists()
    }

    /// Whether the authority is on this host.
    #[must_use]
    pub fn has_authority(&self) -> bool {
        self.authority_key().exists()
    }

    /// The host's certificate and key.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.path.join("host.pem")
    }

    /// What was revoked.
    #[must_use]
    pub fn revoked(&self) -> PathBuf {
        self.path.join("revoked.pem")
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.path.join("authority.pem")
    }

    pub(super) fn authority_key(&self) -> PathBuf {
        self.path.join("authority.key")
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.path.join("ledger.json")
    }

    fn cluster_file(&self) -> PathBuf {
        self.path.join("cluster.json")
    }

    /// Makes it, as a folder that nobody else can look into.
    pub(super) fn create(&self) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.and_then(|()| fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot make {}", self.path.display()))
    }

    /// Keeps other processes from changing what this one is about to, until it is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.path.join("lock");
        let lock = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.lock()?;
            Ok::<_, io::Error>(file)
        };
        lock().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Where the authority is.
    ///
    /// # Errors
    /// The system's, or that the file is damaged.
    pub fn cluster(&self) -> Result<Cluster> {
        serde_json::from_slice(&self.read(&self.cluster_file())?)
            .with_context(|| format!("{} is damaged", self.cluster_file().display()))
    }

    pub(super) fn write_cluster(&self, cluster: &Cluster) -> Result<()> {
        self.write(&self.cluster_file(), &serde_json::to_vec_pretty(cluster)?)
    }

    /// This host's certificate.
    ///
    /// # Errors
    /// That it has none, or a damaged one.
    pub fn certificate(&self) -> Result<Certificate> {
        if !self.has_certificate() {
            bail!(
                "this host has no certificate in {}; make the cluster's authority here with `vmferry pki init`, or have this \
                 host join it with `vmferry pki join`",
                self.path.display()
            );
        }
        Certificate::from_pem(&self.read(&self.host())?)
            .with_context(|| format!("{} is damaged", self.host().display()))
    }

    /// What connections need.
    ///
    /// # Errors
    /// The system's, or that a file is damaged.
    pub fn credentials(&self) -> Result<Credentials> {
        let host = self.read(&self.host())?;
        let damaged = |path: PathBuf| move || format!("{} is damaged", path.display());
        Ok(Credentials {
            certificate: CertificateDer::from_pem_slice(&host).with_context(damaged(self.host()))?,
            key: PrivateKeyDer::from_pem_slice(&host).with_context(damaged(self.host()))?,
            authority: CertificateDer::from_pem_slice(&self.read(&self.authority())?)
                .with_context(damaged(self.authority()))?,
            revoked: CertificateRevocationListDer::from_pem_slice(&self.read(&self.revoked())?)
                .with_context(damaged(self.revoked()))?,
            takes_joins: self.has_authority(),
        })
    }

    /// Replaces this host's certificate and key, both at once.
    pub(super) fn write_host(&self, certificate: &str, key: &str) -> Result<()> {
        self.write(&self.host(), format!("{certificate}{key}").as_bytes())
    }

    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>> {
        fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    }

    pub(super) fn read_text(&self, path: &Path) -> Result<String> {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Replaces a file by one that holds `bytes`, for its owner's eyes only.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        let write = || {
            let _ = fs::remove_file(&draft);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, path)?;
            File::open(&self.path)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
