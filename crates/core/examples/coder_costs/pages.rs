//! Streams to measure: captured ones, and files of pages with the records of a stream around them.

/// Bytes of a page, and the largest file that is looked at.
const PAGE_BYTES: usize = 4096;
const FILE_BYTES_MAX: usize = 160 << 20;

/// A stream, and the part of it that is measured.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) stream: Vec<u8>,
    /// Stream bytes that only prepare what follows.
    pub(crate) skip: usize,
}

impl Subject {
    /// What is made of a file: a captured stream as it is, or pages sent once, and sent again with changes.
    pub(crate) fn of(name: &str, file: &[u8]) -> Vec<Subject> {
        if file.starts_with(b"QEVM") {
            return vec![Subject {
                name: name.to_owned(),
                stream: file.to_vec(),
                skip: 0,
            }];
        }
        let pages: Vec<Vec<u8>> = file
            .chunks_exact(PAGE_BYTES)
            .take(FILE_BYTES_MAX / PAGE_BYTES)
            .map(<[u8]>::to_vec)
            .collect();
        let mut stream = head(pages.len());
        write(&pages, &mut stream);
        // A page's content is kept from the second time on that it is sent, so the third can be a difference.
        let mut again = stream.clone();
        let once = pages.iter().enumerate().map(changed).collect::<Vec<_>>();
        write(&once, &mut again);
        let skip = again.len();
        write(&once.iter().enumerate().map(changed).collect::<Vec<_>>(), &mut again);
        vec![
            Subject {
                name: name.to_owned(),
                stream,
                skip: 0,
            },
            Subject {
                name: format!("{name}, changed"),
                stream: again,
                skip,
            },
        ]
    }
}

/// The page with a word of every eleventh line counted up.
fn changed((number, page): (usize, &Vec<u8>)) -> Vec<u8> {
    let mut page = page.clone();
    for at in (number % 11 * 64..PAGE_BYTES).step_by(11 * 64) {
        page[at] = page[at].wrapping_add(1);
        page[at + 1] ^= number as u8;
    }
    page
}

fn word(stream: &mut Vec<u8>, word: u64) {
    stream.extend_from_slice(&word.to_be_bytes());
}

/// The beginning of a stream with one block of so many pages, up to its first round.
fn head(pages: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    stream.extend_from_slice(b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0");
    stream.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    word(&mut stream, (pages * PAGE_BYTES) as u64 | 0x04);
    stream.extend_from_slice(b"\x06pc.ram");
    word(&mut stream, (pages * PAGE_BYTES) as u64);
    word(&mut stream, 0x10);
    stream.extend_from_slice(b"\x7e\0\0\0\x02");
    stream
}

/// A round with all of these pages.
fn write(pages: &[Vec<u8>], stream: &mut Vec<u8>) {
    stream.extend_from_slice(b"\x02\0\0\0\x02");
    for (number, page) in pages.iter().enumerate() {
        let named = number == 0;
        word(
            stream,
            (number * PAGE_BYTES) as u64 | 0x08 | if named { 0 } else { 0x20 },
        );
        if named {
            stream.extend_from_slice(b"\x06pc.ram");
        }
        stream.extend_from_slice(page);
    }
    word(stream, 0x10);
    stream.extend_from_slice(b"\x7e\0\0\0\x02");
}
