//! A guest that writes faster than the link carries.

use anyhow::Result;
use vmferry_e2e::migration::reasons;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

#[test]
fn a_guest_that_does_not_converge_stays_and_both_rates_are_said() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("dirty random 25165824 50331648")?;
    lab.set_rate(Host::A, Some(80))?;
    let target = address(Host::B);
    let answer = scenario.a.cli([
        "migrate",
        "web",
        "--to",
        &target,
        "--timeout",
        "8s",
        "--max-downtime",
        "100ms",
    ])?;
    assert_eq!(answer.code, Some(5), "{answer:?}");
    let report = &answer.values[0];
    assert_eq!(report["outcome"], "not-converged", "{report:#}");
    let reason = reasons(report).concat();
    // QEMU counts a page once a round, however often it was written.
    let (dirties, carries) = (
        rate_after(&reason, "it dirties "),
        rate_after(&reason, "the link carries "),
    );
    assert!(dirties.is_some_and(|rate| rate > 1.0), "{reason}");
    assert!(
        carries.is_some_and(|rate| rate > 1.0 && rate < 10.5),
        "80 Mbit/s are 10 MB/s: {reason}"
    );
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)?;

    // As soon as it writes less, it can go.
    guest.ask("stop-dirty")?;
    lab.set_rate(Host::A, None)?;
    scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)
}

/// The MB/s that stand after `words` in `sentence`.
fn rate_after(sentence: &str, words: &str) -> Option<f64> {
    let (_, rest) = sentence.split_once(words)?;
    rest.split_once(" MB/s")?.0.parse().ok()
}
