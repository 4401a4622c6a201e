//! What a migration takes of memory, against what it may take; and the table of it in the documentation.

use std::{convert::Infallible, fmt::Write};
use vmferry_core::memory::{AGENT_BYTES, Part, Session, sum};
use vmferry_core::page::{
    BlockTable, Coders, KeptBlock, Place,
    content::BLOCK_BYTES,
    earlier::{pack, unpack},
};

const GIB: u64 = 1 << 30;
const PAGES_PER_GIB: u64 = GIB / 4096;
/// Guests in the table.
const GUESTS_GIB: [u64; 4] = [1, 16, 64, 256];
/// The lanes and the memory for tables of known content where nothing else is asked for.
const LANES: u16 = 8;
const INDEX_BYTES: u64 = 256 << 20;
/// What a target sends of the memory that it kept, at the most.
const TABLE_BYTES: u64 = vmferry_core::limits::CONTENT_TABLES_BYTES_MAX as u64;

fn session(guest_bytes: u64) -> Session {
    Session {
        guest_bytes,
        lanes: LANES,
        coders: Coders::default(),
    }
}

fn source(guest_bytes: u64) -> Vec<Part> {
    let session = session(guest_bytes);
    session.source(session.tables_bytes_max(INDEX_BYTES))
}

fn target(guest_bytes: u64) -> Vec<Part> {
    session(guest_bytes).target(TABLE_BYTES)
}

#[test]
fn the_bounds_hold_for_guests_of_every_size() {
    for power in 27..=46 {
        for guest_bytes in [1 << power, 3 << (power - 2), (1 << power) + 12_345_678] {
            for wished in [0, 1 << 20, INDEX_BYTES, 1 << 40] {
                // All coders of `--codec auto` on so many lanes take more than small guests leave.
                let auto = (guest_bytes >= 2 * GIB).then(Coders::auto);
                for coders in [Coders::default()].into_iter().chain(auto) {
                    let session = Session {
                        coders,
                        ..session(guest_bytes)
                    };
                    let takes = sum(&session.source(session.tables_bytes_max(wished)));
                    let most = session.source_bytes_max();
                    assert!(takes <= most, "{takes} > {most} bytes of {session:?}");
                }
            }
            if guest_bytes <= 1 << 40 {
                let takes = sum(&target(guest_bytes));
                assert!(
                    takes <= AGENT_BYTES + TABLE_BYTES,
                    "{takes} bytes at the target of {guest_bytes}"
                );
            }
        }
    }
}

#[test]
fn without_known_content_nearly_all_pages_have_hashes() {
    let hashes = |guest_bytes| session(guest_bytes).source(0).pop().map(|part| part.bytes);
    let all = |guest_bytes: u64| guest_bytes / 4096 * 512;
    for (guest_gib, part) in GUESTS_GIB.into_iter().zip([1.0, 0.97, 0.95, 0.94]) {
        let hashes = hashes(guest_gib * GIB).unwrap() as f64;
        assert!(
            hashes >= part * all(guest_gib * GIB) as f64,
            "{hashes} for {guest_gib} GiB"
        );
    }
}

/// A table in Markdown: MiB, rounded up, for each guest, and bytes for each page as far as the guest's size counts.
fn table(side: &str, parts: fn(u64) -> Vec<Part>) -> String {
    let guests: Vec<Vec<Part>> = GUESTS_GIB.iter().map(|gib| parts(gib * GIB)).collect();
    let mut text = format!("| {side} | bytes a page |");
    GUESTS_GIB.iter().for_each(|gib| write!(text, " {gib} GiB |").unwrap());
    text.push_str("\n|---|---:|---:|---:|---:|---:|\n");
    let mut row = |name: &str, bytes: &dyn Fn(&[Part]) -> u64| {
        let (large, larger) = (bytes(&parts(64 * GIB)), bytes(&parts(256 * GIB)));
        let a_page = larger.saturating_sub(large) as f64 / (192 * PAGES_PER_GIB) as f64;
        write!(text, "| {name} | {a_page:.2} |").unwrap();
        for guest in &guests {
            write!(text, " {} |", bytes(guest).div_ceil(1 << 20)).unwrap();
        }
        text.push('\n');
    };
    for (number, part) in guests[0].iter().enumerate() {
        row(part.name, &|parts| parts[number].bytes);
    }
    row("**all**", &sum);
    text
}

/// The same of blocks of known content, as real tables of that many neighbours take it: bytes for each.
fn blocks_table() -> String {
    const BLOCKS: u64 = 1 << 17;
    let kept: Vec<KeptBlock> = (0..BLOCKS)
        .map(|number| {
            let content = (number + 1).to_le_bytes().repeat(BLOCK_BYTES / 8);
            KeptBlock::new(Place::new("ram", number * BLOCK_BYTES as u64), &content)
        })
        .collect();
    let read = |each: &mut dyn FnMut(&[KeptBlock])| {
        each(&kept);
        Ok::<_, Infallible>(())
    };
    let Ok(packed) = pack(BLOCKS, usize::MAX, read);
    let packed = packed.unwrap();
    let crosses = packed.len();
    let (table, earlier) = unpack(packed, usize::MAX);
    assert_eq!(table.len() as u64, BLOCKS);
    assert!(table.memory_bytes() as u64 <= BlockTable::BYTES_PER_BLOCK_MAX * BLOCKS);
    let rows = [
        ("what a table finds contents by", table.memory_bytes()),
        ("what a table finds earlier versions by", earlier.memory_bytes()),
        ("what crosses of kept memory, for both", crosses),
    ];
    let row = |(name, bytes): (&str, usize)| format!("| {name} | {:.1} |\n", bytes as f64 / BLOCKS as f64);
    format!("| | bytes a block |\n|---|---:|\n{}", rows.map(row).concat())
}

#[test]
fn the_documentation_has_these_figures() {
    let bound = |gib: u64| (session(gib * GIB).source_bytes_max() >> 20).to_string();
    let tables = [
        format!(
            "{}| *may take* | 512.00 | {} |\n",
            table("source", source),
            GUESTS_GIB.map(bound).join(" | "),
        ),
        table("target", target),
        blocks_table(),
    ];
    let documentation = include_str!("../../../docs/engine.md");
    for table in tables {
        println!("{table}");
        assert!(
            documentation.contains(&table),
            "docs/engine.md has other figures than these:\n{table}"
        );
    }
}
