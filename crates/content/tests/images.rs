//! Files, read and scanned on real file systems.

mod files;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};

use files::{hashes, image, overwrite};
use tempfile::TempDir;
use vmferry_content::{
    BLOCK_BYTES, Blocks, Cancel, Change, ImageFile, Index, ScanError, ScanOptions,
    index::{in_background, scan},
};
use vmferry_core::page::content::block_hash;

fn scan_all(content: &dyn Blocks, index: &Path, digest: bool) -> Index {
    let options = ScanOptions {
        digest,
        ..ScanOptions::default()
    };
    scan(content, None, index, &options, &Cancel::new(), |_| {}).unwrap()
}

/// A file system on a disk or what serves as one here, and one in memory.
fn folders() -> [TempDir; 2] {
    [
        TempDir::new_in(env!("CARGO_TARGET_TMPDIR")),
        TempDir::new_in("/dev/shm"),
    ]
    .map(Result::unwrap)
}

#[test]
fn blocks_are_read_into_any_buffer() {
    for folder in folders() {
        let path = image(&folder.path().join("image"), 40);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"less than a block"))
            .unwrap();
        let image = ImageFile::open(&path).unwrap();
        assert_eq!(image.blocks(), 40);
        let mut buffer = vec![0; 5 * BLOCK_BYTES];
        for shift in [0, 1, 512, 4095] {
            let into = &mut buffer[shift..][..3 * BLOCK_BYTES];
            image.read(37, into).unwrap();
            for (block, byte) in into.chunks(BLOCK_BYTES).zip(38..) {
                assert_eq!(block, [byte; BLOCK_BYTES], "shifted by {shift}");
            }
        }
        assert!(image.read(38, &mut buffer[..3 * BLOCK_BYTES]).is_err());
        assert!(image.read(u64::MAX, &mut buffer[..BLOCK_BYTES]).is_err());
        assert!(image.read(0, &mut buffer[..100]).is_err());
        image.read(40, &mut []).unwrap();
    }
}

#[test]
fn what_was_written_last_is_read() {
    for folder in folders() {
        let path = image(&folder.path().join("image"), 4);
        let image = ImageFile::open(&path).unwrap();
        let mut block = [0; BLOCK_BYTES];
        for byte in 100..120 {
            overwrite(&path, 2, byte);
            image.read(2, &mut block).unwrap();
            assert_eq!(block, [byte; BLOCK_BYTES]);
        }
    }
}

#[test]
fn several_threads_read_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let image: Arc<dyn Blocks> = Arc::new(ImageFile::open(&image(&folder.path().join("image"), 200)).unwrap());
    thread::scope(|scope| {
        for start in 0..4 {
            let image = Arc::clone(&image);
            scope.spawn(move || {
                let mut block = [0; BLOCK_BYTES];
                for number in (start..200).step_by(4) {
                    image.read(number, &mut block).unwrap();
                    assert_eq!(block, [number as u8 + 1; BLOCK_BYTES]);
                }
            });
        }
    });
}

#[test]
fn only_allocated_blocks_are_read_and_the_digest_is_of_all() {
    for folder in folders() {
        let sparse = folder.path().join("sparse");
        let file = File::create(&sparse).unwrap();
        file.set_len(1 << 27).unwrap();
        file.write_all_at(&[7; 3 * BLOCK_BYTES], 64 << 20).unwrap();
        let sparse = ImageFile::open(&sparse).unwrap();
        let data = sparse.next_data(0).unwrap().unwrap();
        assert_eq!(data, 16384..16387);
        assert_eq!(sparse.next_data(data.end).unwrap(), None);

        let mut steps = Vec::new();
        let options = ScanOptions {
            digest: true,
            ..ScanOptions::default()
        };
        let path = folder.path().join("index");
        let index = scan(&sparse, None, &path, &options, &Cancel::new(), |done| steps.push(done)).unwrap();
        let hashes = hashes(&index);
        assert_eq!(steps, [16387, 1 << 15]);
        assert_eq!(hashes.len(), 1 << 15);
        let found: Vec<usize> = (0..1 << 15).filter(|&block| hashes[block] != 0).collect();
        assert_eq!(found, [16384, 16385, 16386]);
        assert_eq!(hashes[16385], block_hash(&[7; BLOCK_BYTES]));

        let mut all = blake3::Hasher::new();
        all.update(&vec![0; 64 << 20]).update(&[7; 3 * BLOCK_BYTES]);
        let rest = (1 << 27) - (64 << 20) - 3 * BLOCK_BYTES;
        all.update(&vec![0; rest]);
        assert_eq!(index.header().digest, Some(*all.finalize().as_bytes()));
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ImageFile::open(folder.path()).is_err());
    assert!(ImageFile::open(&folder.path().join("absent")).is_err());
    assert!(ImageFile::open(Path::new("/dev/null")).is_err());
}

/// An index that is older than its image points to blocks that hold something else by now, which reading them shows.
#[test]
fn an_image_rewritten_under_its_index_is_noticed_where_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder.path().join("image"), 10);
    let image = ImageFile::open(&path).unwrap();
    let index = scan_all(&image, &folder.path().join("index"), true);
    let mut known = blake3::Hasher::new_keyed(&[5; 32]);
    let session_fingerprint = *known.update(&[4; BLOCK_BYTES]).finalize().as_bytes();
    let place = hashes(&index)
        .iter()
        .position(|&hash| hash == block_hash(&[4; BLOCK_BYTES]));
    assert_eq!(place, Some(3));

    overwrite(&path, 3, 44);
    let mut block = [0; BLOCK_BYTES];
    image.read(3, &mut block).unwrap();
    assert_ne!(*blake3::keyed_hash(&[5; 32], &block).as_bytes(), session_fingerprint);
    overwrite(&path, 3, 4);
    image.read(3, &mut block).unwrap();
    assert_eq!(*blake3::keyed_hash(&[5; 32], &block).as_bytes(), session_fingerprint);
}

#[test]
fn an_image_written_during_its_scan_has_no_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder.path().join("image"), 1000);
    let options = ScanOptions {
        digest: true,
        ..ScanOptions::default()
    };
    let image = ImageFile::open(&path).unwrap();
    let index = folder.path().join("index");
    let index = scan(&image, None, &index, &options, &Cancel::new(), |done| {
        if done < 1000 {
            overwrite(&path, done, 9);
        }
    })
    .unwrap();
    assert_eq!(index.header().digest, None);
    assert_eq!(hashes(&index)[256], block_hash(&[9; BLOCK_BYTES]));
    // What is saved is as of before, so the next update reads it again.
    assert_eq!(
        image.identity().unwrap().since(&index.header().identity),
        Change::Content
    );
}

/// An image that is cut short behind the reader's back fails there, and what was known of it is kept.
#[test]
fn what_cannot_be_read_keeps_what_was_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder.path().join("image"), 1000);
    let image = ImageFile::open(&path).unwrap();
    // In whose place the next one is put.
    let index = folder.path().join("index");
    let earlier = scan_all(&image, &index, false);
    let options = ScanOptions {
        digest: true,
        ..ScanOptions::default()
    };
    let again = scan(&image, Some(&earlier), &index, &options, &Cancel::new(), |done| {
        if done == 256 {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(300 * BLOCK_BYTES as u64).unwrap();
        }
    })
    .unwrap();
    assert_eq!(hashes(&again), hashes(&earlier));
    assert_eq!(again.header().digest, None);
}

/// A hole of 64 GiB takes a while, too, and is not reported of.
#[test]
fn a_scan_that_was_cancelled_goes_over_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, index) = (folder.path().join("sparse"), folder.path().join("index"));
    File::create(&path).unwrap().set_len(64 << 30).unwrap();
    let (options, cancel) = (ScanOptions::default(), Cancel::new());
    cancel.cancel();
    let image = ImageFile::open(&path).unwrap();
    let scanned = scan(&image, None, &index, &options, &cancel, |_| {});
    assert!(matches!(scanned, Err(ScanError::Cancelled)));
}

#[test]
fn a_scan_ends_when_it_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageFile::open(&image(&folder.path().join("image"), 1000)).unwrap();
    let cancel = Cancel::new();
    let (tell, told) = mpsc::channel();
    let index = folder.path().join("index");
    // A pace at which the second piece would come after some days.
    let options = ScanOptions {
        bytes_per_second: Some(1),
        ..ScanOptions::default()
    };
    let scan = in_background({
        let (cancel, index) = (cancel.clone(), index.clone());
        move || {
            scan(&image, None, &index, &options, &cancel, |done| {
                let _ = tell.send(done);
            })
        }
    })
    .unwrap();
    assert_eq!(told.recv(), Ok(256));
    cancel.cancel();
    assert!(matches!(scan.join().unwrap(), Err(ScanError::Cancelled)));
    assert!(
        fs::read_dir(folder.path()).unwrap().count() == 1,
        "it leaves what it had"
    );
}
