//! Any bytes are the tables of memory that a target kept: what they say is bounded by their length, and what is found in them is
//! within them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::convert::Infallible;
use vmferry_core::page::{BlockTable, Catalog, KeptBlock, Place, content::BLOCK_BYTES, earlier};
use vmferry_fuzz::within;

/// A block for each byte, at a place that it chooses, too.
fn kept(bytes: &[u8]) -> Vec<KeptBlock> {
    let block = |byte: &u8| KeptBlock::new(Place(u64::from(*byte) * 3 / 2), &[*byte; BLOCK_BYTES]);
    bytes.iter().map(block).collect()
}

fuzz_target!(|data: &[u8]| within((256 << 10) + 64 * data.len(), || check(data)));

fn check(data: &[u8]) {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let packed = match way % 2 {
        0 => bytes.to_vec(),
        _ => {
            // What an honest target sends, with a part of it changed.
            let (changes, blocks) = bytes.split_at(bytes.len() / 2);
            let (kept, room) = (kept(blocks), 4 + 5 * blocks.len() + 8 * changes.len());
            let Ok::<_, Infallible>(packed) = earlier::pack(kept.len() as u64, room, |each| {
                each(&kept);
                Ok(())
            });
            let mut packed = packed.unwrap_or_default();
            for change in changes.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]]));
                if let Some(byte) = packed.get_mut(at) {
                    *byte = change[2];
                }
            }
            packed
        }
    };
    let packed_bytes = packed.len();
    let (table, earlier) = earlier::unpack(packed, 4 * packed_bytes);
    assert!(table.len() * 5 <= packed_bytes);
    let memory_bytes = table.memory_bytes() + earlier.memory_bytes();
    assert!(
        memory_bytes <= 1024 + 4 * packed_bytes,
        "{memory_bytes} for {packed_bytes}"
    );
    for byte in bytes.iter().take(8) {
        let block = KeptBlock::new(Place(u64::from(*byte)), &[*byte; BLOCK_BYTES]);
        let found: Option<u64> = BlockTable::find(&table, block.hash);
        assert!(found.is_none_or(|block| block < packed_bytes as u64 / 5));
    }
    let catalog = Catalog::new(vec![table.into()]).with_earlier(0, earlier);
    catalog.holds(&[way.wrapping_add(1); BLOCK_BYTES]);
}
