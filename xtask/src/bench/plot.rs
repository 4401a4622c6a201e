//! `results.svg`: bars by case and mode, one panel a figure.

use std::fmt::Write;

use super::mode::Mode;
use super::plan::{Link, Workload};
use super::results::{Figures, Results};

const PANEL_WIDTH: f64 = 1100.0;
const PANEL_HEIGHT: f64 = 190.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 92.0;
const RIGHT: f64 = 30.0;
const GAP_Y: f64 = 66.0;
const GROUP_MARGIN: f64 = 9.0;

/// One panel.
struct Row {
    title: &'static str,
    figure: fn(&Figures) -> f64,
}

const ROWS: [Row; 4] = [
    Row {
        title: "MB on the link",
        figure: |figures| figures.bytes.median / 1e6,
    },
    Row {
        title: "total time, s",
        figure: |figures| figures.total_ms.median / 1e3,
    },
    Row {
        title: "blackout, ms",
        figure: |figures| figures.blackout_ms.median,
    },
    Row {
        title: "CPU of both hosts, s",
        figure: |figures| figures.cpu_s.median,
    },
];

/// vmferry in blues, QEMU in warm greys and orange: told apart also without colour, by their lightness.
fn colour(mode: Mode) -> &'static str {
    match mode {
        Mode::Vmferry => "#0b4f9e",
        Mode::VmferryAuto => "#2a6cc0",
        Mode::VmferryLz4 => "#4f8fd6",
        Mode::VmferryLz78 => "#a9cbee",
        Mode::VmferryRaw => "#7f93b5",
        Mode::Plain => "#c9c4bd",
        Mode::Xbzrle => "#948d84",
        Mode::MultifdZstd => "#e0832f",
    }
}

/// The whole picture.
pub(crate) fn render(results: &Results) -> String {
    let width = LEFT + PANEL_WIDTH + RIGHT;
    let height = TOP + ROWS.len() as f64 * (PANEL_HEIGHT + GAP_Y);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#333333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    legend(&mut svg, results);
    for (row, down) in ROWS.iter().zip(0..) {
        let y = TOP + f64::from(down) * (PANEL_HEIGHT + GAP_Y);
        panel(&mut svg, results, row, (LEFT, y));
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, results: &Results) {
    let machine = "lower is better; logarithmic; medians; × did not converge";
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"bold\">vmferry and QEMU's own migrations</text>\n\
         <text x=\"{:.0}\" y=\"26\" text-anchor=\"end\" fill=\"#666666\">{machine}</text>",
        LEFT + PANEL_WIDTH
    );
    let is_measured = |mode: &Mode| results.runs.iter().any(|run| run.mode == *mode);
    let modes: Vec<Mode> = Mode::ALL.into_iter().filter(is_measured).collect();
    let step = (PANEL_WIDTH / modes.len().max(1) as f64).min(150.0);
    for (mode, number) in modes.into_iter().zip(0..) {
        let x = LEFT + f64::from(number) * step;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"40\" width=\"13\" height=\"13\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"51\">{}</text>",
            colour(mode),
            x + 19.0,
            mode.name()
        );
    }
}

/// A logarithmic axis.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(results: &Results, row: &Row) -> Self {
        let values: Vec<f64> = results
            .cases()
            .into_iter()
            .flat_map(|(workload, link)| Mode::ALL.into_iter().map(move |mode| (workload, link, mode)))
            .filter_map(|(workload, link, mode)| Some((row.figure)(&results.cell(workload, link, mode)?.figures?)))
            .filter(|value| *value > 0.0)
            .collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min).min(1e6);
        let high = values.iter().copied().fold(0.0, f64::max).max(low * 2.0);
        // The shortest bar keeps a visible height.
        Self {
            low: low / 1.6,
            high: high * 1.25,
        }
    }

    /// Height above the panel's floor.
    fn height(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        part.clamp(0.0, 1.0) * PANEL_HEIGHT
    }

    /// 1, 2 and 5 of each decade.
    fn marks(&self) -> Vec<f64> {
        (-3..7)
            .flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)))
            .filter(|mark| (self.low..=self.high).contains(mark))
            .collect()
    }
}

fn panel(svg: &mut String, results: &Results, row: &Row, (x, y): (f64, f64)) {
    let scale = Scale::of(results, row);
    let floor = y + PANEL_HEIGHT;
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        y - 8.0,
        row.title,
    );
    for mark in scale.marks() {
        let at = floor - scale.height(mark);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666666\" font-size=\"11\">{mark}</text>",
            x + PANEL_WIDTH,
            x - 6.0,
            at + 4.0,
        );
    }
    let cases = results.cases();
    let group_width = PANEL_WIDTH / cases.len().max(1) as f64;
    for (case, number) in cases.into_iter().zip(0..) {
        let left = x + f64::from(number) * group_width;
        let (within, width) = (left + GROUP_MARGIN, group_width - 2.0 * GROUP_MARGIN);
        group(svg, results, row, case, &scale, (within, floor, width));
        let centre = left + group_width / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{centre:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{centre:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">{}</text>",
            floor + 16.0,
            case.0.name(),
            floor + 30.0,
            case.1,
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{x}\" x2=\"{}\" y1=\"{floor}\" y2=\"{floor}\" stroke=\"#333333\"/>",
        x + PANEL_WIDTH
    );
}

/// The bars of one case.
fn group(
    svg: &mut String,
    results: &Results,
    row: &Row,
    (workload, link): (Workload, Link),
    scale: &Scale,
    (left, floor, width): (f64, f64, f64),
) {
    let cells = Mode::ALL
        .into_iter()
        .filter_map(|mode| Some((mode, results.cell(workload, link, mode)?)));
    let cells: Vec<_> = cells.collect();
    let bar_width = width / cells.len().max(1) as f64;
    for ((mode, cell), number) in cells.into_iter().zip(0..) {
        let x = left + f64::from(number) * bar_width;
        match cell.figures {
            Some(figures) => {
                let value = (row.figure)(&figures);
                let height = scale.height(value).max(1.0);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\">\
                     <title>{}: {value:.3}</title></rect>",
                    floor - height,
                    bar_width - 1.5,
                    colour(mode),
                    mode.name()
                );
            }
            None => {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#b3261e\">×\
                     <title>{}: did not converge</title></text>",
                    x + (bar_width - 1.5) / 2.0,
                    floor - 4.0,
                    mode.name()
                );
            }
        }
    }
}
