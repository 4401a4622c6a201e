//! A proxy between two agents that stops them at a message, or spoils what crosses.
//!
//! It stands on [`Host::A`] and leads to the agent on [`Host::B`]: migrate to [`Proxy::address`] instead. Control messages
//! are JSON, so a handover can be stopped exactly between two of its steps by holding one message back. For that the agents
//! have to talk in the clear: [`Scenario::set_up_in_the_clear`](crate::scenario::Scenario::set_up_in_the_clear).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent;
use crate::net::{Host, Lab};

/// The longest wait for a message that was to be held back.
const REACHED_MAX: Duration = Duration::from_secs(60);
/// A connection's first frame says what it is for, and fits in this.
const HELLO_BYTES: u64 = 1024;

/// The proxy. Its threads end with the connections, at the latest with the process.
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    trap: Mutex<Option<Trap>>,
    fault: Mutex<Option<(u64, Fault)>>,
}

struct Trap {
    words: Vec<u8>,
    sprung: Sender<()>,
    opened: Receiver<()>,
}

/// What happens to a data lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One bit of one byte is turned.
    Flip,
    /// Nothing more gets through, and both ends see the connection closed.
    Cut,
}

impl Proxy {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::leading_to(lab, SocketAddr::from((Host::B.address(), agent::PORT)))
    }

    /// Starts one that leads elsewhere than to the agent on [`Host::B`].
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn leading_to(lab: &Lab, target: SocketAddr) -> Result<Self> {
        let plan = Arc::new(Plan::default());
        let accepting = Arc::clone(&plan);
        let address = lab.within(Host::A, move || {
            let listener = TcpListener::bind((Host::A.address(), 0))?;
            let address = listener.local_addr()?;
            // It inherits this thread's namespace, so what it opens is on the host, too.
            thread::spawn(move || accept(&listener, target, &accepting));
            Ok(address)
        })?;
        Ok(Self { address, plan })
    }

    /// Where it listens, for `--to`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Holds back the next control message of this kind, and all that its sender says after it on that connection.
    #[must_use]
    pub fn hold(&self, message: &str) -> Held {
        self.hold_bytes(&format!("\"message\":\"{message}\""))
    }

    /// Holds back the next time that these bytes cross, of up to 64, with all behind them on that connection.
    #[must_use]
    pub fn hold_bytes(&self, bytes: &str) -> Held {
        let (sprung, reached) = channel();
        let (open, opened) = channel();
        let words = bytes.as_bytes().to_vec();
        *lock(&self.plan.trap) = Some(Trap { words, sprung, opened });
        Held { reached, _open: open }
    }

    /// Spoils the byte at `offset` of what the source sends on the first data lane to get there.
    pub fn spoil(&self, offset: u64, fault: Fault) {
        *lock(&self.plan.fault) = Some((offset, fault));
    }
}

/// A message held back until this is dropped.
pub struct Held {
    reached: Receiver<()>,
    _open: Sender<()>,
}

impl Held {
    /// Waits until the message has come.
    ///
    /// # Errors
    /// When it does not come.
    pub fn reached(&self) -> Result<()> {
        self.reached
            .recv_timeout(REACHED_MAX)
            .context("the message to be held back never came")
    }

    /// Lets the message go on.
    pub fn release(self) {}
}

fn accept(listener: &TcpListener, target: SocketAddr, plan: &Arc<Plan>) {
    for source in listener.incoming().map_while(Result::ok) {
        // A target that is gone shows to the source as a connection that closes.
        let Ok(target) = TcpStream::connect(target) else {
            continue;
        };
        let (Ok(source_twin), Ok(target_twin)) = (source.try_clone(), target.try_clone()) else {
            continue;
        };
        let (there, back) = (Arc::clone(plan), Arc::clone(plan));
        thread::spawn(move || pump(source, target, &there, true));
        thread::spawn(move || pump(target_twin, source_twin, &back, false));
    }
}

/// Carries bytes one way until either end closes.
fn pump(mut from: TcpStream, mut to: TcpStream, plan: &Plan, from_source: bool) {
    let mut chunk = vec![0; 64 * 1024];
    let mut hello = Vec::new();
    let mut passed = 0u64;
    let mut recent = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        let bytes = &mut chunk[..read];
        if passed < HELLO_BYTES {
            hello.extend_from_slice(bytes);
            hello.truncate(HELLO_BYTES as usize);
        }
        if from_source && contains(&hello, b"\"lane\":\"data\"") {
            if !spoil(plan, passed, bytes) {
                break;
            }
        } else {
            recent.extend_from_slice(bytes);
            wait_if_trapped(plan, &recent);
            let keep_from = recent.len().saturating_sub(64);
            recent.drain(..keep_from);
        }
        passed += read as u64;
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Carries the plan's fault out if its place is in `bytes`; `false` cuts the connection.
fn spoil(plan: &Plan, passed: u64, bytes: &mut [u8]) -> bool {
    let mut planned = lock(&plan.fault);
    let Some((offset, fault)) = *planned else {
        return true;
    };
    let place = offset.checked_sub(passed).and_then(|place| usize::try_from(place).ok());
    let Some(byte) = place.and_then(|place| bytes.get_mut(place)) else {
        return true;
    };
    *planned = None;
    *byte ^= 0x10;
    fault == Fault::Flip
}

fn wait_if_trapped(plan: &Plan, recent: &[u8]) {
    let sprung = {
        let mut trap = lock(&plan.trap);
        match &*trap {
            Some(set) if contains(recent, &set.words) => trap.take(),
            _ => None,
        }
    };
    if let Some(trap) = sprung {
        // Fails when whoever set it is gone, which also opens it.
        let _ = trap.sprung.send(());
        let _ = trap.opened.recv();
    }
}

fn contains(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
