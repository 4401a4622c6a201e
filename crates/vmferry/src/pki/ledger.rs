//! What the authority remembers: the certificates that are valid, and who is invited.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::{from_hex, hex, sha256, unix_now};

/// The ledger, `ledger.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// The number of the last list of revocations.
    pub(super) revocations: u64,
    /// The cluster's name, in the certificate of its authority.
    cluster: String,
    pub(super) hosts: BTreeMap<String, Member>,
    invitations: Vec<Invitation>,
}

/// A host that has or had a certificate.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Member {
    /// Where its agent was reached last.
    pub(super) address: Option<String>,
    /// Certificates that have not expired.
    pub(super) certificates: Vec<Issued>,
}

/// A certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Issued {
    pub(super) serial: String,
    pub(super) until_unix: u64,
    pub(super) revoked_unix: Option<u64>,
}

impl Member {
    /// Whether it has a certificate that is neither expired nor revoked.
    pub(super) fn is_trusted(&self) -> bool {
        let now = unix_now();
        let mut certificates = self.certificates.iter();
        certificates.any(|issued| issued.until_unix > now && issued.revoked_unix.is_none())
    }
}

/// Its secret is in the token alone.
#[derive(Debug, Serialize, Deserialize)]
struct Invitation {
    host: String,
    secret_sha256: String,
    until_unix: u64,
}

impl Ledger {
    /// An empty one, of a new cluster.
    pub(super) fn new(cluster: &str) -> Ledger {
        Ledger {
            revocations: 0,
            cluster: cluster.to_owned(),
            hosts: BTreeMap::new(),
            invitations: Vec::new(),
        }
    }

    pub(super) fn read(folder: &Folder) -> Result<Ledger> {
        let path = folder.ledger();
        serde_json::from_slice(&folder.read(&path)?).with_context(|| format!("{} is damaged", path.display()))
    }

    pub(super) fn write(&self, folder: &Folder) -> Result<()> {
        folder.write(&folder.ledger(), &serde_json::to_vec_pretty(self)?)
    }

    /// Forgets what has no meaning any more.
    pub(super) fn tidy(&mut self) {
        let now = unix_now();
        self.invitations.retain(|invitation| invitation.until_unix > now);
        for member in self.hosts.values_mut() {
            member.certificates.retain(|issued| issued.until_unix > now);
        }
    }

    pub(super) fn invite(&mut self, host: &str, secret: &[u8; 32], until_unix: u64) {
        self.tidy();
        // The last one counts: an earlier one may be lost, or in wrong hands.
        self.invitations.retain(|invitation| invitation.host != host);
        self.invitations.push(Invitation {
            host: host.to_owned(),
            secret_sha256: hex(&sha256(secret)),
            until_unix,
        });
    }

    /// Uses an invitation up, and says whom it is for.
    pub(super) fn use_invitation(&mut self, secret: &str) -> Option<String> {
        let sum = hex(&sha256(&from_hex::<32>(secret)?));
        self.tidy();
        let place = self
            .invitations
            .iter()
            .position(|invitation| invitation.secret_sha256 == sum)?;
        Some(self.invitations.remove(place).host)
    }

    pub(super) fn enter(&mut self, host: &str, address: Option<String>, issued: Issued) {
        let member = self.hosts.entry(host.to_owned()).or_default();
        member.address = address.or(member.address.take());
        member.certificates.push(issued);
    }
}
