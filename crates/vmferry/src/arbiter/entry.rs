//! What stands in etcd of a VM, and what it means to a handover.

use serde::{Deserialize, Serialize};
use vmferry_core::{
    handover::arbiter::{Claim, Holder, Side},
    wire::{
        hello::MigrationId,
        message::{Epoch, Handover},
    },
};

/// The value of a VM's key: who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The host that has it; while it is released, the one that had it.
    pub host: String,
    /// In which epoch.
    pub epoch: Epoch,
    /// By which handover, if by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
    /// It is released to this host, which has not taken it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_to: Option<String>,
}

impl Entry {
    /// A VM that a host has.
    pub fn held(host: &str, epoch: Epoch, migration: Option<MigrationId>) -> Entry {
        Entry {
            host: host.to_owned(),
            epoch,
            migration,
            released_to: None,
        }
    }

    /// Who has the VM, to one side of a handover on the host `here`.
    ///
    /// # Errors
    /// The host that has it, which is neither side.
    pub fn holder(&self, side: Side, handover: &Handover, here: &str) -> Result<Holder, String> {
        let is_here = self.host == here;
        if self.epoch < handover.epoch {
            // A release that came to nothing leaves its epoch behind, and the VM with its source.
            return match side {
                Side::Source if !is_here => Err(self.host.clone()),
                _ => Ok(Holder::Source),
            };
        }
        let is_this = self.epoch == handover.epoch && self.migration == Some(handover.migration);
        Ok(match (side, is_this) {
            (_, true) if self.released_to.is_some() => Holder::Released,
            (Side::Source, _) if self.epoch == handover.epoch && is_here => Holder::Returned,
            // Had it come back since, then by a handover that this host's journal knows, and this one would be over.
            (Side::Source, _) => Holder::Target,
            (Side::Target, true) if is_here => Holder::Target,
            (Side::Target, _) => Holder::Returned,
        })
    }

    /// The entry in place of this one after a claim, which `holder` was said before; `None` if it changes nothing.
    pub fn after(holder: Holder, claim: Claim, handover: &Handover, here: &str, target: &str) -> Option<Entry> {
        let after = claim.after(holder);
        if after == holder {
            return None;
        }
        Some(Entry {
            released_to: (after == Holder::Released).then(|| target.to_owned()),
            ..Entry::held(here, handover.epoch, Some(handover.migration))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        Handover {
            migration: MigrationId(7),
            vm: "web".to_owned(),
            epoch: Epoch(4),
        }
    }

    fn both(entry: &Entry) -> (Holder, Holder) {
        let holder = |side, here| entry.holder(side, &handover(), here).unwrap();
        (holder(Side::Source, "a"), holder(Side::Target, "b"))
    }

    #[test]
    fn both_sides_read_the_same_from_every_entry_of_a_handover() {
        let claim = |entry: &Entry, side, here: &str, claim| {
            let holder = entry.holder(side, &handover(), here).unwrap();
            Entry::after(holder, claim, &handover(), here, "b").unwrap_or(entry.clone())
        };
        let before = Entry::held("a", Epoch(3), None);
        assert_eq!(both(&before), (Holder::Source, Holder::Source));
        assert_eq!(
            claim(&before, Side::Target, "b", Claim::Take),
            before,
            "not before the release"
        );
        let released = claim(&before, Side::Source, "a", Claim::Release);
        assert_eq!(both(&released), (Holder::Released, Holder::Released));
        assert_eq!(released.released_to.as_deref(), Some("b"));
        let taken = claim(&released, Side::Target, "b", Claim::Take);
        assert_eq!(both(&taken), (Holder::Target, Holder::Target));
        assert_eq!(claim(&taken, Side::Source, "a", Claim::TakeBack), taken);
        for entry in [&before, &released] {
            let returned = claim(entry, Side::Source, "a", Claim::TakeBack);
            assert_eq!(both(&returned), (Holder::Returned, Holder::Returned));
            assert_eq!(claim(&returned, Side::Source, "a", Claim::Release), returned);
            assert_eq!(claim(&returned, Side::Target, "b", Claim::Take), returned);
        }
    }

    #[test]
    fn what_came_after_a_handover_ends_it() {
        let moved_on = Entry::held("c", Epoch(5), Some(MigrationId(8)));
        assert_eq!(both(&moved_on), (Holder::Target, Holder::Returned));
        let other_attempt = Entry::held("a", Epoch(4), Some(MigrationId(6)));
        assert_eq!(both(&other_attempt), (Holder::Returned, Holder::Returned));
    }

    #[test]
    fn a_release_that_came_to_nothing_is_no_obstacle_to_the_next_handover() {
        let left = Entry {
            released_to: Some("c".to_owned()),
            ..Entry::held("a", Epoch(3), Some(MigrationId(6)))
        };
        assert_eq!(both(&left), (Holder::Source, Holder::Source));
        assert_eq!(
            Entry::held("c", Epoch(3), None).holder(Side::Source, &handover(), "a"),
            Err("c".to_owned())
        );
    }
}
