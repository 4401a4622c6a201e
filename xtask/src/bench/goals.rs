//! What vmferry is to reach beside QEMU's best mode, and whether it does.

use std::fmt::Write;

use super::mode::Mode;
use super::plan::{Link, Workload};
use super::rate::Search;
use super::results::{Cell, Figures, Results};

/// The highest ratios to QEMU's best mode of a case.
struct Goal {
    workload: Workload,
    link: Link,
    mode: Mode,
    bytes: f64,
    time: f64,
    cpu: Option<f64>,
}

const fn goal(workload: Workload, link: Link, bytes: f64, time: f64, cpu: Option<f64>) -> Goal {
    Goal {
        workload,
        link,
        mode: Mode::Vmferry,
        bytes,
        time,
        cpu,
    }
}

const GOALS: [Goal; 8] = [
    goal(Workload::Mixed, Link::SLOW, 0.40, 0.45, Some(1.0)),
    goal(Workload::Mixed, Link::FAST, 0.40, 0.65, Some(1.0)),
    goal(Workload::Counter, Link::SLOW, 0.40, 0.45, Some(1.0)),
    goal(Workload::Text, Link::SLOW, 0.60, 0.60, Some(1.0)),
    goal(Workload::Random, Link::SLOW, 1.01, 1.05, Some(1.1)),
    goal(Workload::Random, Link::FAST, 1.01, 1.05, Some(1.1)),
    goal(Workload::Return, Link::SLOW, 0.10, 0.25, None),
    Goal {
        mode: Mode::VmferryRaw,
        ..goal(Workload::Mixed, Link::UNLIMITED, 1.0, 1.1, Some(1.2))
    },
];

/// The dirty rates that converge, as multiples of multifd-zstd's.
const RATE_GOALS: [(Workload, f64); 2] = [(Workload::Counter, 3.0), (Workload::Text, 1.5)];

/// What an agent may have in memory beside a part of the guest's.
const AGENT_MB: f64 = 256.0 * 1.048_576;
/// The part of the guest's memory that the source's agent may have, too.
const SOURCE_PART: f64 = 0.125;

/// All goals as a chapter of the results.
pub(crate) fn render(results: &Results) -> String {
    let mut text = String::from(
        "## Goals\n\n\
         Each figure is vmferry's median divided by that of QEMU's best mode: of plain, xbzrle and multifd-zstd the one \
         that takes the least time among those that converge.\n\n\
         | workload | link | mode | QEMU's best | bytes | time | CPU | blackout ms (QEMU's best) | source agent MB | \
         target agent MB |\n\
         |---|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for goal in &GOALS {
        text.push_str(&match results.cell(goal.workload, goal.link, goal.mode) {
            Some(cell) => row(results, goal, &cell),
            None => format!(
                "| {} | {} | {} | not measured | - | - | - | - | - | - |\n",
                goal.workload.name(),
                goal.link,
                goal.mode.name()
            ),
        });
    }
    text.push('\n');
    text.push_str(&rates(&results.rates));
    text
}

fn row(results: &Results, goal: &Goal, cell: &Cell) -> String {
    let best = results.best_of_qemu(goal.workload, goal.link);
    let case = format!(
        "| {} | {} | {} | {} |",
        goal.workload.name(),
        goal.link,
        goal.mode.name(),
        best.as_ref().map_or("none converges", |(mode, _)| mode.name()),
    );
    let Some(ours) = cell.figures.filter(|_| cell.completed == cell.runs) else {
        let completed = format!("{} of {} arrived {}", cell.completed, cell.runs, verdict(false));
        return format!("{case} {completed} | - | - | - | - | - |\n");
    };
    let ratio = |figure: fn(&Figures) -> f64, bound: Option<f64>| {
        let Some((_, theirs)) = &best else {
            return "-".to_owned();
        };
        let ratio = figure(&ours) / figure(theirs);
        bound.map_or(format!("{ratio:.2}"), |bound| {
            format!("{ratio:.2} {} (≤ {bound:.2})", verdict(ratio <= bound))
        })
    };
    let blackout = best.as_ref().map_or("-".to_owned(), |(_, theirs)| {
        let (ours, theirs) = (ours.blackout_ms.median, theirs.blackout_ms.median);
        format!("{ours:.0} {} (≤ {theirs:.0})", verdict(ours <= theirs))
    });
    let memory = |mb: f64, bound: f64| format!("{mb:.0} {} (≤ {bound:.0})", verdict(mb <= bound));
    let guest_mb = f64::from(goal.workload.memory_mib()) * 1.048_576;
    format!(
        "{case} {} | {} | {} | {blackout} | {} | {} |\n",
        ratio(|figures| figures.bytes.median, Some(goal.bytes)),
        ratio(|figures| figures.total_ms.median, Some(goal.time)),
        ratio(|figures| figures.cpu_s.median, goal.cpu),
        memory(ours.source_agent_mb.median, guest_mb * SOURCE_PART + AGENT_MB),
        // The index of disks is in it and may be beyond that: nothing tells its size.
        memory(ours.target_agent_mb.median, AGENT_MB),
    )
}

fn rates(searches: &[Search]) -> String {
    if searches.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "The highest dirty rate at which the guest still arrives, found by bisection: pages written a second as the \
         guest counts them, the highest of a move that converged and the lowest of one that did not.\n\n\
         | written | mode | converges MB/s | does not MB/s | × multifd-zstd | moves |\n\
         |---|---|---:|---:|---:|---:|\n",
    );
    for search in searches {
        let multifd = searches
            .iter()
            .find(|other| other.workload == search.workload && other.mode == Mode::MultifdZstd)
            .and_then(Search::converges);
        let rate = search.converges();
        let mb = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.1}", rate / 1e6));
        let ratio = rate.zip(multifd).map(|(rate, multifd)| rate / multifd);
        let bound = RATE_GOALS.iter().find(|(workload, _)| *workload == search.workload);
        let ratio = match (ratio, bound) {
            (Some(ratio), Some((_, bound))) if search.mode == Mode::Vmferry => {
                format!("{ratio:.2} {} (≥ {bound:.1})", verdict(ratio >= *bound))
            }
            (Some(ratio), _) => format!("{ratio:.2}"),
            (None, _) => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {ratio} | {} |",
            search.workload.name(),
            search.mode.name(),
            mb(rate),
            mb(search.does_not_converge()),
            search.tries.len(),
        );
    }
    text.push('\n');
    text
}

fn verdict(met: bool) -> &'static str {
    if met { "✓" } else { "✗" }
}
