//! `vmferry tunnel`: either end of one, until it is ended.

use clap::{Args, Subcommand};

use crate::cli::exit::{Exit, Failure};
use crate::tunnel::{source, target};

/// `vmferry tunnel`.
#[derive(Debug, Args)]
pub struct TunnelArgs {
    #[command(subcommand)]
    end: End,
}

#[derive(Debug, Subcommand)]
enum End {
    /// Make sockets that QEMUs migrate to, and carry what comes to another host's tunnel.
    Source(source::Settings),
    /// Carry what other hosts' tunnels bring to the sockets on which QEMUs wait here.
    Target(target::Settings),
}

/// Carries it out.
///
/// # Errors
/// Why it could not start.
pub async fn tunnel(args: TunnelArgs) -> Result<Exit, Failure> {
    let ended = match args.end {
        End::Source(settings) => match tokio::task::spawn_blocking(move || source::serve(settings)).await {
            Ok(ended) => ended,
            Err(panic) => Err(panic.into()),
        },
        End::Target(settings) => target::serve(settings).await,
    };
    ended.map_err(Failure::Tunnel)?;
    Ok(Exit::Ok)
}
