//! LZ78, the coder of the paper's Figure 3: "extracts the smallest substring that cannot be found in the dictionary from
//! the remaining non-compressed string". That string is a string of the dictionary and one byte more; it is sent as the
//! number of the one and the other, and becomes the dictionary's next string. Number 0 is the empty string.
//!
//! Both sides begin with an empty dictionary and start over whenever it is full, so they need not tell each other
//! anything. A number takes as many bits as the dictionary then needs. A batch ends with the number of a string it has, if
//! its last bytes are one.
//!
//! ```text
//! u8 STORED: the plain bytes; both dictionaries start over, having shown to be of no use
//! u8 CODED:  (number, byte)... as bits, low bits first, padded with zeros to a whole byte
//! ```

use super::{Decode, Encode, LzError, scatter};

const STORED: u8 = 0;
const CODED: u8 = 1;

/// Strings of a full dictionary, the empty one included: numbers fit 16 bits.
const STRINGS_MAX: usize = 1 << 16;
/// Slots of the encoder's hash table: twice the strings, so that most are found at once.
const SLOTS: usize = 2 * STRINGS_MAX;
/// Slots tried for a string. A guest could choose data whose strings all hash alike; then some are not found again, which
/// costs compression, but never time.
const PROBES: usize = 8;

/// How many bits a number takes while the dictionary has this many strings.
fn number_bits(strings: usize) -> u32 {
    usize::BITS - (strings - 1).leading_zeros()
}

pub(super) struct Encoder {
    /// (string, byte) of an entry, and its number; number 0 marks a free slot.
    slots: Vec<(u32, u16)>,
    strings: usize,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![(0, 0); SLOTS],
            strings: 1,
        }
    }

    fn start_over(&mut self) {
        self.slots.fill((0, 0));
        self.strings = 1;
    }

    /// The number of `string` and `byte` joined, or else the slot where it would go, if one is free.
    fn find(&self, string: u16, byte: u8) -> Result<u16, Option<usize>> {
        let key = u32::from(string) << 8 | u32::from(byte);
        let hash = (key.wrapping_mul(0x9E37_79B1) >> 15) as usize;
        for probe in 0..PROBES {
            let slot = (hash + probe) % SLOTS;
            match self.slots[slot] {
                (_, 0) => return Err(Some(slot)),
                (at, number) if at == key => return Ok(number),
                _ => {}
            }
        }
        Err(None)
    }

    fn add(&mut self, slot: Option<usize>, string: u16, byte: u8) {
        if let Some(slot) = slot {
            self.slots[slot] = (u32::from(string) << 8 | u32::from(byte), self.strings as u16);
        }
        self.strings += 1;
        if self.strings == STRINGS_MAX {
            self.start_over();
        }
    }
}

impl Encode for Encoder {
    fn encode(&mut self, plain: &[&[u8]], out: &mut Vec<u8>) -> Result<(), LzError> {
        let start = out.len();
        out.push(CODED);
        let mut bits = BitWriter::new(out);
        let mut string = 0;
        for &byte in plain.iter().copied().flatten() {
            match self.find(string, byte) {
                Ok(longer) => string = longer,
                Err(slot) => {
                    bits.put(u32::from(string), number_bits(self.strings));
                    bits.put(u32::from(byte), 8);
                    self.add(slot, string, byte);
                    string = 0;
                }
            }
        }
        if string != 0 {
            bits.put(u32::from(string), number_bits(self.strings));
        }
        bits.finish();
        let plain_bytes: usize = plain.iter().map(|piece| piece.len()).sum();
        if out.len() - start > plain_bytes {
            self.start_over();
            out.truncate(start);
            out.push(STORED);
            plain.iter().for_each(|piece| out.extend_from_slice(piece));
        }
        Ok(())
    }
}

pub(super) struct Decoder {
    /// By number: the number of the string that this one prolongs, its last byte, its length.
    strings: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    prefix: u16,
    byte: u8,
    length: u32,
}

impl Decoder {
    pub(super) fn new() -> Self {
        let mut strings = Vec::with_capacity(STRINGS_MAX);
        strings.push(Entry {
            prefix: 0,
            byte: 0,
            length: 0,
        });
        Self { strings }
    }

    fn decode_coded(&mut self, coded: &[u8], plain_bytes: usize, out: &mut Vec<u8>) -> Option<()> {
        let end = out.len() + plain_bytes;
        let mut bits = BitReader {
            input: coded,
            held: 0,
            held_bits: 0,
        };
        while out.len() < end {
            let number = bits.get(number_bits(self.strings.len()))? as usize;
            let length = self.strings.get(number)?.length as usize;
            if length > end - out.len() {
                return None;
            }
            self.write_string(number, length, out);
            if out.len() == end {
                break;
            }
            let byte = bits.get(8)? as u8;
            out.push(byte);
            self.strings.push(Entry {
                prefix: number as u16,
                byte,
                length: length as u32 + 1,
            });
            if self.strings.len() == STRINGS_MAX {
                self.strings.truncate(1);
            }
        }
        bits.is_finished().then_some(())
    }

    /// Appends a string, from its last byte to its first.
    fn write_string(&self, mut number: usize, length: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + length, 0);
        for to in out[start..].iter_mut().rev() {
            let entry = self.strings[number];
            *to = entry.byte;
            number = usize::from(entry.prefix);
        }
    }
}

impl Decode for Decoder {
    fn decode(&mut self, input: &[u8], plain: &mut [&mut [u8]]) -> Result<(), LzError> {
        let malformed = LzError::Malformed("lz78");
        let plain_bytes = plain.iter().map(|piece| piece.len()).sum();
        match input.split_first() {
            Some((&STORED, stored)) if stored.len() == plain_bytes => {
                self.strings.truncate(1);
                scatter(stored, plain);
            }
            Some((&CODED, coded)) => {
                // A string may lie across pieces.
                let mut joined = Vec::with_capacity(plain_bytes);
                self.decode_coded(coded, plain_bytes, &mut joined).ok_or(malformed)?;
                scatter(&joined, plain);
            }
            _ => return Err(malformed),
        }
        Ok(())
    }
}

/// Bits into bytes, low bits first.
struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    held: u64,
    held_bits: u32,
}

impl<'a> BitWriter<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            held: 0,
            held_bits: 0,
        }
    }

    fn put(&mut self, value: u32, bits: u32) {
        self.held |= u64::from(value) << self.held_bits;
        self.held_bits += bits;
        while self.held_bits >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.held_bits -= 8;
        }
    }

    fn finish(self) {
        if self.held_bits > 0 {
            self.out.push(self.held as u8);
        }
    }
}

/// Bytes into bits, low bits first.
struct BitReader<'a> {
    input: &'a [u8],
    held: u64,
    held_bits: u32,
}

impl BitReader<'_> {
    fn get(&mut self, bits: u32) -> Option<u32> {
        while self.held_bits < bits {
            let (byte, rest) = self.input.split_first()?;
            self.input = rest;
            self.held |= u64::from(*byte) << self.held_bits;
            self.held_bits += 8;
        }
        let value = self.held & ((1 << bits) - 1);
        self.held >>= bits;
        self.held_bits -= bits;
        Some(value as u32)
    }

    fn is_finished(&self) -> bool {
        self.input.is_empty() && self.held == 0
    }
}
