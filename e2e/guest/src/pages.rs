//! What the pages of a workload contain: a function of the kind, the page's number and its version,
//! so that the guest can check at any time that each page holds exactly what was written last.

use std::str::FromStr;

use anyhow::{Error, bail};

/// Words of 8 bytes in a page.
pub(crate) const PAGE_WORDS: usize = 512;
/// Bytes in a page.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// How the content of a page comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Zeros, but written, so that the host has given the page memory.
    Zero,
    /// Words of English at about their usual frequencies.
    Text,
    /// Incompressible.
    Random,
    /// What a program's heap looks like: pointers, small numbers, zeros, short strings.
    Heap,
    /// A heap page whose first word counts its versions: all else stays.
    Counter,
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        Ok(match word {
            "zero" => Self::Zero,
            "text" => Self::Text,
            "random" => Self::Random,
            "heap" => Self::Heap,
            "counter" => Self::Counter,
            _ => bail!("{word:?}: expected zero, text, random, heap or counter"),
        })
    }
}

impl Kind {
    /// Writes version `version` of page `number`.
    pub(crate) fn write(self, page: &mut [u64], number: u64, version: u32) {
        match self {
            Self::Zero => page.fill(0),
            Self::Text => write_text(page, Random::new(number, version)),
            Self::Random => {
                let mut random = Random::new(number, version);
                page.fill_with(|| random.next());
            }
            Self::Heap => write_heap(page, Random::new(number, version)),
            Self::Counter => {
                write_heap(page, Random::new(number, 0));
                self.step(page, number, version);
            }
        }
    }

    /// Turns the version before `version` into `version`, as the workload does it: a counter touches
    /// one word, every other kind rewrites the page.
    pub(crate) fn step(self, page: &mut [u64], number: u64, version: u32) {
        match (self, page.first_mut()) {
            (Self::Counter, Some(word)) => *word = u64::from(version),
            _ => self.write(page, number, version),
        }
    }
}

/// A 64-bit finaliser (the constants of SplitMix64): every input bit changes half the output's.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

struct Random(u64);

impl Random {
    fn new(number: u64, version: u32) -> Self {
        Self(mix(number.wrapping_add(u64::from(version) << 40)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Most frequent first; [`write_text`] prefers the front, as languages do.
const WORDS: [&[u8; 8]; 64] = [
    b"the     ",
    b"of      ",
    b"and     ",
    b"to      ",
    b"in      ",
    b"a       ",
    b"is      ",
    b"that    ",
    b"for     ",
    b"it      ",
    b"as      ",
    b"was     ",
    b"with    ",
    b"be      ",
    b"by      ",
    b"on      ",
    b"not     ",
    b"he      ",
    b"his     ",
    b"but     ",
    b"at      ",
    b"are     ",
    b"this    ",
    b"have    ",
    b"had     ",
    b"they    ",
    b"you     ",
    b"were    ",
    b"their   ",
    b"one     ",
    b"all     ",
    b"we      ",
    b"can     ",
    b"her     ",
    b"has     ",
    b"there   ",
    b"been    ",
    b"if      ",
    b"more    ",
    b"when    ",
    b"will    ",
    b"would   ",
    b"who     ",
    b"so      ",
    b"no      ",
    b"memory  ",
    b"page    ",
    b"guest   ",
    b"host    ",
    b"people  ",
    b"water   ",
    b"time    ",
    b"over    ",
    b"little  ",
    b"world   ",
    b"only    ",
    b"many    ",
    b"most    ",
    b"after   ",
    b"before  ",
    b"between ",
    b"through ",
    b"system  ",
    b"without ",
];

/// Two random numbers multiplied lean towards small indices. Each word is stored whole and the next
/// one begins right after its space, which needs no loop over letters.
fn write_text(page: &mut [u64], mut random: Random) {
    let mut text = [0u8; PAGE_BYTES as usize + 8];
    let mut at = 0;
    while at < PAGE_BYTES as usize {
        let bits = random.next();
        for shift in [0, 12, 24, 36, 48] {
            let (left, right) = ((bits >> shift) & 63, (bits >> (shift + 6)) & 63);
            let word = WORDS[(left * right / 63) as usize % WORDS.len()];
            let Some(slot) = text.get_mut(at..at + 8) else {
                break;
            };
            slot.copy_from_slice(word);
            at += word.iter().position(|&letter| letter == b' ').unwrap_or(7) + 1;
        }
    }
    for (word, bytes) in page.iter_mut().zip(text.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
}

fn write_heap(page: &mut [u64], mut random: Random) {
    for word in page {
        let bits = random.next();
        *word = match bits & 15 {
            0..=5 => 0,
            6..=10 => 0x7f3a_0000_0000 | ((bits >> 8) & 0x0fff_fff0),
            11..=13 => (bits >> 8) & 0xff,
            14 => (bits >> 8) & 0xffff_ffff,
            _ => u64::from_le_bytes(*WORDS[(bits >> 8) as usize % WORDS.len()]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 5] = [Kind::Zero, Kind::Text, Kind::Random, Kind::Heap, Kind::Counter];

    fn page(kind: Kind, number: u64, version: u32) -> Vec<u64> {
        let mut page = vec![u64::MAX; PAGE_WORDS];
        kind.write(&mut page, number, version);
        page
    }

    #[test]
    fn stepping_a_page_gives_what_writing_its_version_gives() {
        for kind in KINDS {
            let mut stepped = page(kind, 7, 0);
            for version in 1..4 {
                kind.step(&mut stepped, 7, version);
                assert_eq!(stepped, page(kind, 7, version), "{kind:?}");
            }
        }
    }

    #[test]
    fn pages_differ_by_number_and_version() {
        for kind in [Kind::Text, Kind::Random, Kind::Heap] {
            assert_ne!(page(kind, 1, 0), page(kind, 2, 0), "{kind:?}");
            assert_ne!(page(kind, 1, 0), page(kind, 1, 1), "{kind:?}");
        }
    }

    #[test]
    fn a_counter_step_changes_one_word() {
        let (before, after) = (page(Kind::Counter, 3, 1), page(Kind::Counter, 3, 2));
        let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 1);
    }

    #[test]
    fn text_is_words_and_spaces() {
        let bytes: Vec<u8> = page(Kind::Text, 5, 0)
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert!(bytes.iter().all(|b| b.is_ascii_lowercase() || *b == b' '));
        assert!(bytes.split(|b| *b == b' ').count() > 500);
    }

    /// Bits that a word of 8 bytes of a heap holds at the least, from how [`write_heap`] draws it: no coder that does not know
    /// the generator can do with fewer.
    fn heap_bits_a_word() -> f64 {
        // Of one content with this probability, and of `alike` contents that share it.
        let bits = |probability: f64, alike: f64| probability * (alike / probability).log2();
        let zero = 6.0 / 16.0 + 3.0 / 16.0 / 256.0;
        bits(zero, 1.0)
            + bits(5.0 / 16.0, f64::from(1 << 24))
            + bits(3.0 / 16.0 * 255.0 / 256.0, 255.0)
            + bits(1.0 / 16.0, 2f64.powi(32))
            + bits(1.0 / 16.0, WORDS.len() as f64)
    }

    /// The same of a byte of text: the bits of a word of the language by its mean length.
    fn text_bits_a_byte() -> f64 {
        let mut chances = [0.0f64; WORDS.len()];
        for (left, right) in (0..64).flat_map(|left| (0..64).map(move |right| (left, right))) {
            chances[left * right / 63 % WORDS.len()] += 1.0 / 4096.0;
        }
        let length = |word: &[u8; 8]| word.iter().position(|&letter| letter == b' ').unwrap_or(7) as f64 + 1.0;
        let drawn = || chances.iter().zip(WORDS).filter(|(chance, _)| **chance > 0.0);
        let bits: f64 = drawn().map(|(chance, _)| -chance * chance.log2()).sum();
        let bytes: f64 = drawn().map(|(chance, word)| chance * length(word)).sum();
        bits / bytes
    }

    /// `cargo test -p vmferry-guest least -- --nocapture` prints it.
    #[test]
    fn the_least_that_pages_can_be_coded_in() {
        let heap = heap_bits_a_word() / 64.0;
        let text = text_bits_a_byte() / 8.0;
        println!("of a heap at least {heap:.4}, of text at least {text:.4} of its bytes");
        // What is drawn is drawn as counted: the parts of a heap by their share.
        let mut counts = [0u32; 3];
        for number in 0..1000 {
            for word in page(Kind::Heap, number, 0) {
                counts[usize::from(word != 0) + usize::from(word >> 28 == 0x7f3a0)] += 1;
            }
        }
        let share = |count: u32| f64::from(count) / 512e3;
        assert!((share(counts[0]) - 0.3757).abs() < 0.005, "{counts:?}");
        assert!((share(counts[2]) - 0.3125).abs() < 0.005, "{counts:?}");
        assert!((0.20..0.22).contains(&heap) && (0.17..0.18).contains(&text));
    }
}
