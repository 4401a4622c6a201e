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
    layout::{HEADER_BYTES, Header, HeaderError, RECORD_BYTES, SEGMENT_RECORDS, decode_record},
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

    /// What is known of each block, in order.
    ///
    /// # Errors
    /// The system's, or the file was changed since it was written.
    pub fn records(&self) -> io::Result<Vec<KeptBlock>> {
        let mut records = Vec::with_capacity(self.header.blocks as usize);
        for segment in 0..self.header.blocks.div_ceil(SEGMENT_RECORDS) {
            let count = SEGMENT_RECORDS.min(self.header.blocks - segment * SEGMENT_RECORDS);
            let mut encrypted = vec![0; count as usize * RECORD_BYTES + TAG_BYTES];
            self.file
                .read_exact_at(&mut encrypted, self.header.segment_offset(segment))?;
            let Some((encrypted, tag)) = encrypted.split_last_chunk() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let mut bytes = vec![0; encrypted.len()];
            self.key.decrypt(Part::Records(segment), encrypted, tag, &mut bytes)?;
            records.extend(bytes.as_chunks().0.iter().map(decode_record));
        }
        Ok(records)
    }
}

impl Blocks for Checkpoint {
    fn blocks(&self) -> u64 {
        self.header.blocks
    }

    fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        offset_of(first, into.len(), self.blocks())?;
        let mut encrypted = AlignedBuffer::new(into.len());
        // The header takes the file's first block.
        self.image.read(first + 1, encrypted.bytes())?;
        let mut tags = vec![0; into.len() / BLOCK_BYTES * TAG_BYTES];
        self.file.read_exact_at(&mut tags, self.header.tag_offset(first))?;
        let from = encrypted.bytes().chunks(BLOCK_BYTES).zip(tags.as_chunks().0);
        for ((into, (from, tag)), number) in into.chunks_mut(BLOCK_BYTES).zip(from).zip(first..) {
            self.key.decrypt(Part::Block(number), from, tag, into)?;
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.image.identity()
    }
}
