//! etcd's JSON gateway, which every etcd serves beside gRPC: one HTTP request a question, and base64 for bytes.
//!
//! Not a gRPC client: hyper is here already, and such a client hides what a handover lives on, whether a question left this
//! host at all. It would also bring tonic, prost, h2 and, to build them, protoc.

use std::{io::Cursor, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::ArbiterError;
use crate::agent::ArbiterSettings;

/// How long a question may take, with all nodes that are tried. Shorter than what a handover waits before it asks anew.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// How long one node may take to be reached.
const CONNECT_LIMIT: Duration = Duration::from_millis(700);
/// How long one node may take to answer; longer than etcd takes to elect a new leader as it is set by default.
const NODE_LIMIT: Duration = Duration::from_millis(2500);
/// No answer about a few keys is longer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a question has no answer, with what each node said.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(super) struct Unanswered(Vec<String>);

/// The nodes of a cluster.
#[derive(Debug)]
pub(super) struct Gateway {
    nodes: Vec<Node>,
    /// The node that answered last.
    first: std::sync::atomic::AtomicUsize,
    tls: Option<TlsConnectorOf>,
}

/// [`TlsConnector`] says nothing about itself.
struct TlsConnectorOf(TlsConnector);

impl std::fmt::Debug for TlsConnectorOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TLS")
    }
}

#[derive(Debug)]
struct Node {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Gateway {
    /// Reads addresses and TLS files; nothing is asked yet.
    pub(super) fn new(settings: &ArbiterSettings) -> Result<Gateway, ArbiterError> {
        let nodes = settings
            .urls
            .iter()
            .map(|url| node(url))
            .collect::<Result<Vec<_>, _>>()?;
        let tls = match nodes.iter().any(|node| node.is_tls) {
            true => Some(TlsConnectorOf(connector(settings)?)),
            false => None,
        };
        Ok(Gateway {
            nodes,
            first: 0.into(),
            tls,
        })
    }

    /// Asks the nodes in turn until one answers.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Unanswered> {
        use std::sync::atomic::Ordering::Relaxed;
        let first = self.first.load(Relaxed);
        let mut said = Vec::new();
        for index in (0..self.nodes.len()).map(|number| (first + number) % self.nodes.len()) {
            let node = &self.nodes[index];
            let answer = tokio::time::timeout(NODE_LIMIT, self.ask(node, path, body)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer within {NODE_LIMIT:?}"))) {
                Ok(answer) => {
                    self.first.store(index, Relaxed);
                    return Ok(answer);
                }
                Err(why) => said.push(format!("{}:{}: {why}", node.host, node.port)),
            }
        }
        Err(Unanswered(said))
    }

    async fn ask(&self, node: &Node, path: &str, body: &Value) -> Result<Value, String> {
        let stream = TcpStream::connect((node.host.as_str(), node.port));
        let stream = tokio::time::timeout(CONNECT_LIMIT, stream).await;
        let stream = stream.map_err(|_| format!("no connection within {CONNECT_LIMIT:?}"))?;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.tls {
            Some(TlsConnectorOf(tls)) if node.is_tls => {
                let name = ServerName::try_from(node.host.clone()).map_err(|error| error.to_string())?;
                let stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
                exchange(stream, node, path, body).await
            }
            _ => exchange(stream, node, path, body).await,
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    node: &Node,
    path: &str,
    body: &Value,
) -> Result<Value, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let request = Request::post(path)
        .header(header::HOST, format!("{}:{}", node.host, node.port))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())));
    let response = match sender.send_request(request.map_err(text)?).await {
        Ok(response) => response,
        // A node that refuses this host's certificate says so to the connection, after its handshake.
        Err(error) => match connection.await {
            Ok(Err(why)) => return Err(chain(&why)),
            _ => return Err(chain(&error)),
        },
    };
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(text)?.to_bytes();
    match (status, serde_json::from_slice(&body)) {
        (StatusCode::OK, Ok(answer)) => Ok(answer),
        _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
    }
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let behind = std::iter::successors(error.source(), |error| error.source());
    behind.fold(error.to_string(), |said, error| format!("{said}: {error}"))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn node(url: &str) -> Result<Node, ArbiterError> {
    let wrong = |why: &str| ArbiterError::Settings(format!("{url:?} is no address of an etcd node: {why}"));
    let with_scheme = match url.contains("://") {
        true => url.to_owned(),
        false => format!("http://{url}"),
    };
    let uri: Uri = with_scheme.parse().map_err(|error| wrong(&text(error)))?;
    let is_tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong("it has to begin with http:// or https://")),
    };
    let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
    Ok(Node {
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: uri.port_u16().unwrap_or(2379),
        is_tls,
    })
}

/// TLS towards nodes whose certificates the operator's authority signed, with this host's own if they ask for one.
fn connector(settings: &ArbiterSettings) -> Result<TlsConnector, ArbiterError> {
    let wrong = |path: &Path, why: String| ArbiterError::Settings(format!("{}: {why}", path.display()));
    let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, text(error)));
    let certificates = |path: &Path| -> Result<Vec<_>, ArbiterError> {
        let pem = read(path)?;
        let all = CertificateDer::pem_reader_iter(Cursor::new(pem)).collect::<Result<_, _>>();
        all.map_err(|error| wrong(path, text(error)))
    };
    let ca = settings.ca.as_deref().ok_or_else(|| {
        ArbiterError::Settings(
            "https:// needs --arbiter-ca, the certificate of who signed those of the nodes".to_owned(),
        )
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| wrong(ca, text(error)))?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match (&settings.certificate, &settings.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(key, text(error)))?;
            let with_own = config.with_client_auth_cert(certificates(certificate)?, private);
            with_own.map_err(|error| wrong(certificate, text(error)))?
        }
        _ => {
            return Err(ArbiterError::Settings(
                "--arbiter-cert and --arbiter-key belong together".to_owned(),
            ));
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 as RFC 4648 has it, padded.
pub(super) fn base64(bytes: &[u8]) -> String {
    let digits = |chunk: &[u8]| {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        let digit = |place: usize| match place <= chunk.len() {
            true => char::from(ALPHABET[(number >> (18 - 6 * place)) as usize & 63]),
            false => '=',
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(digits).collect()
}

/// Reads it back; `None` if it is not that.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut number, mut bits) = (0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        number = number << 6 | value as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((number >> bits) as u8);
            number &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_base64() {
        // The vectors of RFC 4648.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(from_base64("Zm 9v"), None);
    }

    #[test]
    fn a_wrong_address_says_what_is_wrong() {
        let node = |url| node(url).map(|node| (node.host, node.port, node.is_tls)).map_err(text);
        assert_eq!(node("10.0.0.1:2379"), Ok(("10.0.0.1".to_owned(), 2379, false)));
        assert_eq!(node("https://[::1]:1"), Ok(("::1".to_owned(), 1, true)));
        assert!(node("ftp://a").unwrap_err().contains("http://"));
    }
}
