use proptest::prelude::*;

use super::*;

fn index(hashes: Vec<u64>, digest: Option<[u8; 32]>) -> Index {
    Index {
        identity: Identity::Export { bytes: 1 << 30 },
        digest,
        hashes,
    }
}

fn encode(index: &Index) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.write(&mut bytes).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Result<Index, Unusable> {
    Index::read_from(&mut &bytes[..], bytes.len() as u64)
}

proptest! {
    #[test]
    fn an_index_reads_back(
        length in 0..3 * PIECE_HASHES,
        seed in any::<u64>(),
        digest in any::<Option<[u8; 32]>>(),
    ) {
        let index = index((0..length).map(|number| number.wrapping_mul(seed)).collect(), digest);
        let bytes = encode(&index);
        prop_assert_eq!(bytes.len() as u64, file_bytes(index.hashes.len() as u64));
        prop_assert_eq!(decode(&bytes).unwrap(), index);
    }

    #[test]
    fn no_changed_bit_goes_unnoticed(hashes in prop::collection::vec(any::<u64>(), 0..50), place: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = encode(&index(hashes, Some([9; 32])));
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn no_missing_or_added_byte_goes_unnoticed(hashes in prop::collection::vec(any::<u64>(), 0..50), length in 0..600usize) {
        let mut bytes = encode(&index(hashes, None));
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
fn each_reason_is_told_apart() {
    let whole = encode(&index(vec![1, 2, 3], None));
    let with = |place: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[place] = byte;
        decode(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, b'V'), Unusable::NotAnIndex));
    assert!(matches!(with(8, 2), Unusable::OtherVersion { found: 2 }));
    assert!(matches!(with(87, 0xff), Unusable::OtherLength { .. }));
    assert!(matches!(with(130, 0xff), Unusable::Damaged));
    // More hashes than any file has.
    let mut endless = whole.clone();
    endless[80..88].fill(0xff);
    let told = Index::read_from(&mut &endless[..], u64::MAX);
    assert!(matches!(told, Err(Unusable::OtherLength { .. })));
    // The file ends before the length that its folder told.
    let short = Index::read_from(&mut &whole[..140], whole.len() as u64);
    assert!(matches!(short, Err(Unusable::Read(_))));
}
