use std::io::Cursor;

use proptest::prelude::*;

use super::{super::writer::IndexWriter, *};

fn write(folder: &Path, hashes: &[u64], digest: Option<[u8; 32]>) -> Index {
    let identity = Identity::Export { bytes: 1 << 30 };
    let mut writer = IndexWriter::create(&folder.join("index"), identity).unwrap();
    writer.add(hashes).unwrap();
    writer.finish(digest).unwrap()
}

/// Where a file is synced at once.
fn folder() -> tempfile::TempDir {
    tempfile::TempDir::new_in("/dev/shm").unwrap()
}

fn encode(hashes: &[u64], digest: Option<[u8; 32]>) -> Vec<u8> {
    let folder = folder();
    std::fs::read(write(folder.path(), hashes, digest).path).unwrap()
}

fn decode(bytes: &[u8]) -> Result<IndexHeader, Unusable> {
    IndexHeader::read(&mut Cursor::new(bytes), bytes.len() as u64).map(|(header, _)| header)
}

/// Opens an index of these bytes, and reads all hashes.
fn open(bytes: &[u8]) -> Result<Vec<u64>, IndexError> {
    let folder = folder();
    let path = folder.path().join("index");
    std::fs::write(&path, bytes).unwrap();
    Index::open(&path)?.hashes(0..u64::MAX)
}

proptest! {
    #[test]
    fn an_index_reads_back(
        length in 0..30_000u64,
        seed in any::<u64>(),
        digest in any::<Option<[u8; 32]>>(),
        first in 0..40_000u64,
        count in 0..40_000u64,
    ) {
        let hashes: Vec<u64> = (0..length).map(|number| number.wrapping_mul(seed)).collect();
        let folder = folder();
        let written = write(folder.path(), &hashes, digest);
        let read = Index::open(&written.path).unwrap();
        prop_assert_eq!(std::fs::metadata(&written.path).unwrap().len(), file_bytes(length));
        let header = IndexHeader { identity: Identity::Export { bytes: 1 << 30 }, digest, blocks: length };
        for index in [written, read] {
            prop_assert_eq!(index.header(), &header);
            prop_assert_eq!(&index.hashes(0..length).unwrap(), &hashes);
            let part: Vec<u64> = hashes.iter().skip(first as usize).take(count as usize).copied().collect();
            prop_assert_eq!(index.hashes(first..first + count).unwrap(), part);
        }
    }

    #[test]
    fn no_changed_bit_goes_unnoticed(hashes in prop::collection::vec(any::<u64>(), 0..20_000), place: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = encode(&hashes, Some([9; 32]));
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let told = matches!(open(&bytes), Err(IndexError::Unusable { .. }));
        prop_assert!(told);
    }

    #[test]
    fn no_missing_or_added_byte_goes_unnoticed(hashes in prop::collection::vec(any::<u64>(), 0..50), length in 0..600usize) {
        let mut bytes = encode(&hashes, None);
        prop_assume!(length != bytes.len());
        bytes.resize(length, 0);
        let told = decode(&bytes);
        let is_told = match told {
            Err(Unusable::NotAnIndex) => length < 8,
            Err(Unusable::OtherLength { found, .. }) => found == length as u64,
            _ => false,
        };
        prop_assert!(is_told);
    }
}

#[test]
fn hashes_that_are_whole_serve_beside_others_that_are_damaged() {
    let hashes: Vec<u64> = (1..=20_000).collect();
    let folder = folder();
    let index = write(folder.path(), &hashes, None);
    let mut bytes = std::fs::read(&index.path).unwrap();
    bytes[HEADER_BYTES + PIECE_BYTES] ^= 1;
    std::fs::write(&index.path, bytes).unwrap();
    let index = Index::open(&index.path).unwrap();
    assert_eq!(index.hashes(0..8192).unwrap(), hashes[..8192]);
    assert_eq!(index.hashes(16_384..30_000).unwrap(), hashes[16_384..]);
    for damaged in [8192..8193, 8000..8200, 16_383..16_384, 0..20_000] {
        let told = index.hashes(damaged);
        assert!(matches!(
            told,
            Err(IndexError::Unusable {
                reason: Unusable::Damaged,
                ..
            })
        ));
    }
}

#[test]
fn each_reason_is_told_apart() {
    let whole = encode(&[1, 2, 3], None);
    let with = |place: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[place] = byte;
        decode(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, b'V'), Unusable::NotAnIndex));
    assert!(matches!(with(8, 1), Unusable::OtherVersion { found: 1 }));
    assert!(matches!(with(87, 0xff), Unusable::OtherLength { .. }));
    assert!(matches!(with(90, 0xff), Unusable::Damaged));
    assert!(matches!(with(150, 0xff), Unusable::Damaged), "the checksum of hashes");
    // More hashes than any file has.
    let mut endless = whole.clone();
    endless[80..88].fill(0xff);
    let told = IndexHeader::read(&mut Cursor::new(&endless), u64::MAX);
    assert!(matches!(told, Err(Unusable::Damaged)));
    // The file ends before the length that its folder told.
    let short = IndexHeader::read(&mut Cursor::new(&whole[..140]), whole.len() as u64);
    assert!(matches!(short, Err(Unusable::Read(_))));
}
