//! Standard output. Not by `println!`, which panics where the reader has gone.

use std::io::{self, Write};

use serde::Serialize;

/// Prints a value as JSON or as text, on a line of its own.
///
/// # Errors
/// The system's; a broken pipe where the reader has gone.
pub fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
    match json {
        true => print_json(value),
        false => print_text(&(text(value) + "\n")),
    }
}

/// Prints a value as a line of JSON.
///
/// # Errors
/// As for [`print()`].
pub fn print_json<T: Serialize>(value: &T) -> io::Result<()> {
    print_text(&(serde_json::to_string(value)? + "\n"))
}

/// Prints text that has its line ends.
///
/// # Errors
/// As for [`print()`].
pub fn print_text(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}
