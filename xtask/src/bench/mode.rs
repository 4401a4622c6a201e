//! How a guest is moved.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vmferry_e2e::baseline;

/// How the guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// vmferry as it comes.
    Vmferry,
    /// vmferry with the coder chosen while pages cross.
    VmferryAuto,
    /// vmferry with LZ4.
    VmferryLz4,
    /// vmferry with the 1978 dictionary coder.
    VmferryLz78,
    /// vmferry with pages as they are.
    VmferryRaw,
    /// QEMU, pages as they are.
    Plain,
    /// QEMU, differences to pages sent before.
    Xbzrle,
    /// QEMU, a connection a processor, zstd at level 1.
    MultifdZstd,
}

impl Mode {
    /// All, in the order of reports.
    pub(crate) const ALL: [Self; 8] = [
        Self::Vmferry,
        Self::VmferryAuto,
        Self::VmferryLz4,
        Self::VmferryLz78,
        Self::VmferryRaw,
        Self::Plain,
        Self::Xbzrle,
        Self::MultifdZstd,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmferry => "vmferry",
            Self::VmferryAuto => "vmferry-auto",
            Self::VmferryLz4 => "vmferry-lz4",
            Self::VmferryLz78 => "vmferry-lz78",
            Self::VmferryRaw => "vmferry-raw",
            Self::Plain => baseline::Mode::Plain.name(),
            Self::Xbzrle => baseline::Mode::Xbzrle.name(),
            Self::MultifdZstd => baseline::Mode::MultifdZstd.name(),
        }
    }

    /// Which of the two does it, and how.
    pub(crate) fn means(self) -> Means {
        match self {
            Self::Vmferry => Means::Vmferry { codec: None },
            Self::VmferryAuto => Means::Vmferry { codec: Some("auto") },
            Self::VmferryLz4 => Means::Vmferry { codec: Some("lz4") },
            Self::VmferryLz78 => Means::Vmferry { codec: Some("lz78") },
            Self::VmferryRaw => Means::Vmferry { codec: Some("raw") },
            Self::Plain => Means::Qemu(baseline::Mode::Plain),
            Self::Xbzrle => Means::Qemu(baseline::Mode::Xbzrle),
            Self::MultifdZstd => Means::Qemu(baseline::Mode::MultifdZstd),
        }
    }

    /// Whether QEMU does it by itself.
    pub(crate) fn is_of_qemu(self) -> bool {
        matches!(self.means(), Means::Qemu(_))
    }
}

/// Who moves the guest.
#[derive(Clone, Copy)]
pub(crate) enum Means {
    /// Two agents; without a codec, as they come.
    Vmferry { codec: Option<&'static str> },
    /// QEMU by itself.
    Qemu(baseline::Mode),
}
