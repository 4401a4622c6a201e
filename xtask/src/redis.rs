//! A client of Redis on a host of the lab, over one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmferry_e2e::net::{Host, Lab};

const PORT: u16 = 6379;
/// Requests under way at once in [`Redis::set_all`] and [`Redis::check_all`].
const PIPELINE: usize = 64;
/// Longer than any pause of a guest that is still alive.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// The longest value that is read.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// An open connection.
pub(crate) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Connects from the client's host to the server at `address`.
    pub(crate) fn connect(lab: &Lab, address: Ipv4Addr) -> Result<Self> {
        let stream = lab.within(Host::Client, || Ok(TcpStream::connect((address, PORT))?))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Stores a value; returns when the server acknowledged it.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.send(&command(&["SET", key, value]))?;
        self.stored()
    }

    /// The value of `key`.
    pub(crate) fn get(&mut self, key: &str) -> Result<String> {
        self.send(&command(&["GET", key]))?;
        self.value().with_context(|| format!("reading {key}"))
    }

    /// Stores many values.
    pub(crate) fn set_all(&mut self, records: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let batch: Vec<_> = records.by_ref().take(PIPELINE).collect();
            let requests: Vec<u8> = batch
                .iter()
                .flat_map(|(key, value)| command(&["SET", key, value]))
                .collect();
            self.send(&requests)?;
            for _ in batch {
                self.stored()?;
            }
        }
        Ok(())
    }

    /// Checks that many values are as `expected`.
    pub(crate) fn check_all(&mut self, expected: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let mut expected = expected.into_iter().peekable();
        while expected.peek().is_some() {
            let batch: Vec<_> = expected.by_ref().take(PIPELINE).collect();
            let requests: Vec<u8> = batch.iter().flat_map(|(key, _)| command(&["GET", key])).collect();
            self.send(&requests)?;
            for (key, value) in batch {
                ensure!(self.value()? == value, "{key} is not what was written last");
            }
        }
        Ok(())
    }

    fn send(&mut self, requests: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(requests).context("writing to Redis")
    }

    fn stored(&mut self) -> Result<()> {
        let answer = self.line()?;
        ensure!(answer == "+OK", "Redis answered {answer}");
        Ok(())
    }

    fn value(&mut self) -> Result<String> {
        let header = self.line()?;
        let length = header.strip_prefix('$').and_then(|length| length.parse::<usize>().ok());
        let length = length.with_context(|| format!("Redis answered {header}"))?;
        ensure!(length <= VALUE_BYTES_MAX, "Redis announced a value of {length} bytes");
        let mut value = vec![0; length + 2];
        self.stream.read_exact(&mut value).context("reading from Redis")?;
        value.truncate(length);
        Ok(String::from_utf8(value)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("reading from Redis")? == 0 {
            bail!("Redis closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A request in Redis's protocol.
fn command(words: &[&str]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    request.into_bytes()
}
