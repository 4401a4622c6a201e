//! Reads fields from the front of the input.

/// The input ends inside a field.
#[derive(Debug)]
pub(super) struct Short;

/// Why an element could not be read.
#[derive(Debug)]
pub(super) enum Stop<E> {
    /// The input ends inside it: nothing was changed, ask again with more.
    More,
    /// It is nothing we can follow.
    Malformed(E),
}

impl<E> From<Short> for Stop<E> {
    fn from(_: Short) -> Self {
        Self::More
    }
}

/// A position in the input, from which big-endian fields are read.
pub(super) struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn consumed(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Short> {
        let end = self.at.checked_add(bytes).ok_or(Short)?;
        let taken = self.input.get(self.at..end).ok_or(Short)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        self.take(N)?.try_into().map_err(|_| Short)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind one length byte.
    pub(super) fn str8(&mut self) -> Result<&'a [u8], Short> {
        let bytes = self.u8()?;
        self.take(usize::from(bytes))
    }

    /// The same bytes, to look ahead without reading.
    pub(super) fn peek(&self) -> Cursor<'a> {
        Cursor {
            input: self.input,
            at: self.at,
        }
    }
}
