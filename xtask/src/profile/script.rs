//! What `perf script` prints, as samples.

use anyhow::{Context, Result};

/// A function on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Its name, `[unknown]` where its program has no symbols.
    pub(super) symbol: &'a str,
    /// The file that it is in.
    pub(super) module: &'a str,
    /// Whether it is the kernel's.
    pub(super) in_kernel: bool,
}

/// A moment in which a thread was found running.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sample<'a> {
    /// The thread's name.
    pub(super) comm: &'a str,
    pub(super) pid: u32,
    /// The time that it stands for.
    pub(super) nanoseconds: u64,
    /// The stack, innermost first.
    pub(super) frames: Vec<Frame<'a>>,
}

/// Samples of the output with the fields comm, pid, tid, period, ip, sym, dso: a line for each, indented lines for its frames,
/// an empty line.
///
/// # Errors
/// When it looks otherwise.
pub(super) fn samples(text: &str) -> Result<Vec<Sample<'_>>> {
    let mut samples: Vec<Sample<'_>> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let wrong = || format!("perf script printed {line:?}");
        if line.starts_with('\t') {
            let sample = samples.last_mut().with_context(wrong)?;
            sample.frames.push(frame(line).with_context(wrong)?);
        } else {
            samples.push(head(line).with_context(wrong)?);
        }
    }
    Ok(samples)
}

/// `CPU 0/TCG 10732/10736    1001001`: the name may hold spaces and slashes itself, and is indented where it is short.
fn head(line: &str) -> Option<Sample<'_>> {
    let (rest, period) = line.trim().rsplit_once(' ')?;
    let (comm, ids) = rest.trim_end().rsplit_once(' ')?;
    let (pid, _) = ids.split_once('/')?;
    Some(Sample {
        comm: comm.trim(),
        pid: pid.parse().ok()?,
        nanoseconds: period.parse().ok()?,
        frames: Vec::new(),
    })
}

/// `ffffffff8225211f xas_load ([kernel.kallsyms])`: symbols of Rust may hold spaces and parentheses.
fn frame(line: &str) -> Option<Frame<'_>> {
    let (address, rest) = line.trim().split_once(' ')?;
    let (symbol, module) = rest.strip_suffix(')')?.rsplit_once(" (")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    Some(Frame {
        symbol,
        module,
        // The upper half of the addresses.
        in_kernel: address.leading_ones() > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_what_separates_fields() {
        let text = concat!(
            "CPU 0/TCG 10732/10736    1001001 \n",
            "\t          8ddd60 helper_lookup_tb_ptr (/usr/bin/qemu-system-x86_64)\n",
            "\n",
            "   lane-1  8079/8085    1001001 \n",
            "\tffffffff8225211f xas_load ([kernel.kallsyms])\n",
            "\t    5637 <alloc::vec::Vec<T> as core::ops::FnOnce<(A, B)>>::call (/opt/vmferry)\n",
        );
        let samples = samples(text).unwrap();
        let [vcpu, lane] = &samples[..] else {
            panic!("{samples:?}")
        };
        assert_eq!((vcpu.comm, vcpu.pid, vcpu.nanoseconds), ("CPU 0/TCG", 10732, 1_001_001));
        assert_eq!((lane.comm, lane.pid), ("lane-1", 8079));
        let [kernel, user] = lane.frames[..] else {
            panic!("{lane:?}")
        };
        assert_eq!((kernel.symbol, kernel.in_kernel), ("xas_load", true));
        assert_eq!(user.symbol, "<alloc::vec::Vec<T> as core::ops::FnOnce<(A, B)>>::call");
        assert_eq!((user.module, user.in_kernel), ("/opt/vmferry", false));
    }

    #[test]
    fn other_output_is_an_error() {
        assert!(samples("\tffffffff8225211f xas_load ([kernel.kallsyms])\n").is_err());
        assert!(samples("lane-1 8079 1001001\n").is_err());
        assert!(samples("lane-1 8079/8085 1001001\n\txas_load\n").is_err());
    }
}
