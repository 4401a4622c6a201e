//! A real Redis server inside the guest.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const PORT: u16 = 6379;
const STARTUP_MAX: Duration = Duration::from_secs(60);

/// The server process, once started.
#[derive(Default)]
pub(crate) struct Redis {
    server: Mutex<Option<Child>>,
}

impl Redis {
    /// Starts `redis-server` with `arguments` (on its default port) and returns once it answers.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Value> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if server.is_some() {
            bail!("redis-server was started already");
        }
        let mut child = Command::new("/usr/bin/redis-server")
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server: was the image built with Redis?")?;
        let started = Instant::now();
        while !answers() {
            if let Some(status) = child.try_wait()? {
                bail!("redis-server ended: {status}");
            }
            if started.elapsed() > STARTUP_MAX {
                child.kill()?;
                bail!("redis-server did not answer within {STARTUP_MAX:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let pid = child.id();
        *server = Some(child);
        Ok(json!({ "pid": pid }))
    }
}

fn answers() -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", PORT)) else {
        return false;
    };
    let mut reply = [0u8; 7];
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut reply).is_ok() && &reply == b"+PONG\r\n"
}
