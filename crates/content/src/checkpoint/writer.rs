//! A checkpoint while it is written.

use std::{os::unix::fs::FileExt, path::PathBuf};

use rustix::fs::{Advice, fadvise};
use vmferry_core::page::{KeptBlock, Place};

use super::{
    CheckpointError, CheckpointFolder, HostKey,
    key::{FileKey, KEY_BYTES, Part, TAG_BYTES, random},
    layout::{GROUP_BLOCKS, Header, block_offset, encode_record, file_bytes, tags_offset},
};
use crate::{BLOCK_BYTES, durable::Draft};

/// Blocks written at once: 1 MiB.
const PIECE_BLOCKS: usize = 256;
const _: () = assert!(
    (GROUP_BLOCKS as usize).is_multiple_of(PIECE_BLOCKS),
    "a group ends where a piece does"
);
/// Bytes by which the file grows, so that the quota is looked at now and then.
const GROWTH_BYTES: u64 = 64 << 20;

/// Writes a checkpoint. Dropped before [`CheckpointWriter::finish`], it leaves nothing. Its methods block their thread, and
/// it holds the records of 4096 blocks at once.
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: CheckpointFolder,
    path: PathBuf,
    draft: Draft,
    salt: [u8; KEY_BYTES],
    host_key: HostKey,
    key: FileKey,
    /// Bytes that the file may have before it has to grow.
    room: u64,
    /// Whether a call failed, so that blocks are missing.
    failed: bool,
    /// Whether the quota allows no more.
    full: bool,
    /// Encrypted blocks that are not written yet, less than [`PIECE_BLOCKS`].
    piece: Vec<u8>,
    /// Blocks, those of the piece too.
    blocks: u64,
    /// Of the blocks of the last group, which go behind it.
    tags: Vec<[u8; TAG_BYTES]>,
    records: Vec<KeptBlock>,
}

impl CheckpointWriter {
    pub(super) fn create(folder: CheckpointFolder, path: PathBuf, key: &HostKey) -> Result<Self, CheckpointError> {
        let io_error = |error| CheckpointError::io("create", &path)(error);
        let salt = random().map_err(io_error)?;
        Ok(Self {
            draft: Draft::create(&path).map_err(io_error)?,
            key: key.file_key(&salt).map_err(io_error)?,
            host_key: key.clone(),
            folder,
            salt,
            room: 0,
            failed: false,
            full: false,
            piece: Vec::with_capacity(PIECE_BLOCKS * BLOCK_BYTES),
            blocks: 0,
            tags: Vec::new(),
            records: Vec::new(),
            path,
        })
    }

    /// Adds memory, in any order: one page or many, of which the first is at `place`. Blocks of zeros are left out. Content that
    /// is added again later is kept beside the earlier one.
    ///
    /// # Errors
    /// [`CheckpointError::OverQuota`]; then it takes no more, and what it has can be finished. [`CheckpointError::Io`]; then it
    /// can only be dropped. [`CheckpointError::PartOfABlock`].
    pub fn add(&mut self, place: Place, memory: &[u8]) -> Result<(), CheckpointError> {
        let (blocks, rest) = memory.as_chunks::<BLOCK_BYTES>();
        if !rest.is_empty() {
            return Err(CheckpointError::PartOfABlock(memory.len()));
        }
        if self.failed || self.full {
            return Err(CheckpointError::Incomplete);
        }
        // Until it succeeded.
        self.failed = true;
        for (block, ahead) in blocks.iter().zip(0..) {
            match self.add_block(place.ahead(ahead), block) {
                Err(error @ CheckpointError::OverQuota { .. }) => {
                    self.drop_piece();
                    return Err(error);
                }
                added => added?,
            }
        }
        self.failed = false;
        Ok(())
    }

    /// Gives up the blocks that are not written yet. Their numbers are not used again: nothing is added any more.
    fn drop_piece(&mut self) {
        let dropped = self.piece.len() / BLOCK_BYTES;
        let written = self.records.len() - dropped;
        self.records.truncate(written);
        self.tags.truncate(written);
        self.blocks -= dropped as u64;
        self.piece.clear();
        (self.failed, self.full) = (false, true);
    }

    /// Blocks in it so far.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Makes it the checkpoint of its VM, durably.
    ///
    /// # Errors
    /// [`CheckpointError::OverQuota`], [`CheckpointError::Io`], [`CheckpointError::Incomplete`]; then the earlier checkpoint
    /// stays, unless it made room.
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        if self.failed {
            return Err(CheckpointError::Incomplete);
        }
        self.write_piece()?;
        self.write_tail()?;
        self.reserve_exactly(file_bytes(self.blocks))?;
        let header = Header {
            salt: self.salt,
            blocks: self.blocks,
        };
        self.write_at(&header.encode(&self.host_key), 0)?;
        let file = self.draft.file();
        // This host just took a guest in and has better use for the memory than a copy of what goes past the cache.
        file.sync_all()
            .and_then(|()| Ok(fadvise(file, 0, None, Advice::DontNeed)?))
            .and_then(|()| self.draft.publish(&self.path))
            .map_err(CheckpointError::io("write", &self.path))
    }

    fn add_block(&mut self, place: Place, block: &[u8; BLOCK_BYTES]) -> Result<(), CheckpointError> {
        let record = KeptBlock::new(place, block);
        if record.hash == 0 {
            return Ok(());
        }
        let start = self.piece.len();
        self.piece.extend_from_slice(block);
        let tag = self
            .key
            .encrypt(Part::Block(self.blocks), &mut self.piece[start..])
            .map_err(CheckpointError::io("encrypt", &self.path))?;
        self.tags.push(tag);
        self.records.push(record);
        self.blocks += 1;
        if self.piece.len() == PIECE_BLOCKS * BLOCK_BYTES {
            self.write_piece()?;
        }
        if self.records.len() == GROUP_BLOCKS as usize {
            self.write_tail()?;
        }
        Ok(())
    }

    fn write_piece(&mut self) -> Result<(), CheckpointError> {
        let first = self.blocks - (self.piece.len() / BLOCK_BYTES) as u64;
        let bytes = file_bytes(self.blocks);
        if bytes > self.room {
            // In steps while the quota has room for them.
            match self.reserve_exactly(bytes.saturating_add(GROWTH_BYTES)) {
                Err(CheckpointError::OverQuota { .. }) => self.reserve_exactly(bytes)?,
                reserved => reserved?,
            }
        }
        self.write_at(&self.piece, block_offset(first))?;
        self.piece.clear();
        Ok(())
    }

    /// Writes what is known of the blocks of the last group behind them; there is room for it, and no piece is left.
    fn write_tail(&mut self) -> Result<(), CheckpointError> {
        let count = self.records.len() as u64;
        let Some(group) = self
            .blocks
            .checked_sub(1)
            .map(|last| last / GROUP_BLOCKS)
            .filter(|_| count > 0)
        else {
            return Ok(());
        };
        let mut records: Vec<u8> = self.records.iter().flat_map(encode_record).collect();
        let tag = self
            .key
            .encrypt(Part::Records(group), &mut records)
            .map_err(CheckpointError::io("encrypt", &self.path))?;
        let tail = [self.tags.as_flattened(), &records, &tag].concat();
        self.write_at(&tail, tags_offset(group, count))?;
        self.tags.clear();
        self.records.clear();
        Ok(())
    }

    fn reserve_exactly(&mut self, bytes: u64) -> Result<(), CheckpointError> {
        self.folder.grow(&self.draft, &self.path, bytes)?;
        self.room = bytes;
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), CheckpointError> {
        self.draft
            .file()
            .write_all_at(bytes, offset)
            .map_err(CheckpointError::io("write", &self.path))
    }
}
