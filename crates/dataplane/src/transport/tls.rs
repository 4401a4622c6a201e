//! What this host shows of itself, and whom it believes.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use webpki::EndEntityCert;

use super::Purpose;

/// What makes a host one of its cluster's.
#[derive(Debug)]
pub struct Credentials {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The certificate of the cluster's authority, which signs all others.
    pub authority: CertificateDer<'static>,
    /// What the authority has revoked.
    pub revoked: CertificateRevocationListDer<'static>,
    /// Whether hosts that have no certificate yet may ask here for one.
    pub takes_joins: bool,
}

/// [`Credentials`], ready to be used.
#[derive(Debug)]
pub struct Tls {
    host: String,
    server: ServerConfig,
    joining: Option<Arc<ServerConfig>>,
    lanes: Arc<ServerConfig>,
    client: ClientConfig,
}

impl Tls {
    /// Checks that they belong together.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(credentials: Credentials) -> Result<Tls, Error> {
        Self::with_provider(credentials, provider())
    }

    pub(super) fn with_provider(credentials: Credentials, provider: Arc<CryptoProvider>) -> Result<Tls, Error> {
        let Credentials {
            certificate,
            key,
            authority,
            revoked,
            takes_joins,
        } = credentials;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls([revoked.clone()])
            // Strangers need not be told of which cluster this is.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .with_crls([revoked])
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.clone()], key.clone_key())?;
        without_resumption(&mut server);
        let lanes = serving(&server, &[Purpose::Lane, Purpose::Certificates]);
        let joining = takes_joins
            .then(|| {
                let mut config = ServerConfig::builder_with_provider(provider.clone())
                    .with_protocol_versions(&[&TLS13])?
                    .with_no_client_auth()
                    // With the authority's certificate, whose fingerprint is all that a joining host knows.
                    .with_single_cert(vec![certificate.clone(), authority], key.clone_key())?;
                without_resumption(&mut config);
                Ok::<_, Error>(serving(&config, &[Purpose::Join]))
            })
            .transpose()?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyHost(servers)))
            .with_client_auth_cert(vec![certificate.clone()], key)?;
        client.enable_sni = false;
        // A session that is resumed shows no certificate, which may be revoked by then.
        client.resumption = Resumption::disabled();
        Ok(Tls {
            host: host_of(&certificate)?,
            server,
            joining,
            lanes,
            client,
        })
    }

    /// The host that the certificate names.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How to serve something to hosts of the cluster.
    #[must_use]
    pub fn server(&self, purpose: Purpose) -> Arc<ServerConfig> {
        serving(&self.server, &[purpose])
    }

    /// How to ask another host of the cluster for something.
    #[must_use]
    pub fn client(&self, purpose: Purpose) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![purpose.protocol().to_vec()];
        Arc::new(config)
    }

    /// How to greet a peer on the port between agents, which has no certificate yet if it wants to join.
    pub(super) fn serving(&self, is_joining: bool) -> Arc<ServerConfig> {
        match &self.joining {
            Some(config) if is_joining => config.clone(),
            _ => self.lanes.clone(),
        }
    }
}

/// The cryptography in use. The shorter AES first: it is as good for what lasts a few hours, and faster.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn without_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

fn serving(config: &ServerConfig, purposes: &[Purpose]) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = purposes.iter().map(|purpose| purpose.protocol().to_vec()).collect();
    Arc::new(config)
}

/// The one host that a certificate names.
///
/// # Errors
/// [`CertificateError`], if it names none, or several.
pub fn host_of(certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let mut names = parsed.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(host), None) => Ok(host.to_owned()),
        _ => Err(CertificateError::NotValidForName.into()),
    }
}

#[cfg(test)]
pub(super) fn any_host(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Arc::new(AnyHost(verifier.expect("a root")))
}

/// Takes any host of the cluster for who its certificate says that it is. Agents are reached by addresses; whether it
/// is the host that was meant is asked after the handshake.
#[derive(Debug)]
struct AnyHost(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let host = host_of(certificate)?;
        let host = ServerName::try_from(host).map_err(|_| CertificateError::NotValidForName)?;
        self.0.verify_server_cert(certificate, intermediates, &host, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
