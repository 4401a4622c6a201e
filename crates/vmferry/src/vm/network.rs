//! A VM's taps, and putting them on bridges with iproute2.
//!
//! The agent opens them and QEMU inherits them, so that they end with it, however it ends.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
};

use serde::Deserialize;
use tokio::process::Command;
use tun_rs::{DeviceBuilder, Layer};

use super::definition::VmDefinition;

/// Why the network is not as the VM needs it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `ip` cannot be run.
    #[error("cannot run `ip`: {0}; install iproute2")]
    Run(io::Error),
    /// A tap is not on its bridge.
    #[error("cannot connect {tap} to {bridge}: {reason}; is {bridge} a bridge on this host?")]
    Connect {
        /// The tap.
        tap: String,
        /// The bridge.
        bridge: String,
        /// What `ip` printed.
        reason: String,
    },
    /// The interfaces are not known.
    #[error("cannot list the network interfaces: {reason}")]
    List {
        /// What `ip` printed, or what was wrong with it.
        reason: String,
    },
}

/// The names of `definition`'s taps, in the order of its NICs: its own where it names one, else one that contains
/// `launch`, a number drawn for this start. Two copies of a VM can meet on one host while it is being tested.
pub fn tap_names(definition: &VmDefinition, launch: u32) -> Vec<String> {
    let name = |index: usize, tap: &Option<String>| tap.clone().unwrap_or_else(|| format!("vmf{launch:08x}.{index}"));
    definition
        .nic
        .iter()
        .enumerate()
        .map(|(index, nic)| name(index, &nic.tap))
        .collect()
}

/// Opens a tap as QEMU does, with room for the offloads that its guest may use; makes it where there is none of that name.
///
/// # Errors
/// The system's.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tap = DeviceBuilder::new()
        .name(name)
        .layer(Layer::L2)
        .offload(true)
        .inherit_enable_state()
        .build_sync()?;
    tap.as_fd().try_clone_to_owned()
}

/// Connects the taps that a QEMU is to be given to the bridges of its NICs, and sets them up.
///
/// # Errors
/// [`NetworkError`] for the first that cannot be connected.
pub async fn connect_taps(definition: &VmDefinition, taps: &[String]) -> Result<(), NetworkError> {
    for (nic, tap) in definition.nic.iter().zip(taps) {
        let Some(bridge) = &nic.bridge else {
            continue;
        };
        let refused = |reason| NetworkError::Connect {
            tap: tap.clone(),
            bridge: bridge.clone(),
            reason,
        };
        // No IPv6 address of the host's own on it: the host is not a party to what the guest says.
        ip(&["link", "set", "dev", tap, "addrgenmode", "none"])
            .await?
            .map_err(refused)?;
        if let Some(address) = nic.mac.as_deref().and_then(tap_address) {
            ip(&["link", "set", "dev", tap, "address", &address])
                .await?
                .map_err(refused)?;
        }
        ip(&["link", "set", "dev", tap, "master", bridge, "up"])
            .await?
            .map_err(refused)?;
    }
    Ok(())
}

/// The tap's own address. A bridge without a fixed address takes its ports' lowest; with 0xfe in front a tap is never that
/// one, so that the host stays reachable under the address that its peers know when a VM comes or goes.
fn tap_address(mac: &str) -> Option<String> {
    let (_, rest) = mac.split_once(':')?;
    Some(format!("fe:{rest}"))
}

/// The interfaces of the network namespace that the agent lives in; `true` for bridges. (`/sys/class/net` may show
/// another namespace's.)
///
/// # Errors
/// [`NetworkError::Run`], [`NetworkError::List`].
pub async fn interfaces() -> Result<BTreeMap<String, bool>, NetworkError> {
    let list = |reason| NetworkError::List { reason };
    let output = ip(&["-json", "-details", "link", "show"]).await?.map_err(list)?;
    parse_interfaces(&output).map_err(|error| list(error.to_string()))
}

fn parse_interfaces(json: &[u8]) -> Result<BTreeMap<String, bool>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Interface {
        ifname: String,
        #[serde(default)]
        linkinfo: LinkInfo,
    }
    #[derive(Default, Deserialize)]
    struct LinkInfo {
        #[serde(default)]
        info_kind: String,
    }
    let interfaces: Vec<Interface> = serde_json::from_slice(json)?;
    let kinds = interfaces
        .into_iter()
        .map(|one| (one.ifname, one.linkinfo.info_kind == "bridge"));
    Ok(kinds.collect())
}

/// Runs `ip`; gives what it printed, or, if it failed, its complaint.
async fn ip(arguments: &[&str]) -> Result<Result<Vec<u8>, String>, NetworkError> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(NetworkError::Run)?;
    if output.status.success() {
        return Ok(Ok(output.stdout));
    }
    Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_interface_is_there_and_no_bridge() {
        assert_eq!(interfaces().await.unwrap().get("lo"), Some(&false));
    }

    #[test]
    fn a_tap_is_never_the_lowest_address_of_its_bridge() {
        let address = tap_address("52:54:00:12:34:56");
        assert_eq!(address.as_deref(), Some("fe:54:00:12:34:56"));
    }

    #[test]
    fn bridges_are_told_from_other_interfaces() {
        let json = br#"[{"ifname": "lo"}, {"ifname": "br0", "linkinfo": {"info_kind": "bridge", "info_data": {}}},
            {"ifname": "tap0", "linkinfo": {"info_kind": "tun"}}]"#;
        let interfaces = parse_interfaces(json).unwrap();
        let bridges: Vec<_> = interfaces.iter().filter(|(_, is_bridge)| **is_bridge).collect();
        assert_eq!((interfaces.len(), bridges), (3, vec![(&"br0".to_owned(), &true)]));
    }

    #[test]
    fn tap_names_fit_the_kernel_and_differ() {
        let nic = |id: usize| format!("[[nic]]\nid = \"n{id}\"\nbridge = \"br0\"\n");
        let nics: String = (0..20).map(nic).collect();
        let text = format!(
            "name = 'a'\nmachine = 'pc-q35-10.0'\ncpu = 'max'\nvcpus = 1\nmemory = '1MiB'\n{nics}[[nic]]\nid = 'own'\ntap = 'tap7'"
        );
        let names = tap_names(&VmDefinition::from_toml(&text).unwrap(), u32::MAX);
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
        assert_eq!(names.last().unwrap(), "tap7");
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), 21);
    }
}
