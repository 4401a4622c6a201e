//! What a VM reads: the files, devices and exports of its disks, backing files included, and what it booted from.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmferry_content::{Blocks, ImageFile, NbdExport, NbdServer, NbdUri};
use vmferry_qmp::FdSet;

use crate::vm::RunningVm;

/// QEMU's drivers of nodes that are storage, and not a format or filter on top of it.
const STORAGE_DRIVERS: [&str; 4] = ["file", "host_device", "host_cdrom", "nbd"];

/// How long a QEMU may take to tell what it has open. One that hangs must not keep the others' disks from being indexed.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// What QEMU calls a file that it was given open; its number follows.
const GIVEN: &str = "/dev/fdset/";

/// The paths and URIs of all that a VM's QEMU has open, and of the files that the VM boots from; `None` if its QEMU does not
/// tell. A backing file is known by QEMU alone: it stands in the image.
pub(super) async fn of(vm: &RunningVm) -> Option<BTreeSet<String>> {
    let name = &vm.definition.name;
    let ask = async {
        let answers = (vm.qmp.query_named_block_nodes().await?, vm.qmp.query_fdsets().await?);
        Ok::<_, vmferry_qmp::Error>(answers)
    };
    let (nodes, given) = match tokio::time::timeout(ANSWER_LIMIT, ask).await {
        Ok(Ok(answers)) => answers,
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
        .filter_map(|node| found_as(node.file, &given));
    let definition = &vm.definition;
    // QEMU has a connection to such a server, and does not know where that leads.
    let is_local = |uri: &&NbdUri| matches!(uri.server, NbdServer::Unix(_));
    let exports = definition
        .disk
        .iter()
        .filter_map(|disk| disk.nbd.as_ref())
        .filter(is_local);
    let exports = exports.map(NbdUri::to_string);
    let boot = [&definition.kernel, &definition.initrd].into_iter().flatten();
    let boot = boot.map(|path| path.display().to_string());
    Some(storage.chain(exports).chain(boot).collect())
}

/// By what name the agent found what QEMU has open.
fn found_as(file: String, given: &[FdSet]) -> Option<String> {
    let Some(number) = file.strip_prefix(GIVEN) else {
        return (!file.starts_with("json:")).then_some(file);
    };
    let number: i64 = number.parse().ok()?;
    let set = given.iter().find(|set| set.fdset_id == number)?;
    set.fds.iter().find_map(|fd| fd.opaque.clone())
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
