//! What came of all runs, as tables.

use std::fmt::Write;

use super::campaign::{Outcome, Run};
use super::plan::{Fault, Step};

/// Outcomes and silences by fault, outcomes by step, and the command that they come from.
pub(crate) fn render(seed: u32, pairs: u32, runs: &[Run]) -> String {
    let late = runs.iter().filter(|run| is_late(run)).count();
    let mut text = format!(
        "`cargo xtask faults --runs {} --seed {seed} --pairs {pairs}`: {} runs without a violation, {:.1} s each on\naverage. In {late} of \
         them the fault came too late: the migration had ended, or what was to fail was not there.\n\n",
        runs.len(),
        runs.len(),
        runs.iter().map(|run| run.took_s).sum::<f64>() / runs.len().max(1) as f64,
    );
    text.push_str(&by_fault(runs));
    text.push('\n');
    text.push_str(&by_step(runs));
    text
}

fn is_late(run: &Run) -> bool {
    !run.carried_out && run.plan.fault != Fault::None
}

fn by_fault(runs: &[Run]) -> String {
    let mut text = "| what failed | runs | too late | moved | stayed | lost | silence ms: median | 90 % | longest |\n\
                    |---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for fault in Fault::ALL {
        let of: Vec<&Run> = runs.iter().filter(|run| run.plan.fault == fault).collect();
        row(&mut text, fault.name(), &of);
    }
    for (name, arbiter) in [("all without an arbiter", false), ("all with etcd", true)] {
        let of = runs.iter().filter(|run| run.plan.arbiter == arbiter);
        row(&mut text, name, &of.collect::<Vec<_>>());
    }
    row(&mut text, "all", &runs.iter().collect::<Vec<_>>());
    text
}

fn row(text: &mut String, name: &str, runs: &[&Run]) {
    if runs.is_empty() {
        return;
    }
    let late = runs.iter().filter(|run| is_late(run)).count();
    let _ = write!(text, "| {name} | {} | {late}", runs.len());
    for outcome in Outcome::ALL {
        let _ = write!(text, " | {}", count(runs, outcome));
    }
    let mut silences: Vec<f64> = runs.iter().filter_map(|run| run.silence_ms).collect();
    silences.sort_unstable_by(f64::total_cmp);
    for part in [0.5, 0.9, 1.0] {
        let silence = quantile(&silences, part).map_or("-".to_owned(), |silence| format!("{silence:.0}"));
        let _ = write!(text, " | {silence}");
    }
    text.push_str(" |\n");
}

fn by_step(runs: &[Run]) -> String {
    let mut text = "| at | runs with a fault | moved | stayed | lost |\n|---|---:|---:|---:|---:|\n".to_owned();
    for step in Step::ALL {
        let of = runs.iter().filter(|run| run.plan.step == step && run.carried_out);
        let of: Vec<&Run> = of.collect();
        let _ = write!(text, "| {} | {}", step.name(), of.len());
        for outcome in Outcome::ALL {
            let _ = write!(text, " | {}", count(&of, outcome));
        }
        text.push_str(" |\n");
    }
    text
}

/// How many of the runs came to this.
pub(crate) fn count(runs: &[&Run], outcome: Outcome) -> usize {
    runs.iter().filter(|run| run.outcome == outcome).count()
}

/// The least value that so large a part of the sorted values does not exceed.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&values, 0.5), Some(2.0));
        assert_eq!(quantile(&values, 0.9), Some(4.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
