//! `vmferry migrate`: asks for the migration, shows it while it runs, and reports how it ended.

use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    api::migration::{CodecChoice, MigrateRequest, MigrationView},
    cli::{
        client::{Client, Lines, segment},
        exit::{Exit, Failure},
        output::{print, print_json, print_text},
        progress::Display,
        report,
        units::{parse_duration, parse_rate},
    },
    vm::ByteSize,
};

/// The arguments of `vmferry migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// The VM's name.
    vm: String,
    /// The target host's agent.
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,
    /// The coder of pages.
    #[arg(long, value_enum, default_value_t)]
    codec: CodecChoice,
    /// zstd's level, 1 to 19 [default: one that costs little].
    #[arg(long)]
    level: Option<i32>,
    /// TCP connections and encoding threads, 1 to 64 [default: by the host's processors].
    #[arg(long, value_name = "N")]
    lanes: Option<usize>,
    /// Memory for hashes of pages as they were sent: those sent again cross as differences; 0B for none [default: what all else
    /// leaves of an eighth of the guest's and 256MiB].
    #[arg(long, value_name = "SIZE")]
    delta_memory: Option<ByteSize>,
    /// The longest acceptable pause of the guest.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "300ms")]
    max_downtime: Duration,
    /// A limit on the bandwidth used, such as 1Gbit or 100MB/s [default: none].
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<u64>,
    /// Give up by then, with the guest running here.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
    timeout: Duration,
    /// Roll back if the guest stands still for longer, whatever the reason.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    max_blackout: Duration,
    /// Wait so long for a link that breaks, with the guest running here; 0s for not at all, and no further attempt.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2m")]
    link_patience: Duration,
    /// Try again so often after an attempt that a broken link, or an end of the target's agent, rolled back.
    #[arg(long, value_name = "N", default_value_t = MigrateRequest::default_retries())]
    retries: u32,
    /// Compare all memory byte for byte before the commit; lengthens the pause.
    #[arg(long)]
    verify: bool,
    /// Show which coders were chosen, for which pages and when, and the figures behind it.
    #[arg(long, conflicts_with = "detach")]
    explain: bool,
    /// Print the migration's id and leave it running.
    #[arg(long)]
    detach: bool,
}

impl MigrateArgs {
    fn request(&self) -> MigrateRequest {
        MigrateRequest {
            to: self.to.clone(),
            codec: self.codec,
            level: self.level,
            lanes: self.lanes,
            delta_memory_bytes: self.delta_memory.map(|size| size.0),
            max_downtime_ms: ms(self.max_downtime),
            bandwidth_bytes_s: self.bandwidth,
            // Half a second is no reason to answer that zero is impossible.
            timeout_s: self.timeout.as_secs() + u64::from(self.timeout.subsec_nanos() > 0),
            max_blackout_ms: ms(self.max_blackout),
            link_patience_ms: ms(self.link_patience),
            retries: self.retries,
            verify: self.verify,
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Carries the command out. Ctrl-C cancels the migration; a second one leaves it to itself.
///
/// # Errors
/// Those of asking the agent. How the migration itself ended is the exit code.
pub async fn migrate(client: &Client, json: bool, args: MigrateArgs) -> Result<Exit, Failure> {
    // Before the request, so that no Ctrl-C falls between: it would end this process and leave the migration.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let vm = segment(&args.vm);
    let begun: MigrationView = client.post(&format!("/v1/vms/{vm}/migrate"), &args.request()).await?;
    if args.detach {
        print(json, &begun, |begun| begun.id.to_string())?;
        return Ok(Exit::Ok);
    }
    let mut views = client.lines(&format!("/v1/migrations/{}/events", begun.id)).await?;
    let mut display = Display::new();
    display.show(&begun);
    let Some(last) = follow(client, &vm, &mut views, &mut interrupts, &mut display).await? else {
        eprintln!("detached: migration {} goes on; `vmferry ps` shows the VM", begun.id);
        return Ok(Exit::Detached);
    };
    display.clear();
    let report = last
        .report
        .ok_or_else(|| Failure::Lost("it ended before the migration did".to_owned()))?;
    match json {
        true => print_json(&report)?,
        false => print_text(&report::render(&report, args.explain))?,
    }
    Ok(report.outcome.into())
}

/// Shows views until the last one; `None` if the user detached.
async fn follow(
    client: &Client,
    vm: &str,
    views: &mut Lines,
    interrupts: &mut Signal,
    display: &mut Display,
) -> Result<Option<MigrationView>, Failure> {
    let mut last = None;
    let mut interrupted = false;
    loop {
        tokio::select! {
            view = views.next::<MigrationView>() => match view? {
                Some(view) => {
                    display.show(&view);
                    last = Some(view);
                }
                None => return last.map(Some).ok_or_else(|| Failure::Lost("it showed no progress".to_owned())),
            },
            Some(()) = interrupts.recv() => {
                if std::mem::replace(&mut interrupted, true) {
                    return Ok(None);
                }
                // Refused where it ended this very moment; the views tell how.
                let _ = client.post::<MigrationView>(&format!("/v1/vms/{vm}/cancel"), &()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn request(flags: &str) -> Result<MigrateRequest, clap::Error> {
        let line = format!("vmferry migrate web --to host-b {flags}");
        match Cli::try_parse_from(line.split_whitespace())?.command {
            Command::Migrate(args) => Ok(args.request()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_flags_the_request_is_the_apis_default() {
        assert_eq!(request("").unwrap(), MigrateRequest::to("host-b"));
    }

    #[test]
    fn each_flag_reaches_the_request() {
        let all = "--codec zstd --level 3 --lanes 4 --delta-memory 64MiB --max-downtime 50ms --bandwidth 1Gbit \
                   --timeout 1.5s --max-blackout 2s --link-patience 30s --retries 1 --verify";
        assert_eq!(
            request(all).unwrap(),
            MigrateRequest {
                to: "host-b".to_owned(),
                codec: CodecChoice::Zstd,
                level: Some(3),
                lanes: Some(4),
                delta_memory_bytes: Some(64 << 20),
                max_downtime_ms: 50,
                bandwidth_bytes_s: Some(125_000_000),
                timeout_s: 2,
                max_blackout_ms: 2000,
                link_patience_ms: 30_000,
                retries: 1,
                verify: true,
            }
        );
    }

    #[test]
    fn quantities_that_are_none_are_refused_with_how_to_write_them() {
        for (flags, hint) in [
            ("--max-downtime 300", "300ms"),
            ("--bandwidth 100", "1Gbit"),
            ("--timeout soon", "10m"),
            ("--codec gzip", "zstd"),
        ] {
            let error = request(flags).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
