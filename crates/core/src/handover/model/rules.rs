//! What no state may be.

use super::steps::Model;
use super::world::{Driver, Qemu, World};

/// The rule that a step or a state breaks.
pub(super) type Broken = &'static str;
impl Model {
    /// The rule that a state breaks.
    pub(super) fn broken(world: &World) -> Option<Broken> {
        if world.a_qemu.runs() && world.b_qemu.runs() {
            return Some("two copies run");
        }
        if world.a_qemu.runs() && world.b_ran {
            return Some("a committed migration is undone");
        }
        if !world.may_be_lost && !world.a_qemu.lives() && !world.b_qemu.is_complete() {
            return Some("the VM is lost though no QEMU died that had its only copy");
        }
        None
    }

    /// The rule that a state breaks in which nothing happens any more.
    pub(super) fn broken_at_rest(world: &World) -> Option<Broken> {
        if world.a.driver != Driver::Idle || world.b.driver != Driver::Idle {
            return Some("an agent waits for ever");
        }
        let (here, other) = match (world.a.lists, world.b.lists) {
            (true, false) => (world.a_qemu, world.b_qemu),
            (false, true) => (world.b_qemu, world.a_qemu),
            (true, true) => return Some("both hosts list the VM as theirs"),
            (false, false) => return Some("no host lists the VM: it is lost, and nobody says so"),
        };
        if other.lives() {
            return Some("a QEMU is left behind at the host that does not have the VM");
        }
        match here {
            Qemu::Running => None,
            _ if here.lives() => Some("the guest stands still for ever"),
            _ if world.may_be_lost => None,
            _ => Some("the VM is lost though no QEMU died that had its only copy"),
        }
    }
}
