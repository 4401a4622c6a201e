//! `RESULTS.md`: what was measured, as tables.

use std::fmt::Write;

use super::plan::{DOWNTIME_MAX, LINKS_MBIT, Mode, Workload, time_max};
use super::results::{Cell, Figures, Results};

/// The whole document.
pub(crate) fn render(results: &Results) -> String {
    let mut text = introduction(results);
    text.push_str(&criteria(results));
    for link_mbit in LINKS_MBIT {
        for workload in Workload::ALL {
            text.push_str(&table(results, workload, link_mbit));
        }
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
    format!(
        "# Benchmark\n\n\
         `cargo xtask bench` wrote this file, `results.json` (every run) and `results.svg`.\n\n\
         ![Bytes, time and blackout by workload and mode](results.svg)\n\n\
         Machine: {cpu}, {cores} cores, {memory} MiB, Linux {kernel}; QEMU {qemu}, guests of {guest} MiB under {accel}. \
         Both hosts share its cores, so a run that keeps them busy measures them and not the link: compare modes within \
         a table, not with other machines.\n\n\
         - **MB** what both hosts sent over the link, with Ethernet headers; with the ticks and the workload's own \
           traffic, which without any migration are, in MB/s: {background}.\n\
         - **time** from the command, with no QEMU on the target yet, to the guest running there; **start** is the part \
           until the target's QEMU awaits the guest.\n\
         - **blackout** the longest silence that a client sees between the guest's ticks, sent every millisecond.\n\
         - **CPU** of all processes on both hosts: QEMUs and agents, from the start of the target's QEMU on. The vCPU \
           threads are left out: under {accel} the guest's own work would outweigh all else.\n\
         - **memory** peak of the resident memory of all those processes, both copies of the guest included; in \
           parentheses vmferry's own part.\n\
         - **rounds** passes over memory.\n\n\
         Every mode may pause the guest for {downtime} ms and uses all of the link. xbzrle's cache is as large as the \
         guest; multifd-zstd has a connection a processor and level 1. A migration that takes longer than {fast} s at 1 Gb/s or \
         {slow} s at 100 Mb/s has not converged. Each guest was moved there and back before anything was counted. Medians of \
         the runs that completed.\n\n",
        cpu = machine.cpu,
        cores = machine.cores,
        memory = machine.memory_mib,
        kernel = machine.kernel,
        qemu = machine.qemu,
        guest = machine.guest_memory_mib,
        accel = machine.accel.to_uppercase(),
        background = background.join(", "),
        downtime = DOWNTIME_MAX.as_millis(),
        fast = time_max(1000).as_secs(),
        slow = time_max(100).as_secs(),
    )
}

/// vmferry's default against what it set out to reach.
fn criteria(results: &Results) -> String {
    let mut text = String::from(
        "## Goals\n\n\
         vmferry's default against QEMU's multifd-zstd, and its blackout against QEMU's plain migration.\n\n\
         | workload | link | bytes ≤ 1.0 × | time ≤ 1.1 × | CPU ≤ 1.5 × | blackout ≤ plain + 50 ms |\n\
         |---|---|---:|---:|---:|---:|\n",
    );
    for workload in [Workload::PageCache, Workload::Redis] {
        for link_mbit in LINKS_MBIT {
            let figures = |mode| results.cell(workload, link_mbit, mode).and_then(|cell| cell.figures);
            let Some(ours) = figures(Mode::Vmferry) else { continue };
            let (multifd, plain) = (figures(Mode::MultifdZstd), figures(Mode::Plain));
            let ratio = |figure: fn(&Figures) -> f64, bound: f64| {
                let Some(theirs) = &multifd else { return "-".to_owned() };
                let ratio = figure(&ours) / figure(theirs);
                format!("{ratio:.2} × {}", verdict(ratio <= bound))
            };
            let blackout = plain.map_or("-".to_owned(), |plain| {
                let longer = ours.blackout_ms - plain.blackout_ms;
                format!("{longer:+.0} ms {}", verdict(longer <= 50.0))
            });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {blackout} |",
                workload.name(),
                rate(link_mbit),
                ratio(|figures| figures.bytes, 1.0),
                ratio(|figures| figures.total_ms, 1.1),
                ratio(|figures| figures.cpu_s, 1.5),
            );
        }
    }
    text.push('\n');
    text
}

fn verdict(reached: bool) -> &'static str {
    if reached { "✓" } else { "✗" }
}

/// "1 Gb/s", "100 Mb/s".
pub(crate) fn rate(link_mbit: u32) -> String {
    if link_mbit.is_multiple_of(1000) {
        format!("{} Gb/s", link_mbit / 1000)
    } else {
        format!("{link_mbit} Mb/s")
    }
}

fn table(results: &Results, workload: Workload, link_mbit: u32) -> String {
    let rows: Vec<(Mode, Cell)> = Mode::ALL
        .into_iter()
        .filter_map(|mode| Some((mode, results.cell(workload, link_mbit, mode)?)))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let multifd = rows
        .iter()
        .find(|(mode, _)| *mode == Mode::MultifdZstd)
        .and_then(|(_, cell)| cell.figures);
    let mut text = format!(
        "## {}, {}\n\n\
         | mode | MB | × multifd | time s | × multifd | start s | blackout ms | CPU s | × multifd | memory MB | rounds | \
         completed |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        workload.name(),
        rate(link_mbit)
    );
    for (mode, cell) in rows {
        let row = cell
            .figures
            .map_or("- | - | - | - | - | - | - | - | - | -".to_owned(), |figures| {
                columns(&figures, multifd.as_ref())
            });
        let _ = writeln!(
            text,
            "| {} | {row} | {} of {} |",
            mode.name(),
            cell.completed,
            cell.runs
        );
    }
    text.push('\n');
    text
}

fn columns(figures: &Figures, multifd: Option<&Figures>) -> String {
    let ratio = |figure: fn(&Figures) -> f64| {
        multifd.map_or("-".to_owned(), |multifd| {
            format!("{:.2}", figure(figures) / figure(multifd))
        })
    };
    let of_vmferry = if figures.vmferry_rss_mb > 0.0 {
        format!(" ({:.0})", figures.vmferry_rss_mb)
    } else {
        String::new()
    };
    format!(
        "{:.1} | {} | {:.2} | {} | {:.2} | {:.0} | {:.2} | {} | {:.0}{of_vmferry} | {:.0}",
        figures.bytes / 1e6,
        ratio(|figures| figures.bytes),
        figures.total_ms / 1e3,
        ratio(|figures| figures.total_ms),
        figures.reserve_ms / 1e3,
        figures.blackout_ms,
        figures.cpu_s,
        ratio(|figures| figures.cpu_s),
        figures.rss_mb,
        figures.rounds,
    )
}
