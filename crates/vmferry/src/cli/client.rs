//! A client of the agent's API: HTTP/1.1 over its unix socket, or over TLS to another host's; one connection a request.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use vmferry_dataplane::transport::{Purpose, Tls, TransportError, host_of};

use crate::{
    api::error::ErrorBody,
    cli::exit::Failure,
    pki::{Folder, may_be_at},
};

/// An answer or a line of one is never longer: thousands of VMs fit.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How long another host's agent may take until it is known who it is.
const REACHED_MAX: Duration = Duration::from_secs(10);

/// Talks to one agent.
#[derive(Debug, Clone)]
pub struct Client(Place);

/// Where the agent is.
#[derive(Debug, Clone)]
enum Place {
    Socket(PathBuf),
    /// Another host's, with this host's certificate.
    Remote {
        address: String,
        config: Arc<ClientConfig>,
    },
}

impl Client {
    /// A client of the agent on this socket; connects at each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client(Place::Socket(socket.into()))
    }

    /// A client of the agent whose API is served over TLS at `address`, a host and a port, with the certificate of the host whose
    /// agent has that state directory.
    ///
    /// # Errors
    /// That there is no such certificate.
    pub fn remote(address: &str, state_dir: &Path) -> Result<Self, Failure> {
        let folder = Folder::new(state_dir);
        let tls = || {
            folder.certificate()?;
            Ok(Tls::new(folder.credentials()?)?)
        };
        let config = tls().map_err(Failure::Pki)?.client(Purpose::Api);
        let address = address.to_owned();
        Ok(Client(Place::Remote { address, config }))
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], [`Failure::Agent`] with what the agent said, [`Failure::Lost`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// `POST` with a JSON body.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::Usage(e.to_string()))?;
        self.ask(Method::POST, path, body.into()).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    /// `GET` of a stream of JSON lines.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let response = self.send(method, path, body).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        serde_json::from_slice(&whole(response).await?).map_err(not_understood)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let mut sender = match &self.0 {
            Place::Socket(socket) => {
                let stream = UnixStream::connect(socket).await;
                let socket = socket.clone();
                converse(stream.map_err(|source| Failure::Unreachable { socket, source })?).await?
            }
            Place::Remote { address, config } => {
                let reached = tokio::time::timeout(REACHED_MAX, reach(address, config.clone())).await;
                let why = match reached {
                    Ok(Ok(stream)) => Ok(stream),
                    Ok(Err(error)) => Err(sentence(&error)),
                    Err(_) => Err("it does not answer".to_owned()),
                };
                let address = address.clone();
                converse(why.map_err(|why| Failure::RemoteUnreachable { address, why })?).await?
            }
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::Usage(e.to_string()))?;
        sender.send_request(request).await.map_err(lost)
    }
}

async fn converse<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    // The sender's future reports what goes wrong with the connection.
    tokio::spawn(connection);
    Ok(sender)
}

/// What TLS says, as agents say it to each other.
fn sentence(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => TransportError::from(tls.clone()).to_string(),
        None => error.to_string(),
    }
}

async fn reach(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let at: SocketAddr = stream.peer_addr()?;
    let stream = TlsConnector::from(config)
        .connect(ServerName::IpAddress(at.ip().into()), stream)
        .await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let host = certificate.map(host_of).transpose().map_err(io::Error::other)?;
    match host {
        Some(host) if may_be_at(&host, address) => Ok(stream),
        host => Err(io::Error::other(format!(
            "it has the certificate of {}: if that is the host that was meant, call it so",
            host.unwrap_or_default()
        ))),
    }
}

/// A stream of JSON lines.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line, or `None` when the agent ended the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Failure::Lost`] if the connection broke or a line is too long or not what was expected.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(not_understood);
            }
            if self.buffer.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Lost("it sent a line without end".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(lost)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok(body.collect().await.map_err(lost)?.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    match whole(response).await {
        Err(failure) => failure,
        Ok(body) => match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Failure::Agent(body.error),
            Err(_) => Failure::Lost(format!("it answers {status} without a reason")),
        },
    }
}

fn lost(error: impl std::fmt::Display) -> Failure {
    Failure::Lost(error.to_string())
}

fn not_understood(error: serde_json::Error) -> Failure {
    Failure::Lost(format!(
        "its answer is not understood ({error}); are this vmferry and the agent of one version?"
    ))
}

/// A name as one segment of a path: everything but letters, digits, `-`, `_`, `.` is escaped.
pub fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_path_segment() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("../x?y#é"), "..%2Fx%3Fy%23%C3%A9");
    }
}
