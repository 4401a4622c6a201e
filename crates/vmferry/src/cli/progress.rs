//! The live view of a migration: a few lines redrawn in place on a terminal, one line now and then elsewhere.

use std::io::{self, IsTerminal, Write};

use crate::api::migration::{MigrationView, Progress, Stage};
use crate::cli::units::{bytes, count, milliseconds, rate};

/// Where no terminal is, a line at least this often while nothing but the numbers changes, milliseconds of the migration.
const LINE_EVERY_MS: u64 = 2_000;
const BAR_CELLS: usize = 40;
const WIDTH_DEFAULT: usize = 100;

/// Draws views on standard error, so that standard output has only the report.
#[derive(Debug)]
pub struct Display {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Redraws over the lines drawn last.
    Terminal { drawn: usize },
    /// Prints a line when the stage or round changes, or time has passed.
    Lines { last: Option<(Stage, u32, u64)> },
}

impl Display {
    /// A display on standard error.
    pub fn new() -> Self {
        let mode = match io::stderr().is_terminal() {
            true => Mode::Terminal { drawn: 0 },
            false => Mode::Lines { last: None },
        };
        Display { mode }
    }

    /// Shows a view. What cannot be written is left out: the migration does not depend on anyone watching.
    pub fn show(&mut self, view: &MigrationView) {
        let mut text = String::new();
        match &mut self.mode {
            Mode::Terminal { drawn } => {
                text.push_str(&erase(*drawn));
                let width = terminal_width();
                let lines = panel(view);
                *drawn = lines.len();
                for line in lines {
                    // A line that wraps would take two rows, and the next redraw would start a row too low.
                    text.extend(line.chars().take(width));
                    text.push('\n');
                }
            }
            Mode::Lines { last } => {
                let Progress {
                    stage,
                    round,
                    elapsed_ms,
                    ..
                } = view.progress;
                let is_due = last.is_none_or(|(shown_stage, shown_round, shown_ms)| {
                    (shown_stage, shown_round) != (stage, round) || elapsed_ms.saturating_sub(shown_ms) >= LINE_EVERY_MS
                });
                if !is_due || stage == Stage::Done {
                    return;
                }
                *last = Some((stage, round, elapsed_ms));
                text = line(view) + "\n";
            }
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Takes the view away to make room for the report.
    pub fn clear(&mut self) {
        if let Mode::Terminal { drawn } = &mut self.mode {
            let _ = io::stderr().write_all(erase(*drawn).as_bytes());
            *drawn = 0;
        }
    }
}

impl Default for Display {
    fn default() -> Self {
        Display::new()
    }
}

fn terminal_width() -> usize {
    // A terminal that doesn't know its width says 0.
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    if columns == 0 { WIDTH_DEFAULT } else { columns.into() }
}

/// ANSI: cursor up, clear to the end of the screen.
fn erase(rows: usize) -> String {
    if rows == 0 {
        String::new()
    } else {
        format!("\x1b[{rows}A\x1b[J")
    }
}

/// The view as the lines of a terminal's panel.
pub fn panel(view: &MigrationView) -> Vec<String> {
    let p = &view.progress;
    let cancelling = if view.cancelling { "   cancelling" } else { "" };
    let last = match waits(p) {
        Some(waits) => waits,
        None => format!("pause if stopped now {}   time left {}", blackout(p), time_left(p)),
    };
    vec![
        format!(
            "{} to {}   {}{}{}   {}{cancelling}",
            view.vm,
            view.to,
            p.stage,
            round(p),
            attempt(p),
            milliseconds(p.elapsed_ms as f64)
        ),
        format!("{}   {} pages left", bar(p), count(p.pages_left)),
        format!(
            "guest writes {} pages/s   wire {}   {:.1} to 1",
            count(p.dirty_pages_per_s.max(0.0) as u64),
            rate(p.wire_bytes_per_s),
            ratio(p)
        ),
        by_encoding(p),
        last,
    ]
}

/// The view as one line.
pub fn line(view: &MigrationView) -> String {
    let p = &view.progress;
    if let Some(waits) = waits(p) {
        return format!(
            "{:>8}  {}{}  {waits}",
            milliseconds(p.elapsed_ms as f64),
            p.stage,
            attempt(p)
        );
    }
    format!(
        "{:>8}  {}{}{}  {} pages left  {} written/s  wire {}  {:.1} to 1  pause {}  left {}{}",
        milliseconds(p.elapsed_ms as f64),
        p.stage,
        round(p),
        attempt(p),
        count(p.pages_left),
        count(p.dirty_pages_per_s.max(0.0) as u64),
        rate(p.wire_bytes_per_s),
        ratio(p),
        blackout(p),
        time_left(p),
        if view.cancelling { "  cancelling" } else { "" },
    )
}

fn round(p: &Progress) -> String {
    if p.round == 0 {
        String::new()
    } else {
        format!(" round {}", p.round)
    }
}

fn attempt(p: &Progress) -> String {
    if p.attempt > 1 {
        format!(", attempt {}", p.attempt)
    } else {
        String::new()
    }
}

/// What is to be said while the link is broken.
fn waits(p: &Progress) -> Option<String> {
    let down = milliseconds(p.link_down_ms? as f64);
    let guest = match p.stage {
        Stage::StopAndCopy | Stage::Commit => "",
        _ => "; the guest runs here",
    };
    Some(format!("the link is broken; waiting for it for {down}{guest}"))
}

fn bar(p: &Progress) -> String {
    let done = match (p.stage, p.pages_total) {
        (Stage::Done, _) => 1.0,
        (_, 0) => 0.0,
        (_, total) => 1.0 - (p.pages_left as f64 / total as f64).min(1.0),
    };
    let full = (done * BAR_CELLS as f64) as usize;
    format!(
        "[{}{}] {:>3.0} %",
        "=".repeat(full),
        " ".repeat(BAR_CELLS - full),
        (done * 100.0).floor()
    )
}

fn ratio(p: &Progress) -> f64 {
    if p.wire_bytes == 0 {
        1.0
    } else {
        p.stream_bytes as f64 / p.wire_bytes as f64
    }
}

fn by_encoding(p: &Progress) -> String {
    let parts = p.by_encoding.named().map(|(name, e)| match e.bytes {
        0..1_000 => format!("{name} {}", count(e.pages)),
        n => format!("{name} {} ({})", count(e.pages), bytes(n)),
    });
    parts.join("   ")
}

fn blackout(p: &Progress) -> String {
    p.predicted_blackout_ms.map_or("not known yet".to_owned(), milliseconds)
}

fn time_left(p: &Progress) -> String {
    p.eta_s.map_or("not known".to_owned(), |s| milliseconds(s * 1e3))
}

#[cfg(test)]
mod tests {
    use vmferry_core::wire::hello::MigrationId;

    use super::*;
    use crate::api::migration::{ByEncoding, Encoded};

    fn view() -> MigrationView {
        MigrationView {
            id: MigrationId(1),
            vm: "web".to_owned(),
            to: "host-b:7464".to_owned(),
            cancelling: false,
            progress: Progress {
                stage: Stage::Precopy,
                round: 2,
                pages_left: 65_536,
                pages_total: 262_144,
                dirty_pages_per_s: 1234.5,
                wire_bytes_per_s: 112e6,
                raw_bytes_per_s: 400e6,
                wire_bytes: 100_000_000,
                stream_bytes: 420_000_000,
                by_encoding: ByEncoding {
                    zero: Encoded {
                        pages: 90_000,
                        bytes: 100,
                    },
                    lz: Encoded {
                        pages: 98_000,
                        bytes: 92_000_000,
                    },
                    ..ByEncoding::default()
                },
                predicted_blackout_ms: Some(212.0),
                eta_s: Some(3.25),
                elapsed_ms: 4200,
                attempt: 1,
                link_down_ms: None,
            },
            report: None,
        }
    }

    #[test]
    fn the_panel_shows_what_an_operator_decides_by() {
        assert_eq!(
            panel(&view()),
            [
                "web to host-b:7464   pre-copy round 2   4.20 s",
                "[==============================          ]  75 %   65,536 pages left",
                "guest writes 1,234 pages/s   wire 112 MB/s   4.2 to 1",
                "zero 90,000   same 0   copy 0   content 0   patch 0   delta 0   lz 98,000 (92.0 MB)   raw 0",
                "pause if stopped now 212 ms   time left 3.25 s",
            ]
        );
    }

    #[test]
    fn one_line_says_the_same_where_no_terminal_is() {
        assert_eq!(
            line(&view()),
            "  4.20 s  pre-copy round 2  65,536 pages left  1,234 written/s  wire 112 MB/s  4.2 to 1  pause 212 ms  left 3.25 s"
        );
    }

    #[test]
    fn a_link_that_is_waited_for_is_shown_with_where_the_guest_runs() {
        let mut view = view();
        (view.progress.attempt, view.progress.link_down_ms) = (2, Some(7300));
        let waits = "the link is broken; waiting for it for 7.30 s; the guest runs here";
        assert_eq!(panel(&view)[4], waits);
        assert_eq!(
            panel(&view)[0],
            "web to host-b:7464   pre-copy round 2, attempt 2   4.20 s"
        );
        assert_eq!(line(&view), format!("  4.20 s  pre-copy, attempt 2  {waits}"));
    }

    #[test]
    fn odd_numbers_are_shown_without_a_panic() {
        let mut view = view();
        view.cancelling = true;
        view.progress = Progress {
            pages_left: u64::MAX,
            pages_total: 1,
            dirty_pages_per_s: f64::NAN,
            wire_bytes_per_s: f64::INFINITY,
            eta_s: Some(f64::MAX),
            predicted_blackout_ms: Some(-1.0),
            elapsed_ms: u64::MAX,
            ..Progress::default()
        };
        assert!(panel(&view)[0].ends_with("cancelling"));
        assert!(line(&view).contains("reserve"));
    }
}
