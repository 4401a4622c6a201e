//! What pages cost that are sent again: how much is gained by what memory for their earlier versions, and whether it would
//! gain to keep some back until the guest is stopped.
//!
//! ```text
//! capture:  cargo xtask capture redis
//! run:      cargo run --release -p vmferry-core --example sent_again -- target/captures/redis.bin... [--plot FILE]
//! ```
//!
//! | module | what |
//! |---|---|
//! | `stream` | a captured stream in rounds, which can be changed |
//! | `wire` | what it takes on the wire, by round |
//! | `held_back` | rules by which pages are kept back |
//! | `plot` | memory against bytes, as a picture |

#![expect(
    clippy::disallowed_methods,
    reason = "it reads and writes files; only the library must not"
)]

mod held_back;
mod plot;
mod stream;
mod wire;

use held_back::Rule;
use plot::Curve;
use std::{error::Error, path::Path};
use stream::Capture;
use wire::{Sent, send};

/// Memory for versions, per cent of the guest's.
const BUDGETS: [f64; 9] = [0.0, 1.0, 2.0, 4.0, 6.25, 12.5, 25.0, 50.0, 100.0];
/// What vmferry takes unless told otherwise.
const BUDGET: f64 = 12.5;
/// Bytes that a link of 100 Mb/s carries in the pause that vmferry allows itself, 300 ms.
const PAUSE_BYTES: usize = 12_500_000 * 3 / 10;
const PAGE_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut curves, mut plot) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        if argument == "--plot" {
            plot = Some(arguments.next().ok_or("--plot FILE")?);
            continue;
        }
        let capture = Capture::read(std::fs::read(&argument).map_err(|error| format!("{argument}: {error}"))?)?;
        let name = Path::new(&argument).file_stem().unwrap_or_default().to_string_lossy();
        let bytes = study(&name, &capture)?;
        let name = name.into();
        curves.push(Curve { name, bytes });
    }
    if curves.is_empty() {
        return Err("usage: sent_again CAPTURE... [--plot FILE]".into());
    }
    if let Some(path) = plot {
        std::fs::write(&path, plot::render(&BUDGETS, &curves)).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// Prints the tables of one capture; returns the bytes of pages sent again, by budget.
fn study(name: &str, capture: &Capture) -> Result<Vec<u64>, Box<dyn Error>> {
    let guest_bytes = capture.guest_bytes();
    let within = |budget: f64| (guest_bytes as f64 * budget / 100.0) as usize;
    let stream = capture.write(&capture.rounds);
    let length: usize = stream.iter().map(Vec::len).sum();
    println!(
        "### {name}\n\nGuest of {} MiB, {} MB of stream.\n",
        guest_bytes >> 20,
        mb(length as u64)
    );

    let sent = send(&stream, &BUDGETS.map(within))?;
    println!("| memory, % of the guest's | MB in all | MB after round 1 | MB in the last round |\n|---|---|---|---|");
    for (budget, sent) in BUDGETS.iter().zip(&sent) {
        println!("| {budget} | {} |", costs(sent));
    }

    println!("\n| round | pages | MB of stream | MB, nothing kept | MB, {BUDGET} % kept |\n|---|---|---|---|---|");
    let usual = BUDGETS.iter().position(|budget| *budget == BUDGET).unwrap_or_default();
    for (round, bytes) in stream.iter().enumerate() {
        println!(
            "| {} | {} | {} | {} | {} |",
            round + 1,
            capture.pages(round),
            mb(bytes.len() as u64),
            mb(sent[0].rounds[round].wire_bytes()),
            mb(sent[usual].rounds[round].wire_bytes())
        );
    }

    println!(
        "\n| kept back | pages sent | MB in all, nothing kept | after round 1 | in the last | MB in all, {BUDGET} % kept | \
         after round 1 | in the last |\n|---|---|---|---|---|---|---|---|"
    );
    let rules = [
        ("nothing", Rule::Nothing),
        ("what is sent again (oracle)", Rule::Oracle),
        (
            "third time, as fits the pause",
            Rule::ThirdTime(PAUSE_BYTES / PAGE_BYTES),
        ),
        ("third time, all", Rule::ThirdTime(usize::MAX)),
    ];
    for (label, rule) in rules {
        let rounds = rule.apply(&capture.rounds);
        capture.check_same_image(&rounds)?;
        let sent = send(&capture.write(&rounds), &[0, within(BUDGET)])?;
        let pages: usize = rounds.iter().map(|pieces| stream::pages(pieces).count()).sum();
        println!("| {label} | {pages} | {} | {} |", costs(&sent[0]), costs(&sent[1]));
    }
    println!();
    Ok(sent.iter().map(Sent::again_bytes).collect())
}

/// In all, after the first round, in the last.
fn costs(sent: &Sent) -> String {
    let last = sent.rounds.last().map_or(0, |round| round.wire_bytes());
    format!("{} | {} | {}", mb(sent.bytes()), mb(sent.again_bytes()), mb(last))
}

fn mb(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}
