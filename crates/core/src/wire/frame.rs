//! Frames: a 32-byte header, then a payload whose length the header gives.
//!
//! ```text
//! offset size
//!      0    4  payload length, bytes, at most what the kind allows
//!      4    1  kind
//!      5    3  the low bytes of XXH3-64 over length, kind and sequence number
//!      8    8  sequence number: 0 for a connection's first frame in this direction, then one more each
//!     16    8  frames of the other direction that the sender has
//!     24    8  XXH3-64 over bytes 0..24, continued over the payload
//! ```
//!
//! Integers are big-endian. The header has a check of its own, because a receiver acts on the length before the payload is
//! there: a length changed on the way would have it wait for bytes that never come. The checksum finds broken links and broken
//! code; it is no defence against a peer that lies, which the encodings' own fingerprints are.
//!
//! The numbers are those of a connection that may outlive its TCP connection: what one side has not said to have is sent again
//! over the next ([`crate::session::Unheard`]).

use crate::limits::{
    CONTENT_TABLE_FRAME_BYTES_MAX, CONTROL_FRAME_BYTES_MAX, DATA_FRAME_BYTES_MAX, HELLO_FRAME_BYTES_MAX,
    RETURN_PATH_FRAME_BYTES_MAX,
};
use crate::page::ask::ASK_BYTES_MAX;
use xxhash_rust::xxh3::Xxh3;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;

/// Bytes of a header before its checksum.
const CHECKED_BYTES: usize = 24;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`Hello`](super::hello::Hello), JSON.
    Hello = 1,
    /// A [`HelloReply`](super::hello::HelloReply), JSON.
    HelloReply = 2,
    /// A [`Message`](super::message::Message), JSON; control lane only.
    Message = 3,
    /// Bytes of QEMU's return path, verbatim; control lane, target to source only.
    ReturnPath = 4,
    /// A batch of QEMU's stream; data lanes, source to target only.
    Data = 5,
    /// An [`Ack`](crate::session::Ack); data lanes, target to source only.
    Ack = 6,
    /// An [`Ask`](crate::page::Ask); data lanes, target to source only.
    Ask = 7,
    /// The answer to that; data lanes, source to target only.
    Supply = 8,
    /// A part of the tables of a content source that only the target has ([`earlier`](crate::page::earlier)), behind the source's
    /// number (u16); control lane, target to source only, before it says `Reserved`.
    ContentTable = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::HelloReply,
            3 => Kind::Message,
            4 => Kind::ReturnPath,
            5 => Kind::Data,
            6 => Kind::Ack,
            7 => Kind::Ask,
            8 => Kind::Supply,
            9 => Kind::ContentTable,
            _ => return None,
        })
    }

    /// The longest payload of this kind, bytes: a receiver allocates this much for a frame and no more.
    pub fn payload_bytes_max(self) -> usize {
        match self {
            Kind::Hello | Kind::HelloReply => HELLO_FRAME_BYTES_MAX,
            Kind::Message => CONTROL_FRAME_BYTES_MAX,
            Kind::ReturnPath => RETURN_PATH_FRAME_BYTES_MAX,
            Kind::Data | Kind::Supply => DATA_FRAME_BYTES_MAX,
            // A later version may say more.
            Kind::Ack => 4 * crate::session::Ack::BYTES,
            Kind::Ask => ASK_BYTES_MAX,
            Kind::ContentTable => CONTENT_TABLE_FRAME_BYTES_MAX,
        }
    }
}

/// Why a frame is not one. All of them mean the connection can't be used further: frames can't be found again after one
/// that was wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The connection began with other bytes.
    #[error(
        "the peer does not speak vmferry's protocol (its first bytes were {0:02x?}): is this the port of a vmferry agent?"
    )]
    Preface([u8; 8]),
    /// A kind that this version does not know; kinds are negotiated, so a peer never sends one.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A frame that does not belong on this lane or at this moment.
    #[error("a {got:?} frame where {wanted} was expected")]
    Unexpected {
        /// What came.
        got: Kind,
        /// What should have come.
        wanted: &'static str,
    },
    /// Longer than the kind allows.
    #[error("a {kind:?} frame of {bytes} bytes, over the limit of {}", kind.payload_bytes_max())]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// The length its header claims.
        bytes: u32,
    },
    /// The header was changed on the way.
    #[error("a frame's header fails its checksum: the link or a machine's memory corrupts data")]
    Header,
    /// A frame was lost, repeated or reordered.
    #[error("frame {got} came where frame {expected} was due")]
    Sequence {
        /// The sequence number in the header.
        got: u64,
        /// The one that was due.
        expected: u64,
    },
    /// The bytes were changed on the way.
    #[error("frame {0} fails its checksum: the link or a machine's memory corrupts data")]
    Checksum(u64),
    /// The payload is not what its kind says.
    #[error("a {kind:?} frame can't be read: {why}")]
    Payload {
        /// Its kind.
        kind: Kind,
        /// The reader's words.
        why: String,
    },
}

/// A parsed frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of the payload.
    pub payload_bytes: usize,
    /// Position in the connection, this direction.
    pub sequence: u64,
    /// Frames of the other direction that the sender has.
    pub heard: u64,
    checksum: u64,
}

impl Header {
    /// The header that belongs before `payload`; `None` if the payload is longer than its kind allows.
    pub fn encode(kind: Kind, sequence: u64, heard: u64, payload: &[u8]) -> Option<[u8; HEADER_BYTES]> {
        if payload.len() > kind.payload_bytes_max() {
            return None;
        }
        let length = u32::try_from(payload.len()).ok()?;
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&length.to_be_bytes());
        header[4] = kind as u8;
        header[8..16].copy_from_slice(&sequence.to_be_bytes());
        let check = header_check(&header);
        header[5..8].copy_from_slice(&check);
        header[16..24].copy_from_slice(&heard.to_be_bytes());
        let checksum = checksum(&header[..CHECKED_BYTES], payload);
        header[CHECKED_BYTES..].copy_from_slice(&checksum.to_be_bytes());
        Some(header)
    }

    /// Reads a header; the length is within the kind's limit afterwards.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        if bytes[5..8] != header_check(bytes) {
            return Err(FrameError::Header);
        }
        let [l0, l1, l2, l3, kind, ..] = *bytes;
        let be64 = |at: usize| {
            bytes[at..at + 8]
                .iter()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        let bytes = u32::from_be_bytes([l0, l1, l2, l3]);
        if bytes as usize > kind.payload_bytes_max() {
            return Err(FrameError::TooLong { kind, bytes });
        }
        Ok(Header {
            kind,
            payload_bytes: bytes as usize,
            sequence: be64(8),
            heard: be64(16),
            checksum: be64(CHECKED_BYTES),
        })
    }

    /// Checks the payload that followed this header.
    pub fn verify(&self, payload: &[u8]) -> Result<(), FrameError> {
        let again = Header::encode(self.kind, self.sequence, self.heard, payload);
        match again {
            Some(again)
                if again[CHECKED_BYTES..] == self.checksum.to_be_bytes() && payload.len() == self.payload_bytes =>
            {
                Ok(())
            }
            _ => Err(FrameError::Checksum(self.sequence)),
        }
    }
}

/// What belongs into bytes 5..8 of a header.
fn header_check(header: &[u8; HEADER_BYTES]) -> [u8; 3] {
    let mut hash = Xxh3::new();
    hash.update(&header[..5]);
    hash.update(&header[8..16]);
    let [.., a, b, c] = hash.digest().to_be_bytes();
    [a, b, c]
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    hash.digest()
}

/// Checks a connection's first eight bytes.
pub fn check_preface(bytes: [u8; 8]) -> Result<(), FrameError> {
    if bytes == super::PREFACE {
        Ok(())
    } else {
        Err(FrameError::Preface(bytes))
    }
}

/// The receiving direction of a connection: checks the numbers of what comes.
#[derive(Debug, Default)]
pub struct Received(u64);

impl Received {
    /// Accepts a frame if it is whole and the one that is due.
    pub fn accept(&mut self, header: &Header, payload: &[u8]) -> Result<(), FrameError> {
        if header.sequence != self.0 {
            return Err(FrameError::Sequence {
                got: header.sequence,
                expected: self.0,
            });
        }
        header.verify(payload)?;
        self.0 += 1;
        Ok(())
    }

    /// How many frames were accepted.
    pub fn count(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_accepted_once_and_in_order() {
        let mut into = Received::default();
        let header = |sequence, payload| Header::encode(Kind::Data, sequence, 7, payload).unwrap();
        let first = Header::parse(&header(0, b"one")).unwrap();
        let second = Header::parse(&header(1, b"two")).unwrap();
        assert_eq!((first.heard, second.heard), (7, 7));
        assert_eq!(
            into.accept(&second, b"two"),
            Err(FrameError::Sequence { got: 1, expected: 0 })
        );
        assert_eq!(into.accept(&first, b"one"), Ok(()));
        assert_eq!(
            into.accept(&first, b"one"),
            Err(FrameError::Sequence { got: 0, expected: 1 })
        );
        assert_eq!(into.accept(&second, b"two"), Ok(()));
        assert_eq!(into.count(), 2);
    }

    #[test]
    fn a_payload_over_its_kinds_limit_is_neither_sent_nor_received() {
        let long = vec![0; Kind::Ack.payload_bytes_max() + 1];
        assert_eq!(Header::encode(Kind::Ack, 0, 0, &long), None);
        let mut header = Header::encode(Kind::Data, 0, 0, &long).unwrap();
        header[4] = Kind::Ack as u8;
        let check = header_check(&header);
        header[5..8].copy_from_slice(&check);
        assert!(matches!(
            Header::parse(&header),
            Err(FrameError::TooLong { kind: Kind::Ack, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..200), bit in any::<prop::sample::Index>()) {
            let mut bytes = Header::encode(Kind::Data, 0, 5, &payload).unwrap().to_vec();
            bytes.extend_from_slice(&payload);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (header, payload) = bytes.split_at(HEADER_BYTES);
            let parsed = Header::parse(header.try_into().unwrap());
            if bit < 16 * 8 {
                prop_assert!(parsed.is_err(), "a receiver would have waited for a payload of another length");
            } else {
                prop_assert!(Received::default().accept(&parsed.unwrap(), payload).is_err());
            }
        }

        #[test]
        fn arbitrary_headers_never_panic_or_exceed_limits(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.payload_bytes <= header.kind.payload_bytes_max());
            }
        }
    }
}
