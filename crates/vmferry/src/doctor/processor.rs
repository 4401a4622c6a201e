//! The processor: KVM, and instructions that coding and TLS use.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::Finding;
use crate::vm::confine::group_for_kvm;

const KVM: &str = "/dev/kvm";

pub(super) fn check() -> Vec<Finding> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags(&cpuinfo);
    let opened = fs::File::options().read(true).write(true).open(KVM).map(|_| ());
    let shared = group_for_kvm(Path::new(KVM)).map(|_| ());
    vec![kvm(opened, shared, &flags), instructions(&flags)]
}

/// Whether guests run under it: whether this process can open it, and whether QEMU's users can.
fn kvm(opened: io::Result<()>, shared: io::Result<()>, flags: &BTreeSet<&str>) -> Finding {
    const SLOW: &str =
        "guests run under TCG, many times slower, and those that run under KVM elsewhere can't come here";
    let has_virtualization = flags.contains("vmx") || flags.contains("svm");
    match (opened, shared) {
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warning(
            "kvm",
            format!("{KVM} may not be opened by this user: nothing is known of it"),
            "run this as root",
        ),
        (Err(error), _) => Finding::warning(
            "kvm",
            format!("{KVM}: {error}; {SLOW}"),
            "turn virtualization (VT-x, AMD-V) on in the firmware, and load kvm_intel or kvm_amd",
        ),
        (Ok(()), _) if !has_virtualization => Finding::warning(
            "kvm",
            format!("{KVM} is there, but the processor has neither vmx nor svm; {SLOW}"),
            "if this host is a VM itself, let its hypervisor give it nested virtualization",
        ),
        (Ok(()), Err(error)) => Finding::problem(
            "kvm",
            format!("KVM can't be used by QEMU's users: {error}"),
            format!("chgrp kvm {KVM}; chmod 660 {KVM}, for good by a udev rule"),
        ),
        (Ok(()), Ok(())) => Finding::ok("kvm", "guests run under KVM"),
    }
}

fn instructions(flags: &BTreeSet<&str>) -> Finding {
    let uses = [("aes", "AES-NI, for TLS"), ("avx2", "AVX2, for fingerprints of pages")];
    let lacks: Vec<&str> = uses
        .iter()
        .filter(|(flag, _)| !flags.contains(flag))
        .map(|(_, what)| *what)
        .collect();
    match lacks.is_empty() {
        true => Finding::ok("instructions", "the processor has AES-NI and AVX2"),
        false => Finding::warning(
            "instructions",
            format!(
                "the processor lacks {}: migrations take more of its time",
                lacks.join(" and ")
            ),
            "if this host is a VM itself, give it a CPU model with them; else leave more cores free",
        ),
    }
}

fn flags(cpuinfo: &str) -> BTreeSet<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, flags)| flags.split_ascii_whitespace().collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn flags_are_those_of_the_first_processor() {
        let text = "processor\t: 0\nflags\t\t: fpu aes avx2\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(flags(text), ["fpu", "aes", "avx2"].into());
        assert!(flags("").is_empty());
    }

    #[test]
    fn kvm_has_to_open_to_be_hardware_and_to_be_shared() {
        let refused = |kind: io::ErrorKind| Err(io::Error::from(kind));
        let (with, without) = (BTreeSet::from(["svm"]), BTreeSet::new());
        let of = |opened, shared, flags| kvm(opened, shared, flags).verdict;
        assert_eq!(of(Ok(()), Ok(()), &with), Verdict::Ok);
        assert_eq!(of(Ok(()), Ok(()), &without), Verdict::Warning);
        assert_eq!(of(refused(io::ErrorKind::NotFound), Ok(()), &with), Verdict::Warning);
        assert_eq!(of(Ok(()), refused(io::ErrorKind::Other), &with), Verdict::Problem);
        let unknown = kvm(refused(io::ErrorKind::PermissionDenied), Ok(()), &with);
        assert_eq!(unknown.remedy.as_deref(), Some("run this as root"));
    }

    #[test]
    fn each_instruction_that_lacks_is_named() {
        assert_eq!(instructions(&["aes", "avx2"].into()).verdict, Verdict::Ok);
        let found = instructions(&["avx2"].into());
        assert!(found.verdict == Verdict::Warning && found.found.contains("AES-NI") && !found.found.contains("AVX2"));
    }
}
