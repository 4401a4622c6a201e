//! An export as a source of content.

use std::{
    fs::File,
    io,
    sync::{Mutex, PoisonError},
};

use super::{
    NbdUri,
    connection::{Connection, ReadError},
};
use crate::{BLOCK_BYTES, Blocks, Identity, blocks::offset_of};

/// Bytes asked for at once. A server need not answer requests of more than 32 MiB, and each answer has its own time limit.
const REQUEST_BYTES: usize = 1 << 20;

/// One export. Threads that read it take turns; a connection that breaks is made anew, once for each read.
#[derive(Debug)]
pub struct NbdExport {
    uri: NbdUri,
    bytes: u64,
    /// `None` after it broke and could not be made anew.
    connection: Mutex<Option<Connection<File>>>,
}

impl NbdExport {
    /// Connects and chooses the export.
    ///
    /// # Errors
    /// The server is not there, has no such export, or does not speak fixed newstyle NBD.
    pub fn open(uri: &NbdUri) -> io::Result<Self> {
        let connection = Connection::open(uri)?;
        Ok(Self {
            uri: uri.clone(),
            bytes: connection.bytes(),
            connection: Mutex::new(Some(connection)),
        })
    }

    /// The export's size, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn connect_anew(&self) -> io::Result<Connection<File>> {
        let connection = Connection::open(&self.uri)?;
        if connection.bytes() != self.bytes {
            return Err(io::Error::other(format!(
                "the NBD export had {} bytes and has {} now: open it again",
                self.bytes,
                connection.bytes()
            )));
        }
        Ok(connection)
    }

    fn read_piece(&self, connection: &mut Option<Connection<File>>, into: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(open) = connection {
            match open.read_exact_at(into, offset) {
                Ok(()) => return Ok(()),
                Err(ReadError::Refused(error)) => return Err(error),
                Err(ReadError::Broken(_)) => *connection = None,
            }
        }
        let mut anew = self.connect_anew()?;
        match anew.read_exact_at(into, offset) {
            Err(ReadError::Broken(error)) => Err(error),
            Err(ReadError::Refused(error)) => {
                *connection = Some(anew);
                Err(error)
            }
            Ok(()) => {
                *connection = Some(anew);
                Ok(())
            }
        }
    }
}

impl Blocks for NbdExport {
    fn blocks(&self) -> u64 {
        self.bytes / BLOCK_BYTES as u64
    }

    fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        let start = offset_of(first, into.len(), self.blocks())?;
        for (piece, offset) in into.chunks_mut(REQUEST_BYTES).zip((start..).step_by(REQUEST_BYTES)) {
            // A thread that panicked left at worst a connection whose next answer does not fit, which is then made anew.
            let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            self.read_piece(&mut connection, piece, offset)?;
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::Export { bytes: self.bytes })
    }
}
