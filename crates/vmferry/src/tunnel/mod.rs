//! The data plane alone, between QEMUs that somebody else owns: libvirt, Proxmox, scripts.
//!
//! ```text
//! host A                                                                host B
//! QEMU ─unix─▶ vmferry tunnel source ═══ TLS, one session each ═══▶ vmferry tunnel target ─unix─▶ QEMU
//! ```
//!
//! Each connection that is made to a socket of the source's end is joined with the socket of that name at the target's. One that
//! begins as QEMU's migration stream goes through the engine; any other is passed both ways through plain LZ. A tunnel does not
//! know what a VM is and decides nothing: who owns the VM is its manager's to decide, by what it hears from its QEMUs.
//!
//! | module | what |
//! |---|---|
//! | [`source`] | sockets that QEMUs connect to |
//! | [`target`] | the port for other hosts' ends, and the sockets of QEMUs here |
//! | `migration` | a migration stream, on both sides |
//! | `pipe` | any other bytes |
//! | `link` | the messages about one connection, and how both ends agree on its end |

mod link;
mod migration;
mod pipe;
pub mod source;
pub mod target;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use vmferry_dataplane::transport::Security;

use crate::pki::{Folder, Identity};

/// What was carried for one connection, as one end of the tunnel saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Carried {
    /// Bytes that came from this end's socket.
    read_bytes: u64,
    /// Bytes that went to it.
    written_bytes: u64,
    /// Bytes of frames that this end sent.
    wire_bytes: u64,
}

/// What this host shows to the other end: its certificate from the state directory, or nothing.
fn identity(state_dir: &Path, insecure_plaintext: bool) -> Result<Identity> {
    if !insecure_plaintext {
        return Identity::open(Folder::new(state_dir));
    }
    // Not by way of the log, which can be filtered. A full disk takes neither, and the tunnel starts all the same.
    let _ = writeln!(
        io::stderr(),
        "WARNING: --insecure-plaintext: what guests hold in memory and on disks crosses the network for anyone to read and to\n\
         WARNING: change. For measurements, or inside of another tunnel."
    );
    Ok(Identity::none())
}

/// What this host is called: as its certificate says, if it has one.
fn host_name(identity: &Identity) -> String {
    match identity.security() {
        Security::Tls(tls) => tls.host().to_owned(),
        Security::Plaintext => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}
