//! The cluster's authority: it signs certificates and lists of revocations, on the host that it was made on.

use std::fs::File;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::folder::{Cluster, Folder};
use super::ledger::{Issued, Ledger};
use super::token::Token;
use super::{
    AUTHORITY_LIFE, CERTIFICATE_LIFE, CLOCKS_APART_MAX, INVITATION_LIFE, from_hex, hex, random, sha256, unix_now,
};

/// How long a list of revocations says to be new. Nothing depends on it: an older one is better than none.
const REVOCATIONS_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The authority, on its own host.
pub struct Authority {
    folder: Folder,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What a host gets.
pub(super) struct Granted {
    pub(super) certificate: String,
    pub(super) authority: String,
    pub(super) revoked: String,
}

impl Authority {
    /// Makes an authority, and the certificate of its host, whose agent others reach at `address`.
    ///
    /// # Errors
    /// That there is one, that the name is no host's, or the system's.
    pub fn create(folder: &Folder, host: &str, address: &str) -> Result<Authority> {
        is_host_name(host)?;
        folder.create()?;
        let lock = folder.lock()?;
        ensure!(
            !folder.has_certificate() && !folder.has_authority(),
            "this host is of a cluster already; `vmferry pki status` says which"
        );
        let cluster = format!("vmferry {}", hex(&random::<8>()?));
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validate(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?.pem();
        let key_text = key.serialize_pem();
        let authority = Authority {
            folder: folder.clone(),
            issuer: Issuer::new(params, key),
            certificate,
        };
        folder.write(&folder.authority(), authority.certificate.as_bytes())?;
        folder.write_cluster(&Cluster {
            authority_host: host.to_owned(),
            authority_address: address.to_owned(),
        })?;
        authority.publish(&lock, Ledger::new(&cluster))?;
        authority.grant_own(&lock, host)?;
        // Last: what has a key is an authority, and all of it.
        folder.write(&folder.authority_key(), key_text.as_bytes())?;
        Ok(authority)
    }

    /// The one on this host.
    ///
    /// # Errors
    /// That there is none, or that a file is damaged.
    pub fn open(folder: &Folder) -> Result<Authority> {
        if !folder.has_authority() {
            let cluster = folder
                .cluster()
                .context("this host is of no cluster; `vmferry pki init` makes one")?;
            bail!(
                "the cluster's authority is on {}: do that there",
                cluster.authority_host
            );
        }
        let certificate = folder.read_text(&folder.authority())?;
        let key = KeyPair::from_pem(&folder.read_text(&folder.authority_key())?)
            .with_context(|| format!("{} is damaged", folder.authority_key().display()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .with_context(|| format!("{} is damaged", folder.authority().display()))?;
        Ok(Authority {
            folder: folder.clone(),
            issuer,
            certificate,
        })
    }

    /// Invites a host.
    ///
    /// # Errors
    /// That the name is no host's, or the system's.
    pub fn invite(&self, host: &str) -> Result<Token> {
        is_host_name(host)?;
        let cluster = self.folder.cluster()?;
        ensure!(
            host != cluster.authority_host,
            "{host} has the authority, and a certificate; `vmferry pki rotate` renews that"
        );
        let _lock = self.folder.lock()?;
        let secret = random()?;
        let mut ledger = Ledger::read(&self.folder)?;
        ledger.invite(host, &secret, unix_now() + INVITATION_LIFE.as_secs());
        ledger.write(&self.folder)?;
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
        Ok(Token {
            host: host.to_owned(),
            authority_host: cluster.authority_host,
            address: cluster.authority_address,
            fingerprint: sha256(&der),
            secret,
        })
    }

    /// Signs the certificate of a host that shows the secret of its invitation, which it uses up.
    pub(super) fn admit(&self, secret: &str, request: &str, address: Option<String>) -> Result<Granted> {
        let key = requested(request)?;
        let lock = self.folder.lock()?;
        let mut ledger = Ledger::read(&self.folder)?;
        let host = ledger.use_invitation(secret).context(
            "the token was used, or has expired, or another was made for the same host since: have `vmferry pki invite` \
             make a new one",
        )?;
        // Durable before there is a certificate: it shall not be used twice, whatever happens.
        ledger.write(&self.folder)?;
        self.grant(&lock, &host, &key, address)
    }

    /// Signs a new certificate of a host that has shown its last.
    pub(super) fn renew(&self, host: &str, request: &str, address: Option<String>) -> Result<Granted> {
        self.grant(&self.folder.lock()?, host, &requested(request)?, address)
    }

    /// Renews the certificate of the authority's own host.
    pub(super) fn renew_own(&self) -> Result<()> {
        let lock = self.folder.lock()?;
        self.grant_own(&lock, &self.folder.certificate()?.host)?;
        // So that the list does not look forgotten, and loses what has expired.
        self.publish(&lock, Ledger::read(&self.folder)?)
    }

    fn grant_own(&self, lock: &File, host: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        let granted = self.grant(lock, host, &key, None)?;
        self.folder.write_host(&granted.certificate, &key.serialize_pem())
    }

    /// Revokes all certificates of a host; gives where its fellows may be told.
    ///
    /// # Errors
    /// That it has none, or the system's.
    pub fn revoke(&self, host: &str) -> Result<Vec<(String, String)>> {
        let own = self.folder.cluster()?.authority_host;
        ensure!(
            host != own,
            "{host} has the authority itself: if it is not to be trusted, make a new cluster"
        );
        let lock = self.folder.lock()?;
        let mut ledger = Ledger::read(&self.folder)?;
        ledger.tidy();
        let known: Vec<&str> = ledger.hosts.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let member = ledger
            .hosts
            .get_mut(host)
            .with_context(|| format!("no host {host} has a certificate; those that do: {known}"))?;
        for issued in &mut member.certificates {
            issued.revoked_unix.get_or_insert(unix_now());
        }
        let fellows = ledger
            .hosts
            .iter()
            .filter(|(name, member)| **name != own && member.is_trusted())
            .filter_map(|(name, member)| Some((name.clone(), member.address.clone()?)))
            .collect();
        self.publish(&lock, ledger)?;
        Ok(fellows)
    }

    /// Signs a certificate, which is in the ledger before it is anywhere else: what is not in there can't be revoked.
    fn grant(&self, _lock: &File, host: &str, key: &impl PublicKeyData, address: Option<String>) -> Result<Granted> {
        let mut params = CertificateParams::new([host.to_owned()])?;
        params.distinguished_name = name(host);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let mut serial = random::<16>()?;
        // Positive, and of one length.
        serial[0] = serial[0] & 0x3f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        validate(&mut params, CERTIFICATE_LIFE);
        let certificate = params.signed_by(key, &self.issuer)?.pem();
        let mut ledger = Ledger::read(&self.folder)?;
        ledger.tidy();
        let Certificate { serial, until_unix, .. } = Certificate::from_pem(certificate.as_bytes())?;
        let issued = Issued {
            serial,
            until_unix,
            revoked_unix: None,
        };
        ledger.enter(host, address, issued);
        ledger.write(&self.folder)?;
        Ok(Granted {
            certificate,
            authority: self.certificate.clone(),
            revoked: self.folder.read_text(&self.folder.revoked())?,
        })
    }

    /// Signs a list of what the ledger says is revoked, for everyone to see.
    fn publish(&self, _lock: &File, mut ledger: Ledger) -> Result<()> {
        ledger.revocations += 1;
        let revoked_certs = ledger
            .hosts
            .values()
            .flat_map(|member| &member.certificates)
            .filter_map(|issued| {
                let serial = from_hex::<16>(&issued.serial)?;
                Some(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&serial),
                    revocation_time: at(issued.revoked_unix?),
                    reason_code: Some(RevocationReason::PrivilegeWithdrawn),
                    invalidity_date: None,
                })
            })
            .collect();
        let now = unix_now();
        let list = CertificateRevocationListParams {
            this_update: at(now - CLOCKS_APART_MAX.as_secs()),
            next_update: at(now + REVOCATIONS_LIFE.as_secs()),
            crl_number: SerialNumber::from(ledger.revocations),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer)?.pem()?;
        // The number first: no two lists may have the same.
        ledger.write(&self.folder)?;
        self.folder.write(&self.folder.revoked(), list.as_bytes())
    }
}

/// The key that a request is for, whose owner has signed it. Nothing else of a request counts.
fn requested(request: &str) -> Result<impl PublicKeyData + use<>> {
    let request =
        CertificateSigningRequestParams::from_pem(request).context("the request for a certificate is wrong")?;
    Ok(request.public_key)
}

/// Refuses what can't stand in a certificate as the name of a host.
fn is_host_name(host: &str) -> Result<()> {
    let is_name = DnsName::try_from(host).is_ok() && !host.ends_with('.') && host.to_ascii_lowercase() == host;
    ensure!(
        is_name,
        "{host:?} can't be a host's name in a certificate: use lower-case letters, digits, hyphens and dots"
    );
    Ok(())
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn validate(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - CLOCKS_APART_MAX);
    params.not_after = OffsetDateTime::from(now + life);
}

fn at(unix: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(unix)
}
