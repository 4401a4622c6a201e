//! A line for each capture: memory for versions against the bytes of pages that are sent again.

use std::fmt::Write;

const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 66.0;
const RIGHT: f64 = 110.0;
const BOTTOM: f64 = 54.0;
/// Told apart also without colour, by their lightness.
const COLOURS: [&str; 6] = ["#0b4f9e", "#e0832f", "#4f8fd6", "#948d84", "#a9cbee", "#333333"];

/// One capture.
pub(crate) struct Curve {
    pub(crate) name: String,
    /// By budget.
    pub(crate) bytes: Vec<u64>,
}

/// The whole picture.
pub(crate) fn render(budgets: &[f64], curves: &[Curve]) -> String {
    let (width, height) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
    let floor = TOP + HEIGHT;
    let x = |number: usize| LEFT + WIDTH * number as f64 / (budgets.len().max(2) - 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#333333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"bold\">Memory for versions, and pages sent again</text>\n\
         <text x=\"{LEFT}\" y=\"48\">bytes on the wire after the first round, % of those without any memory</text>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">memory for versions, % of the guest's</text>\n",
        LEFT + WIDTH / 2.0,
        floor + 42.0
    );
    for mark in [0, 25, 50, 75, 100] {
        let at = floor - HEIGHT * f64::from(mark) / 100.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#666666\" font-size=\"11\">{mark}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (number, budget) in budgets.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{budget}</text>",
            x(number),
            floor + 18.0
        );
    }
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let most = curve.bytes.first().copied().unwrap_or_default().max(1) as f64;
        let heights = curve.bytes.iter().map(|bytes| floor - HEIGHT * *bytes as f64 / most);
        let points: Vec<String> = heights
            .enumerate()
            .map(|(number, y)| format!("{:.1},{y:.1}", x(number)))
            .collect();
        let key = TOP + 20.0 * number as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <rect x=\"{}\" y=\"{key}\" width=\"13\" height=\"13\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            points.join(" "),
            LEFT + WIDTH + 16.0,
            LEFT + WIDTH + 35.0,
            key + 11.0,
            curve.name
        );
    }
    svg.push_str("</svg>\n");
    svg
}
