//! Whether the host that answers is the one that was meant.

use std::net::{IpAddr, SocketAddr};

/// Whether a user who gives this address (`HOST:PORT`) may mean the host of that name: an address that is a number can
/// be any host's; one that is a name has to be the host's, with or without a domain behind it.
#[must_use]
pub fn may_be_at(host: &str, address: &str) -> bool {
    let name = address.rsplit_once(':').map_or(address, |(name, _port)| name);
    if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.strip_prefix(host)
        .is_some_and(|domain| domain.is_empty() || domain.starts_with('.'))
}

/// Whether the host that answered at `address`, by its certificate if it showed one, may be the one that `meant` names.
///
/// # Errors
/// What it is called instead.
pub fn check_is_at(host: Option<&str>, meant: &str, address: SocketAddr) -> Result<(), String> {
    match host {
        Some(host) if !may_be_at(host, meant) => Err(format!(
            "{meant} ({address}) has the certificate of {host}: if that is the host that was meant, call it so"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_called_by_its_name_and_reached_by_number() {
        for address in [
            "10.0.0.1:1",
            "[fd00::1]:1",
            "Host-B.example.org.:1",
            "host-b:1",
            "host-b",
        ] {
            assert!(may_be_at("host-b", address), "{address}");
        }
        for address in ["host-bc:1", "host:1", "a.host-b:1"] {
            assert!(!may_be_at("host-b", address), "{address}");
        }
    }
}
