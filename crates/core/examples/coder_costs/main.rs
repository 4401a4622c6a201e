//! Measures what every coder of [`Coders::auto`] costs and saves on pages of several kinds, and prints the table that the
//! choice starts from and that its simulation uses (`src/page/choice/recorded.json`).
//!
//! ```text
//! pages:    any file of 4 KiB pages, or a captured stream: (QMP) migrate uri=exec:cat>capture.bin
//! run:      cargo run --release -p vmferry-core --example coder_costs -- MACHINE NAME=FILE...
//! ```
//!
//! A file of pages is sent as it is, and then again with a few words of each page changed, as `NAME, changed`. Every coder
//! runs over everything three times on one lane; the least counts. Times are processor time.

#![expect(
    clippy::disallowed_methods,
    reason = "it reads files and measures; only the library must not"
)]

mod pages;
mod run;

use pages::Subject;
use run::measure;
use std::error::Error;
use vmferry_core::page::{
    Coders,
    choice::recorded::{Pages, Recorded},
};

/// Of which the fastest counts: others share the machine.
const RUNS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let machine = arguments.next().ok_or("usage: coder_costs MACHINE NAME=FILE...")?;
    let mut recorded = Recorded {
        machine,
        source_ns_per_byte: f64::INFINITY,
        target_ns_per_byte: f64::INFINITY,
        pages: Vec::new(),
    };
    for argument in arguments {
        let (name, path) = argument.split_once('=').ok_or("give files as NAME=FILE")?;
        for subject in Subject::of(name, &std::fs::read(path)?) {
            let mut pages = Pages {
                name: subject.name.clone(),
                content: 0.0,
                coders: Vec::new(),
            };
            for number in 0..Coders::auto().len() as u8 {
                let best = measure(&subject, number, RUNS)?;
                recorded.source_ns_per_byte = recorded.source_ns_per_byte.min(best.source_ns_per_byte);
                recorded.target_ns_per_byte = recorded.target_ns_per_byte.min(best.target_ns_per_byte);
                pages.content = best.content;
                eprintln!(
                    "{:<20} coder {number}: {:>7.3} ns/B to encode, {:>6.3} to decode, {:.4} of the size",
                    pages.name, best.cost.encode_ns_per_byte, best.cost.decode_ns_per_byte, best.cost.ratio
                );
                pages.coders.push(best.cost);
            }
            recorded.pages.push(pages);
        }
    }
    println!("{}", serde_json::to_string_pretty(&recorded)?);
    Ok(())
}
