//! What a VM reads: the files, devices and exports of its disks, backing files included, and what it booted from.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmferry_content::{Blocks, ImageFile, NbdExport, NbdUri};

use crate::vm::RunningVm;

/// QEMU's drivers of nodes that are storage, and not a format or filter on top of it.
const STORAGE_DRIVERS: [&str; 4] = ["file", "host_device", "host_cdrom", "nbd"];

/// How long a QEMU may take to tell what it has open. One that hangs must not keep the others' disks from being indexed.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The paths and URIs of all that a VM's QEMU has open, and of the files that the VM boots from; `None` if its QEMU does not
/// tell. A backing file is known by QEMU alone: it stands in the image.
pub(super) async fn of(vm: &RunningVm) -> Option<BTreeSet<String>> {
    let name = &vm.definition.name;
    let nodes = match tokio::time::timeout(ANSWER_LIMIT, vm.qmp.query_named_block_nodes()).await {
        Ok(Ok(nodes)) => nodes,
        Ok(Err(error)) => {
            tracing::warn!(vm = name, %error, "its QEMU does not tell its storage");
            return None;
        }
        Err(_) => {
            tracing::warn!(vm = name, "its QEMU does not tell its storage: it does not answer");
            return None;
        }
    };
    let storage = nodes
        .into_iter()
        .filter(|node| STORAGE_DRIVERS.contains(&node.drv.as_str()))
        .map(|node| node.file);
    let definition = &vm.definition;
    let boot = [&definition.kernel, &definition.initrd].into_iter().flatten();
    let boot = boot.map(|path| path.display().to_string());
    Some(storage.chain(boot).collect())
}

/// Opens such a source for reading. It blocks its thread.
pub(super) fn open(source: &str) -> io::Result<Arc<dyn Blocks>> {
    if source.starts_with('/') {
        return Ok(Arc::new(ImageFile::open(Path::new(source))?));
    }
    let uri: NbdUri = source
        .parse()
        .map_err(|error| io::Error::other(format!("neither a path nor an NBD URI: {error}")))?;
    Ok(Arc::new(NbdExport::open(&uri)?))
}
