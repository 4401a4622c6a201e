//! What the target has already is not sent: what its VMs' disks and images hold, and memory that an earlier migration left.
//!
//! Each move compares the memory of both hosts byte for byte before the guest is handed over.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmferry_e2e::agent::{Agent, IN_THE_CLEAR};
use vmferry_e2e::image::{compressed_qcow2_of, ext4_disk, overlay_of};
use vmferry_e2e::migration::Migration;
use vmferry_e2e::nbd::NbdExport;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::{Fault, Proxy};
use vmferry_e2e::qemu::Disk;
use vmferry_e2e::scenario::{Scenario, ensure_alive, small_guest};

const PAGE_BYTES: usize = 4096;
const MIB: u64 = 1 << 20;
const NOTHING_KEPT: [&str; 2] = ["--kept-memory", "0"];
/// What a report calls the memory that the target had kept.
const KEPT: &str = "the target's own";

/// Pages whose content no other has, and no LZ coder shrinks.
fn random(name: &str, pages: usize) -> Vec<u8> {
    let mut bytes = vec![0; pages * PAGE_BYTES];
    blake3::Hasher::new()
        .update(name.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Pages whose content no other has, and any coder shrinks.
fn text(name: &str, pages: usize) -> Vec<u8> {
    let page = |number| format!("page {number} of {name}, ").into_bytes();
    let page = |number| page(number).into_iter().cycle().take(PAGE_BYTES);
    (0..pages).flat_map(page).collect()
}

/// A raw disk in `folder` with one file of this content.
fn disk_of(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let (files, disk) = (folder.join(format!("{name}.files")), folder.join(format!("{name}.raw")));
    fs::create_dir(&files)?;
    fs::write(files.join("file"), content)?;
    ext4_disk(&disk, content.len() as u64 + 16 * MIB, Some(&files))?;
    Ok(disk)
}

fn read_only(file: impl Into<String>, format: &str, mount: &str) -> Disk {
    Disk {
        file: file.into(),
        format: format.to_owned(),
        read_only: true,
        mount: mount.to_owned(),
    }
}

/// Waits until the agent has nothing to index, and all of it was.
fn await_indexes(agent: &Agent) -> Result<()> {
    let answer = agent.cli(["index", "--wait"])?;
    ensure!(answer.code == Some(0), "{}", answer.said);
    let sources = answer.values.iter().flat_map(|value| match value {
        Value::Array(sources) => sources.as_slice(),
        source => std::slice::from_ref(source),
    });
    for source in sources {
        ensure!(source["state"] == "ready", "{source}");
    }
    Ok(())
}

/// The index that an agent keeps of what it knows as `source`.
fn index_of(agent: &Agent, source: &str) -> PathBuf {
    let digest = blake3::hash(source.as_bytes()).to_hex();
    let indexes = agent.folder().join("content/indexes");
    indexes.join(format!("{}.index", &digest[..32]))
}

/// Pages that were referred to `source`, and how many of them the target did not find there.
fn referred(report: &Value, source: &str) -> (u64, u64) {
    let listed = report["contents"].as_array().into_iter().flatten();
    let mut of_source =
        listed.filter(|content| content["source"].as_str().is_some_and(|name| name.starts_with(source)));
    let content = of_source.next().unwrap_or(&Value::Null);
    assert!(of_source.next().is_none(), "{report:#}");
    let number = |field: &str| content[field].as_u64().unwrap_or(0);
    (number("pages"), number("pages_missed"))
}

fn wire_bytes(report: &Value) -> Result<u64> {
    report["wire_bytes"].as_u64().context("a report without its wire bytes")
}

/// Pages that crossed as `encoding`, and their bytes; with `content`, for pages that were asked for as well.
fn crossed(report: &Value, encoding: &str) -> (u64, u64) {
    let sum = |number: &str| {
        let rounds = report["rounds"].as_array().into_iter().flatten();
        rounds
            .filter_map(|round| round["by_encoding"][encoding][number].as_u64())
            .sum()
    };
    (sum("pages"), sum("bytes"))
}

/// The files in which an agent keeps memory.
fn kept(agent: &Agent) -> Result<Vec<PathBuf>> {
    let folder = agent.folder().join("content/memory");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Moves the VM through the proxy until its first data lane breaks.
fn fail_at(scenario: &Scenario, proxy: &Proxy, offset: u64) -> Result<()> {
    proxy.spoil(offset, Fault::Cut);
    // A lane that is cut would be taken up again.
    let flags = ["--lanes", "1", "--link-patience", "0s"];
    let report = Migration::begin(&scenario.a, "web", &proxy.address(), &flags)?.report()?;
    ensure!(report["outcome"] == "rolled-back", "{report:#}");
    scenario.settles(&["web"], &[])
}

#[test]
fn pages_are_read_from_the_disk_and_a_wrong_index_or_disk_costs_only_bytes() -> Result<()> {
    const PAGES: usize = 6 * 1024;
    let lab = Lab::new()?;
    let content = random("a disk", PAGES);
    let path = disk_of(lab.folder(), "disk", &content)?;
    let source = path.to_str().context("a path that is no text")?;
    let options = [&NOTHING_KEPT[..], &[IN_THE_CLEAR]].concat();
    let scenario = Scenario::set_up_with(&lab, &options, &options)?;
    let spec = small_guest(0, vec![read_only(source, "raw", "/files")])?;
    let mut guest = scenario.run(Host::A, "web", &spec)?;
    assert_eq!(guest.ask_number("readall /files", "bytes")?, content.len() as u64);
    let in_guest = PAGES as u64 - PAGES as u64 / 50;

    // An index that was changed is noticed when it is wanted, and made anew though that attempt fails.
    await_indexes(&scenario.a)?;
    let index = index_of(&scenario.a, source);
    let whole = fs::read(&index)?;
    File::options()
        .write(true)
        .open(&index)?
        .write_all_at(&[!whole[5000]], 5000)?;
    fail_at(&scenario, &Proxy::start(&lab)?, MIB)?;
    await_indexes(&scenario.a)?;
    assert!(fs::read(&index)? == whole, "the index is not what it was");

    // One that was cut off serves as little; the move does without.
    File::options()
        .write(true)
        .open(&index)?
        .set_len(whole.len() as u64 / 2)?;
    let without = scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    assert_eq!(referred(&without, source), (0, 0), "{without:#}");

    await_indexes(&scenario.b)?;
    let with = scenario.moves("web", Host::B, Host::A, &[])?;
    scenario.settles(&["web"], &[])?;
    let (pages, missed) = referred(&with, source);
    assert!(pages >= in_guest && missed == 0, "{with:#}");
    let saved = in_guest * PAGE_BYTES as u64 * 9 / 10;
    assert!(
        wire_bytes(&with)? + saved < wire_bytes(&without)?,
        "{without:#}\n{with:#}"
    );

    // Part of the disk is written under the index: the guest has what it read before.
    await_indexes(&scenario.a)?;
    assert!(fs::read(&index)? == whole, "the index is not what it was");
    let rewritten = rewrite(&path, &content)?;
    let stale = scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    let (pages, missed) = referred(&stale, source);
    assert!(
        pages >= in_guest && (1..=rewritten).contains(&missed),
        "{rewritten}: {stale:#}"
    );
    assert!(
        missed >= rewritten - (PAGES as u64 - in_guest),
        "{rewritten}: {stale:#}"
    );
    assert!(crossed(&stale, "content").1 >= missed * PAGE_BYTES as u64, "{stale:#}");

    assert_eq!((kept(&scenario.a)?.len(), kept(&scenario.b)?.len()), (0, 0));
    ensure_alive(&mut guest)
}

/// Changes every 16th of the disk's blocks that hold a page of `content`, in place; returns how many.
fn rewrite(disk: &Path, content: &[u8]) -> Result<u64> {
    let pages: HashSet<&[u8]> = content.chunks(PAGE_BYTES).collect();
    let blocks = fs::read(disk)?;
    let of_content = blocks
        .chunks(PAGE_BYTES)
        .zip(0u64..)
        .filter(|(block, _)| pages.contains(block));
    let file = File::options().write(true).open(disk)?;
    let mut rewritten = 0;
    for (block, number) in of_content.step_by(16) {
        let changed: Vec<u8> = block.iter().map(|byte| !byte).collect();
        file.write_all_at(&changed, number * PAGE_BYTES as u64)?;
        rewritten += 1;
    }
    file.sync_all()?;
    Ok(rewritten)
}

#[test]
fn pages_are_found_in_backing_files_exports_and_images() -> Result<()> {
    const PAGES: usize = 2 * 1024;
    let lab = Lab::new()?;
    let folder = lab.folder();

    let backing = disk_of(folder, "backing", &random("a backing file", PAGES))?;
    let overlay = folder.join("overlay.qcow2");
    overlay_of(&backing, &overlay)?;

    let exported = disk_of(folder, "exported", &random("an export", PAGES))?;
    let export = NbdExport::start(&lab, &exported, "raw", 10809)?;

    // The disk itself holds no page as it is: it is compressed. Both hosts have what it was made from.
    let golden = disk_of(folder, "golden", &text("an image", PAGES))?;
    let compressed = folder.join("compressed.qcow2");
    compressed_qcow2_of(&golden, &compressed)?;
    let images = [folder.join("image-on-a.raw"), folder.join("image-on-b.raw")];
    fs::copy(&golden, &images[0])?;
    fs::rename(&golden, &images[1])?;
    let images = images.map(|path| path.display().to_string());

    let options = |image| ["--image", image];
    let scenario = Scenario::set_up_with(&lab, &options(&images[0]), &options(&images[1]))?;
    let disks = vec![
        read_only(overlay.display().to_string(), "qcow2", "/backed"),
        read_only(export.uri(), "raw", "/exported"),
        read_only(compressed.display().to_string(), "qcow2", "/compressed"),
    ];
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, disks)?)?;
    for mount in ["/backed", "/exported", "/compressed"] {
        let read = guest.ask_number(&format!("readall {mount}"), "bytes")?;
        assert_eq!(read, (PAGES * PAGE_BYTES) as u64);
    }
    await_indexes(&scenario.a)?;
    await_indexes(&scenario.b)?;
    let report = scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    for source in [
        &backing.display().to_string(),
        export.uri().trim_end_matches('/'),
        "image ",
    ] {
        let (pages, missed) = referred(&report, source);
        // A server that answers more slowly than pages cross, if only for a moment, is not waited for.
        let missed_max = if source.starts_with("nbd:") { pages / 4 } else { 0 };
        assert!(
            pages >= (PAGES - PAGES / 50) as u64 && missed <= missed_max,
            "{source}: {report:#}"
        );
    }
    ensure_alive(&mut guest)?;
    drop(scenario);
    export.stop()
}

#[test]
fn an_export_that_is_slow_to_read_is_left_alone() -> Result<()> {
    const PAGES: usize = 4 * 1024;
    let lab = Lab::new()?;
    let exported = disk_of(lab.folder(), "exported", &text("an export", PAGES))?;
    let export = NbdExport::start(&lab, &exported, "raw", 10809)?;
    let source = export.uri();
    let source = source.trim_end_matches('/');
    let scenario = Scenario::set_up_with(&lab, &NOTHING_KEPT, &NOTHING_KEPT)?;
    let spec = small_guest(0, vec![read_only(export.uri(), "raw", "/exported")])?;
    let mut guest = scenario.run(Host::A, "web", &spec)?;
    let read = guest.ask_number("readall /exported", "bytes")?;
    assert_eq!(read, (PAGES * PAGE_BYTES) as u64);
    await_indexes(&scenario.a)?;

    // To read all of it would take more than half a minute, to be sent it takes a moment: text, over a link without a limit.
    lab.set_rate(Host::Storage, Some(4))?;
    let report = scenario.moves("web", Host::A, Host::B, &[])?;
    lab.set_rate(Host::Storage, None)?;
    scenario.settles(&[], &["web"])?;
    let (pages, _) = referred(&report, source);
    let in_guest = (PAGES - PAGES / 50) as u64;
    assert!(pages > 0 && pages < in_guest, "{report:#}");
    // What it boots from is on the hosts.
    for content in report["contents"].as_array().into_iter().flatten() {
        let is_export = content["source"] == source || content["source"] == *export.uri();
        assert_eq!(content["is_slow"], is_export, "{report:#}");
    }
    ensure_alive(&mut guest)?;
    drop(scenario);
    export.stop()
}

#[test]
fn memory_that_was_left_is_not_sent_again() -> Result<()> {
    // No two of these pages are equal, and they don't shrink, so a move that knows nothing of them sends at least as much.
    const FILLED: u64 = 48 * MIB;
    const CUT_AT: u64 = 46 * MIB;
    // Of each of these a word changes, again and again.
    const CHANGED: u64 = 8 * MIB;
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let spec = small_guest(0, Vec::new())?;
    let mut guest = scenario.run(Host::A, "web", &spec)?;
    guest.ask(&format!("fill random {FILLED}"))?;

    // An attempt that failed leaves at its target what had come.
    fail_at(&scenario, &Proxy::start(&lab)?, CUT_AT)?;
    assert_eq!(
        kept(&scenario.b)?.len(),
        1,
        "the target keeps nothing of an attempt that failed"
    );
    guest.ask(&format!("dirty counter {CHANGED} {CHANGED}"))?;
    let there = scenario.moves("web", Host::A, Host::B, &[])?;
    scenario.settles(&[], &["web"])?;
    let (pages, missed) = referred(&there, KEPT);
    assert!(
        pages * PAGE_BYTES as u64 >= CUT_AT / 10 * 9 && missed * 100 <= pages,
        "{there:#}"
    );
    assert!(wire_bytes(&there)? < FILLED / 2, "{there:#}");
    ensure_alive(&mut guest)?;

    // What is kept is kept by the side that the VM left, and can't be read by who has only the file.
    assert!(kept(&scenario.b)?.is_empty(), "memory of a VM is kept where it runs");
    let [left] = &kept(&scenario.a)?[..] else {
        anyhow::bail!("the source keeps nothing of a VM that left");
    };
    let bytes = fs::read(left)?;
    assert!(bytes.len() as u64 > FILLED);
    // The guest acts on it, so it has it in memory.
    let plain = spec.kernel_command_line().into_bytes();
    let plain = &plain[plain.len() - 24..];
    assert!(!bytes.windows(plain.len()).any(|window| window == plain));

    // Until each of those pages is another than the one that was kept.
    let before = guest.ask_number("dirty-rate", "written_bytes")?;
    while guest.ask_number("dirty-rate", "written_bytes")? < before + CHANGED {}
    guest.ask("stop-dirty")?;
    let back = scenario.moves("web", Host::B, Host::A, &[])?;
    scenario.settles(&["web"], &[])?;
    let (pages, missed) = referred(&back, KEPT);
    assert!(pages * PAGE_BYTES as u64 >= FILLED && missed * 100 <= pages, "{back:#}");
    let (pages, patches) = crossed(&back, "patch");
    assert!(pages * PAGE_BYTES as u64 >= CHANGED / 10 * 9, "{back:#}");
    assert!(patches * 8 < pages * PAGE_BYTES as u64, "{back:#}");
    assert!(wire_bytes(&back)? * 4 < bytes.len() as u64, "{back:#}");
    assert!(kept(&scenario.a)?.is_empty(), "memory of a VM is kept where it runs");
    ensure_alive(&mut guest)
}
