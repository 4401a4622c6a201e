//! NBD URIs, the two forms that QEMU and libnbd share.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// NBD's registered port.
const DEFAULT_PORT: u16 = 10809;

/// Where an NBD export is: `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NbdUri {
    /// The server.
    pub server: NbdServer,
    /// The export's name; empty is the server's default export.
    pub export: String,
}

/// An NBD server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdServer {
    /// TCP.
    Tcp {
        /// Name or address, an IPv6 one without its brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// A text that is no NBD URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is not an NBD URI; write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
pub struct NbdUriError {
    uri: String,
}

impl FromStr for NbdUri {
    type Err = NbdUriError;

    fn from_str(uri: &str) -> Result<Self, NbdUriError> {
        parse(uri).ok_or_else(|| NbdUriError { uri: uri.to_owned() })
    }
}

fn parse(uri: &str) -> Option<NbdUri> {
    if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
        let (export, socket) = rest.split_once("?socket=")?;
        let socket = PathBuf::from(decode(socket)?);
        return socket.is_absolute().then_some(NbdUri {
            server: NbdServer::Unix(socket),
            export: decode(export)?,
        });
    }
    let rest = uri.strip_prefix("nbd://")?;
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']')?;
            // Without a colon it would print without brackets, as another URI or none.
            if !host.contains(':') {
                return None;
            }
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                },
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    (!host.is_empty() && !export.contains(['?', '#'])).then_some(NbdUri {
        server: NbdServer::Tcp {
            host: host.to_owned(),
            port,
        },
        export: decode(export)?,
    })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encodes what would end a URI's part.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(&self.export);
        match &self.server {
            NbdServer::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            NbdServer::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
            NbdServer::Unix(socket) => write!(f, "nbd+unix:///{export}?socket={}", encode(&socket.to_string_lossy())),
        }
    }
}

impl TryFrom<String> for NbdUri {
    type Error = NbdUriError;

    fn try_from(uri: String) -> Result<Self, NbdUriError> {
        uri.parse()
    }
}

impl From<NbdUri> for String {
    fn from(uri: NbdUri) -> Self {
        uri.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_and_print_again() {
        for uri in [
            "nbd://storage:10809/root",
            "nbd://10.0.0.3:1234/",
            "nbd://[fd00::1]:10809/a%20disk",
            "nbd+unix:///root?socket=/run/nbd.sock",
        ] {
            assert_eq!(uri.parse::<NbdUri>().unwrap().to_string(), uri);
        }
        assert_eq!("nbd://host".parse::<NbdUri>().unwrap().to_string(), "nbd://host:10809/");
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for uri in [
            "",
            "/dev/sda",
            "nbd:///x",
            "nbd://h:99999/x",
            "nbd+unix:///x",
            "nbd://[::1/x",
            "nbd://[[]/x",
            "nbd://[]/x",
            "nbd://[storage]/x",
            "nbd://h/%zz",
            "nbd://h/%e",
        ] {
            assert!(uri.parse::<NbdUri>().is_err(), "{uri}");
        }
    }
}
