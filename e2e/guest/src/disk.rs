//! Acknowledged writes to a mounted disk, their check, and reads that fill the page cache.
//!
//! A record is [`RECORD_BYTES`] long: its sequence number from 0, and a checksum of that number and
//! its own place, so that a record lost, written twice or torn shows in [`check`].

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::pages::mix;

const RECORD_BYTES: usize = 64;

fn record(sequence: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0u8; RECORD_BYTES];
    for (slot, word) in record.chunks_exact_mut(8).zip(0u64..) {
        let value = if word == 0 {
            sequence
        } else {
            mix(sequence ^ (word << 56))
        };
        slot.copy_from_slice(&value.to_le_bytes());
    }
    record
}

/// Appends `records` records, each synced to the disk before the next, and answers how many the
/// file then holds.
pub(crate) fn write(path: &Path, records: u64) -> Result<Value> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let length = file.metadata()?.len();
    if length % RECORD_BYTES as u64 != 0 {
        bail!("{} ends within a record", path.display());
    }
    let first = length / RECORD_BYTES as u64;
    let end = first.saturating_add(records);
    for sequence in first..end {
        file.write_all(&record(sequence))?;
        file.sync_all()?;
    }
    Ok(json!({ "acknowledged": end }))
}

/// Reads the file back from the disk, past the page cache, and checks every record.
pub(crate) fn check(path: &Path) -> Result<Value> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")?;
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let count = length / RECORD_BYTES as u64;
    for sequence in 0..count {
        let mut read = [0u8; RECORD_BYTES];
        reader.read_exact(&mut read)?;
        if read != record(sequence) {
            bail!("{}: record {sequence} is wrong", path.display());
        }
    }
    if length % RECORD_BYTES as u64 != 0 {
        bail!("{} ends within a record", path.display());
    }
    Ok(json!({ "records": count }))
}

/// Reads every file under `folder`, which leaves their content in the page cache.
pub(crate) fn read_all(folder: &Path) -> Result<Value> {
    let mut pending = vec![folder.to_owned()];
    let mut buffer = vec![0u8; 256 * 1024];
    let (mut files, mut bytes) = (0u64, 0u64);
    while let Some(folder) = pending.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let mut file = File::open(entry.path())?;
                files += 1;
                loop {
                    let read = file.read(&mut buffer)?;
                    if read == 0 {
                        break;
                    }
                    bytes += read as u64;
                }
            }
        }
    }
    Ok(json!({ "files": files, "bytes": bytes }))
}
