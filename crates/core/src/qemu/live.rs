//! The handlers besides RAM that send state while the guest runs. Each marks its own end, so that the parser can walk over
//! them to the next RAM section.

use super::LostCause;
use super::cursor::{Cursor, Stop};

/// Which part of a live section is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Start,
    Part,
    End,
}

/// A live handler, told by its section's `idstr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handler {
    DirtyBitmap,
    Vfio,
    /// Block migration of QEMU before 9.1.
    Block,
    /// The hash page table of a PowerPC guest.
    Htab,
    /// The storage attributes of an s390x guest.
    StorageAttributes,
}

/// One element of a handler's state, behind its fixed fields.
pub(super) struct Element {
    /// Bytes of data that follow.
    pub(super) data: u64,
    /// Nothing of this section follows behind the data.
    pub(super) last: bool,
}

impl Element {
    const EMPTY: Self = Self { data: 0, last: false };
    const LAST: Self = Self { data: 0, last: true };

    fn data(data: u64) -> Self {
        Self { data, last: false }
    }
}

impl Handler {
    pub(super) fn from_idstr(idstr: &[u8]) -> Option<Self> {
        match idstr {
            b"dirty-bitmap" => Some(Self::DirtyBitmap),
            b"block" => Some(Self::Block),
            b"spapr/htab" => Some(Self::Htab),
            b"s390-storage_attributes" => Some(Self::StorageAttributes),
            _ if idstr.ends_with(b"/vfio") => Some(Self::Vfio),
            _ => None,
        }
    }

    /// Reads one element of the section's state; `first` if it is the first of this section.
    pub(super) fn element(
        self,
        phase: Phase,
        first: bool,
        cursor: &mut Cursor<'_>,
    ) -> Result<Element, Stop<LostCause>> {
        match self {
            Self::DirtyBitmap => dirty_bitmap(cursor),
            Self::Vfio => vfio(cursor),
            Self::Block => block(cursor),
            Self::Htab => htab(phase, first, cursor),
            Self::StorageAttributes => storage_attributes(cursor),
        }
    }
}

fn dirty_bitmap(cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const EOS: u8 = 0x01;
    const ZEROES: u8 = 0x02;
    const BITMAP_NAME: u8 = 0x04;
    const NODE_NAME: u8 = 0x08;
    const KIND: u8 = 0x70;
    const START: u8 = 0x10;
    const COMPLETE: u8 = 0x20;
    const BITS: u8 = 0x40;
    // Announces further flag bytes, which no QEMU writes.
    const EXTRA: u8 = 0x80;

    let flags = cursor.u8()?;
    if flags & EXTRA != 0 {
        return Err(LostCause::Live("dirty-bitmap").into());
    }
    for name in [NODE_NAME, BITMAP_NAME] {
        if flags & name != 0 {
            cursor.str8()?;
        }
    }
    let mut data = 0;
    match flags & KIND {
        0 | COMPLETE => {}
        START => {
            // Granularity, flags.
            cursor.u32()?;
            cursor.u8()?;
        }
        BITS => {
            // First sector, sector count.
            cursor.u64()?;
            cursor.u32()?;
            if flags & ZEROES == 0 {
                data = cursor.u64()?;
            }
        }
        _ => return Err(LostCause::Live("dirty-bitmap").into()),
    }
    Ok(Element {
        data,
        last: flags & EOS != 0,
    })
}

fn vfio(cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const END_OF_STATE: u64 = 0xffff_ffff_ef10_0001;
    const SETUP: u64 = 0xffff_ffff_ef10_0003;
    const DATA: u64 = 0xffff_ffff_ef10_0004;
    const INITIAL_DATA_SENT: u64 = 0xffff_ffff_ef10_0005;

    match cursor.u64()? {
        SETUP => Ok(Element::EMPTY),
        DATA => Ok(Element::data(cursor.u64()?)),
        END_OF_STATE | INITIAL_DATA_SENT => Ok(Element::LAST),
        _ => Err(LostCause::Live("a VFIO device").into()),
    }
}

fn block(cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const FLAGS: u64 = 0x1ff;
    const DATA: u64 = 0x01;
    const EOS: u64 = 0x02;
    const PROGRESS: u64 = 0x04;
    const ZERO: u64 = 0x08;
    const CHUNK_BYTES: u64 = 1 << 20;

    match cursor.u64()? & FLAGS {
        EOS => Ok(Element::LAST),
        PROGRESS => Ok(Element::EMPTY),
        flags if flags & !ZERO == DATA => {
            // The device's name.
            cursor.str8()?;
            Ok(if flags & ZERO == 0 {
                Element::data(CHUNK_BYTES)
            } else {
                Element::EMPTY
            })
        }
        _ => Err(LostCause::Live("block").into()),
    }
}

fn htab(phase: Phase, first: bool, cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const NOTHING_FOLLOWS: u32 = u32::MAX;
    const ENTRY_BYTES: u64 = 16;

    if first {
        let header = cursor.u32()?;
        let last = phase == Phase::Start || header == NOTHING_FOLLOWS;
        return Ok(Element { data: 0, last });
    }
    let index = cursor.u32()?;
    let valid = cursor.u16()?;
    let invalid = cursor.u16()?;
    Ok(Element {
        data: u64::from(valid) * ENTRY_BYTES,
        last: (index, valid, invalid) == (0, 0, 0),
    })
}

fn storage_attributes(cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const FLAGS: u64 = 0xfff;
    const EOS: u64 = 0x01;
    const MORE: u64 = 0x02;
    const ERROR: u64 = 0x04;
    const DONE: u64 = 0x08;

    match cursor.u64()? & FLAGS {
        EOS => Ok(Element::LAST),
        MORE => Ok(Element::data(cursor.u64()?)),
        ERROR | DONE => Ok(Element::EMPTY),
        _ => Err(LostCause::Live("s390-storage_attributes").into()),
    }
}

/// Whether a SECTION_FULL before the pages is virtio-mem's, the one device that sends state so early.
pub(super) fn is_virtio_mem(idstr: &[u8]) -> bool {
    idstr.ends_with(b"virtio-mem-device-early")
}

/// Reads the fixed fields of virtio-mem's early state; the bitmap of plugged blocks is the data that follows.
pub(super) fn virtio_mem(cursor: &mut Cursor<'_>) -> Result<Element, Stop<LostCause>> {
    const WORD_BITS: u64 = 64;
    const WORD_BYTES: u64 = 8;

    let _guest_address = cursor.u64()?;
    let region_bytes = cursor.u64()?;
    let block_bytes = cursor.u64()?;
    let _node = cursor.u32()?;
    let _plugged_bytes = cursor.u64()?;
    let blocks = region_bytes
        .checked_div(block_bytes)
        .ok_or(LostCause::Live("virtio-mem"))?;
    let data = blocks
        .div_ceil(WORD_BITS)
        .checked_mul(WORD_BYTES)
        .ok_or(LostCause::Live("virtio-mem"))?;
    Ok(Element { data, last: true })
}
