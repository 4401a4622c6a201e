//! `RESULTS.md`: what was measured, as tables.

use std::fmt::Write;

use super::goals;
use super::mode::Mode;
use super::plan::{CASES, DOWNTIME_MAX, Link, TOO_SLOW, Workload};
use super::results::{Cell, Figures, Results, Spread};

/// The whole document.
pub(crate) fn render(results: &Results) -> String {
    let mut text = introduction(results);
    text.push_str(&goals::render(results));
    for (workload, link) in results.cases() {
        text.push_str(&table(results, workload, link));
    }
    text
}

fn introduction(results: &Results) -> String {
    let machine = &results.machine;
    let background: Vec<String> = results
        .background
        .iter()
        .map(|background| {
            format!(
                "{} {:.2}",
                background.workload.name(),
                background.bytes_per_s as f64 / 1e6
            )
        })
        .collect();
    let mut text = format!(
        "# Benchmark\n\n\
         `cargo xtask bench` wrote this file, `results.json` (every run) and `results.svg`.\n\n\
         ![Bytes, time and blackout by workload and mode](results.svg)\n\n\
         Machine: {cpu}, {cores} cores, {memory} MiB, Linux {kernel}; QEMU {qemu}, guests under {accel}. \
         Both hosts share its cores, so a run that keeps them busy measures them and not the link: compare modes within \
         a table, not with other machines.\n\n\
         - **MB** what both hosts sent over the link, with Ethernet headers; with the ticks and the workload's own \
           traffic, which without any migration are, in MB/s: {background}.\n\
         - **time** from the command, with no QEMU on the target yet, to the guest running there; **start** is the part \
           until the target's QEMU awaits the guest.\n\
         - **blackout** the longest silence that a client sees between the guest's ticks, sent every millisecond.\n\
         - **CPU** of all processes on both hosts: QEMUs and agents, from the start of the target's QEMU on. The vCPU \
           threads are left out: under {accel} the guest's own work would outweigh all else.\n\
         - **agents** peak of the resident memory of the source's agent and of the target's; **memory** the peak of all \
           processes together, both copies of the guest included.\n\
         - **rounds** passes over memory.\n\
         - **×** divided by QEMU's best mode: the one that takes the least time among those that converge.\n\n\
         Medians of the runs that completed, with the least and the greatest. Every mode may pause the guest for \
         {downtime} ms, uses all of the link and throttles no vCPU. xbzrle's cache is as large as the guest; multifd-zstd \
         has a connection a processor and level 1. A migration has not converged that takes longer than all of the \
         guest's memory needs at the link's rate, or {fast} s if that is less. Each guest was moved there and back before \
         anything was counted, and before each move the target's agent is a new one that knows nothing of the guest, \
         except on the way back of `return`. A virtual machine gives memory that it left unused back to its host, and has to \
         wait for it when it is next used: so that no mode pays for that, as much memory as a move takes is used and freed just \
         before it.\n\n\
         Not every mode is measured everywhere, for the time it would take: LZ4 only where the processor is the \
         bottleneck, LZ78 not at all, raw pages only where no link limits them. A mode of QEMU that takes more than \
         {slow} times as long as its best is measured once.\n\n",
        cpu = machine.cpu,
        cores = machine.cores,
        memory = machine.memory_mib,
        kernel = machine.kernel,
        qemu = machine.qemu,
        accel = machine.accel.to_uppercase(),
        background = background.join(", "),
        downtime = DOWNTIME_MAX.as_millis(),
        fast = Workload::Idle.time_max(Link::UNLIMITED).as_secs(),
        slow = TOO_SLOW,
    );
    text.push_str("| workload | what the guest holds and does |\n|---|---|\n");
    let mut workloads: Vec<Workload> = CASES.iter().map(|case| case.workload).collect();
    workloads.dedup();
    for workload in workloads {
        let _ = writeln!(text, "| {} | {} |", workload.name(), workload.description());
    }
    text.push_str("\nGuests have 512 MiB where nothing else is said.\n\n");
    text
}

fn table(results: &Results, workload: Workload, link: Link) -> String {
    let best = results.best_of_qemu(workload, link);
    let mut text = format!(
        "## {}, {link}\n\n\
         | mode | MB | × | time s | × | start s | blackout ms | CPU s | × | agents MB | memory MB | rounds | \
         completed |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        workload.name(),
    );
    for mode in Mode::ALL {
        let Some(Cell {
            runs,
            completed,
            figures,
        }) = results.cell(workload, link, mode)
        else {
            continue;
        };
        let row = figures.map_or("- | - | - | - | - | - | - | - | - | - | -".to_owned(), |figures| {
            columns(&figures, best.as_ref().map(|(_, figures)| figures))
        });
        let _ = writeln!(text, "| {} | {row} | {completed} of {runs} |", mode.name());
    }
    text.push('\n');
    text
}

fn columns(figures: &Figures, best: Option<&Figures>) -> String {
    let ratio = |figure: fn(&Figures) -> f64| {
        best.map_or("-".to_owned(), |best| format!("{:.2}", figure(figures) / figure(best)))
    };
    let agents = if figures.source_agent_mb.median > 0.0 {
        format!(
            "{:.0}, {:.0}",
            figures.source_agent_mb.median, figures.target_agent_mb.median
        )
    } else {
        "-".to_owned()
    };
    format!(
        "{} | {} | {} | {} | {:.2} | {} | {} | {} | {agents} | {:.0} | {:.0}",
        spread(figures.bytes, 1e6, 1),
        ratio(|figures| figures.bytes.median),
        spread(figures.total_ms, 1e3, 2),
        ratio(|figures| figures.total_ms.median),
        figures.reserve_ms.median / 1e3,
        spread(figures.blackout_ms, 1.0, 0),
        spread(figures.cpu_s, 1.0, 2),
        ratio(|figures| figures.cpu_s.median),
        figures.rss_mb.median,
        figures.rounds.median,
    )
}

/// The median, and in parentheses from where to where.
fn spread(spread: Spread, unit: f64, digits: usize) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(|value| format!("{:.digits$}", value / unit));
    if min == max {
        median
    } else {
        format!("{median} ({min}..{max})")
    }
}
