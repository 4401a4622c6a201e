//! What every coder has to do, and LZ78 beside a plain reading of the paper.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn settings(codec: Codec) -> CodecSettings {
    CodecSettings {
        codec,
        ..CodecSettings::default()
    }
}

fn codecs() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Raw), Just(Codec::Lz78), Just(Codec::Lz4), Just(Codec::Zstd)]
}

/// Data with and without repetition, in pieces.
fn batch() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let random = prop::collection::vec(any::<u8>(), 0..6000);
    let few_letters = prop::collection::vec(0u8..4, 0..6000);
    let repeated =
        (prop::collection::vec(any::<u8>(), 1..40), 1usize..400).prop_map(|(unit, times)| unit.repeat(times));
    prop::collection::vec(prop_oneof![random, few_letters, repeated], 0..5)
}

fn pieces(batch: &[Vec<u8>]) -> Vec<&[u8]> {
    batch.iter().map(Vec::as_slice).collect()
}

/// Decodes into pieces of so many bytes, and joins them.
fn decoded(
    decoder: &mut dyn Decode,
    coded: &[u8],
    plain_bytes: usize,
    pieces_bytes: usize,
) -> Result<Vec<u8>, LzError> {
    let mut plain = vec![0xee; plain_bytes];
    decoder.decode(coded, &mut plain.chunks_mut(pieces_bytes).collect::<Vec<_>>())?;
    Ok(plain)
}

proptest! {
    #[test]
    fn what_is_encoded_comes_back_batch_after_batch(
        codec in codecs(),
        batches in prop::collection::vec(batch(), 1..6),
        pieces_bytes in 1usize..5000,
    ) {
        let mut encoder = settings(codec).encoder().unwrap();
        let mut decoder = settings(codec).decoder().unwrap();
        for batch in &batches {
            let plain = batch.concat();
            let mut coded = b"before".to_vec();
            encoder.encode(&pieces(batch), &mut coded).unwrap();
            let decoded = decoded(decoder.as_mut(), &coded[6..], plain.len(), pieces_bytes).unwrap();
            prop_assert!(decoded == plain);
        }
    }

    #[test]
    fn any_input_is_decoded_or_refused(
        codec in codecs(),
        inputs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..600), 0usize..5000), 1..5),
    ) {
        let mut decoder = settings(codec).decoder().unwrap();
        for (input, plain_bytes) in inputs {
            if decoded(decoder.as_mut(), &input, plain_bytes, 100).is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_wrong_length_is_refused(codec in codecs(), batch in batch(), more in 1usize..100) {
        let plain_bytes = batch.concat().len();
        let mut coded = Vec::new();
        settings(codec).encoder().unwrap().encode(&pieces(&batch), &mut coded).unwrap();
        for wrong in [plain_bytes + more, plain_bytes.saturating_sub(more)] {
            if wrong != plain_bytes {
                let result = decoded(settings(codec).decoder().unwrap().as_mut(), &coded, wrong, 4096);
                prop_assert!(result.is_err(), "{} bytes for {}", wrong, plain_bytes);
            }
        }
    }

    #[test]
    fn lz78_sends_what_the_papers_description_says(plain in prop::collection::vec(0u8..3, 0..3000)) {
        let mut coded = Vec::new();
        settings(Codec::Lz78).encoder().unwrap().encode(&[&plain], &mut coded).unwrap();
        let expected = described(&plain);
        // Where that isn't shorter, the plain bytes are sent.
        if coded.first() == Some(&1) {
            prop_assert_eq!(&coded[1..], &expected);
        } else {
            prop_assert!(expected.len() >= plain.len());
        }
    }
}

/// The paper's coder in the plainest way: strings in a map, bits in a list.
fn described(plain: &[u8]) -> Vec<u8> {
    let mut dictionary = HashMap::from([(vec![], 0usize)]);
    let mut bits = Vec::new();
    let mut rest = plain;
    while !rest.is_empty() {
        let width = (0..).find(|bits| 1usize << bits >= dictionary.len()).unwrap();
        // The smallest substring that cannot be found in the dictionary, or all of the rest if it can be.
        let new = (1..=rest.len()).find(|length| !dictionary.contains_key(&rest[..*length]));
        let known = new.map_or(rest.len(), |length| length - 1);
        let number = dictionary[&rest[..known]];
        bits.extend((0..width).map(|bit| number >> bit & 1));
        if let Some(length) = new {
            bits.extend((0..8).map(|bit| usize::from(rest[known]) >> bit & 1));
            dictionary.insert(rest[..length].to_vec(), dictionary.len());
        }
        rest = &rest[new.unwrap_or(known)..];
    }
    bits.chunks(8)
        .map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | *bit as u8))
        .collect()
}

/// Numbers in decimal: repetitive, but never the same.
fn log(from: u32) -> Vec<u8> {
    (from..from + 40_000)
        .flat_map(|line| format!("{line} ok\n").into_bytes())
        .collect()
}

#[test]
fn lz78_starts_over_when_its_dictionary_is_full() {
    let mut encoder = settings(Codec::Lz78).encoder().unwrap();
    let mut decoder = settings(Codec::Lz78).decoder().unwrap();
    for batch in 0..12 {
        // Some 50,000 new strings a batch: the dictionary fills up every other one.
        let plain = log(batch * 40_000);
        let mut coded = Vec::new();
        encoder.encode(&[&plain], &mut coded).unwrap();
        assert!(coded.len() < plain.len() / 2);
        assert_eq!(decoded(decoder.as_mut(), &coded, plain.len(), 4096), Ok(plain));
    }
}

#[test]
fn lz78_is_not_confused_by_a_batch_that_it_had_to_store() {
    let mut random = vec![0; 50_000];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let mut encoder = settings(Codec::Lz78).encoder().unwrap();
    let mut decoder = settings(Codec::Lz78).decoder().unwrap();
    for plain in [log(0), random, log(0)] {
        let mut coded = Vec::new();
        encoder.encode(&[&plain], &mut coded).unwrap();
        assert!(coded.len() <= plain.len() + 1);
        assert_eq!(decoded(decoder.as_mut(), &coded, plain.len(), 4096), Ok(plain));
    }
}

#[test]
fn dictionaries_last_longer_than_a_batch() {
    let plain = log(0);
    for codec in [Codec::Lz78, Codec::Zstd] {
        let mut encoder = settings(codec).encoder().unwrap();
        // LZ78 prolongs a string by one byte each time it meets it, so it takes a while to show.
        let mut lengths = Vec::new();
        for _ in 0..60 {
            let mut coded = Vec::new();
            encoder.encode(&[&plain[..300]], &mut coded).unwrap();
            lengths.push(coded.len());
        }
        assert!(lengths[59] < lengths[0] * 3 / 4, "{codec:?}: {lengths:?}");
    }
}

#[test]
fn a_section_that_stands_for_far_more_than_it_says_is_refused_by_every_coder() {
    let zeros = vec![0; 32 << 20];
    for codec in [Codec::Raw, Codec::Lz78, Codec::Lz4, Codec::Zstd] {
        let mut bomb = Vec::new();
        settings(codec).encoder().unwrap().encode(&[&zeros], &mut bomb).unwrap();
        assert!(codec == Codec::Raw || bomb.len() < 1 << 18, "{codec:?}: {}", bomb.len());
        let mut decoder = settings(codec).decoder().unwrap();
        assert!(decoded(decoder.as_mut(), &bomb, 4096, 512).is_err(), "{codec:?}");
    }
}

#[test]
fn zstd_refuses_a_window_larger_than_agreed() {
    let large = CodecSettings {
        window_log: 27,
        ..settings(Codec::Zstd)
    };
    let small = CodecSettings {
        window_log: 20,
        ..settings(Codec::Zstd)
    };
    let mut coded = Vec::new();
    large
        .encoder()
        .unwrap()
        .encode(&[b"a window is announced in front"], &mut coded)
        .unwrap();
    assert!(decoded(small.decoder().unwrap().as_mut(), &coded, 30, 30).is_err());
}

#[test]
fn settings_out_of_range_are_refused() {
    for bad in [
        CodecSettings {
            level: 0,
            ..CodecSettings::default()
        },
        CodecSettings {
            level: 20,
            ..CodecSettings::default()
        },
        CodecSettings {
            window_log: 28,
            ..CodecSettings::default()
        },
        CodecSettings {
            window_log: 0,
            ..CodecSettings::default()
        },
    ] {
        assert!(matches!(bad.encoder().err(), Some(LzError::Settings(_))));
        assert!(matches!(bad.decoder().err(), Some(LzError::Settings(_))));
    }
}
