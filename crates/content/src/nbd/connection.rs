//! As much of NBD as it takes to read an export: the fixed newstyle handshake and reads (NBD's `doc/proto.md`).

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use super::{NbdServer, NbdUri};

/// How long a server may take for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest option reply accepted, bytes. Real ones have at most a few hundred.
const REPLY_BYTES_MAX: u32 = 64 * 1024;
/// Replies accepted before the handshake's last one.
const REPLIES_MAX: usize = 64;

const MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;

/// A connection to one export, ready to read. It blocks its thread.
#[derive(Debug)]
pub struct Connection<S: Read + Write> {
    stream: S,
    bytes: u64,
    /// Of the last request, so that an answer to another one is noticed.
    handle: u64,
}

/// Why a read did not give what was asked for.
#[derive(Debug)]
pub enum ReadError {
    /// The server's answer; the connection is as good as before.
    Refused(io::Error),
    /// The connection is of no further use.
    Broken(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Connection<File> {
    /// Connects and chooses the export.
    ///
    /// # Errors
    /// The server is not there, has no such export, or does not speak fixed newstyle NBD.
    pub(super) fn open(uri: &NbdUri) -> io::Result<Self> {
        Self::over(File::from(connect(&uri.server)?), &uri.export)
    }
}

impl<S: Read + Write> Connection<S> {
    /// Chooses the export of a server that was connected to.
    ///
    /// # Errors
    /// The server has no such export, or does not speak fixed newstyle NBD.
    pub fn over(mut stream: S, export: &str) -> io::Result<Self> {
        if read_u64(&mut stream)? != MAGIC || read_u64(&mut stream)? != OPTION_MAGIC {
            return Err(protocol_error("this is no newstyle NBD server"));
        }
        let flags = read_u16(&mut stream)?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(protocol_error("the NBD server is too old (no fixed newstyle)"));
        }
        let client_flags = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        stream.write_all(&[&client_flags.to_be_bytes()[..], &go_option(export)?].concat())?;
        let bytes = read_export_size(&mut stream)?;
        Ok(Self {
            stream,
            bytes,
            handle: 0,
        })
    }

    /// The export's size, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer`, which is not longer than a server must answer, from `offset` on.
    ///
    /// # Errors
    /// [`ReadError`] says whether the connection is still of use.
    pub fn read_exact_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
        self.handle = self.handle.wrapping_add(1);
        self.stream.write_all(&request(CMD_READ, self.handle, offset, length))?;
        let magic = read_u32(&mut self.stream)?;
        let error = read_u32(&mut self.stream)?;
        let handle = read_u64(&mut self.stream)?;
        if magic != SIMPLE_REPLY_MAGIC || handle != self.handle {
            return Err(protocol_error("the NBD server answers with what was not asked for").into());
        }
        if error != 0 {
            // NBD's error numbers are Linux's.
            let error = i32::try_from(error).map_or_else(io::Error::other, io::Error::from_raw_os_error);
            return Err(ReadError::Refused(error));
        }
        Ok(self.stream.read_exact(buffer)?)
    }
}

impl<S: Read + Write> Drop for Connection<S> {
    /// Says goodbye, so that a server does not report a broken connection.
    fn drop(&mut self) {
        let _ = self.stream.write_all(&request(CMD_DISC, 0, 0, 0));
    }
}

fn connect(server: &NbdServer) -> io::Result<OwnedFd> {
    match server {
        NbdServer::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(stream.into())
        }
        NbdServer::Tcp { host, port } => {
            let mut last_error = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, TIMEOUT) {
                    Ok(stream) => {
                        stream.set_read_timeout(Some(TIMEOUT))?;
                        stream.set_write_timeout(Some(TIMEOUT))?;
                        stream.set_nodelay(true)?;
                        return Ok(stream.into());
                    }
                    Err(error) => last_error = error,
                }
            }
            Err(last_error)
        }
    }
}

fn go_option(export: &str) -> io::Result<Vec<u8>> {
    let name_length = u32::try_from(export.len()).map_err(io::Error::other)?;
    let data_length = name_length
        .checked_add(6)
        .ok_or_else(|| io::Error::other("the export's name is too long"))?;
    let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
    option.extend(OPT_GO.to_be_bytes());
    option.extend(data_length.to_be_bytes());
    option.extend(name_length.to_be_bytes());
    option.extend(export.as_bytes());
    // No information asked for: the size comes in any case.
    option.extend(0u16.to_be_bytes());
    Ok(option)
}

fn read_export_size(stream: &mut impl Read) -> io::Result<u64> {
    let mut size = None;
    for _ in 0..REPLIES_MAX {
        if read_u64(stream)? != REPLY_MAGIC {
            return Err(protocol_error("the NBD server's reply has no magic number"));
        }
        let _option = read_u32(stream)?;
        let kind = read_u32(stream)?;
        let length = read_u32(stream)?;
        if length > REPLY_BYTES_MAX {
            return Err(protocol_error("the NBD server's reply is too long"));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            REP_ACK => {
                return size.ok_or_else(|| protocol_error("the NBD server does not tell the export's size"));
            }
            REP_INFO => size = export_size(&payload).or(size),
            _ if kind & REP_ERROR != 0 => {
                let message = String::from_utf8_lossy(&payload).into_owned();
                return Err(io::Error::other(format!(
                    "the NBD server refuses the export (error {:#x}) {message}",
                    kind & !REP_ERROR
                )));
            }
            _ => {}
        }
    }
    Err(protocol_error(
        "the NBD server does not come to an end with its replies",
    ))
}

fn export_size(info: &[u8]) -> Option<u64> {
    let (kind, rest) = info.split_first_chunk::<2>()?;
    let (size, _flags) = rest.split_first_chunk::<8>()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT).then_some(u64::from_be_bytes(*size))
}

fn request(command: u16, handle: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
    request.extend(0u16.to_be_bytes());
    request.extend(command.to_be_bytes());
    request.extend(handle.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(length.to_be_bytes());
    request
}

fn protocol_error(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
