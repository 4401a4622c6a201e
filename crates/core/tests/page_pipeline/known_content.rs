//! Pages that stand on a disk that the target reads, or do so no more.

use crate::session::{Session, Source, catalog, find, key, only, read_disk};
use crate::stream::{Content, PAGE, batches, page, stream};
use vmferry_core::{
    page::{
        Ask, Assembler, BlockTable, Catalog, Codec, Decoder, Reach, ReadError, ask, content::block_hash,
        earlier::Pieces,
    },
    qemu::BlockId,
};

#[test]
fn what_stands_on_a_disk_is_referred_to_and_what_changed_there_is_asked_for() {
    // Blocks 4 and 5, in a run; 6, which was rewritten; 11, which can't be read; one that is on no disk.
    let records = [
        page(0, Content::Text(4)),
        page(1, Content::Text(5)),
        page(2, Content::Random(0)),
        page(3, Content::Random(5)),
        page(4, Content::Random(9)),
    ];
    let stats = Session {
        catalog: catalog(),
        reads: vec![4096],
        lanes: 1,
        versions: 0,
        ..Session::default()
    }
    .carry(&stream(&records));
    assert_eq!(
        (stats.content.pages, stats.raw.pages, stats.lz.pages),
        (4, 1, 0),
        "{stats:?}"
    );
    assert!(stats.content.wire_bytes < 4 * 16 + 30, "{stats:?}");
}

#[test]
fn a_page_supplied_that_is_another_is_refused() {
    let records = [page(0, Content::Text(0))];
    let batch = batches(&stream(&records), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = catalog();
    let payload = source.payload(&batch);
    let mut decoder = Decoder::new(key(), only(Codec::Zstd));
    let mut decoded = decoder.decode(&payload).unwrap();
    assert_eq!(
        find(&decoder, &mut decoded, &mut read_disk),
        [0],
        "block 0 was rewritten"
    );
    let right = Content::Text(0).bytes();
    assert!(decoder.supply(&mut decoded, &[0], &Content::Text(1).bytes()).is_err());
    assert!(decoder.supply(&mut decoded, &[0], &[]).is_err());
    assert!(decoder.supply(&mut decoded, &[1], &right).is_err());
    let unresolved = Assembler::new(key()).apply(decoded, &mut |_, _, _| Ok(()));
    assert!(unresolved.is_err());
}

#[test]
fn of_a_page_with_an_earlier_version_only_the_pieces_that_changed_cross() {
    // One has a piece changed, one stands on a block that was rewritten and is asked for, one changed in most of its pieces.
    let edited = |seed, every: usize| {
        let mut bytes = Content::Random(seed).bytes();
        bytes.iter_mut().step_by(every).for_each(|byte| *byte ^= 1);
        Content::Bytes(bytes)
    };
    let records = [
        page(7, edited(1, PAGE)),
        page(9, edited(3, PAGE)),
        page(8, edited(2, 256)),
    ];
    let stats = Session {
        catalog: catalog(),
        lanes: 1,
        ..Session::default()
    }
    .carry(&stream(&records));
    assert_eq!(
        (stats.patch.pages, stats.raw.pages, stats.content.pages),
        (2, 1, 0),
        "{stats:?}"
    );
    assert!(stats.patch.wire_bytes < 2 * (256 + 64), "{stats:?}");
}

#[test]
fn a_changed_piece_that_is_taken_for_unchanged_is_asked_for() {
    let kept = Content::Random(1).bytes();
    // The second piece keeps its hash, the first does not.
    let changed = |number: u32| {
        let mut page = kept.clone();
        page[..4].copy_from_slice(&number.to_le_bytes());
        page[256..260].copy_from_slice(&number.to_le_bytes());
        page
    };
    let of = |page: &[u8]| Pieces::of(page).0;
    let seems =
        |page: &Vec<u8>| of(page)[0] != of(&kept)[0] && of(page)[1] == of(&kept)[1] && page[256..] != kept[256..];
    let now = (0..).map(changed).find(seems).unwrap();

    let record = page(7, Content::Bytes(now.clone()));
    let batch = batches(&stream(&[record]), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = catalog();
    let payload = source.payload(&batch);
    assert_eq!(source.stats.patch.pages, 1);
    let mut decoder = Decoder::new(key(), only(Codec::Zstd));
    let mut decoded = decoder.decode(&payload).unwrap();
    assert_eq!(find(&decoder, &mut decoded, &mut read_disk), [0]);
    decoder.supply(&mut decoded, &[0], &now).unwrap();
    let done = Assembler::new(key()).apply(decoded, &mut |_, _, _| Ok(())).unwrap();
    assert!(done.stream() == batch.stream(), "the stream was changed on its way");
}

/// Two pages of one [`block_hash`], which anybody can make: its seed and the way to its secret are public.
///
/// In each of the first 16 stripes of 64 bytes XXH3 multiplies, for each 8-byte word, the two halves of the word's exclusive or
/// with the secret, and adds the product to the word's lane and the word itself to the lane beside. Where a word's lower half is
/// the secret's, the product is zero whatever the upper half is. Of two such words in one lane only the sum counts then.
fn colliding_pages() -> [Vec<u8>; 2] {
    const SEED: u64 = 0x7c15_0be3_92d4_a86f;
    // The beginning of XXH3's secret; a seed is added to every other of its words and subtracted from those between.
    let secret = [0xbe4b_a423_396c_feb8_u64, 0x1cad_21f7_2c81_017c];
    let secret = [secret[0].wrapping_add(SEED), secret[1].wrapping_sub(SEED)];
    let page = |upper: [u64; 2]| {
        let mut page = Content::Random(77).bytes();
        for (stripe, (secret, upper)) in page.chunks_exact_mut(64).zip(secret.into_iter().zip(upper)) {
            let word = upper << 32 | secret & u64::from(u32::MAX);
            stripe[..8].copy_from_slice(&word.to_le_bytes());
        }
        page
    };
    [page([5, 9]), page([4, 10])]
}

#[test]
fn a_block_that_has_the_hash_of_a_page_and_not_its_content_is_never_taken_for_it() {
    let [on_disk, in_guest] = colliding_pages();
    assert_eq!(block_hash(&on_disk), block_hash(&in_guest));
    assert_ne!(on_disk, in_guest);

    let record = page(3, Content::Bytes(in_guest.clone()));
    let batch = batches(&stream(&[record]), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = Catalog::new(vec![BlockTable::new(&[block_hash(&on_disk)]).into()]);
    let payload = source.payload(&batch);
    assert_eq!(source.stats.content.pages, 1, "the page is taken for the block");

    for (disk, expected) in [(&in_guest, &[][..]), (&on_disk, &[0])] {
        let mut decoder = Decoder::new(key(), only(Codec::Zstd));
        let mut decoded = decoder.decode(&payload).unwrap();
        let missing = find(&decoder, &mut decoded, &mut |source, block, to| {
            assert_eq!((source, block), (0, 0));
            to.copy_from_slice(disk);
            true
        });
        assert_eq!(missing, expected);
        if !missing.is_empty() {
            let answer = Ask {
                seq: 0,
                pages: missing.clone(),
            }
            .answer(&batch)
            .unwrap()
            .unwrap();
            let (_, contents) = ask::batch_of(&answer).unwrap();
            let contents = ask::contents(contents, PAGE).unwrap();
            decoder.supply(&mut decoded, &missing, &contents).unwrap();
        }
        let unread = &mut |_: BlockId, _: u64, _: &mut [u8]| Err(ReadError("nothing refers to memory".into()));
        let done = Assembler::new(key()).apply(decoded, unread).unwrap();
        assert!(done.stream() == batch.stream(), "the stream was changed on its way");
    }
}

#[test]
fn what_lies_close_together_is_read_at_once_up_to_a_bound() {
    let blocks: Vec<usize> = (0..20).map(|number| number * 16).chain([400]).collect();
    let content = |number: usize| Content::Random(number as u8);
    let mut hashes = vec![0; 401];
    for (number, block) in blocks.iter().enumerate() {
        hashes[*block] = block_hash(&content(number).bytes());
    }
    let records: Vec<_> = (0..blocks.len())
        .map(|number| page(number as u64, content(number)))
        .collect();
    let batch = batches(&stream(&records), &[1 << 20], 1 << 20).remove(0);
    let mut source = Source::new(Reach::All, 0, only(Codec::Zstd), 1);
    source.catalog = Catalog::new(vec![BlockTable::new(&hashes).into()]);
    let payload = source.payload(&batch);
    let decoded = Decoder::new(key(), only(Codec::Zstd)).decode(&payload).unwrap();
    let spans: Vec<_> = decoded
        .spans()
        .iter()
        .map(|span| (span.first(), span.blocks(), span.pages().len()))
        .collect();
    assert_eq!(spans, [(0, 273, 18), (288, 17, 2), (400, 1, 1)]);
}
