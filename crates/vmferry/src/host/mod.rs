//! What a host can take: the reservation's checks.
//!
//! The source describes its VM and what it uses ([`offer`]). The target looks at itself with that in hand
//! ([`examine()`]) and weighs the two ([`check()`]), so that one answer names every reason against the VM.
//!
//! | module | what |
//! |---|---|
//! | [`capability`] | QEMU's version, machine types and CPU features; memory; KVM |
//! | [`probes`] | what QEMU answered before |
//! | [`disk`] | whether two hosts see one and the same disk |
//! | [`offer`] | what the source tells |
//! | [`mod@examine`] | what the target finds |
//! | [`mod@check`] | the reasons against it |
//! | [`reservations`] | what was promised to VMs that are under way |

pub mod capability;
pub mod check;
pub mod disk;
pub mod examine;
pub mod offer;
pub mod probes;
pub mod reservations;

pub use capability::{QemuFacts, QemuVersion};
pub use check::{Refusal, check};
pub use disk::DiskFacts;
pub use examine::{TargetFacts, examine};
pub use offer::{Offer, describe, describe_disks};
pub use probes::Probes;
pub use reservations::{Reservation, Reservations};

/// Runs what blocks its thread on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // It cannot have been cancelled, as nobody holds its handle but us.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
