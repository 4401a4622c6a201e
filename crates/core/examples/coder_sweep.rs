//! Draws a part of the sweep: links against processors, one kind of page.
//!
//! ```text
//! cargo run --release -p vmferry-core --example coder_sweep -- "whole guest" > docs/coder-sweep.svg
//! ```
//!
//! Each field has the colour and the name of the fixed coder that is best there, and how the choice compares with it: its time
//! over that coder's.

use std::{error::Error, fmt::Write};
use vmferry_core::page::{
    Coders,
    choice::{
        mixes::mixes,
        sweep::{CORES, LINKS_MBIT_S, Place, Point},
    },
};

/// Sizes, in the SVG's units.
const WIDTH: usize = 66;
const HEIGHT: usize = 40;
const LEFT: usize = 70;
const TOP: usize = 40;

/// By coder: light ones cold, dense ones warm.
const COLOURS: [&str; 6] = ["#c6dbef", "#9ecae1", "#c7e9c0", "#fdd0a2", "#fdae6b", "#fc9272"];

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "whole guest".to_owned());
    let mixes = mixes();
    let known = || mixes.iter().map(|mix| mix.name.as_str()).collect::<Vec<_>>().join("; ");
    let mix = mixes.iter().find(|mix| mix.name == name);
    let mix = mix.ok_or_else(|| format!("no such pages; there are: {}", known()))?;
    let names: Vec<String> = Coders::auto().iter().map(ToString::to_string).collect();
    let (right, bottom) = (LEFT + LINKS_MBIT_S.len() * WIDTH, TOP + CORES.len() * HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"11\" \
         text-anchor=\"middle\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"18\" font-size=\"14\">{name}: the best fixed coder, and the choice's time over its</text>\n",
        right + 10,
        bottom + 40,
        right / 2
    );
    for (row, cores) in CORES.into_iter().enumerate() {
        let y = TOP + row * HEIGHT;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\">{cores} cores</text>",
            LEFT / 2,
            y + HEIGHT / 2 + 4
        )?;
        for (column, link) in LINKS_MBIT_S.into_iter().enumerate() {
            let place = Place {
                link_mbit_s: link,
                cores: [cores, cores],
                shared: false,
                slowness: 1.0,
            };
            let point = Point::run(place, mix, 1);
            let (best, _) = point.best();
            let x = LEFT + column * WIDTH;
            let middle = x + WIDTH / 2;
            writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"{}\" stroke=\"white\"/>\
                 <text x=\"{middle}\" y=\"{}\">{}</text><text x=\"{middle}\" y=\"{}\">{:.3}</text>",
                COLOURS[best],
                y + 16,
                names[best],
                y + 32,
                point.regret()
            )?;
        }
    }
    for (column, link) in LINKS_MBIT_S.into_iter().enumerate() {
        let x = LEFT + column * WIDTH + WIDTH / 2;
        writeln!(svg, "<text x=\"{x}\" y=\"{}\">{link}</text>", bottom + 16)?;
    }
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\">link, Mb/s</text>\n</svg>",
        (LEFT + right) / 2,
        bottom + 32
    )?;
    print!("{svg}");
    Ok(())
}
