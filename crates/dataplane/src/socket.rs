//! A socket of which others can tell what it has received while its thread reads it.

use crate::threads::lock;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns};
use nix::sys::time::TimeSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, IoSliceMut, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// The receiving direction of a connection.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Locked while bytes are read, so that none are neither here nor there.
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    stream: Arc<TcpStream>,
    /// Bytes read.
    read: u64,
}

/// What a socket has received at some moment, bytes since it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Read by its thread.
    pub(crate) read: u64,
    /// Still in the kernel.
    pub(crate) unread: u64,
}

impl Held {
    pub(crate) fn received(&self) -> u64 {
        self.read + self.unread
    }
}

impl Socket {
    /// Counts from now on what is received.
    pub(crate) fn new(stream: TcpStream) -> Socket {
        stamp_arrivals(&stream);
        let stream = Arc::new(stream);
        Socket {
            now: Mutex::new(Now { stream, read: 0 }),
        }
    }

    /// The connection goes on over another socket. What was not read of this one comes again.
    pub(crate) fn goes_on(&self, stream: TcpStream) {
        stamp_arrivals(&stream);
        lock(&self.now).stream = Arc::new(stream);
    }

    /// What it has received up to now.
    pub(crate) fn held(&self) -> Held {
        let now = lock(&self.now);
        Held {
            read: now.read,
            // Fails on no connected socket, nor on one that was.
            unread: rustix::io::ioctl_fionread(&now.stream).unwrap_or(0),
        }
    }

    /// Reads it, and waits for each byte for so long at the most.
    pub(crate) fn reader(&self, patience: Option<Duration>) -> Reader<'_> {
        Reader {
            socket: self,
            patience,
            came: Instant::now(),
        }
    }

    /// What can be read without waiting, and when the last of it came.
    fn read_here(&self, buffer: &mut [u8]) -> nix::Result<(usize, Instant)> {
        let mut space = nix::cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(buffer)];
        let mut now = lock(&self.now);
        let fd = now.stream.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
        now.read += message.bytes as u64;
        drop(now);
        let stamp = message.cmsgs()?.find_map(|said| match said {
            ControlMessageOwned::ScmTimestampns(time) => Some(SystemTime::UNIX_EPOCH + Duration::from(time)),
            _ => None,
        });
        let age = stamp.and_then(|stamp| SystemTime::now().duration_since(stamp).ok());
        let now = Instant::now();
        Ok((message.bytes, age.and_then(|age| now.checked_sub(age)).unwrap_or(now)))
    }
}

fn stamp_arrivals(stream: &TcpStream) {
    // Without the times of arrival, bytes count as arrived when they are read.
    let _ = setsockopt(stream, ReceiveTimestampns, &true);
}

/// Reads a [`Socket`], whose only reader it is.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    socket: &'a Socket,
    patience: Option<Duration>,
    came: Instant,
}

impl Reader<'_> {
    /// When the last byte that was read had come from the network.
    pub(crate) fn came(&self) -> Instant {
        self.came
    }

    fn wait(&self) -> io::Result<()> {
        let limit = self
            .patience
            .map(Timespec::try_from)
            .transpose()
            .map_err(io::Error::other)?;
        let stream = lock(&self.socket.now).stream.clone();
        match poll(&mut [PollFd::new(&stream, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read_here(buffer) {
                Ok((bytes, came)) => {
                    self.came = came;
                    return Ok(bytes);
                }
                Err(nix::Error::EAGAIN) => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};

    /// Both ends of a connection.
    pub(crate) fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, peer)
    }

    /// Waits until so much is there and not read.
    pub(crate) fn until_unread(socket: &Socket, bytes: u64) {
        while socket.held().unread < bytes {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_read_and_what_is_not_is_told_apart() {
        let (here, mut peer) = connected();
        let socket = Socket::new(here);
        peer.write_all(b"hello").unwrap();
        until_unread(&socket, 5);
        assert_eq!(socket.held(), Held { read: 0, unread: 5 });
        let mut reader = socket.reader(None);
        reader.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(socket.held(), Held { read: 3, unread: 2 });
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.read(&mut [0; 3]).unwrap(), 2);
        assert_eq!(reader.read(&mut [0; 3]).unwrap(), 0, "the peer has closed it");
    }

    #[test]
    fn the_time_is_that_of_the_arrival() {
        let (here, mut peer) = connected();
        let socket = Socket::new(here);
        // The kernel begins to take the time some moments after it was asked to.
        let is_known = (0..10_000).any(|_| {
            peer.write_all(b"x").unwrap();
            until_unread(&socket, 1);
            let there = Instant::now();
            let mut reader = socket.reader(None);
            reader.read_exact(&mut [0]).unwrap();
            reader.came() <= there
        });
        assert!(is_known);
    }

    #[test]
    fn who_waits_for_a_silent_peer_gives_up() {
        let (here, _peer) = connected();
        let error = Socket::new(here).reader(Some(Duration::from_millis(1))).read(&mut [0]);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
