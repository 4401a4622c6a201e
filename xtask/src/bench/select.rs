//! The arguments of `cargo xtask bench`: what of the plan is measured, and where results go.

use std::path::{Path, PathBuf};

use clap::Args;

use super::mode::Mode;
use super::plan::{CASES, Link, USUAL, Workload};
use super::rate;

/// The arguments of `bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// One run of each cell, at the fast links, and no search.
    #[arg(long)]
    quick: bool,
    /// Only this workload; may be repeated.
    #[arg(long, value_enum)]
    workload: Vec<Workload>,
    /// Only this link, million bits a second or `none` for no limit; may be repeated.
    #[arg(long, value_name = "MBIT")]
    link: Vec<Link>,
    /// Only this mode; may be repeated.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Only the search for the highest dirty rates that converge.
    #[arg(long, conflicts_with_all = ["quick", "link"])]
    search: bool,
    /// The agents talk without TLS: for what it costs, beside a run without this.
    #[arg(long, conflicts_with = "keep")]
    pub(super) plaintext: bool,
    /// Runs of each cell [default: 5, or 1 with --quick].
    #[arg(long)]
    runs: Option<usize>,
    /// The folder for results [default: bench for the whole, else target/bench].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Keep the other cells of the results that are there.
    #[arg(long)]
    pub(super) keep: bool,
    /// Measure nothing: write tables and plot anew from the results that are there.
    #[arg(long)]
    pub(super) render: bool,
}

/// A link of a workload and the modes asked for.
pub(super) struct Selected {
    pub(super) link: Link,
    pub(super) modes: Vec<Mode>,
}

impl BenchArgs {
    /// The workloads of which anything is asked for, each once.
    pub(super) fn workloads(&self) -> Vec<Workload> {
        let mut workloads: Vec<Workload> = CASES.iter().map(|case| case.workload).collect();
        workloads.dedup();
        workloads.retain(|workload| self.workload.is_empty() || self.workload.contains(workload));
        workloads.retain(|workload| !self.cases(*workload).is_empty() || !self.searches(*workload).is_empty());
        workloads
    }

    /// What is measured of a workload: what is planned, or exactly the links and modes asked for.
    pub(super) fn cases(&self, workload: Workload) -> Vec<Selected> {
        if self.search {
            return Vec::new();
        }
        let planned = CASES.iter().filter(|case| case.workload == workload);
        let mut cases: Vec<(Link, &[Mode])> = planned.map(|case| (case.link, case.modes)).collect();
        if !self.link.is_empty() {
            let modes = |link| {
                cases
                    .iter()
                    .find(|(planned, _)| *planned == link)
                    .map_or(USUAL, |(_, modes)| modes)
            };
            cases = self.link.iter().map(|link| (*link, modes(*link))).collect();
        } else if self.quick {
            cases.retain(|(link, _)| *link != Link::SLOW);
        }
        let modes = |planned: &[Mode]| {
            if self.mode.is_empty() {
                planned.to_vec()
            } else {
                self.mode.clone()
            }
        };
        cases
            .into_iter()
            .map(|(link, planned)| Selected {
                link,
                modes: modes(planned),
            })
            .collect()
    }

    /// The modes whose highest dirty rate is sought for a workload, and between which bytes a second.
    pub(super) fn searches(&self, workload: Workload) -> Vec<(Mode, (u64, u64))> {
        // Who asks for some cells of a workload asks for no search.
        let asked = self.search || !(self.quick || !self.link.is_empty() || !self.mode.is_empty());
        let Some((modes, between)) = rate::plan(workload).filter(|_| asked) else {
            return Vec::new();
        };
        let wanted = |mode: &&Mode| self.mode.is_empty() || self.mode.contains(mode);
        modes.iter().filter(wanted).map(|mode| (*mode, between)).collect()
    }

    /// Whether runs of this cell are measured.
    pub(super) fn measures(&self, workload: Workload, link: Link, mode: Mode) -> bool {
        let of_link = |case: Selected| case.link == link && case.modes.contains(&mode);
        self.workloads().contains(&workload) && self.cases(workload).into_iter().any(of_link)
    }

    /// Whether this search is made.
    pub(super) fn searches_for(&self, workload: Workload, mode: Mode) -> bool {
        self.workloads().contains(&workload) && self.searches(workload).iter().any(|(other, _)| *other == mode)
    }

    pub(super) fn runs(&self) -> usize {
        self.runs.unwrap_or(if self.quick { 1 } else { 5 })
    }

    pub(super) fn folder(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let part = self.quick
            || self.search
            || self.plaintext
            || !(self.workload.is_empty() && self.link.is_empty() && self.mode.is_empty());
        match &self.out {
            Some(folder) => folder.clone(),
            None if !part || self.keep || self.render => root.join("bench"),
            None => root.join("target/bench"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn args(line: &str) -> BenchArgs {
        Line::parse_from(std::iter::once("bench").chain(line.split_whitespace())).args
    }

    #[test]
    fn all_is_planned_unless_something_is_asked_for() {
        let whole = args("");
        assert!(
            CASES
                .iter()
                .all(|case| whole.measures(case.workload, case.link, case.modes[0]))
        );
        assert!(whole.searches_for(Workload::Counter, Mode::Xbzrle));
        assert!(!whole.measures(Workload::Mixed, Link::SLOW, Mode::VmferryLz78));
    }

    #[test]
    fn a_cell_that_is_not_planned_can_be_asked_for() {
        let cell = args("--workload redis --link 100 --mode vmferry-lz78");
        assert_eq!(cell.workloads(), [Workload::Redis]);
        assert!(cell.measures(Workload::Redis, Link::SLOW, Mode::VmferryLz78));
        assert!(!cell.measures(Workload::Redis, Link::SLOW, Mode::Plain));
        assert!(!cell.measures(Workload::Redis, Link::FAST, Mode::VmferryLz78));
    }

    #[test]
    fn a_search_is_all_that_is_done_when_asked_for() {
        let search = args("--search --mode vmferry");
        assert_eq!(search.workloads(), [Workload::Counter, Workload::Text]);
        assert!(!search.measures(Workload::Counter, Link::SLOW, Mode::Vmferry));
        assert!(!search.searches_for(Workload::Counter, Mode::Xbzrle));
        assert!(!args("--quick").searches_for(Workload::Text, Mode::Vmferry));
    }
}
