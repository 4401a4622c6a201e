//! Asking other hosts about certificates. Blocks.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use vmferry_dataplane::transport::{self, Limits, Link, Purpose, Security, Tls, provider};

use super::authority::Authority;
use super::certificate::{Certificate, Revocations};
use super::folder::{Cluster, Folder};
use super::message::{Answer, Question, hear, say};
use super::token::Token;
use super::{pinned, sha256};

/// Joins the cluster that the token is of. `port` is where this host's agent listens.
///
/// # Errors
/// That this host is of a cluster already, or why it is not admitted. Nothing has changed then.
pub fn join(folder: &Folder, token: &Token, port: u16) -> Result<Certificate> {
    ensure!(
        !folder.has_certificate(),
        "this host is of a cluster already, `vmferry pki status` says which; to have it join another, remove its certificate \
         {}",
        folder.host().display()
    );
    let key = KeyPair::generate()?;
    let config = pinned::config(token)?;
    let link = transport::connect_with(resolve(&token.address)?, config, Purpose::Join)
        .map_err(|error| unreached(&token.address, &error))?;
    let question = Question::Join {
        secret: super::hex(&token.secret),
        request: request(&key)?,
        port,
    };
    let Answer::Certificate {
        certificate,
        authority,
        revoked,
    } = ask(link, &question)?
    else {
        bail!("{} answers something else than a certificate", token.authority_host);
    };
    let der = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
    ensure!(
        sha256(&der) == token.fingerprint,
        "{} answers with another authority than that of the token",
        token.authority_host
    );
    let granted = Certificate::from_pem(certificate.as_bytes())?;
    ensure!(
        granted.host == token.host,
        "the certificate is for {}, not for {}",
        granted.host,
        token.host
    );
    check_revocations(&authority, &certificate, &revoked)?;
    folder.create()?;
    let _lock = folder.lock()?;
    folder.write(&folder.authority(), authority.as_bytes())?;
    folder.write(&folder.revoked(), revoked.as_bytes())?;
    folder.write_cluster(&Cluster {
        authority_host: token.authority_host.clone(),
        authority_address: token.address.clone(),
    })?;
    // Last: a host that has one is of the cluster.
    folder.write_host(&certificate, &key.serialize_pem())?;
    Ok(granted)
}

/// Gets this host a new certificate, and a new key. `port` is where its agent listens.
///
/// # Errors
/// Why there is none; the one so far stays.
pub fn renew(folder: &Folder, port: u16) -> Result<Certificate> {
    let before = folder.certificate()?;
    if folder.has_authority() {
        Authority::open(folder)?.renew_own()?;
        return folder.certificate();
    }
    let key = KeyPair::generate()?;
    let question = Question::Renew {
        request: request(&key)?,
        port,
    };
    let Answer::Certificate {
        certificate,
        authority,
        revoked,
    } = ask(to_authority(folder)?, &question)?
    else {
        bail!("the authority's host answers something else than a certificate");
    };
    let granted = Certificate::from_pem(certificate.as_bytes())?;
    ensure!(granted.host == before.host, "the certificate is for {}", granted.host);
    ensure!(
        authority == folder.read_text(&folder.authority())?,
        "the authority is another one than when this host joined"
    );
    check_revocations(&authority, &certificate, &revoked)?;
    folder.write_host(&certificate, &key.serialize_pem())?;
    take_revocations(folder, &revoked)?;
    Ok(granted)
}

/// Asks the authority's host what is revoked; says whether that is news.
///
/// # Errors
/// Why it is not known.
pub fn fetch_revocations(folder: &Folder) -> Result<bool> {
    match ask(to_authority(folder)?, &Question::Revocations)? {
        Answer::Revocations { list } => take_revocations(folder, &list),
        _ => bail!("the authority's host answers something else than what is revoked"),
    }
}

/// Tells a host of the cluster what is revoked.
///
/// # Errors
/// Why it does not know.
pub fn tell_revocations(folder: &Folder, host: &str, address: &str) -> Result<()> {
    let list = folder.read_text(&folder.revoked())?;
    let link = connect(folder, host, address)?;
    match ask(link, &Question::Revoked { list })? {
        Answer::Revocations { .. } => Ok(()),
        _ => bail!("it answers something else"),
    }
}

/// Says which host's agent is at `address`, once each of both believes the other: whoever connects learns that only by an answer.
///
/// # Errors
/// Why there is none.
pub fn greet(folder: &Folder, address: &str) -> Result<String> {
    let link = reach(folder, address)?;
    let host = link.host().context("it shows no certificate")?.to_owned();
    match ask(link, &Question::Revocations)? {
        Answer::Revocations { .. } => Ok(host),
        _ => bail!("{host} answers something else than what is revoked"),
    }
}

/// Takes a list of revocations for this host's own, if the authority signed it and it is a newer one; says whether it
/// was.
pub(super) fn take_revocations(folder: &Folder, list: &str) -> Result<bool> {
    let _lock = folder.lock()?;
    if Revocations::from_pem(list.as_bytes())?.number <= Revocations::read(folder)?.number {
        return Ok(false);
    }
    let (authority, certificate) = (
        folder.read_text(&folder.authority())?,
        folder.read_text(&folder.host())?,
    );
    check_revocations(&authority, &certificate, list)?;
    folder.write(&folder.revoked(), list.as_bytes())?;
    Ok(true)
}

/// Checks that the authority signed both: by what checks peers' certificates, too, which looks for this host's own in
/// the list only once it has found the list genuine.
fn check_revocations(authority: &str, certificate: &str, list: &str) -> Result<()> {
    let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| anyhow!("{error:?}"));
    let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
    let mut roots = RootCertStore::empty();
    roots.add(read(authority)?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .with_crls([list])
        .build()?;
    match verifier.verify_client_cert(&read(certificate)?, &[], UnixTime::now()) {
        Ok(_) | Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => Ok(()),
        Err(error) => Err(error).context("the authority did not sign it"),
    }
}

fn request(key: &KeyPair) -> Result<String> {
    Ok(CertificateParams::default().serialize_request(key)?.pem()?)
}

fn to_authority(folder: &Folder) -> Result<Link> {
    let Cluster {
        authority_host,
        authority_address,
    } = folder.cluster()?;
    connect(folder, &authority_host, &authority_address)
}

fn reach(folder: &Folder, address: &str) -> Result<Link> {
    let security = Security::Tls(Arc::new(Tls::new(folder.credentials()?)?));
    transport::connect(resolve(address)?, Limits::default(), &security, Purpose::Certificates)
        .map_err(|error| unreached(address, &error))
}

fn connect(folder: &Folder, host: &str, address: &str) -> Result<Link> {
    let link = reach(folder, address)?;
    match link.host() {
        Some(there) if there == host => Ok(link),
        there => bail!("{address} is {}, and not {host}", there.unwrap_or("unknown")),
    }
}

fn ask(mut link: Link, question: &Question) -> Result<Answer> {
    say(&mut link, question)?;
    match hear(&mut link)? {
        Answer::Declined { reason } => bail!("{reason}"),
        answer => Ok(answer),
    }
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let mut addresses = address
        .to_socket_addrs()
        .with_context(|| format!("{address} is not a host that can be reached"))?;
    addresses.next().with_context(|| format!("{address} has no address"))
}

fn unreached(address: &str, error: &transport::TransportError) -> anyhow::Error {
    anyhow!("can't ask the agent at {address}: {error}. Is `vmferry agent` running there, and its port open?")
}
