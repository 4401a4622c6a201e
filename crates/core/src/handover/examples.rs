//! A handover for tests.

use crate::page::Coders;
use crate::wire::hello::MigrationId;
use crate::wire::message::{Epoch, Handover, Transfer};

pub(super) fn handover() -> Handover {
    Handover {
        migration: MigrationId(1),
        vm: "vm".into(),
        epoch: Epoch(1),
    }
}

pub(super) fn transfer() -> Transfer {
    Transfer {
        lanes: 1,
        coders: Coders::default(),
        fingerprint_key: [0; 32],
        verify_memory: false,
        bandwidth: None,
        link_patience_ms: 0,
    }
}
