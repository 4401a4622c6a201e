//! Whether the host that answers is the one that was meant.

use std::net::IpAddr;

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
