//! A short campaign, with every kind of fault once.

use anyhow::Result;

use super::carry_out;
use super::plan::Fault;

/// The seed of the campaign that every test run carries out.
const SEED: u32 = 1;

#[test]
fn a_guest_loses_nothing_whatever_fails_while_it_is_moved() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults");
    std::fs::create_dir_all(folder)?;
    let mut runs = Vec::new();
    carry_out(SEED, 0..Fault::ALL.len() as u32, folder.as_ref(), &mut runs)?;
    assert_eq!(runs.len(), Fault::ALL.len());
    Ok(())
}
