//! What the fuzz targets share: what a QEMU is given, and a bound on the memory that one input may take.
//!
//! libFuzzer's own bound (`-malloc_limit_mb`) needs a sanitizer, and what is asked for and never written to does not show in a
//! process's size. So allocations are counted, and one over the bound fails, which ends the process as any finding does.

use cap::Cap;
use std::alloc::System;
use vmferry::vm::VmDefinition;
use vmferry::vm::given::{Given, GivenLayer, GivenMedium};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Gives what `read` gives, unless that asks for more than `bytes_max` of memory at once beside what there is.
pub fn within<T>(bytes_max: usize, read: impl FnOnce() -> T) -> T {
    // Fails only below what is allocated.
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + bytes_max);
    let given = read();
    let _ = ALLOCATOR.set_limit(usize::MAX);
    given
}

/// What a QEMU of this definition could be given open.
pub fn given_to(definition: &VmDefinition) -> Given {
    let medium = GivenMedium::File {
        fd: 9,
        path: "/disk".into(),
        is_device: false,
    };
    let layer = |format| GivenLayer {
        format,
        medium: medium.clone(),
    };
    Given {
        disks: definition.disk.iter().map(|disk| vec![layer(disk.format)]).collect(),
        taps: vec![7; definition.nic.len()],
        serial: Some(8),
        kernel: Some(10),
        initrd: Some(11),
        ..Given::default()
    }
}
