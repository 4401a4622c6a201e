//! What hosts say to each other about certificates: one question and one answer over a connection of their own, each a
//! length (u32, big-endian) and JSON.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmferry_dataplane::transport::Link;

/// Bytes of a message, at the most: a thousand revoked certificates. Who is not authenticated yet may send as much.
const MESSAGE_BYTES_MAX: u32 = 64 * 1024;

/// A question. It has no `Debug`: one of them holds a secret.
#[derive(Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub(super) enum Question {
    /// A certificate for a host that was invited.
    Join {
        /// The token's secret, hexadecimal.
        secret: String,
        /// What the certificate is to be for: a signed request, PEM.
        request: String,
        /// Where the host's agent listens.
        port: u16,
    },
    /// A new certificate for the host that asks.
    Renew {
        /// As above.
        request: String,
        /// As above.
        port: u16,
    },
    /// What is revoked.
    Revocations,
    /// Whether it is known that this is revoked.
    Revoked {
        /// The authority's list, PEM.
        list: String,
    },
}

/// An answer.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// To `Join` and `Renew`. All are PEM.
    Certificate {
        /// The host's.
        certificate: String,
        /// That of the authority.
        authority: String,
        /// What is revoked.
        revoked: String,
    },
    /// To `Revocations`, and to `Revoked` with what is known from then on.
    Revocations {
        /// The authority's list, PEM.
        list: String,
    },
    /// To anything.
    Declined {
        /// Why, for a person to read.
        reason: String,
    },
}

pub(super) fn say(link: &mut Link, message: &impl Serialize) -> Result<()> {
    let payload = serde_json::to_vec(message)?;
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    ensure!(
        length <= MESSAGE_BYTES_MAX,
        "a message about certificates is too long: {length} bytes"
    );
    link.write_all(&[&length.to_be_bytes(), &payload[..]].concat())?;
    Ok(())
}

pub(super) fn hear<T: DeserializeOwned>(link: &mut Link) -> Result<T> {
    let mut length = [0; 4];
    link.read_exact(&mut length).context("it says nothing")?;
    let length = u32::from_be_bytes(length);
    if length > MESSAGE_BYTES_MAX {
        bail!("it sends a message of {length} bytes about certificates");
    }
    // Who joins is not authenticated, so memory is only taken for what has come.
    let mut payload = Vec::new();
    let read = link.take(length.into()).read_to_end(&mut payload)?;
    ensure!(read == length as usize, "it does not say all of it");
    serde_json::from_slice(&payload).context("it is not understood; are both sides of one version?")
}
