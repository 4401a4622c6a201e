//! Carrying a handover out: the drivers of `vmferry_core::handover`'s state machines, between QMP, the data plane, the
//! journal and the peer.
//!
//! | module | what |
//! |---|---|
//! | [`departure`] | moving a VM away from here, in as many attempts as links that break make necessary |
//! | `source` | one such attempt |
//! | [`target`] | taking a VM in |
//! | [`peers`] | the port on which agents reach one another |
//! | [`resume`] | what a restarted agent owes |
//! | [`resolve`] | what an operator may decide when the other host is gone |
//! | `arbitration` | asking the arbiter, one question at a time |
//! | `contents` | the known content that pages are referred to |
//! | `control` | the control lane, between its threads and the drivers |
//! | `dial` | reaching a peer's agent |
//! | [`leftover`] | what is left of a VM that was on its way here when the agent ended |
//! | `monitor` | what a migration asks of QEMU |
//! | `offer` | offering a VM, admitting one |
//! | `figures` | measuring: processor time, stages, rounds; the report |

mod arbitration;
mod contents;
mod control;
pub mod departure;
mod dial;
mod figures;
pub mod leftover;
mod monitor;
mod offer;
pub mod peers;
pub mod resolve;
pub mod resume;
mod source;
pub mod target;

use vmferry_core::handover::Record as Fact;
use vmferry_core::limits::LANES_MAX;

use crate::agent::Agent;
use crate::agent::record::Record;

/// Makes a record of a handover durable. What follows from a failure may show at the other host only, so it is logged, too.
async fn journal(agent: &Agent, fact: Fact) -> Result<(), String> {
    let (vm, epoch) = (fact.handover().vm.clone(), fact.handover().epoch);
    let is_reclaimed = matches!(fact.plain(), Fact::Reclaimed { .. });
    agent.journal.append(Record::Handover { fact }).await.map_err(|error| {
        tracing::error!(vm, %error, "a record of a handover can't be written");
        error.to_string()
    })?;
    // The epoch is used up, as a restarted agent would have it.
    if is_reclaimed && let Some(vm) = agent.registry.lock().get_mut(&vm) {
        vm.epoch = vm.epoch.max(epoch);
    }
    Ok(())
}

/// vmferry's version, for hellos and reports.
pub const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// Lanes where none are asked for: each is an encoding thread, and beyond this the link is the bottleneck.
const LANES_DEFAULT_MAX: usize = 8;

/// How many lanes a migration has for which so many are asked, or which leaves it to this host.
pub(crate) fn lanes(asked: Option<usize>) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or(processors.min(LANES_DEFAULT_MAX)).clamp(1, LANES_MAX) as u16
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| format!("no random bytes: {errno}"))?;
    Ok(bytes)
}
