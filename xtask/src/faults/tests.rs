//! A short campaign, with every kind of fault on one side or the other.

use anyhow::Result;

use super::carry_out;

/// A campaign's seed, and those of its runs that every test carries out: none that takes long.
const SEED: u32 = 1;
const NUMBERS: [u32; 10] = [1, 2, 7, 8, 9, 10, 11, 13, 14, 16];

#[test]
fn a_guest_loses_nothing_whatever_fails_while_it_is_moved() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults");
    std::fs::create_dir_all(folder)?;
    let mut runs = Vec::new();
    carry_out(SEED, NUMBERS, folder.as_ref(), &mut runs)?;
    assert_eq!(runs.len(), NUMBERS.len());
    Ok(())
}
