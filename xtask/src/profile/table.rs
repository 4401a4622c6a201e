//! Samples added up, for people.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use vmferry_e2e::net::Host;

use super::recording::Recorded;
use super::script::{Frame, samples};
use super::work::Work;
use crate::bench::usage::Seen;

const FUNCTIONS: usize = 10;

/// Whose time it is, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    SourceQemu,
    SourceAgent,
    TargetAgent,
    TargetQemu,
}

impl Whose {
    const ALL: [Self; 4] = [Self::SourceQemu, Self::SourceAgent, Self::TargetAgent, Self::TargetQemu];

    /// What is no QEMU belongs to the agent: the agent, its command line, and what it runs.
    fn of(process: &Seen, from: Host) -> Self {
        match (process.host == from, process.name.starts_with("qemu")) {
            (true, true) => Self::SourceQemu,
            (true, false) => Self::SourceAgent,
            (false, false) => Self::TargetAgent,
            (false, true) => Self::TargetQemu,
        }
    }
}

/// Where the processor time of some moves went.
#[derive(Default)]
pub(super) struct Profile {
    moves: u32,
    nanoseconds: HashMap<(Work, Whose), u64>,
    /// By the innermost function: its name and the file that it is in.
    functions: HashMap<(String, String), u64>,
    /// What the benchmark counted, seconds.
    counted_s: f64,
}

impl Profile {
    /// Adds a move, for which the benchmark counted `cpu_s`.
    pub(super) fn add(&mut self, recorded: &Recorded, cpu_s: f64) -> Result<()> {
        let whose = |process: &Seen| (process.pid, Whose::of(process, recorded.from));
        let whose: HashMap<u32, Whose> = recorded.processes.iter().map(whose).collect();
        for sample in samples(&recorded.script)? {
            let Some(&whose) = whose.get(&sample.pid) else { continue };
            let Some(work) = Work::of(sample.comm, &sample.frames) else {
                continue;
            };
            *self.nanoseconds.entry((work, whose)).or_default() += sample.nanoseconds;
            if let Some(innermost) = sample.frames.first() {
                *self.functions.entry(function(innermost)).or_default() += sample.nanoseconds;
            }
        }
        self.moves += 1;
        self.counted_s += cpu_s;
        Ok(())
    }

    fn ms(&self, nanoseconds: u64) -> f64 {
        nanoseconds as f64 / 1e6 / f64::from(self.moves)
    }

    /// Milliseconds a move of all kinds of work that `is` tells: those of each column, then their sum.
    fn row(&self, is: impl Fn(Work) -> bool) -> [f64; 5] {
        let of = |whose| {
            let cells = self.nanoseconds.iter();
            self.ms(cells
                .filter(|((work, of), _)| is(*work) && *of == whose)
                .map(|(_, nanoseconds)| nanoseconds)
                .sum())
        };
        let [a, b, c, d] = Whose::ALL.map(of);
        [a, b, c, d, a + b + c + d]
    }
}

/// The table, the benchmark's figure beside its sum, and the functions with most time.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| ms of processor time a move | source QEMU | source agent | target agent | target QEMU | all |\n\
             |---|---:|---:|---:|---:|---:|"
        )?;
        for work in Work::ALL {
            let row = self.row(|other| other == work).map(|ms| format!("{ms:.0}"));
            writeln!(f, "| {} | {} |", work.name(), row.join(" | "))?;
        }
        let all = self.row(|_| true);
        writeln!(f, "| all | {} |\n", all.map(|ms| format!("{ms:.0}")).join(" | "))?;
        writeln!(
            f,
            "Moves: {}. The benchmark counted {:.0} ms a move (`cpu_s`), the samples are {:.2} of that.\n",
            self.moves,
            self.counted_s * 1e3 / f64::from(self.moves),
            all[4] / (self.counted_s * 1e3 / f64::from(self.moves)),
        )?;
        writeln!(f, "| ms | function | in |\n|---:|---|---|")?;
        let mut functions: Vec<_> = self.functions.iter().collect();
        functions.sort_by_key(|(function, nanoseconds)| (std::cmp::Reverse(**nanoseconds), *function));
        for ((symbol, module), nanoseconds) in functions.into_iter().take(FUNCTIONS) {
            writeln!(f, "| {:.0} | `{symbol}` | {module} |", self.ms(*nanoseconds))?;
        }
        Ok(())
    }
}

/// The name of a function and of its file.
fn function(frame: &Frame<'_>) -> (String, String) {
    let module = Path::new(frame.module).file_name();
    let module = module.map_or(frame.module.into(), |name| name.to_string_lossy());
    (frame.symbol.to_owned(), module.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A move away from B: a vCPU, a copy by the agent there, one by a process on no host, and a fault in a QEMU on A.
    const SCRIPT: &str = "\
CPU 0/TCG 10/12    1001001
\t8ddd60 helper_lookup_tb_ptr (/usr/bin/qemu-system-x86_64)

lane-0 11/13    4000000
\t16db20 __memmove_avx512_unaligned_erms (/usr/lib/libc.so.6)

lane-0 99/99    1001001
\t16db20 __memmove_avx512_unaligned_erms (/usr/lib/libc.so.6)

mig 20/21    2000000
\tffffffff8225f846 exc_page_fault ([kernel.kallsyms])
\tffffffff81000c82 asm_exc_page_fault ([kernel.kallsyms])
";

    #[test]
    fn time_is_told_by_process_and_averaged_over_moves() {
        let seen = |pid, host, name: &str| Seen {
            pid,
            host,
            name: name.to_owned(),
        };
        let recorded = Recorded {
            script: SCRIPT.to_owned(),
            from: Host::B,
            processes: vec![
                seen(10, Host::B, "qemu-system-x86"),
                seen(11, Host::B, "vmferry"),
                seen(20, Host::A, "qemu-system-x86"),
            ],
        };
        let mut profile = Profile::default();
        profile.add(&recorded, 0.006).unwrap();
        assert_eq!(profile.row(|work| work == Work::Copying), [0.0, 4.0, 0.0, 0.0, 4.0]);
        assert_eq!(profile.row(|work| work == Work::Faults), [0.0, 0.0, 0.0, 2.0, 2.0]);
        let nothing = Recorded {
            script: String::new(),
            ..recorded
        };
        profile.add(&nothing, 0.0).unwrap();
        assert_eq!(profile.row(|_| true), [0.0, 2.0, 0.0, 1.0, 3.0]);
        let text = profile.to_string();
        assert!(
            text.contains("counted 3 ms a move (`cpu_s`), the samples are 1.00"),
            "{text}"
        );
        assert!(
            text.contains("| 2 | `__memmove_avx512_unaligned_erms` | libc.so.6 |\n| 1 | `exc_page_fault`"),
            "{text}"
        );
    }
}
