//! Any bytes are the tables of memory that a target kept: what they say is bounded by their length, and what is found in them is
//! within them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::page::{BlockTable, Catalog, KeptBlock, Place, content::BLOCK_BYTES, earlier};

/// A block for each byte, at a place that it chooses, too.
fn kept(bytes: &[u8]) -> Vec<KeptBlock> {
    let block = |byte: &u8| KeptBlock::new(Place(u64::from(*byte) * 3 / 2), &[*byte; BLOCK_BYTES]);
    bytes.iter().map(block).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let packed = match way % 2 {
        0 => bytes.to_vec(),
        _ => {
            // What an honest target sends, with a part of it changed.
            let (changes, blocks) = bytes.split_at(bytes.len() / 2);
            let mut packed = earlier::pack(&kept(blocks), 4 + 5 * blocks.len() + 8 * changes.len()).unwrap_or_default();
            for change in changes.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]]));
                if let Some(byte) = packed.get_mut(at) {
                    *byte = change[2];
                }
            }
            packed
        }
    };
    let (table, earlier) = earlier::unpack(&packed);
    assert!(table.len() * 5 <= packed.len());
    let memory_bytes = table.memory_bytes() + earlier.memory_bytes();
    assert!(
        memory_bytes <= 1024 + 4 * packed.len(),
        "{memory_bytes} for {}",
        packed.len()
    );
    for byte in bytes.iter().take(8) {
        let block = KeptBlock::new(Place(u64::from(*byte)), &[*byte; BLOCK_BYTES]);
        let found: Option<u64> = BlockTable::find(&table, block.hash);
        assert!(found.is_none_or(|block| block < packed.len() as u64 / 5));
    }
    let catalog = Catalog::new(vec![table.into()]).with_earlier(0, earlier);
    catalog.holds(&[way.wrapping_add(1); BLOCK_BYTES]);
});
