//! Who may talk: each cluster has an authority, on one of its hosts, that signs a certificate for each host. Agents
//! talk only to who shows one that is neither expired nor revoked. docs/security.md says what that is good for.
//!
//! | module | what |
//! |---|---|
//! | `folder` | the files |
//! | `authority` | signing and revoking, on the authority's host |
//! | `ledger` | what the authority remembers: certificates, invitations |
//! | `certificate` | what is read from certificates and revocation lists |
//! | `token` | what invites a host |
//! | `message` | what hosts say to each other about certificates |
//! | `service` | answering that, beside the lanes |
//! | `client` | asking the authority's host: join, renew, revocations |
//! | `names` | whether a host is the one that was meant |
//! | `pinned` | a joining host knows the authority by its fingerprint |
//! | `identity` | what a running agent shows, and whom it believes, as the files are now |
//! | `upkeep` | renewing in time, hearing of revocations |

mod authority;
mod certificate;
pub mod client;
mod folder;
mod identity;
mod ledger;
mod message;
mod names;
mod pinned;
pub mod service;
mod token;
pub mod upkeep;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

pub use authority::Authority;
pub use certificate::{Certificate, Revocations};
pub use folder::{Cluster, Folder};
pub use identity::Identity;
pub use names::{check_is_at, may_be_at};
pub use token::Token;

/// How long a host's certificate is valid. It bounds how long one is of use that was stolen, and how long a host does
/// without the authority's.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the authority's own is valid.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an invitation is.
pub const INVITATION_LIFE: Duration = Duration::from_secs(3600);
/// How far hosts' clocks may be apart.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

/// Seconds since 1970.
fn unix_now() -> u64 {
    // A clock before 1970 is as good as at its beginning: nothing is valid then.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn random<const BYTES: usize>() -> anyhow::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("the system has no random numbers")?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if text.len() != 2 * BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut sum = [0; 32];
    sum.copy_from_slice(digest.as_ref());
    sum
}
