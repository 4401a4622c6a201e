//! The program that runs inside the test guests.
//!
//! As `/init` it prepares the machine (mounts, drivers, network) and becomes the first process; as
//! `vmferry-guest serve` it answers requests on TCP port 7000: one request a line, words separated
//! by spaces, each answered by one line of JSON, `{"ok":true,…}` or `{"ok":false,"error":"…"}`.

mod counter;
mod disk;
mod init;
mod memory;
mod pages;
mod python;
mod redis;
mod requests;
mod serve;
mod ticks;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = if std::process::id() == 1 {
        init::run()
    } else if std::env::args().nth(1).as_deref() == Some("serve") {
        serve::run()
    } else {
        Err(anyhow::anyhow!("runs as a guest's /init, or as `vmferry-guest serve`"))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmferry-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
