//! What indexes take of memory. Alone in its process, of which the kernel tells it.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
};

use vmferry_content::{BLOCK_BYTES, Cancel, ImageFile, Index, ScanOptions, index::scan};

/// The most memory that this process ever had at once, bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// 16 GiB, of whose index each copy in memory would take 32 MiB.
#[test]
fn an_index_is_never_in_memory_as_a_whole() {
    const BLOCKS: u64 = 4 << 20;
    const MEMORY_MAX: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = (folder.path().join("image"), folder.path().join("index"));
    let file = OpenOptions::new().create_new(true).write(true).open(&path).unwrap();
    file.set_len(BLOCKS * BLOCK_BYTES as u64).unwrap();
    file.write_all_at(&[1; BLOCK_BYTES], BLOCKS / 2 * BLOCK_BYTES as u64)
        .unwrap();
    let image = ImageFile::open(&path).unwrap();
    let (options, cancel) = (ScanOptions::default(), Cancel::new());
    let before = peak();
    let first = scan(&image, None, &index, &options, &cancel, |_| {}).unwrap();
    scan(&image, Some(&first), &index, &options, &cancel, |_| {}).unwrap();
    let second = Index::open(&index).unwrap();
    assert_eq!(second.header(), first.header());
    let taken = peak() - before;
    assert!(taken < MEMORY_MAX, "{taken} bytes");
}
