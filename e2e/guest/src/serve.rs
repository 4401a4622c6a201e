//! The server: one thread a connection, one request a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use serde_json::json;

use crate::requests::Workloads;

/// The port of the line protocol.
const PORT: u16 = 7000;
/// Longest request line, bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Serves until the machine goes down.
pub(crate) fn run() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listening on port 7000")?;
    let workloads = Arc::new(Workloads::start());
    println!("vmferry-guest ready");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let workloads = Arc::clone(&workloads);
        thread::spawn(move || {
            if let Err(error) = answer_lines(stream, &workloads) {
                eprintln!("vmferry-guest: connection: {error}");
            }
        });
    }
    Ok(())
}

fn answer_lines(stream: TcpStream, workloads: &Workloads) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut answer = match workloads.answer(&words) {
            Ok(value) => value,
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        answer["ok"] = json!(answer.get("error").is_none());
        let mut text = answer.to_string();
        text.push('\n');
        writer.write_all(text.as_bytes())?;
    }
}
