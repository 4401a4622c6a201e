//! The streams of an agent's API, read while things happen.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// One object a line, from a `GET` that goes on.
pub struct Stream {
    lines: BufReader<UnixStream>,
    partial: String,
}

impl Stream {
    /// Asks the agent behind `socket` for `path`.
    ///
    /// # Errors
    /// When it cannot be reached, or has no such stream.
    pub fn open(socket: &Path, path: &str) -> Result<Self> {
        let mut connection =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        // HTTP 1.0 knows no chunks: what follows the head are the lines themselves.
        connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut lines = BufReader::new(connection);
        let mut status = String::new();
        lines.read_line(&mut status)?;
        ensure!(status.contains(" 200 "), "GET {path}: {status}");
        let mut header = status;
        while !header.trim_end().is_empty() {
            header.clear();
            ensure!(lines.read_line(&mut header)? > 0, "GET {path}: the head never ends");
        }
        Ok(Self {
            lines,
            partial: String::new(),
        })
    }

    /// The next object, awaited for at most `patience`.
    ///
    /// # Errors
    /// When the stream breaks or says something else than JSON.
    pub fn next(&mut self, patience: Duration) -> Result<Next> {
        self.lines.get_ref().set_read_timeout(Some(patience))?;
        match self.lines.read_line(&mut self.partial) {
            Ok(0) => Ok(Next::End),
            Ok(_) => {
                let line = std::mem::take(&mut self.partial);
                Ok(Next::Object(
                    serde_json::from_str(&line).with_context(|| format!("{line:?}"))?,
                ))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Next::Silence),
            Err(error) => bail!("the agent's stream broke: {error}"),
        }
    }
}

/// What came of waiting.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// An object.
    Object(Value),
    /// Nothing within the patience; the stream goes on.
    Silence,
    /// The stream has ended.
    End,
}
