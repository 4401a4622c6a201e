//! The report of a finished migration, for people.

use std::{fmt::Write, slice};

use crate::api::migration::{ByEncoding, Encoded, Outcome, Report, RoundReport};
use crate::cli::table::Table;
use crate::cli::units::{bytes, count, milliseconds};

/// Of more rounds than this, those in the middle, which are much alike, are added up in one row.
const ROUNDS_SHOWN_MAX: usize = 8;
/// Rounds before that row; they tell how fast the guest writes.
const ROUNDS_SHOWN_FIRST: usize = 4;

/// The whole report as lines of text.
pub fn render(report: &Report, explain: bool) -> String {
    let mut out = headline(report);
    for reason in &report.reasons {
        out.push_str(&format!("  - {reason}\n"));
    }
    out.push('\n');
    out.push_str(&facts(report));
    for table in [
        stages(report),
        rounds(report),
        cpu(report),
        coding(report).filter(|_| explain),
    ]
    .into_iter()
    .flatten()
    {
        let _ = write!(out, "\n{table}");
    }
    out
}

fn headline(report: &Report) -> String {
    let Report { vm, from, to, .. } = report;
    let after = milliseconds(report.total_ms);
    match report.outcome {
        Outcome::Completed => format!("{vm} moved from {from} to {to} in {after}\n"),
        Outcome::RolledBack => {
            format!("{vm} did not move to {to}: the migration failed after {after}, and the guest stays on {from}\n")
        }
        Outcome::Cancelled => {
            format!("{vm} did not move to {to}: cancelled after {after}, and the guest runs on {from}\n")
        }
        Outcome::Refused => {
            format!("{vm} did not move: {to} refuses it, and the guest runs on {from}\n")
        }
        Outcome::NotConverged => {
            format!("{vm} did not move to {to}: it did not converge in {after}, and the guest runs on {from}\n")
        }
        Outcome::Lost => {
            format!("{vm} did not move to {to}: its guest ended on {from} after {after}\n")
        }
    }
}

fn facts(report: &Report) -> String {
    let mut facts = Vec::new();
    if let Some(ms) = report.blackout_source_ms {
        let at_target = report
            .blackout_target_ms
            .map(|ms| format!(", {} at the target", milliseconds(ms)));
        facts.push((
            "blackout",
            format!("{} at the source{}", milliseconds(ms), at_target.unwrap_or_default()),
        ));
    }
    if report.wire_bytes > 0 {
        let less = report.stream_bytes as f64 / report.wire_bytes as f64;
        facts.push((
            "wire",
            format!(
                "{} for {} of QEMU's stream, {less:.1} to 1",
                bytes(report.wire_bytes),
                bytes(report.stream_bytes)
            ),
        ));
    }
    if report.link_breaks > 0 {
        let (times, down) = (report.link_breaks, milliseconds(report.link_down_ms));
        let again = bytes(report.resent_bytes);
        facts.push((
            "link",
            format!("broke {times} times, waited for {down}; {again} sent again"),
        ));
    }
    if report.attempts > 1 {
        let (attempts, before) = (report.attempts, bytes(report.earlier_wire_bytes));
        facts.push(("attempts", format!("{attempts}; those before sent {before}")));
    }
    let placed = (report.placed_bytes > 0).then(|| {
        let placed = bytes(report.placed_bytes);
        format!("{placed} of pages straight into the target guest's memory")
    });
    let not_placed = report
        .not_placed
        .as_ref()
        .map(|why| format!("pages went through the target's QEMU: {why}"));
    facts.extend(placed.into_iter().chain(not_placed).map(|fact| ("placed", fact)));
    for content in &report.contents {
        let missed = match (content.pages_missed, content.is_slow) {
            (0, false) => String::new(),
            (missed, false) => format!(", {} of them no longer", count(missed)),
            (missed, true) => {
                let slow = "left alone, for the target read it more slowly than pages cross";
                format!(", {} of them asked for; {slow}", count(missed))
            }
        };
        let pages = count(content.pages);
        facts.push(("content", format!("{pages} pages stand in {}{missed}", content.source)));
    }
    if let Some(verification) = report.verification {
        let verdict = if verification.equal {
            "equal byte for byte"
        } else {
            "NOT EQUAL"
        };
        facts.push((
            "memory",
            format!("{verdict}, {} compared", bytes(verification.bytes_compared)),
        ));
    }
    if report.stream_bytes > 0 {
        facts.push((
            "stream",
            match &report.stream_lost {
                None if report.stream_followed => "followed to its end".to_owned(),
                None => "passed on as it was".to_owned(),
                Some(lost) => format!("passed on as it was from here: {lost}"),
            },
        ));
    }
    if let Some(digest) = &report.digest {
        facts.push(("digest", digest.clone()));
    }
    facts.push(("migration", report.migration.to_string()));
    facts
        .iter()
        .map(|(name, fact)| format!("{name:<9}   {fact}\n"))
        .collect()
}

fn stages(report: &Report) -> Option<Table> {
    let mut table = Table::new(["stage", "time"]);
    for stage in &report.stages {
        table.row([stage.stage.to_string(), milliseconds(stage.ms)]);
    }
    (!report.stages.is_empty()).then_some(table)
}

fn rounds(report: &Report) -> Option<Table> {
    let first = ByEncoding::default();
    let names = first.named().map(|(name, _)| name);
    let mut table = Table::new(["round", "time", "pages"].into_iter().chain(names).chain(["wire"]));
    let rounds = &report.rounds[..];
    let folded = match rounds.len() {
        0..=ROUNDS_SHOWN_MAX => 0..0,
        len => ROUNDS_SHOWN_FIRST..len - (ROUNDS_SHOWN_MAX - ROUNDS_SHOWN_FIRST - 1),
    };
    for round in &rounds[..folded.start] {
        table.row(round_cells(round.round.to_string(), slice::from_ref(round)));
    }
    if let [first, .., last] = &rounds[folded.clone()] {
        table.row(round_cells(
            format!("{}-{}", first.round, last.round),
            &rounds[folded.clone()],
        ));
    }
    for round in &rounds[folded.end..] {
        table.row(round_cells(round.round.to_string(), slice::from_ref(round)));
    }
    if rounds.len() > 1 {
        table.row(round_cells("all".to_owned(), rounds));
    }
    (!rounds.is_empty()).then_some(table)
}

fn round_cells(name: String, rounds: &[RoundReport]) -> Vec<String> {
    let ms = rounds.iter().map(|round| round.ms).sum();
    let pages = rounds.iter().fold(0u64, |sum, round| sum.saturating_add(round.pages));
    let by_encoding = rounds
        .iter()
        .fold(ByEncoding::default(), |sum, round| sum.plus(&round.by_encoding));
    let mut cells = vec![name, milliseconds(ms), count(pages)];
    cells.extend(by_encoding.named().map(|(_, encoded)| cell(encoded)));
    cells.push(bytes(by_encoding.total().bytes));
    cells
}

/// Pages, and their bytes where they took any worth a mention.
fn cell(encoded: Encoded) -> String {
    match encoded {
        Encoded { pages: 0, .. } => "-".to_owned(),
        Encoded {
            pages,
            bytes: 0..10_000,
        } => count(pages),
        Encoded { pages, bytes: n } => format!("{} ({})", count(pages), bytes(n)),
    }
}

fn cpu(report: &Report) -> Option<Table> {
    let cpu = report.cpu;
    let sum = cpu.source_agent + cpu.source_qemu + cpu.target_agent + cpu.target_qemu;
    let mut table = Table::new(["CPU seconds", "agent", "QEMU"]);
    for (host, agent, qemu) in [
        ("source", cpu.source_agent, cpu.source_qemu),
        ("target", cpu.target_agent, cpu.target_qemu),
    ] {
        table.row([host.to_owned(), format!("{agent:.2}"), format!("{qemu:.2}")]);
    }
    (sum > 0.0).then_some(table)
}

/// Which coders were chosen, and the figures behind it.
fn coding(report: &Report) -> Option<Table> {
    let headings = [
        "from", "pages", "coder", "batches", "probes", "link", "ratio", "encode", "decode", "cores", "expected",
    ];
    let mut table = Table::new(headings).left(3);
    for stretch in &report.coding {
        table.row([
            milliseconds(stretch.from_ms as f64),
            stretch.pages.clone(),
            stretch.coder.clone(),
            count(stretch.batches),
            count(stretch.probes),
            stretch
                .link_bytes_per_s
                .map_or("?".to_owned(), |rate| format!("{}/s", bytes(rate as u64))),
            format!("{:.3}", stretch.ratio),
            format!("{:.2} ns/B", stretch.encode_ns_per_byte),
            format!("{:.2} ns/B", stretch.decode_ns_per_byte),
            format!("{:.1} and {:.1}", stretch.source_cores, stretch.target_cores),
            format!("{:.2} ns/B", stretch.expected_ns_per_byte),
        ]);
    }
    (!report.coding.is_empty()).then_some(table)
}

#[cfg(test)]
mod tests {
    use vmferry_core::wire::hello::MigrationId;

    use super::*;
    use crate::api::migration::{Coding, ContentReport, CpuSeconds, Stage, StageTime, Verification};

    fn completed() -> Report {
        let by_encoding = |zero, lz, bytes| ByEncoding {
            zero: Encoded { pages: zero, bytes: 40 },
            lz: Encoded { pages: lz, bytes },
            ..ByEncoding::default()
        };
        Report {
            migration: MigrationId(0xa5),
            vm: "web".to_owned(),
            from: "host-a".to_owned(),
            to: "host-b:7464".to_owned(),
            outcome: Outcome::Completed,
            reasons: Vec::new(),
            stages: vec![
                StageTime {
                    stage: Stage::Reserve,
                    ms: 312.0,
                },
                StageTime {
                    stage: Stage::StopAndCopy,
                    ms: 98.2,
                },
            ],
            rounds: vec![
                RoundReport {
                    round: 1,
                    pages: 262_144,
                    by_encoding: by_encoding(200_000, 62_144, 44_100_000),
                    ms: 5100.0,
                },
                RoundReport {
                    round: 2,
                    pages: 1_200,
                    by_encoding: by_encoding(0, 1_200, 900_000),
                    ms: 98.2,
                },
            ],
            blackout_source_ms: Some(112.4),
            blackout_target_ms: Some(101.0),
            total_ms: 6412.0,
            wire_bytes: 45_000_000,
            resent_bytes: 1_200_000,
            attempts: 2,
            earlier_wire_bytes: 7_000_000,
            link_breaks: 3,
            link_down_ms: 12_300.0,
            stream_bytes: 257_000_000,
            placed_bytes: 256_000_000,
            coding: Vec::new(),
            not_placed: None,
            contents: vec![ContentReport {
                source: "/srv/web.qcow2".to_owned(),
                pages: 30_000,
                pages_missed: 12,
                is_slow: false,
            }],
            verification: Some(Verification {
                bytes_compared: 1 << 30,
                equal: true,
            }),
            cpu: CpuSeconds {
                source_agent: 1.5,
                target_agent: 0.75,
                source_qemu: 2.0,
                target_qemu: 1.0,
            },
            stream_followed: true,
            stream_lost: None,
            digest: Some("00ff".to_owned()),
        }
    }

    #[test]
    fn a_completed_migration_reads_as_aligned_tables() {
        assert_eq!(
            render(&completed(), false),
            "\
web moved from host-a to host-b:7464 in 6.41 s

blackout    112 ms at the source, 101 ms at the target
wire        45.0 MB for 257 MB of QEMU's stream, 5.7 to 1
link        broke 3 times, waited for 12.3 s; 1.20 MB sent again
attempts    2; those before sent 7.00 MB
placed      256 MB of pages straight into the target guest's memory
content     30,000 pages stand in /srv/web.qcow2, 12 of them no longer
memory      equal byte for byte, 1.07 GB compared
stream      followed to its end
digest      00ff
migration   000000000000000000000000000000a5

stage             time
reserve         312 ms
stop-and-copy    98 ms

round     time     pages      zero   same   copy   content   patch   delta                 lz   raw      wire
1       5.10 s   262,144   200,000      -      -         -       -       -   62,144 (44.1 MB)     -   44.1 MB
2        98 ms     1,200         -      -      -         -       -       -     1,200 (900 kB)     -    900 kB
all     5.20 s   263,344   200,000      -      -         -       -       -   63,344 (45.0 MB)     -   45.0 MB

CPU seconds   agent   QEMU
source         1.50   2.00
target         0.75   1.00
"
        );
    }

    #[test]
    fn of_many_rounds_those_in_the_middle_are_added_up() {
        let round = |round| RoundReport {
            round,
            pages: 10,
            ms: 5.0,
            ..RoundReport::default()
        };
        let report = |rounds| Report {
            rounds: (1..=rounds).map(round).collect(),
            ..completed()
        };
        let first_cells = |rounds| {
            let text = render(&report(rounds), false);
            let rows = text.lines().skip_while(|line| !line.starts_with("round"));
            let rows = rows.skip(1).take_while(|line| !line.is_empty());
            let cells = rows.map(|row| row.split_whitespace().take(4).collect::<Vec<_>>().join(" "));
            cells.collect::<Vec<_>>()
        };
        assert_eq!(first_cells(8).len(), 9);
        assert_eq!(
            first_cells(9),
            [
                "1 5.0 ms 10",
                "2 5.0 ms 10",
                "3 5.0 ms 10",
                "4 5.0 ms 10",
                "5-6 10 ms 20",
                "7 5.0 ms 10",
                "8 5.0 ms 10",
                "9 5.0 ms 10",
                "all 45 ms 90",
            ]
        );
    }

    #[test]
    fn a_refusal_lists_each_reason_and_nothing_that_was_not_measured() {
        let report = Report {
            outcome: Outcome::Refused,
            reasons: vec!["bridge br0 is missing".to_owned(), "the name web is taken".to_owned()],
            stages: Vec::new(),
            rounds: Vec::new(),
            blackout_source_ms: None,
            blackout_target_ms: None,
            wire_bytes: 0,
            resent_bytes: 0,
            attempts: 1,
            earlier_wire_bytes: 0,
            link_breaks: 0,
            link_down_ms: 0.0,
            stream_bytes: 0,
            placed_bytes: 0,
            not_placed: None,
            contents: Vec::new(),
            verification: None,
            cpu: CpuSeconds::default(),
            digest: None,
            ..completed()
        };
        assert_eq!(
            render(&report, false),
            "\
web did not move: host-b:7464 refuses it, and the guest runs on host-a
  - bridge br0 is missing
  - the name web is taken

migration   000000000000000000000000000000a5
"
        );
    }

    #[test]
    fn content_that_was_slow_to_read_is_named() {
        let mut report = completed();
        report.contents[0].is_slow = true;
        let text = render(&report, false);
        let line = "\ncontent     30,000 pages stand in /srv/web.qcow2, 12 of them asked for; left alone, for the target read it \
                    more slowly than pages cross\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn unequal_memory_and_a_lost_stream_stand_out() {
        let report = Report {
            outcome: Outcome::RolledBack,
            verification: Some(Verification {
                bytes_compared: 4096,
                equal: false,
            }),
            stream_followed: false,
            stream_lost: Some("unknown section at byte 17".to_owned()),
            ..completed()
        };
        let text = render(&report, false);
        assert!(text.contains("the guest stays on host-a"), "{text}");
        assert!(text.contains("memory      NOT EQUAL, 4.10 kB compared"), "{text}");
        assert!(text.contains("from here: unknown section at byte 17"), "{text}");
    }

    #[test]
    fn what_was_chosen_and_why_is_shown_on_demand() {
        let mut report = completed();
        report.coding = vec![Coding {
            from_ms: 120,
            pages: "fresh".to_owned(),
            coder: "zstd-1".to_owned(),
            batches: 40,
            probes: 2,
            link_bytes_per_s: None,
            ratio: 0.3,
            encode_ns_per_byte: 2.4,
            decode_ns_per_byte: 1.1,
            source_cores: 1.5,
            target_cores: 2.0,
            expected_ns_per_byte: 2.75,
        }];
        assert!(!render(&report, false).contains("zstd-1"));
        let text = render(&report, true);
        for shown in [
            "fresh",
            "zstd-1",
            "40",
            "?",
            "0.300",
            "2.40 ns/B",
            "1.5 and 2.0",
            "2.75 ns/B",
        ] {
            assert!(text.contains(shown), "{shown} in {text}");
        }
    }
}
