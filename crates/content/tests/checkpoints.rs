//! Checkpoints, written and read back in real files.

use std::{
    fs::{self, File, FileTimes},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use tempfile::TempDir;
use vmferry_content::{
    BLOCK_BYTES, Blocks, Checkpoint, CheckpointError, CheckpointFolder, HostKey, KeyError,
    checkpoint::layout::HeaderError,
};
use vmferry_core::page::{KeptBlock, Place, content::block_hash};

const KEY: [u8; 32] = [3; 32];
const PLACE: Place = Place(1 << 48);

fn open(folder: &TempDir, key: [u8; 32], quota: u64) -> CheckpointFolder {
    CheckpointFolder::open(folder.path(), HostKey::new(key), quota).unwrap()
}

/// Blocks filled with one byte each.
fn memory(bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    bytes.into_iter().flat_map(|byte| [byte; BLOCK_BYTES]).collect()
}

fn write(checkpoints: &CheckpointFolder, vm: &str, memory: &[u8]) -> Result<(), CheckpointError> {
    let mut writer = checkpoints.begin(vm)?;
    writer.add(PLACE, memory)?;
    writer.finish()
}

fn records_of(checkpoint: &Checkpoint) -> io::Result<Vec<KeptBlock>> {
    let mut records = Vec::new();
    checkpoint.read_records(&mut |some| records.extend_from_slice(some))?;
    Ok(records)
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn only_file(folder: &TempDir) -> PathBuf {
    let [file] = &files(folder)[..] else {
        panic!("there is not one file");
    };
    file.clone()
}

fn age(file: &Path, days: u64) {
    let earlier = SystemTime::now() - Duration::from_secs(days * 86_400);
    File::open(file)
        .unwrap()
        .set_times(FileTimes::new().set_modified(earlier))
        .unwrap();
}

fn is_held(checkpoints: &CheckpointFolder, vm: &str) -> bool {
    checkpoints.checkpoint(vm).unwrap().is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Runs of pages, some of them zero, past the sizes of a piece and of a group.
    #[test]
    fn what_is_added_is_read_back(runs in prop::collection::vec((0..1500usize, 0..6u8), 1..6), shift in 0..4096usize) {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(&folder, KEY, u64::MAX);
        let mut writer = checkpoints.begin("vm").unwrap();
        let mut pages: Vec<[u8; BLOCK_BYTES]> = Vec::new();
        let mut records = Vec::new();
        for ((length, content), place) in runs.into_iter().zip((1..).map(|run| Place(run << 20))) {
            let mut run = vec![0; length * BLOCK_BYTES];
            if content > 0 {
                for (number, page) in run.chunks_mut(BLOCK_BYTES).enumerate() {
                    page[number % BLOCK_BYTES] = content;
                    records.push(KeptBlock::new(place.ahead(number as u64), page));
                    pages.push(page.try_into().unwrap());
                }
            }
            writer.add(place, &run).unwrap();
        }
        writer.finish().unwrap();

        let checkpoint = checkpoints.checkpoint("vm").unwrap().unwrap();
        prop_assert_eq!(checkpoint.blocks(), pages.len() as u64);
        prop_assert_eq!(records_of(&checkpoint).unwrap(), records);
        let mut buffer = vec![0; shift + pages.len() * BLOCK_BYTES];
        checkpoint.read(0, &mut buffer[shift..]).unwrap();
        prop_assert!(&buffer[shift..] == pages.as_flattened());
        if let Some(last) = pages.last() {
            checkpoint.read(pages.len() as u64 - 1, &mut buffer[..BLOCK_BYTES]).unwrap();
            prop_assert!(&buffer[..BLOCK_BYTES] == last);
        }
    }
}

/// A group of blocks has 4096.
#[test]
fn groups_end_where_they_end() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    for count in [0, 1, 4095, 4096, 4097, 8192, 8193u64] {
        let mut writer = checkpoints.begin("vm").unwrap();
        let content = |number: u64| -> Vec<u8> { (number + 1).to_le_bytes().repeat(BLOCK_BYTES / 8) };
        for number in 0..count {
            writer.add(PLACE.ahead(number), &content(number)).unwrap();
        }
        writer.finish().unwrap();
        let checkpoint = checkpoints.checkpoint("vm").unwrap().unwrap();
        let expected = (0..count).map(|number| KeptBlock::new(PLACE.ahead(number), &content(number)));
        assert_eq!(records_of(&checkpoint).unwrap(), expected.collect::<Vec<_>>());
        for first in (0..count).step_by(1000) {
            let blocks = 1500.min(count - first);
            let mut read = vec![0; blocks as usize * BLOCK_BYTES];
            checkpoint.read(first, &mut read).unwrap();
            assert!(read == (first..first + blocks).flat_map(content).collect::<Vec<_>>());
        }
    }
}

#[test]
fn nothing_of_the_guest_is_readable_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let page = b"a secret of the guest! ".repeat(200);
    write(&open(&folder, KEY, u64::MAX), "vm", &page[..BLOCK_BYTES]).unwrap();
    let file = only_file(&folder);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(file).unwrap();
    assert_eq!(bytes.len(), 2 * BLOCK_BYTES + 16 + 32 + 16);
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(!holds(b"secret"));
    assert!(!holds(&block_hash(&page[..BLOCK_BYTES]).to_le_bytes()));
    assert!(!holds(&KEY));
}

#[test]
fn the_same_memory_is_never_encrypted_alike() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    write(&checkpoints, "a", &memory([1, 1])).unwrap();
    write(&checkpoints, "b", &memory([1, 1])).unwrap();
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    for file in files(&folder) {
        let bytes = fs::read(file).unwrap();
        blocks.extend(
            bytes[BLOCK_BYTES..3 * BLOCK_BYTES]
                .chunks(BLOCK_BYTES)
                .map(<[u8]>::to_vec),
        );
    }
    blocks.sort();
    blocks.dedup();
    assert_eq!(blocks.len(), 4);
}

#[test]
fn unfinished_it_leaves_nothing_and_the_earlier_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    let mut first = checkpoints.begin("vm").unwrap();
    first.add(PLACE, &memory(1..=255)).unwrap();
    assert!(!is_held(&checkpoints, "vm"));
    drop(first);
    assert!(files(&folder).is_empty());

    write(&checkpoints, "vm", &memory([1])).unwrap();
    let mut second = checkpoints.begin("vm").unwrap();
    second.add(PLACE, &memory([2, 3])).unwrap();
    let mut third = checkpoints.begin("vm").unwrap();
    third.add(PLACE, &memory([4, 5, 6])).unwrap();
    drop(third);
    assert_eq!(checkpoints.checkpoint("vm").unwrap().unwrap().blocks(), 1);
    second.finish().unwrap();
    assert_eq!(checkpoints.checkpoint("vm").unwrap().unwrap().blocks(), 2);
    assert_eq!(files(&folder).len(), 1);
}

#[test]
fn what_a_crash_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    write(&checkpoints, "vm", &memory([1])).unwrap();
    let crashed = checkpoints.begin("vm").unwrap();
    std::mem::forget(crashed);
    assert_eq!(files(&folder).len(), 2);
    let checkpoints = open(&folder, KEY, u64::MAX);
    assert_eq!(files(&folder).len(), 1);
    assert!(is_held(&checkpoints, "vm"));
}

#[test]
fn a_reader_keeps_what_it_opened() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    write(&checkpoints, "vm", &memory([1, 2])).unwrap();
    let reader = checkpoints.checkpoint("vm").unwrap().unwrap();
    write(&checkpoints, "vm", &memory([3])).unwrap();
    let mut block = [0; BLOCK_BYTES];
    reader.read(1, &mut block).unwrap();
    assert_eq!(block, [2; BLOCK_BYTES]);
}

#[test]
fn the_oldest_make_room() {
    let folder = tempfile::tempdir().unwrap();
    // Room for three of two blocks each, as these take little more than 3 blocks in the file.
    let checkpoints = open(&folder, KEY, 10 * BLOCK_BYTES as u64);
    for vm in ["a", "b", "c"] {
        write(&checkpoints, vm, &memory([1, 2])).unwrap();
        files(&folder).iter().for_each(|file| {
            let days = SystemTime::now().duration_since(fs::metadata(file).unwrap().modified().unwrap());
            age(file, days.map_or(0, |age| age.as_secs() / 86_400) + 1);
        });
    }
    write(&checkpoints, "d", &memory([1, 2])).unwrap();
    assert_eq!(
        ["a", "b", "c", "d"].map(|vm| is_held(&checkpoints, vm)),
        [false, true, true, true]
    );
    let bytes: u64 = files(&folder)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(bytes <= 10 * BLOCK_BYTES as u64);
}

#[test]
fn what_does_not_fit_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, 300 * BLOCK_BYTES as u64);
    let mut writer = checkpoints.begin("vm").unwrap();
    writer.add(PLACE, &memory([1; 256])).unwrap();
    let error = writer.add(PLACE, &memory([1; 256])).unwrap_err();
    assert!(matches!(error, CheckpointError::OverQuota { .. }));
    assert!(error.to_string().contains("raise the quota"), "{error}");
    assert!(matches!(
        writer.add(PLACE, &memory([1])),
        Err(CheckpointError::Incomplete)
    ));
    writer.finish().unwrap();
    let kept = checkpoints.checkpoint("vm").unwrap().unwrap();
    assert_eq!(kept.blocks(), 256, "what fitted is kept");
    // An earlier one of the same VM is not removed before the new one is there.
    let mut again = checkpoints.begin("vm").unwrap();
    assert!(matches!(
        again.add(PLACE, &memory([2; 256])),
        Err(CheckpointError::OverQuota { .. })
    ));
    drop(again);
    assert!(is_held(&checkpoints, "vm"));
    checkpoints.remove("vm").unwrap();
    // What is being written counts too, and is not removed for another.
    let mut large = checkpoints.begin("large").unwrap();
    large.add(PLACE, &memory([1; 256])).unwrap();
    assert!(matches!(
        write(&checkpoints, "small", &memory([1; 100])),
        Err(CheckpointError::OverQuota { .. })
    ));
    large.finish().unwrap();
    assert!(is_held(&checkpoints, "large"));
}

#[test]
fn with_another_key_it_is_of_no_use_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    write(&open(&folder, KEY, u64::MAX), "vm", &memory([1])).unwrap();
    let other = open(&folder, [4; 32], u64::MAX);
    let error = other.checkpoint("vm").unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    assert!(other.checkpoint("vm").unwrap().is_none());
    assert!(files(&folder).is_empty());
}

/// Whatever byte is changed, either the file is refused, or reading what the byte belongs to fails; all else is right.
#[test]
fn a_changed_byte_is_never_content() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    write(&checkpoints, "vm", &memory([1, 2, 3])).unwrap();
    let path = only_file(&folder);
    let whole = fs::read(&path).unwrap();
    let header = (0..96).chain([4096, 5000, 8192, 4 * 4096]);
    for place in header.chain(4 * 4096..whole.len()) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let Ok(Some(checkpoint)) = checkpoints.checkpoint("vm") else {
            assert!(place < 96, "byte {place}");
            continue;
        };
        let mut failures = usize::from(records_of(&checkpoint).is_err());
        for number in 0..3 {
            let mut block = [0; BLOCK_BYTES];
            match checkpoint.read(number, &mut block) {
                Ok(()) => assert_eq!(block, [number as u8 + 1; BLOCK_BYTES]),
                Err(_) => failures += 1,
            }
        }
        assert_eq!(failures, 1, "byte {place}");
    }
}

#[test]
fn two_blocks_cannot_change_places() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    write(&checkpoints, "vm", &memory([1, 2])).unwrap();
    let path = only_file(&folder);
    let bytes = fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let tags = 3 * BLOCK_BYTES;
    file.write_all_at(&bytes[2 * BLOCK_BYTES..tags], BLOCK_BYTES as u64)
        .unwrap();
    file.write_all_at(&bytes[tags + 16..tags + 32], tags as u64).unwrap();
    let checkpoint = checkpoints.checkpoint("vm").unwrap().unwrap();
    assert!(checkpoint.read(0, &mut [0; BLOCK_BYTES]).is_err());
    assert!(checkpoint.read(1, &mut [0; BLOCK_BYTES]).is_ok());
}

#[test]
fn a_cut_file_tells_its_length() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder, KEY, u64::MAX);
    for length in [0, 95, 96, 4096, 8191] {
        write(&checkpoints, "vm", &memory([1])).unwrap();
        let file = File::options().write(true).open(only_file(&folder)).unwrap();
        file.set_len(length).unwrap();
        let Err(CheckpointError::Unusable { reason, .. }) = checkpoints.checkpoint("vm") else {
            panic!("{length} bytes are no checkpoint");
        };
        if length < 96 {
            assert_eq!(reason, HeaderError::NotACheckpoint);
        } else {
            assert!(matches!(reason, HeaderError::OtherLength { found, .. } if found == length));
        }
    }
}

#[test]
fn a_key_is_made_once_and_must_be_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    HostKey::load(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let made = fs::read(&path).unwrap();
    assert_eq!(made.len(), 32);
    let key = HostKey::load(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), made);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // It is the key in the file, and it is not printed.
    let checkpoints = folder.path().join("checkpoints");
    let written = CheckpointFolder::open(&checkpoints, key.clone(), u64::MAX).unwrap();
    write(&written, "vm", &memory([1])).unwrap();
    let given = HostKey::new(made.try_into().unwrap());
    let read = CheckpointFolder::open(&checkpoints, given, u64::MAX).unwrap();
    assert!(is_held(&read, "vm"));
    assert_eq!(format!("{key:?}"), "HostKey");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        HostKey::load(&path),
        Err(KeyError::Exposed { mode: 0o640, .. })
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, [1; 31]).unwrap();
    assert!(matches!(HostKey::load(&path), Err(KeyError::NotAKey { .. })));
}
