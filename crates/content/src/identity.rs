//! Whether a source of content is still what it was.

/// What a host can tell of a source without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A regular file.
    File {
        /// Number of the device with its file system.
        device: u64,
        /// Number of its inode there.
        inode: u64,
        /// Its length, bytes.
        bytes: u64,
        /// When its content changed last.
        modified: Timestamp,
        /// When anything of it changed last: content, name, owner, mode.
        changed: Timestamp,
    },
    /// A block device. It does not tell when it was written to.
    Device {
        /// Its number.
        device: u64,
        /// What the kernel counts up with each disk that it attaches, 0 where it does not: a number may be used again.
        sequence: u64,
        /// Its length, bytes.
        bytes: u64,
    },
    /// An export of an NBD server. The protocol does not tell when it was written to.
    Export {
        /// Its length, bytes.
        bytes: u64,
    },
}

/// A time of a file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds behind these; coarser on many file systems.
    pub nanoseconds: i64,
}

/// What became of a source since an earlier look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its content was not written to.
    Nothing,
    /// Its content may have changed since.
    Content,
    /// Another file, device or export is there.
    Another,
    /// It is the same device or export, and nobody tells whether it was written to.
    Unknown,
}

/// Bytes of an identity in a file.
pub(crate) const IDENTITY_BYTES: usize = 64;

const KIND_FILE: u64 = 1;
const KIND_DEVICE: u64 = 2;
const KIND_EXPORT: u64 = 3;

impl Identity {
    /// What became of the source between `earlier` and this look.
    ///
    /// A file of which only name, owner or mode changed counts as unchanged. So does one whose time of modification was
    /// set back by hand after a write, which costs the pages that are looked for in vain there.
    pub fn since(&self, earlier: &Identity) -> Change {
        use Identity::{Device, Export, File};
        match (*self, *earlier) {
            (
                File {
                    device,
                    inode,
                    bytes,
                    modified,
                    ..
                },
                File {
                    device: earlier_device,
                    inode: earlier_inode,
                    bytes: earlier_bytes,
                    modified: earlier_modified,
                    ..
                },
            ) => {
                if (device, inode) != (earlier_device, earlier_inode) {
                    Change::Another
                } else if (bytes, modified) != (earlier_bytes, earlier_modified) {
                    Change::Content
                } else {
                    Change::Nothing
                }
            }
            (Device { .. }, Device { .. }) | (Export { .. }, Export { .. }) if self == earlier => Change::Unknown,
            _ => Change::Another,
        }
    }

    pub(crate) fn encode(&self) -> [u8; IDENTITY_BYTES] {
        let words = match *self {
            Identity::File {
                device,
                inode,
                bytes,
                modified,
                changed,
            } => [
                KIND_FILE,
                device,
                inode,
                bytes,
                modified.seconds.cast_unsigned(),
                modified.nanoseconds.cast_unsigned(),
                changed.seconds.cast_unsigned(),
                changed.nanoseconds.cast_unsigned(),
            ],
            Identity::Device {
                device,
                sequence,
                bytes,
            } => [KIND_DEVICE, device, sequence, bytes, 0, 0, 0, 0],
            Identity::Export { bytes } => [KIND_EXPORT, 0, 0, bytes, 0, 0, 0, 0],
        };
        let mut encoded = [0; IDENTITY_BYTES];
        for (place, word) in encoded.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        encoded
    }

    pub(crate) fn decode(encoded: &[u8; IDENTITY_BYTES]) -> Option<Self> {
        let (words, _) = encoded.as_chunks();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        let time = |index: usize| Timestamp {
            seconds: word(index).cast_signed(),
            nanoseconds: word(index + 1).cast_signed(),
        };
        match word(0) {
            KIND_FILE => Some(Identity::File {
                device: word(1),
                inode: word(2),
                bytes: word(3),
                modified: time(4),
                changed: time(6),
            }),
            KIND_DEVICE => Some(Identity::Device {
                device: word(1),
                sequence: word(2),
                bytes: word(3),
            }),
            KIND_EXPORT => Some(Identity::Export { bytes: word(3) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp {
        seconds: 43_200,
        nanoseconds: -1,
    };

    fn file(inode: u64, bytes: u64, modified: Timestamp, changed: Timestamp) -> Identity {
        Identity::File {
            device: 7,
            inode,
            bytes,
            modified,
            changed,
        }
    }

    #[test]
    fn each_kind_reads_back() {
        let device = Identity::Device {
            device: 0x0801,
            sequence: 12,
            bytes: 1 << 40,
        };
        for identity in [file(1, 2, NOON, NOON), device, Identity::Export { bytes: 9 }] {
            assert_eq!(Identity::decode(&identity.encode()), Some(identity));
        }
        assert_eq!(Identity::decode(&[0; IDENTITY_BYTES]), None);
    }

    #[test]
    fn what_changed_is_told() {
        let later = Timestamp { nanoseconds: 0, ..NOON };
        let first = file(1, 8192, NOON, NOON);
        assert_eq!(first.since(&first), Change::Nothing);
        assert_eq!(file(1, 8192, NOON, later).since(&first), Change::Nothing);
        assert_eq!(file(1, 8192, later, later).since(&first), Change::Content);
        assert_eq!(file(1, 4096, NOON, NOON).since(&first), Change::Content);
        assert_eq!(file(2, 8192, NOON, NOON).since(&first), Change::Another);
        let export = Identity::Export { bytes: 8192 };
        assert_eq!(export.since(&first), Change::Another);
        assert_eq!(export.since(&export), Change::Unknown);
        assert_eq!(Identity::Export { bytes: 1 }.since(&export), Change::Another);
    }
}
