//! The guest and its disk, the same for vmferry and for QEMU alone.

use std::path::PathBuf;

use anyhow::Result;
use vmferry_e2e::accel::Accel;
use vmferry_e2e::image::{Image, ext4_disk, fsck};
use vmferry_e2e::nbd::NbdExport;
use vmferry_e2e::net::Lab;
use vmferry_e2e::qemu::{Disk, Spec};

const MEMORY_MIB: u32 = 1024;
const DISK_BYTES: u64 = 64 << 20;
const FORMAT: &str = "raw";
const NBD_PORT: u16 = 10809;

/// A machine that is not running yet, and the server of its disk.
pub(crate) struct Machine {
    /// The machine.
    pub(crate) spec: Spec,
    image: PathBuf,
    export: NbdExport,
}

impl Machine {
    /// Machine `index` of the lab, with an empty file system on a disk of its own.
    pub(crate) fn new(lab: &Lab, image: &Image, accel: Accel, index: u8) -> Result<Self> {
        let path = lab.folder().join(format!("disk-{index}.raw"));
        ext4_disk(&path, DISK_BYTES, None)?;
        let export = NbdExport::start(lab, &path, FORMAT, NBD_PORT + u16::from(index))?;
        let disk = Disk {
            file: export.uri(),
            format: FORMAT.to_owned(),
            read_only: false,
            mount: "/data".to_owned(),
        };
        let spec = Spec {
            image: image.clone(),
            accel,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            index,
            disks: vec![disk],
        };
        Ok(Self {
            spec,
            image: path,
            export,
        })
    }

    /// Checks the file system on the disk. The machine has ended.
    pub(crate) fn check_disk(self) -> Result<()> {
        self.export.stop()?;
        fsck(&self.image, FORMAT)
    }
}
