//! Which accelerator the guests run under.
//!
//! That `/dev/kvm` opens does not tell that a guest boots under it: some machines have a KVM that
//! cannot run a stock kernel. So a probe guest decides.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image::Image;

/// What the guest program prints on the serial port once it serves.
pub const READY_LINE: &str = "vmferry-guest ready";

/// A probe guest that has not booted by then never will: under working KVM it takes a second.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How QEMU runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor's virtualization, with the host's own processor model.
    Kvm,
    /// QEMU's translator, with every feature it has.
    Tcg,
}

impl Accel {
    /// KVM if a probe guest boots under it, else TCG; probed once per process.
    ///
    /// # Errors
    /// When QEMU cannot be started at all.
    pub fn probed(image: &Image) -> Result<Self> {
        static PROBED: OnceLock<Accel> = OnceLock::new();
        if let Some(accel) = PROBED.get() {
            return Ok(*accel);
        }
        let accel = if kvm_boots(image)? { Self::Kvm } else { Self::Tcg };
        Ok(*PROBED.get_or_init(|| accel))
    }

    /// For QEMU's `-accel`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// For QEMU's `-cpu`.
    #[must_use]
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// Boots the image under KVM and awaits its ready line for at most 5 s.
///
/// # Errors
/// When QEMU cannot be started at all.
pub fn kvm_boots(image: &Image) -> Result<bool> {
    if std::fs::File::open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .args(["-accel", "kvm", "-cpu", "host", "-m", "256", "-no-reboot"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64: run the set-up first, it installs QEMU")?;
    let serial = qemu.stdout.take().context("no serial port")?;
    let (booted, wait) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if String::from_utf8_lossy(&line).contains(READY_LINE) {
                // The probe may have given up already.
                let _ = booted.send(());
            }
        }
    });
    let boots = wait.recv_timeout(PROBE_MAX).is_ok();
    qemu.kill()?;
    qemu.wait()?;
    let _ = reader.join();
    Ok(boots)
}
