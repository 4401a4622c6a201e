//! A short campaign, with every kind of fault on one side or the other.

use std::sync::Mutex;

use anyhow::Result;

use super::{carry_out, sorted};

/// A campaign's seed, and those of its runs that every test carries out: none that takes long.
const SEED: u32 = 1;
const NUMBERS: [u32; 11] = [1, 4, 9, 13, 14, 16, 21, 33, 34, 44, 58];

#[test]
fn a_guest_loses_nothing_whatever_fails_while_it_is_moved() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults");
    std::fs::create_dir_all(folder)?;
    let runs = Mutex::default();
    carry_out(SEED, NUMBERS, 1, folder.as_ref(), &runs)?;
    assert_eq!(sorted(&runs).len(), NUMBERS.len());
    Ok(())
}
