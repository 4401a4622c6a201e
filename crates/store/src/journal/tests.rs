use super::*;
use proptest::prelude::*;
use tempfile::TempDir;

/// A journal of strings in a folder of its own.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn open(&self) -> Result<Opened<String>, Error> {
        Journal::open(self.path())
    }

    /// The file after `records` were appended to an empty journal.
    fn image_of(&self, records: &[&str]) -> Vec<u8> {
        let mut journal = self.open().unwrap().journal;
        journal.compact(&[]).unwrap();
        for &record in records {
            journal.append(&record.to_owned()).unwrap();
        }
        fs::read(self.path()).unwrap()
    }

    fn records_of(&self, image: &[u8]) -> Result<(Vec<String>, u64), Error> {
        fs::write(self.path(), image).unwrap();
        self.open().map(|opened| (opened.records, opened.torn_bytes))
    }
}

#[test]
fn a_tool_reads_what_an_open_journal_holds_and_leaves_a_torn_record_alone() {
    let disk = Disk::new();
    let mut journal = disk.open().unwrap().journal;
    journal.append(&"reserved".to_owned()).unwrap();
    let whole = fs::read(disk.path()).unwrap();
    let torn = [&whole[..], &[0; 5]].concat();
    fs::write(disk.path(), &torn).unwrap();
    assert_eq!(read::<String>(&disk.path()).unwrap(), ["reserved"]);
    assert_eq!(fs::read(disk.path()).unwrap(), torn);
}

#[test]
fn appended_records_are_there_after_reopening() {
    let disk = Disk::new();
    let opened = disk.open().unwrap();
    assert!(opened.records.is_empty());
    let mut journal = opened.journal;
    journal.append(&"reserved".to_owned()).unwrap();
    journal.append(&"released".to_owned()).unwrap();
    assert_eq!(journal.file_bytes(), fs::metadata(disk.path()).unwrap().len());
    drop(journal);

    let opened = disk.open().unwrap();
    assert_eq!(opened.records, ["reserved", "released"]);
    assert_eq!(opened.torn_bytes, 0);
}

#[test]
fn a_last_record_torn_at_any_byte_is_dropped_and_reported_and_the_journal_goes_on() {
    let disk = Disk::new();
    let before = disk.image_of(&["one", "two"]);
    let whole = disk.image_of(&["one", "two", "three"]);
    for end in before.len() + 1..whole.len() {
        let (records, torn_bytes) = disk.records_of(&whole[..end]).unwrap();
        assert_eq!(records, ["one", "two"]);
        assert_eq!(torn_bytes, (end - before.len()) as u64);
        // The torn bytes are gone from the disk, and what follows stands in their place.
        let mut reopened = disk.open().unwrap();
        assert_eq!(reopened.torn_bytes, 0);
        reopened.journal.append(&"four".to_owned()).unwrap();
        drop(reopened);
        assert_eq!(disk.open().unwrap().records, ["one", "two", "four"]);
    }
}

#[test]
fn a_last_record_of_which_only_a_part_reached_the_disk_is_torn() {
    let disk = Disk::new();
    let before = disk.image_of(&["one"]);
    let whole = disk.image_of(&["one", "a longer second record"]);
    for written in before.len()..whole.len() {
        let mut image = whole.clone();
        image[written..].fill(0);
        assert_eq!(disk.records_of(&image).unwrap().0, ["one"], "{written} bytes written");
    }
    // The file grew, and nothing of the record was written.
    let mut image = before;
    image.resize(image.len() + 4096, 0);
    assert_eq!(disk.records_of(&image).unwrap(), (vec!["one".to_owned()], 4096));
}

#[test]
fn a_changed_byte_anywhere_is_an_error_that_names_the_record() {
    let disk = Disk::new();
    let starts = [
        disk.image_of(&[]),
        disk.image_of(&["one"]),
        disk.image_of(&["one", "two"]),
    ]
    .map(|image| image.len());
    let whole = disk.image_of(&["one", "two", "three"]);
    for position in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut image = whole.clone();
            image[position] ^= flip;
            match disk.records_of(&image) {
                Err(Error::NotAJournal { .. }) => assert!(position < starts[0]),
                Err(Error::Damaged { offset, .. }) => {
                    let start = starts.iter().rfind(|&&start| start <= position).unwrap();
                    assert_eq!(offset, *start as u64);
                }
                other => panic!("byte {position} changed by {flip:#x}: {other:?}"),
            }
        }
    }
}

#[test]
fn zeros_over_a_record_in_the_middle_are_damage() {
    let disk = Disk::new();
    let start = disk.image_of(&["one"]).len();
    let end = disk.image_of(&["one", "two"]).len();
    let mut image = disk.image_of(&["one", "two", "three"]);
    image[start..end].fill(0);
    assert!(matches!(disk.records_of(&image), Err(Error::Damaged { offset, .. }) if offset == start as u64));
}

#[test]
fn a_record_of_another_version_is_not_taken_for_damage() {
    let disk = Disk::new();
    disk.image_of(&["text"]);
    assert!(matches!(Journal::<u64>::open(disk.path()), Err(Error::Unknown { .. })));
}

#[test]
fn a_journal_is_open_once() {
    let disk = Disk::new();
    let first = disk.open().unwrap();
    assert!(matches!(disk.open(), Err(Error::InUse { .. })));
    drop(first);
    disk.open().unwrap();
}

#[test]
fn compaction_replaces_all_records_and_the_journal_goes_on() {
    let disk = Disk::new();
    disk.image_of(&["one", "two", "three"]);
    let mut journal = disk.open().unwrap().journal;
    journal.compact(&["sum".to_owned()]).unwrap();
    journal.append(&"four".to_owned()).unwrap();
    assert!(matches!(disk.open(), Err(Error::InUse { .. })));
    drop(journal);
    assert_eq!(disk.open().unwrap().records, ["sum", "four"]);
}

#[test]
fn a_crash_during_compaction_leaves_the_old_records() {
    let disk = Disk::new();
    disk.image_of(&["one"]);
    fs::write(disk.path().with_extension("new"), &MAGIC[..5]).unwrap();
    let mut opened = disk.open().unwrap();
    assert_eq!(opened.records, ["one"]);
    opened.journal.compact(&["two".to_owned()]).unwrap();
    drop(opened);
    assert_eq!(disk.open().unwrap().records, ["two"]);
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let disk = Disk::new();
    disk.image_of(&["one"]);
    let mut journal = disk.open().unwrap().journal;
    // A file that is open for reading refuses the write, as a broken disk would.
    let writable = std::mem::replace(&mut journal.file, File::open(disk.path()).unwrap());
    assert!(matches!(journal.append(&"two".to_owned()), Err(Error::Io { .. })));
    journal.file = writable;
    assert!(matches!(
        journal.append(&"three".to_owned()),
        Err(Error::Poisoned { .. })
    ));
    assert!(matches!(
        journal.compact(&["four".to_owned()]),
        Err(Error::Poisoned { .. })
    ));
    drop(journal);
    assert_eq!(disk.open().unwrap().records, ["one"]);
}

#[test]
fn a_record_that_is_too_long_writes_nothing_and_does_no_harm() {
    let disk = Disk::new();
    let mut journal = disk.open().unwrap().journal;
    assert!(matches!(
        journal.append(&"x".repeat(RECORD_BYTES_MAX)),
        Err(Error::TooLong)
    ));
    journal.append(&"short".to_owned()).unwrap();
    drop(journal);
    assert_eq!(disk.open().unwrap().records, ["short"]);
}

#[derive(Debug, Clone)]
enum Step {
    Append(String),
    Compact(Vec<String>),
    Reopen,
    /// Append, and lose all but a share of the last frame (in 1/256).
    Tear(String, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let record = ".{0,40}";
    prop_oneof![
        record.prop_map(Step::Append),
        proptest::collection::vec(record, 0..4).prop_map(Step::Compact),
        Just(Step::Reopen),
        (record, any::<u8>()).prop_map(|(record, share)| Step::Tear(record, share)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_journal_holds_what_a_list_would(steps in proptest::collection::vec(step(), 0..16)) {
        let disk = Disk::new();
        let mut model: Vec<String> = Vec::new();
        let mut journal = disk.open().unwrap().journal;
        for step in steps {
            match step {
                Step::Append(record) => {
                    journal.append(&record).unwrap();
                    model.push(record);
                }
                Step::Compact(records) => {
                    journal.compact(&records).unwrap();
                    model = records;
                }
                Step::Reopen => {
                    drop(journal);
                    journal = disk.open().unwrap().journal;
                }
                Step::Tear(record, share) => {
                    let start = journal.file_bytes();
                    journal.append(&record).unwrap();
                    let length = journal.file_bytes() - start;
                    drop(journal);
                    let file = OpenOptions::new().write(true).open(disk.path()).unwrap();
                    file.set_len(start + length * u64::from(share) / 256).unwrap();
                    journal = disk.open().unwrap().journal;
                }
            }
        }
        drop(journal);
        prop_assert_eq!(disk.open().unwrap().records, model);
    }

    #[test]
    fn arbitrary_files_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let image = [MAGIC, &tail].concat();
        let _ = replay::<String>(Path::new("journal"), &image);
    }
}
