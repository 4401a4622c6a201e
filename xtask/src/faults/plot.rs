//! `reliability.svg`: outcomes by fault, and how long the guest was silent.

use std::fmt::Write;

use super::campaign::{Outcome, Run};
use super::histogram::count;
use super::plan::Fault;

const LEFT: f64 = 170.0;
const TOP: f64 = 84.0;
const ROW_HEIGHT: f64 = 26.0;
const BAR_HEIGHT: f64 = 16.0;
const OUTCOMES_WIDTH: f64 = 330.0;
const GAP: f64 = 56.0;
const SILENCE_WIDTH: f64 = 520.0;
const RIGHT: f64 = 30.0;
const BOTTOM: f64 = 34.0;
/// The axis of silences, milliseconds.
const SILENCE_MS: (f64, f64) = (1.0, 100_000.0);

/// Told apart also without colour, by their lightness.
fn colour(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "#0b4f9e",
        Outcome::RolledBack => "#a9cbee",
        Outcome::Lost => "#e0832f",
    }
}

/// The whole picture.
pub(crate) fn render(runs: &[Run]) -> String {
    let rows: Vec<(Fault, Vec<&Run>)> = Fault::ALL
        .into_iter()
        .map(|fault| (fault, runs.iter().filter(|run| run.plan.fault == fault).collect()))
        .collect();
    let width = LEFT + OUTCOMES_WIDTH + GAP + SILENCE_WIDTH + RIGHT;
    let floor = TOP + rows.len() as f64 * ROW_HEIGHT;
    let height = floor + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#333333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{} migrations in which something failed</text>\n\
         <text x=\"{LEFT}\" y=\"72\" font-weight=\"bold\">runs</text>\n\
         <text x=\"{}\" y=\"72\" font-weight=\"bold\">longest silence of each guest that lives, ms</text>\n",
        runs.len(),
        LEFT + OUTCOMES_WIDTH + GAP,
    );
    legend(&mut svg);
    axis(&mut svg, floor);
    let most = rows.iter().map(|(_, of)| of.len()).max().unwrap_or_default().max(1);
    for ((fault, of), number) in rows.iter().zip(0..) {
        let y = TOP + f64::from(number) * ROW_HEIGHT;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 13.0,
            fault.name()
        );
        outcomes(&mut svg, of, OUTCOMES_WIDTH / most as f64, y);
        silences(&mut svg, of, y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    for (outcome, number) in Outcome::ALL.into_iter().zip(0..) {
        let x = LEFT + f64::from(number) * 100.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"38\" width=\"13\" height=\"13\" fill=\"{}\"/><text x=\"{}\" y=\"49\">{}</text>",
            colour(outcome),
            x + 19.0,
            outcome.name()
        );
    }
}

/// The bar of one fault: its outcomes one behind the other.
fn outcomes(svg: &mut String, runs: &[&Run], width_of_one: f64, y: f64) {
    let mut x = LEFT;
    for outcome in Outcome::ALL {
        let number = count(runs, outcome);
        let width = number as f64 * width_of_one;
        if number > 0 {
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{}\">\
                 <title>{}: {number}</title></rect>",
                colour(outcome),
                outcome.name()
            );
        }
        x += width;
    }
}

/// A dot for each run.
fn silences(svg: &mut String, runs: &[&Run], y: f64) {
    for run in runs {
        let Some(silence) = run.silence_ms else { continue };
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\" fill-opacity=\"0.55\">\
             <title>run {}: {silence:.0} ms</title></circle>",
            across(silence),
            y + BAR_HEIGHT / 2.0,
            colour(run.outcome),
            run.plan.number
        );
    }
}

fn axis(svg: &mut String, floor: f64) {
    let mut mark = SILENCE_MS.0;
    while mark <= SILENCE_MS.1 {
        let x = across(mark);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{floor}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\" font-size=\"11\">{mark}</text>",
            TOP - 4.0,
            floor + 16.0
        );
        mark *= 10.0;
    }
}

/// Where a silence stands on the logarithmic axis.
fn across(silence_ms: f64) -> f64 {
    let (low, high) = SILENCE_MS;
    let part = (silence_ms / low).ln() / (high / low).ln();
    LEFT + OUTCOMES_WIDTH + GAP + part.clamp(0.0, 1.0) * SILENCE_WIDTH
}
