//! Files to look for content in.

use std::{
    fs::{self, FileTimes, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use vmferry_content::{BLOCK_BYTES, Index};

/// Block `n` of an image is filled with `n + 1`, from 251 on with 1 and so on again.
pub(crate) fn image(path: &Path, blocks: usize) -> PathBuf {
    let content: Vec<u8> = (0..blocks).flat_map(|n| [(n % 251) as u8 + 1; BLOCK_BYTES]).collect();
    fs::write(path, content).unwrap();
    path.to_owned()
}

/// Fills a block with `byte`, and dates the file later the larger that is.
pub(crate) fn overwrite(path: &Path, block: u64, byte: u8) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[byte; BLOCK_BYTES], block * BLOCK_BYTES as u64)
        .unwrap();
    // Two writes within one tick of the file system's clock have the same time.
    file.set_times(FileTimes::new().set_modified(SystemTime::now() + Duration::from_secs(u64::from(byte))))
        .unwrap();
}

/// All hashes of an index.
pub(crate) fn hashes(index: &Index) -> Vec<u64> {
    index.hashes(0..index.header().blocks).unwrap()
}
