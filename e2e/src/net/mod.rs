//! Hosts made of network namespaces, joined by a switch.
//!
//! ```text
//!            host-a          host-b          storage        client
//! guests ── br0 ┐    guests ── br0 ┐           │              │
//!          up0 ─┤           up0 ─┤          up0 ─┤         up0 ─┤
//!               └────────────────┴── switch (bridge sw0) ───────┘
//! ```
//!
//! A guest's tap on a host's `br0` reaches every other host and guest on the same layer-2 network,
//! [`PREFIX_BITS`] bits wide. Each [`Lab`] has a network of its own, so addresses are the same in all.

mod guardian;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{command, run};
use guardian::Guardian;

/// Length of the network's prefix.
pub const PREFIX_BITS: u8 = 24;
/// The bridge on [`Host::A`] and [`Host::B`] that guests' NICs are put on.
pub const BRIDGE: &str = "br0";

const UPLINK: &str = "up0";
/// The table of packet filters that [`Lab::silence_connection`] makes.
const SILENCE: &str = "silence";
/// An Ethernet address that no interface has.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// The hosts of a [`Lab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Where guests start.
    A,
    /// Where they move to.
    B,
    /// Exports disks.
    Storage,
    /// Uses what runs in the guests.
    Client,
}

impl Host {
    /// All hosts.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::Storage, Self::Client];

    /// The host's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "host-a",
            Self::B => "host-b",
            Self::Storage => "storage",
            Self::Client => "client",
        }
    }

    /// The host's address.
    #[must_use]
    pub const fn address(self) -> Ipv4Addr {
        let last = match self {
            Self::A => 1,
            Self::B => 2,
            Self::Storage => 3,
            Self::Client => 4,
        };
        Ipv4Addr::new(10, 213, 0, last)
    }

    const fn has_bridge(self) -> bool {
        matches!(self, Self::A | Self::B)
    }

    /// The interface that has the host's address.
    const fn interface(self) -> &'static str {
        if self.has_bridge() { BRIDGE } else { UPLINK }
    }
}

/// The fixed address of a host's bridge. Left to itself it takes its ports' lowest: one uplink in a hundred has a random
/// address above a guest's tap's, and then the host is out of its peers' reach until they have asked anew.
fn bridge_mac(host: Host) -> String {
    format!("02:00:00:00:00:{:02x}", host.address().octets()[3])
}

/// The address of guest `index` (0 to 99) on the network of a [`Lab`].
///
/// # Panics
/// When there is no such address.
#[must_use]
pub fn guest_address(index: u8) -> Ipv4Addr {
    assert!(index < 100, "a lab has addresses for 100 guests");
    Ipv4Addr::new(10, 213, 0, 100 + index)
}

/// Namespaces, links and a folder, all gone when this is dropped or the process ends in any way.
pub struct Lab {
    prefix: String,
    folder: PathBuf,
    guardian: Guardian,
}

impl Lab {
    /// Builds the hosts and the switch, after clearing away what dead processes left behind.
    ///
    /// # Errors
    /// Without root, or when `ip` fails; its message is in the error.
    pub fn new() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run this as root"
        );
        guardian::sweep()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = guardian::prefix(std::process::id(), number);
        let folder = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(&folder)?;
        let mut namespaces: Vec<String> = Host::ALL
            .iter()
            .map(|host| format!("{prefix}-{}", host.name()))
            .collect();
        namespaces.push(format!("{prefix}-switch"));
        let lab = Self {
            guardian: Guardian::start(&namespaces, &folder)?,
            prefix,
            folder,
        };
        for namespace in &namespaces {
            run(&mut command("ip", ["netns", "add", namespace]))?;
        }
        lab.ip(
            "switch",
            "link add sw0 type bridge forward_delay 0 mcast_snooping 0\nlink set sw0 up\n",
        )?;
        for host in Host::ALL {
            lab.connect(host)?;
        }
        Ok(lab)
    }

    fn connect(&self, host: Host) -> Result<()> {
        let name = host.name();
        self.ip(
            "switch",
            &format!(
                "link add {name} type veth peer name {UPLINK} netns {}\n\
                 link set {name} master sw0 up\n",
                self.namespace(host)
            ),
        )?;
        let mut script = String::from("link set lo up\n");
        if host.has_bridge() {
            script.push_str(&format!(
                "link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0\n\
                 link set {UPLINK} master {BRIDGE}\n\
                 link set {BRIDGE} address {} up\n",
                bridge_mac(host)
            ));
        }
        script.push_str(&format!(
            "link set {UPLINK} up\naddress add {}/{PREFIX_BITS} dev {}\n",
            host.address(),
            host.interface()
        ));
        self.ip(name, &script)
    }

    /// Ends the lab now, whoever still uses it: kills every process on its hosts, removes hosts and folder, and
    /// returns when all is gone.
    pub fn clean_up(&self) {
        self.guardian.clean_up();
    }

    /// A folder for the lab's files, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of the host's namespace, for `ip netns`.
    #[must_use]
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.prefix, host.name())
    }

    /// A command that will run on `host`. Its process keeps the identifier of the spawned one.
    #[must_use]
    pub fn command(&self, host: Host, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command("ip", ["netns", "exec", &self.namespace(host)]);
        command.arg(program);
        command
    }

    /// Runs `work` on a thread inside the host's namespace: sockets opened there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn within<T: Send>(&self, host: Host, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = std::fs::File::open(Path::new("/run/netns").join(self.namespace(host)))?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    use std::os::fd::AsFd;
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                        .with_context(|| format!("entering {}", self.namespace(host)))?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the work on {} panicked", host.name()))?
        })
    }

    /// Limits the host's link to the switch to `mbit` million bits a second in each direction;
    /// `None` takes the limit away.
    ///
    /// # Errors
    /// When `tc` fails; its message is in the error.
    pub fn set_rate(&self, host: Host, mbit: Option<u32>) -> Result<()> {
        for (namespace, interface) in [(host.name(), UPLINK), ("switch", host.name())] {
            let namespace = format!("{}-{namespace}", self.prefix);
            let Some(mbit) = mbit else {
                let mut delete = command("tc", ["-n", &namespace, "qdisc", "del"]);
                // Fails when there is no limit, which is what is asked for.
                let _ = run(delete.args(["dev", interface, "root"]));
                continue;
            };
            // 2 ms at the rate, but at least one 64 KiB segment as veth carries them: a smaller
            // bucket makes tbf cut segments up, which costs processor time.
            let burst = (u64::from(mbit) * 1_000_000 / 8 / 500).max(68 * 1024);
            run(command("tc", ["-n", &namespace, "qdisc", "replace", "dev", interface])
                .args(["root", "tbf", "rate", &format!("{mbit}mbit")])
                // A queue of 20 ms, about what a switch's port buffers, keeps TCP at the rate.
                .args(["burst", &burst.to_string(), "latency", "20ms"]))?;
        }
        Ok(())
    }

    /// Takes the host's link to the switch down.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn link_down(&self, host: Host) -> Result<()> {
        self.ip("switch", &format!("link set {} down\n", host.name()))
    }

    /// Brings it up again.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn link_up(&self, host: Host) -> Result<()> {
        self.ip("switch", &format!("link set {} up\n", host.name()))
    }

    /// Loses all that the host `from` sends to the host `to` itself, silently and in this direction only; what guests and
    /// other hosts send goes on.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn lose_packets(&self, from: Host, to: Host) -> Result<()> {
        // Sent to an address that no interface has.
        self.ip(
            from.name(),
            &format!(
                "neigh replace {} lladdr {NOBODY} dev {} nud permanent\n",
                to.address(),
                from.interface()
            ),
        )
    }

    /// Ends [`Lab::lose_packets`].
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn deliver_packets(&self, from: Host, to: Host) -> Result<()> {
        self.ip(
            from.name(),
            &format!("neigh del {} dev {}\n", to.address(), from.interface()),
        )
    }

    /// Breaks one of the TCP connections that processes on `from` opened to `port` on `to`, whichever `choice` falls on;
    /// both ends are told. Returns `false` where there is none.
    ///
    /// # Errors
    /// When `ss` fails; its message is in the error.
    pub fn break_connection(&self, from: Host, to: Host, port: u16, choice: usize) -> Result<bool> {
        let Some(end) = self.connection(from, to, port, choice)? else {
            return Ok(false);
        };
        let namespace = self.namespace(from);
        let (end, peer) = (end.to_string(), format!("{}:{port}", to.address()));
        run(command("ss", ["-N", &namespace, "-K", "-Htn", "src", &end]).args(["dst", &peer]))?;
        Ok(true)
    }

    /// Loses all that is sent on such a connection from now on, both ways; nobody is told. Returns `false` where there is none.
    ///
    /// # Errors
    /// When `ss` or `nft` fails; its message is in the error.
    pub fn silence_connection(&self, from: Host, to: Host, port: u16, choice: usize) -> Result<bool> {
        let Some(end) = self.connection(from, to, port, choice)? else {
            return Ok(false);
        };
        let (peer, own) = (to.address(), end.port());
        let rules = format!(
            "table inet {SILENCE} {{
                chain sent {{ type filter hook output priority 0; ip daddr {peer} tcp sport {own} tcp dport {port} drop; }}
                chain received {{ type filter hook input priority 0; ip saddr {peer} tcp sport {port} tcp dport {own} drop; }}
            }}"
        );
        run(self.command(from, "nft").arg(rules))?;
        Ok(true)
    }

    /// Ends every [`Lab::silence_connection`] from this host.
    ///
    /// # Errors
    /// When `nft` fails; its message is in the error.
    pub fn hear_connections(&self, from: Host) -> Result<()> {
        run(self.command(from, "nft").args(["delete", "table", "inet", SILENCE]))?;
        Ok(())
    }

    /// The local end of one of the TCP connections that processes on `from` opened to `port` on `to`.
    fn connection(&self, from: Host, to: Host, port: u16, choice: usize) -> Result<Option<SocketAddr>> {
        let namespace = self.namespace(from);
        let peer = format!("{}:{port}", to.address());
        let open = run(command("ss", ["-N", &namespace, "-Htn", "state", "established"]).args(["dst", &peer]))?;
        // Bytes received and sent that wait, then the local end.
        let ends: Vec<&str> = open.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
        let chosen = choice.checked_rem(ends.len()).and_then(|chosen| ends.get(chosen));
        Ok(chosen.map(|end| end.parse()).transpose()?)
    }

    /// Gives the host a small disk of its own, in memory: the folder that an agent on it keeps its state in
    /// ([`Agent::folder`](crate::agent::Agent::folder)) is all of it.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub fn add_state_disk(&self, host: Host, mib: u32) -> Result<()> {
        let folder = self.folder.join(host.name());
        std::fs::create_dir_all(&folder)?;
        let size = format!("size={mib}m");
        run(command("mount", ["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder))?;
        Ok(())
    }

    /// The processes on the host.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn processes(&self, host: Host) -> Result<Vec<u32>> {
        let listed = run(&mut command("ip", ["netns", "pids", &self.namespace(host)]))?;
        Ok(listed.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// The names of the host's network interfaces.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn interfaces(&self, host: Host) -> Result<Vec<String>> {
        let listed = run(&mut command("ip", ["-n", &self.namespace(host), "-o", "link"]))?;
        let name = |line: &str| {
            let shown = line.split(": ").nth(1)?;
            shown.split('@').next().map(str::to_owned)
        };
        Ok(listed.lines().filter_map(name).collect())
    }

    /// Bytes that the host has sent to the switch, with Ethernet headers.
    ///
    /// # Errors
    /// When `ip` fails or answers something unexpected.
    pub fn tx_bytes(&self, host: Host) -> Result<u64> {
        let namespace = self.namespace(host);
        let text = run(&mut command(
            "ip",
            ["-n", &namespace, "-j", "-s", "link", "show", UPLINK],
        ))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links
            .pointer("/0/stats64/tx/bytes")
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("no count of bytes sent in {text}"))
    }

    /// Creates the tap `name` (up to 15 characters) on the host's bridge, for a QEMU that vmferry
    /// does not run.
    ///
    /// # Errors
    /// When the host has no bridge or `ip` fails; its message is in the error.
    pub fn add_tap(&self, host: Host, name: &str) -> Result<()> {
        self.ip(
            host.name(),
            &format!("tuntap add {name} mode tap\nlink set {name} master {BRIDGE} up\n"),
        )
    }

    /// Whether the host has an interface called `name`.
    ///
    /// # Errors
    /// When `ip` fails; its message is in the error.
    pub fn has_interface(&self, host: Host, name: &str) -> Result<bool> {
        Ok(self.interfaces(host)?.iter().any(|interface| interface == name))
    }

    /// Runs the lines of `script` as `ip` commands in the namespace.
    fn ip(&self, namespace: &str, script: &str) -> Result<()> {
        let mut batch = command("ip", ["-n", &format!("{}-{namespace}", self.prefix)])
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ip: run the set-up first, it installs iproute2")?;
        if let Some(mut input) = batch.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        let output = batch.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip in {namespace}: {}\n{script}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(())
    }
}
