//! The indexes of a host, kept and brought up to date.

mod files;

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::{FileExt, PermissionsExt},
    time::Duration,
};

use files::{hashes, image, overwrite};
use vmferry_content::{
    BLOCK_BYTES, Blocks, Cancel, Change, ImageFile, Index, IndexError, IndexFolder, ScanError, ScanOptions,
    index::Unusable,
};
use vmferry_core::page::content::block_hash;

fn update(indexes: &IndexFolder, source: &str, content: &dyn Blocks) -> Index {
    let (options, cancel) = (ScanOptions::default(), Cancel::new());
    indexes.update(source, content, &options, &cancel, |_| {}).unwrap()
}

#[test]
fn an_index_is_kept_until_its_image_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder.path().join("image"), 10);
    let indexes = folder.path().join("indexes");
    let update = |digest| {
        // As after a restart.
        let indexes = IndexFolder::open(&indexes, 1 << 20).unwrap();
        let mut was_read = false;
        let options = ScanOptions {
            digest,
            ..ScanOptions::default()
        };
        let image = ImageFile::open(&path).unwrap();
        let index = indexes
            .update("image", &image, &options, &Cancel::new(), |_| was_read = true)
            .unwrap();
        ((index.header().clone(), hashes(&index)), was_read)
    };
    let (first, was_read) = update(false);
    assert!(was_read);
    assert_eq!(update(false), (first.clone(), false));

    // Only the time of the inode's own change.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(update(false), (first.clone(), false));

    let (with_digest, was_read) = update(true);
    assert!(was_read && with_digest.0.digest.is_some() && first.0.digest.is_none());
    assert_eq!(update(false), (with_digest, false));

    overwrite(&path, 3, 77);
    let (changed, was_read) = update(false);
    assert!(was_read);
    assert_eq!(changed.1[3], block_hash(&[77; BLOCK_BYTES]));
    assert_eq!(changed.0.identity.since(&first.0.identity), Change::Content);

    // Another file by this name.
    fs::remove_file(&path).unwrap();
    image(&path, 20);
    let (another, was_read) = update(false);
    assert!(was_read);
    assert_eq!(another.0.blocks, 20);
}

#[test]
fn a_damaged_index_is_told_once_and_built_anew() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageFile::open(&image(&folder.path().join("image"), 10)).unwrap();
    let indexes = IndexFolder::open(folder.path().join("indexes"), 1 << 20).unwrap();
    let said = |index: Index| (index.header().clone(), hashes(&index));
    let first = said(update(&indexes, "image", &image));
    let file = fs::read_dir(folder.path().join("indexes"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let damage = || {
        let mut bytes = fs::read(&file).unwrap();
        bytes[90] ^= 1;
        fs::write(&file, bytes).unwrap();
    };
    damage();
    assert!(matches!(
        indexes.load("image"),
        Err(IndexError::Unusable {
            reason: Unusable::Damaged,
            ..
        })
    ));
    assert!(indexes.load("image").unwrap().is_none());

    update(&indexes, "image", &image);
    damage();
    assert_eq!(said(update(&indexes, "image", &image)), first);
    assert_eq!(said(indexes.load("image").unwrap().unwrap()), first);
}

/// What is damaged among the hashes is found when they are read.
#[test]
fn an_index_with_damaged_hashes_is_built_anew_once_that_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder.path().join("image"), 20_000);
    let image = ImageFile::open(&path).unwrap();
    let indexes = IndexFolder::open(folder.path().join("indexes"), 1 << 20).unwrap();
    let whole = hashes(&update(&indexes, "image", &image));
    let damage = || {
        let file = fs::read_dir(folder.path().join("indexes")).unwrap().next().unwrap();
        let file = file.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        bytes[125] ^= 1;
        fs::write(&file, bytes).unwrap();
    };
    damage();
    let found = indexes.load("image").unwrap().unwrap().hashes(0..1);
    assert!(matches!(found, Err(IndexError::Unusable { .. })));
    indexes.discard("image").unwrap();
    assert!(indexes.load("image").unwrap().is_none());
    assert_eq!(hashes(&update(&indexes, "image", &image)), whole);

    // The image was written to: so some of the hashes are compared with it.
    damage();
    overwrite(&path, 19_999, 7);
    let updated = hashes(&update(&indexes, "image", &image));
    assert_eq!(updated[..19_999], whole[..19_999]);
    assert_ne!(updated[19_999], whole[19_999]);
}

/// Little of a large disk is written: an index of it serves on, and only a digest, which is of all of it, does not.
#[test]
fn a_few_blocks_written_are_no_reason_to_read_a_large_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(20_000 * BLOCK_BYTES as u64).unwrap();
    let image = ImageFile::open(&path).unwrap();
    let indexes = IndexFolder::open(folder.path().join("indexes"), 1 << 20).unwrap();
    let was_scanned = |digest| {
        let mut was_scanned = false;
        let options = ScanOptions {
            digest,
            ..ScanOptions::default()
        };
        let updated = indexes.update("image", &image, &options, &Cancel::new(), |_| was_scanned = true);
        updated.unwrap();
        was_scanned
    };
    overwrite(&path, 0, 1);
    for block in 1..10_000 {
        file.write_all_at(&[2; BLOCK_BYTES], block * BLOCK_BYTES as u64)
            .unwrap();
    }
    assert!(was_scanned(true));
    overwrite(&path, 3, 3);
    assert!(!was_scanned(false));
    assert!(was_scanned(true));

    // Of a part that held nothing before.
    for block in 10_000..12_000 {
        file.write_all_at(&[4; BLOCK_BYTES], block * BLOCK_BYTES as u64)
            .unwrap();
    }
    overwrite(&path, 3, 4);
    assert!(was_scanned(false));
}

#[test]
fn the_index_unused_for_longest_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageFile::open(&image(&folder.path().join("image"), 10)).unwrap();
    let each = 120 + 10 * 8 + 2 * 8;
    let open = |bytes_max| IndexFolder::open(folder.path().join("indexes"), bytes_max).unwrap();
    let indexes = open(2 * each);
    let age = |days: u64| {
        for entry in fs::read_dir(folder.path().join("indexes")).unwrap() {
            let file = File::open(entry.unwrap().path()).unwrap();
            let earlier = file.metadata().unwrap().modified().unwrap() - Duration::from_secs(days * 86_400);
            file.set_times(FileTimes::new().set_modified(earlier)).unwrap();
        }
    };
    update(&indexes, "a", &image);
    age(1);
    update(&indexes, "b", &image);
    age(1);
    assert!(indexes.load("a").unwrap().is_some());
    age(1);
    update(&indexes, "b", &image);
    update(&indexes, "c", &image);
    let held = ["a", "b", "c"].map(|source| indexes.load(source).unwrap().is_some());
    assert_eq!(held, [false, true, true]);

    let too_small = open(each - 1);
    let updated = too_small.update("d", &image, &ScanOptions::default(), &Cancel::new(), |_| {
        panic!("it was scanned in vain");
    });
    assert!(matches!(updated, Err(ScanError::Index(IndexError::TooLarge { .. }))));
}
