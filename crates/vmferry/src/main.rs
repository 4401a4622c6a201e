//! The one binary: agent and command line.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vmferry::cli::{self, Cli, exit::Exit};

/// How long threads that block (a lane's socket, a journal's disk) are waited for at the end.
const END_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // Said on standard error as well, which would be a panic in the middle of a handover: a full disk takes no log.
        .log_internal_errors(false)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vmferry: cannot start its threads: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(cli::run(cli));
    runtime.shutdown_timeout(END_GRACE);
    exit.into()
}
