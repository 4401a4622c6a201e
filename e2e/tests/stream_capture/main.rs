//! The stream parser on what real QEMUs send: every byte is accounted for and written again as it was read, and every page
//! that QEMU says it sent is seen.
//!
//! One guest boots per test and is migrated several times, each time to a reader that answers as a target would and
//! keeps the stream.

mod capture;
mod check;
mod debian12;
mod source;

use anyhow::Result;
use capture::{Kind, Migration};
use check::check;
use source::{Machine, Source};
use vmferry_core::qemu::Block;

const PRECOPY: [Migration; 2] = [
    Migration::new(Kind::Precopy),
    Migration::new(Kind::Precopy).with_return_path(),
];

/// Boots `machine`, captures each migration and checks it.
fn assert_followed(machine: &Machine, migrations: &[Migration]) -> Result<Vec<check::Report>> {
    let source = Source::boot(machine)?;
    migrations
        .iter()
        .map(|migration| check(&source.capture(migration)?))
        .collect()
}

fn names(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().map(|block| block.name.as_str()).collect()
}

#[test]
fn pc_i440fx_10_0_in_every_kind_of_migration() -> Result<()> {
    let migrations = [
        PRECOPY[0],
        PRECOPY[1],
        Migration::new(Kind::Xbzrle).with_return_path(),
        Migration::new(Kind::DirtyBitmaps).with_return_path(),
        Migration::new(Kind::Uuid).with_return_path(),
        Migration::new(Kind::Postcopy),
    ];
    let machine = Machine::new("pc-i440fx-10.0").with(&[
        "-uuid",
        "8f0a2f3c-9a55-4a51-8d5a-0b8f8fb0a7c1",
        "-blockdev",
        "null-co,node-name=disk0,size=67108864",
    ]);
    let reports = assert_followed(&machine, &migrations)?;
    assert!(names(&reports[0].blocks).contains(&"pc.ram"));
    assert!(reports[2].foreign > 0, "no page was sent as a delta");
    assert!(reports[5].postcopy_pages > 0, "no page was sent after the switch");
    Ok(())
}

#[test]
fn pc_q35_10_0_with_a_balloon_that_hints_free_pages() -> Result<()> {
    let machine = Machine::new("pc-q35-10.0").with_vcpus(4).with(&[
        "-object",
        "iothread,id=hints",
        "-device",
        "virtio-balloon-pci,free-page-hint=on,iothread=hints",
    ]);
    let reports = assert_followed(&machine, &[Migration::new(Kind::Slow).with_return_path()])?;
    assert!(
        reports[0].distinct_pages < reports[0].listed_pages,
        "the guest hinted no free page: all {} pages were sent",
        reports[0].listed_pages
    );
    Ok(())
}

#[test]
fn pc_q35_8_2_with_two_numa_nodes() -> Result<()> {
    let machine = Machine::new("pc-q35-8.2").with_vcpus(4).with(&[
        "-object",
        "memory-backend-ram,id=near,size=64M",
        "-object",
        "memory-backend-memfd,id=far,size=64M",
        "-numa",
        "node,nodeid=0,memdev=near,cpus=0-1",
        "-numa",
        "node,nodeid=1,memdev=far,cpus=2-3",
    ]);
    for report in assert_followed(&machine, &PRECOPY)? {
        let names = names(&report.blocks);
        assert!(names.contains(&"near") && names.contains(&"far"), "{names:?}");
    }
    Ok(())
}

#[test]
fn pc_q35_10_0_with_virtio_mem() -> Result<()> {
    // Under TCG, QEMU 10.0.2 aborts in a migration if this memory is smaller than the other.
    let machine = Machine::new("pc-q35-10.0").with(&[
        "-m",
        "256M,maxmem=512M",
        "-object",
        "memory-backend-ram,id=hotplug,size=256M",
        "-device",
        "virtio-mem-pci,memdev=hotplug,requested-size=128M",
    ]);
    for report in assert_followed(&machine, &PRECOPY)? {
        // A device's own memory has the device's path in front of its name.
        let hotplug = names(&report.blocks).iter().any(|name| name.ends_with("/hotplug"));
        assert!(hotplug);
    }
    Ok(())
}

#[test]
fn pc_i440fx_7_2() -> Result<()> {
    assert_followed(&Machine::new("pc-i440fx-7.2"), &PRECOPY).map(drop)
}

#[test]
fn pc_i440fx_2_4() -> Result<()> {
    // This machine type hides long mode from `-cpu max`.
    assert_followed(&Machine::new("pc-i440fx-2.4").with_cpu("qemu64"), &PRECOPY).map(drop)
}

#[test]
fn qemu_7_2_of_debian_12() -> Result<()> {
    let Some(program) = debian12::qemu()? else {
        eprintln!("not run: this system's package lists have no QEMU 7.2");
        return Ok(());
    };
    let migrations = [PRECOPY[0], PRECOPY[1], Migration::new(Kind::Xbzrle).with_return_path()];
    for machine in ["pc-i440fx-7.2", "pc-q35-7.2"] {
        let machine = Machine::new(machine).with_vcpus(4).with_program(&program);
        let reports = assert_followed(&machine, &migrations)?;
        assert!(reports[2].foreign > 0, "no page was sent as a delta");
    }
    Ok(())
}
