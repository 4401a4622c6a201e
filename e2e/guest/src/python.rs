//! A real Python inside the guest, run from a disk that holds one: a process whose heap is full and changes when asked to.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("heap.py");

/// The process, once started.
#[derive(Default)]
pub(crate) struct Python {
    running: Mutex<Option<Running>>,
}

struct Running {
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Asked in errors how it ended.
    process: Child,
}

impl Python {
    /// Starts the Python of the disk mounted at `root`, has it fill a heap of about `bytes` bytes, and answers how many
    /// records that are.
    pub(crate) fn start(&self, root: &str, bytes: u64) -> Result<Value> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            bail!("Python was started already");
        }
        // Isolated and without its optional modules: nothing but what the disk holds for it.
        let mut process = Command::new("/bin/busybox")
            .args(["chroot", root, "/usr/bin/python3", "-I", "-S", "-B", "-c", SCRIPT])
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting Python")?;
        let requests = process.stdin.take().context("no input of Python")?;
        let answers = process.stdout.take().context("no output of Python")?;
        let mut running = Running {
            requests,
            answers: BufReader::new(answers),
            process,
        };
        let ready = running.line().context("was the disk made with Python?")?;
        let records: Option<u64> = ready.strip_prefix("ready ").and_then(|count| count.parse().ok());
        let records = records.with_context(|| format!("Python said {ready:?}"))?;
        *slot = Some(running);
        Ok(json!({ "records": records }))
    }

    /// Has it change so many records of its heap.
    pub(crate) fn change(&self, records: u64) -> Result<Value> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = slot.as_mut().context("no Python runs")?;
        writeln!(running.requests, "change {records}").context("asking Python")?;
        let answer = running.line()?;
        ensure!(answer == "changed", "Python said {answer:?}");
        Ok(json!({}))
    }

    /// The checksum over all that its heap holds, computed now.
    pub(crate) fn sum(&self) -> Result<Value> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = slot.as_mut().context("no Python runs")?;
        writeln!(running.requests, "sum").context("asking Python")?;
        let sum: u32 = running.line()?.parse().context("Python's checksum")?;
        Ok(json!({ "sum": sum }))
    }
}

impl Running {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("Python ended: {}", self.process.wait()?);
        }
        ensure!(line.ends_with('\n'), "Python ended within {line:?}");
        Ok(line.trim_end().to_owned())
    }
}
