//! What is read from certificates and revocation lists. Whether they are genuine, rustls finds out.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use vmferry_dataplane::transport::host_of;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::folder::Folder;
use super::{hex, unix_now};

/// A certificate, as far as it is looked at here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The host that it names.
    pub host: String,
    /// Its number, hexadecimal.
    pub serial: String,
    /// From when on it is valid, seconds since 1970.
    pub from_unix: u64,
    /// Until when.
    pub until_unix: u64,
}

impl Certificate {
    pub(super) fn from_pem(pem: &[u8]) -> Result<Certificate> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|error| anyhow!("no certificate in it: {error:?}"))?;
        let (_, parsed) = X509Certificate::from_der(&der).context("its certificate cannot be read")?;
        let validity = parsed.validity();
        Ok(Certificate {
            host: host_of(&der)?,
            serial: hex(parsed.raw_serial()),
            from_unix: validity.not_before.timestamp().try_into()?,
            until_unix: validity.not_after.timestamp().try_into()?,
        })
    }

    /// How much longer it is valid.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.until_unix.saturating_sub(unix_now()))
    }

    /// Whether two thirds of its life are over.
    #[must_use]
    pub fn is_to_be_renewed(&self) -> bool {
        let life = self.until_unix.saturating_sub(self.from_unix);
        self.left().as_secs() < life / 3
    }
}

/// A list of revoked certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocations {
    /// Its number: the authority's next one has a higher one.
    pub number: u64,
    /// The numbers of the certificates in it, hexadecimal.
    pub serials: Vec<String>,
}

impl Revocations {
    /// The list that this host has.
    ///
    /// # Errors
    /// That there is none, or a damaged one.
    pub fn read(folder: &Folder) -> Result<Revocations> {
        Self::from_pem(&folder.read(&folder.revoked())?)
    }

    pub(super) fn from_pem(pem: &[u8]) -> Result<Revocations> {
        let der = CertificateRevocationListDer::from_pem_slice(pem)
            .map_err(|error| anyhow!("no list of revocations in it: {error:?}"))?;
        let (_, parsed) =
            CertificateRevocationList::from_der(&der).context("its list of revocations cannot be read")?;
        let number = parsed.crl_number().context("its list of revocations has no number")?;
        Ok(Revocations {
            number: number
                .try_into()
                .context("its list of revocations has too high a number")?,
            serials: parsed
                .iter_revoked_certificates()
                .map(|revoked| hex(revoked.raw_serial()))
                .collect(),
        })
    }
}
