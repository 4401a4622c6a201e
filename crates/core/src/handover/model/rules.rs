//! What no state may be.

use super::steps::Model;
use super::world::{Driver, Qemu, World};
use crate::handover::arbiter::Holder;

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
        let waits = |driver| !matches!(driver, Driver::Idle | Driver::Gone);
        if waits(world.a.driver) || waits(world.b.driver) {
            return Some("an agent waits for ever");
        }
        let is_gone = world.a.driver == Driver::Gone || world.b.driver == Driver::Gone;
        let (here, other) = match (world.a.lists, world.b.lists) {
            // It went with the host that had it; or the target, which had taken it, lost its QEMU before it wrote that, and the
            // source had seen its lease run out, and has said so.
            (false, false) if (is_gone || world.arbiter.holder == Holder::Target) && world.may_be_lost => {
                let is_left = world.a_qemu.lives() || world.b_qemu.lives();
                return is_left.then_some("a QEMU is left behind at the host that does not have the VM");
            }
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
