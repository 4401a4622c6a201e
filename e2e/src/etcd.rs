//! A cluster of three etcd nodes, on three of the lab's hosts.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::net::{Host, Lab};

/// The hosts that have a node; not the one that guests leave.
const HOSTS: [Host; 3] = [Host::Storage, Host::Client, Host::B];
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const READY_MAX: Duration = Duration::from_secs(30);

/// Three nodes. Killed when dropped.
pub struct Etcd<'lab> {
    lab: &'lab Lab,
    nodes: [Option<Child>; 3],
}

impl<'lab> Etcd<'lab> {
    /// How many there are, numbered from 0.
    pub const NODES: usize = HOSTS.len();

    /// Starts all nodes and returns once they have a leader.
    ///
    /// # Errors
    /// When they don't; what a node said is in `etcd-N.log` in the lab's folder.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let mut etcd = Self {
            lab,
            nodes: [None, None, None],
        };
        etcd.start_all()?;
        Ok(etcd)
    }

    /// Starts the nodes that don't run, with what they had, and returns once all have a leader.
    ///
    /// # Errors
    /// As for [`Etcd::start`].
    pub fn start_all(&mut self) -> Result<()> {
        for number in 0..HOSTS.len() {
            if self.nodes[number].is_none() {
                self.nodes[number] = Some(self.spawn(number)?);
            }
        }
        self.await_leader()
    }

    /// Waits until all nodes that run have a leader: when one was killed, the others may have to elect it first.
    ///
    /// # Errors
    /// As for [`Etcd::start`].
    pub fn await_leader(&mut self) -> Result<()> {
        for number in 0..HOSTS.len() {
            if self.nodes[number].is_some() {
                self.await_ready(number)?;
            }
        }
        Ok(())
    }

    fn spawn(&self, number: usize) -> Result<Child> {
        let url = |number: usize, port| format!("http://{}:{port}", HOSTS[number].address());
        let folder = self.lab.folder();
        let log = folder.join(format!("etcd-{number}.log"));
        let cluster: Vec<String> = (0..HOSTS.len())
            .map(|number| format!("node-{number}={}", url(number, PEER_PORT)))
            .collect();
        self.lab
            .command(HOSTS[number], "etcd")
            .args(["--name", &format!("node-{number}"), "--logger", "zap"])
            .arg("--data-dir")
            .arg(folder.join(format!("etcd-{number}")))
            .args(["--listen-client-urls", &url(number, CLIENT_PORT)])
            .args(["--advertise-client-urls", &url(number, CLIENT_PORT)])
            .args(["--listen-peer-urls", &url(number, PEER_PORT)])
            .args(["--initial-advertise-peer-urls", &url(number, PEER_PORT)])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-state",
                "new",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(OpenOptions::new().create(true).append(true).open(log)?)
            .spawn()
            .context("starting etcd: run the set-up first, it installs etcd-server")
    }

    fn await_ready(&mut self, number: usize) -> Result<()> {
        let started = Instant::now();
        while !self.lab.within(HOSTS[number], || Ok(is_healthy(number)))? {
            if let Some(node) = &mut self.nodes[number]
                && let Some(status) = node.try_wait()?
            {
                bail!("etcd node {number} ended: {status}");
            }
            ensure!(
                started.elapsed() < READY_MAX,
                "etcd node {number} has no leader after {READY_MAX:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where a node answers clients.
    #[must_use]
    pub fn address(number: usize) -> SocketAddr {
        SocketAddr::from((HOSTS[number].address(), CLIENT_PORT))
    }

    /// The agents' option `--arbiter` that names all nodes.
    #[must_use]
    pub fn option() -> String {
        let urls: Vec<String> = (0..HOSTS.len())
            .map(|number| format!("http://{}", Self::address(number)))
            .collect();
        format!("etcd:{}", urls.join(","))
    }

    /// Ends a node as a crash does.
    ///
    /// # Errors
    /// When its end can't be awaited.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        if let Some(mut node) = self.nodes[number].take() {
            // Fails only for a process that ended already.
            let _ = node.kill();
            node.wait()?;
        }
        Ok(())
    }

    /// Ends all nodes as crashes do.
    ///
    /// # Errors
    /// As for [`Etcd::kill`].
    pub fn kill_all(&mut self) -> Result<()> {
        (0..HOSTS.len()).try_for_each(|number| self.kill(number))
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        // What can't be ended here goes with the lab.
        let _ = self.kill_all();
    }
}

fn is_healthy(number: usize) -> bool {
    let ask = || {
        let mut node = TcpStream::connect(Etcd::address(number))?;
        node.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        node.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
