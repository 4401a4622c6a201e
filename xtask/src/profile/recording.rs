//! `perf record` for the time of one move.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use vmferry_e2e::net::Host;

use crate::bench::usage::{Observer, Seen, Usage};

/// Not a divisor of the kernel's tick: what happens at each tick must not be in every sample or in none.
const SAMPLES_PER_S: &str = "999";

/// Whether `perf` is here and runs.
///
/// # Errors
/// When not; the error says what to install.
pub(super) fn check() -> Result<()> {
    const HINT: &str = "perf does not run here; install it (Debian: the package linux-perf)";
    let output = Command::new("perf").arg("version").output().context(HINT)?;
    ensure!(output.status.success(), HINT);
    Ok(())
}

/// What was recorded of one move.
pub(super) struct Recorded {
    /// What `perf script` says of all samples.
    pub(super) script: String,
    /// The host that the guest left.
    pub(super) from: Host,
    /// What ran on the two hosts.
    pub(super) processes: Vec<Seen>,
}

/// A `perf` that samples the machine from the beginning of a move to its end.
pub(super) struct Recording {
    file: PathBuf,
    perf: Perf,
    from: Option<Host>,
    processes: Vec<Seen>,
}

impl Recording {
    /// Starts `perf`, which does not sample yet, and writes to `file`.
    pub(super) fn start(file: &Path) -> Result<Self> {
        Ok(Self {
            file: file.to_owned(),
            perf: Perf::start(file)?,
            from: None,
            processes: Vec::new(),
        })
    }

    /// Ends `perf` and reads what it wrote.
    pub(super) fn finish(mut self) -> Result<Recorded> {
        self.perf.tell("stop")?;
        let ended = self.perf.process.wait()?;
        ensure!(ended.success(), "perf record ended with {ended}");
        let output = Command::new("perf")
            // What was inlined counts as the function that it is in, with debug information and without.
            .args(["script", "--no-inline", "--fields", "comm,pid,tid,period,ip,sym,dso"])
            .arg("--input")
            .arg(&self.file)
            .stderr(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "perf script ended with {}", output.status);
        Ok(Recorded {
            script: String::from_utf8_lossy(&output.stdout).into_owned(),
            from: self.from.context("no move began")?,
            processes: self.processes,
        })
    }
}

impl Observer for Recording {
    fn begins(&mut self, from: Host) -> Result<()> {
        self.from = Some(from);
        self.perf.tell("enable")
    }

    fn ends(&mut self, usage: &Usage) -> Result<()> {
        self.perf.tell("disable")?;
        self.processes.clone_from(&usage.processes);
        Ok(())
    }
}

/// A `perf record` that is told when to sample. Killed when dropped.
struct Perf {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Perf {
    fn start(file: &Path) -> Result<Self> {
        let mut process = Command::new("perf")
            .args([
                "record",
                "--all-cpus",
                "--event",
                "cpu-clock",
                "-g",
                "--freq",
                SAMPLES_PER_S,
            ])
            // Commands on standard input, answers on standard output, and no sample until it is told so.
            .args(["--control", "fd:0,1", "--delay", "-1"])
            .args(["--no-buildid-cache", "--quiet", "--output"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting perf record")?;
        let commands = process.stdin.take().context("perf without standard input")?;
        let answers = process.stdout.take().context("perf without standard output")?;
        Ok(Self {
            process,
            commands,
            answers: BufReader::new(answers),
        })
    }

    /// Gives a command and waits until it took effect.
    fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands, "{command}").with_context(|| format!("telling perf record to {command}"))?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        // The zero byte that ends a string in C is sent after the line.
        ensure!(
            answer.trim_matches(['\0', '\n']) == "ack",
            "perf record answered {answer:?} to {command}; it needs the right to sample the whole machine"
        );
        Ok(())
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
