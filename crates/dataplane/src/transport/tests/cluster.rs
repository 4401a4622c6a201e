//! A cluster for a test.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;

use super::super::{Credentials, Security, Tls, provider};

pub(super) struct Cluster {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    revoked: Vec<u64>,
}

/// The number of each host's certificate.
fn serial(host: &str) -> u64 {
    u64::from(host.as_bytes()[0])
}

impl Cluster {
    pub(super) fn new() -> Cluster {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Cluster {
            issuer: Issuer::new(params, key),
            certificate,
            revoked: Vec::new(),
        }
    }

    pub(super) fn revoke(&mut self, host: &str) {
        self.revoked.push(serial(host));
    }

    /// A host of the cluster.
    pub(super) fn host(&self, name: &str) -> Security {
        self.host_with(name, provider())
    }

    pub(super) fn host_with(&self, name: &str, provider: Arc<CryptoProvider>) -> Security {
        joined(self.credentials(&[name], 2100), provider)
    }

    /// Its certificate names these hosts and is valid up to that year.
    pub(super) fn credentials(&self, names: &[&str], until: i32) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.serial_number = Some(SerialNumber::from(serial(&names[0])));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_after = date_time_ymd(until, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2021, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: (self.revoked.iter())
                .map(|&serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Credentials {
            certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(),
            key: key.serialize_der().try_into().unwrap(),
            authority: self.certificate.clone(),
            revoked: list.signed_by(&self.issuer).unwrap().der().clone(),
            takes_joins: false,
        }
    }
}

pub(super) fn joined(credentials: Credentials, provider: Arc<CryptoProvider>) -> Security {
    Security::Tls(Arc::new(Tls::with_provider(credentials, provider).unwrap()))
}
