//! A checkpoint as a source of content.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

use vmferry_core::page::KeptBlock;

use super::{
    CheckpointError, HostKey,
    key::{FileKey, Part, TAG_BYTES},
    layout::{GROUP_BLOCKS, HEADER_BYTES, Header, HeaderError, RECORD_BYTES, block_offset, decode_record, tags_offset},
};
use crate::{BLOCK_BYTES, Blocks, Identity, ImageFile, aligned::AlignedBuffer, blocks::offset_of};

/// A finished checkpoint. Block `n` is the `n`th that was added and not all zero.
#[derive(Debug)]
pub struct Checkpoint {
    /// Header and content.
    image: ImageFile,
    /// The same file, for what does not lie at multiples of a block.
    file: File,
    header: Header,
    key: FileKey,
}

impl Checkpoint {
    pub(super) fn open(path: &Path, key: &HostKey) -> Result<Self, CheckpointError> {
        let unusable = |reason| CheckpointError::Unusable {
            path: path.to_owned(),
            reason,
        };
        let io_error = |error| CheckpointError::io("open", path)(error);
        let mut file = File::open(path).map_err(io_error)?;
        let bytes = file.metadata().map_err(io_error)?.len();
        let mut encoded = [0; HEADER_BYTES];
        match file.read_exact(&mut encoded) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(unusable(HeaderError::NotACheckpoint));
            }
            read => read.map_err(io_error)?,
        }
        let header = Header::decode(&encoded, bytes, key).map_err(unusable)?;
        Ok(Self {
            // By its descriptor: by its name it might be a newer one by now.
            image: ImageFile::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).map_err(io_error)?,
            key: key.file_key(&header.salt).map_err(io_error)?,
            file,
            header,
        })
    }

    /// Gives what is known of each block, in order, some at once.
    ///
    /// # Errors
    /// The system's, or the file was changed since it was written.
    pub fn read_records(&self, each: &mut dyn FnMut(&[KeptBlock])) -> io::Result<()> {
        for group in 0..self.header.groups() {
            let blocks = self.header.blocks_of(group);
            let mut encrypted = vec![0; blocks as usize * RECORD_BYTES + TAG_BYTES];
            let offset = tags_offset(group, blocks) + blocks * TAG_BYTES as u64;
            self.file.read_exact_at(&mut encrypted, offset)?;
            let Some((encrypted, tag)) = encrypted.split_last_chunk() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let mut bytes = vec![0; encrypted.len()];
            self.key.decrypt(Part::Records(group), encrypted, tag, &mut bytes)?;
            let records: Vec<KeptBlock> = bytes.as_chunks().0.iter().map(decode_record).collect();
            each(&records);
        }
        Ok(())
    }

    /// Reads blocks of one group.
    fn read_in_group(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        let (group, ahead) = (first / GROUP_BLOCKS, first % GROUP_BLOCKS);
        let mut encrypted = AlignedBuffer::new(into.len());
        self.image
            .read(block_offset(first) / BLOCK_BYTES as u64, encrypted.bytes())?;
        let mut tags = vec![0; into.len() / BLOCK_BYTES * TAG_BYTES];
        let offset = tags_offset(group, self.header.blocks_of(group)) + ahead * TAG_BYTES as u64;
        self.file.read_exact_at(&mut tags, offset)?;
        let from = encrypted.bytes().chunks(BLOCK_BYTES).zip(tags.as_chunks().0);
        for ((into, (from, tag)), number) in into.chunks_mut(BLOCK_BYTES).zip(from).zip(first..) {
            self.key.decrypt(Part::Block(number), from, tag, into)?;
        }
        Ok(())
    }
}

impl Blocks for Checkpoint {
    fn blocks(&self) -> u64 {
        self.header.blocks
    }

    fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        offset_of(first, into.len(), self.blocks())?;
        let (mut first, mut into) = (first, into);
        while !into.is_empty() {
            let blocks = GROUP_BLOCKS - first % GROUP_BLOCKS;
            let bytes = into.len().min(blocks as usize * BLOCK_BYTES);
            let (now, rest) = into.split_at_mut(bytes);
            self.read_in_group(first, now)?;
            (first, into) = (first + blocks, rest);
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.image.identity()
    }
}
