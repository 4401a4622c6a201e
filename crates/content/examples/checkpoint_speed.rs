//! How fast a checkpoint is written and read back, and how fast its blocks are hashed, on one thread:
//! `cargo run --release -p vmferry-content --example checkpoint_speed [FOLDER]`. The folder decides what the disk's part is.

use std::{env, error::Error, hint::black_box, path::PathBuf, time::Instant};

use vmferry_content::{BLOCK_BYTES, Blocks, CheckpointFolder, HostKey};
use vmferry_core::page::{Place, content::block_hash};

const BLOCKS: usize = 1 << 16;
const PIECE_BYTES: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args_os().nth(1).map_or_else(env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("checkpoint-speed-{}", std::process::id()));
    let mut memory = vec![0; BLOCKS * BLOCK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut memory);

    let print = |what: &str, started: Instant| {
        let rate = memory.len() as f64 / 1e6 / started.elapsed().as_secs_f64();
        println!("{what:28} {rate:7.0} MB/s");
    };
    let started = Instant::now();
    for block in memory.chunks(BLOCK_BYTES) {
        black_box(block_hash(block));
    }
    print("hash", started);

    let checkpoints = CheckpointFolder::open(&folder, HostKey::new([1; 32]), u64::MAX)?;
    let mut writer = checkpoints.begin("vm")?;
    let started = Instant::now();
    writer.add(Place::default(), &memory)?;
    print("hash, encrypt, write", started);
    writer.finish()?;
    print("… and sync", started);

    let checkpoint = checkpoints.checkpoint("vm")?.ok_or("it was just written")?;
    let mut piece = vec![0; PIECE_BYTES];
    let started = Instant::now();
    for first in (0..checkpoint.blocks()).step_by(PIECE_BYTES / BLOCK_BYTES) {
        checkpoint.read(first, &mut piece)?;
    }
    print("read 1 MiB at once, decrypt", started);
    let started = Instant::now();
    for first in 0..checkpoint.blocks() {
        checkpoint.read(first, &mut piece[..BLOCK_BYTES])?;
    }
    print("read 4 KiB at once, decrypt", started);
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
