//! As much of a qcow2 image's header as tells which other files it needs (QEMU's `docs/interop/qcow2.txt`).
//!
//! Whoever may write to an image chooses what is in its header, and QEMU would open what stands there. So the agent reads it,
//! checks it, and gives QEMU the chain.

use std::io;

/// The first four bytes.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Where the header extensions begin in version 2, which has no field for it.
const HEADER_BYTES_V2: u64 = 72;
/// Incompatible feature: the guest's data are in another file.
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
/// Header extension: the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest name of a backing file that QEMU takes.
const NAME_BYTES_MAX: u32 = 1023;
/// Longest name of a format.
const FORMAT_BYTES_MAX: u32 = 15;
/// Extensions looked at: more than there are kinds.
const EXTENSIONS_MAX: usize = 32;
/// Largest cluster, which the header and all names lie in.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// What an image needs besides itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The file under it, as the header names it, and that one's format if it is said.
    pub backing: Option<(String, Option<String>)>,
    /// Whether its data are in another file.
    pub has_data_file: bool,
}

/// Reads the header through `read`, which fills a buffer from an offset on.
///
/// # Errors
/// Those of `read`; or this is no qcow2 image.
pub fn read_header(read: &dyn Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Header> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("it is no qcow2 image: {what}"));
    let mut fixed = [0; 104];
    read(&mut fixed, 0)?;
    let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    if fixed[..4] != MAGIC {
        return Err(wrong("it does not begin as one"));
    }
    let cluster_bits = word(20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(wrong("impossible clusters"));
    }
    let cluster_bytes = 1 << cluster_bits;
    let (features, extensions_at) = match word(4) {
        2 => (0, HEADER_BYTES_V2),
        3 => (long(72), u64::from(word(100))),
        version => return Err(wrong(&format!("version {version}"))),
    };
    let (name_at, name_bytes) = (long(8), word(16));
    let has_data_file = features & EXTERNAL_DATA_FILE != 0;
    if name_at == 0 || name_bytes == 0 {
        return Ok(Header {
            backing: None,
            has_data_file,
        });
    }
    let fits = name_at
        .checked_add(u64::from(name_bytes))
        .is_some_and(|end| end <= cluster_bytes);
    if name_bytes > NAME_BYTES_MAX || !fits {
        return Err(wrong("the backing file's name is out of place"));
    }
    let mut name = vec![0; name_bytes as usize];
    read(&mut name, name_at)?;
    let name = String::from_utf8(name).map_err(|_| wrong("the backing file's name is not UTF-8"))?;
    let format = backing_format(read, extensions_at, name_at.min(cluster_bytes))?;
    Ok(Header {
        backing: Some((name, format)),
        has_data_file,
    })
}

/// The extensions are before the backing file's name, each a type, a length, and that many bytes padded to eight.
fn backing_format(read: &dyn Fn(&mut [u8], u64) -> io::Result<()>, from: u64, end: u64) -> io::Result<Option<String>> {
    let mut at = from;
    for _ in 0..EXTENSIONS_MAX {
        if at.saturating_add(8) > end {
            break;
        }
        let mut head = [0; 8];
        read(&mut head, at)?;
        let [a, b, c, d, e, f, g, h] = head;
        let (kind, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        match kind {
            0 => break,
            BACKING_FORMAT if length <= FORMAT_BYTES_MAX => {
                let mut format = vec![0; length as usize];
                read(&mut format, at + 8)?;
                return Ok(Some(String::from_utf8_lossy(&format).into_owned()));
            }
            _ => {
                at = at
                    .saturating_add(8)
                    .saturating_add(u64::from(length).next_multiple_of(8))
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

    fn header_of(path: &Path) -> io::Result<Header> {
        let file = fs::File::open(path)?;
        read_header(&|into, at| file.read_exact_at(into, at))
    }

    fn create(path: &Path, options: &[&str]) {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(path);
        assert!(command.arg("1M").status().unwrap().success());
    }

    #[test]
    fn the_names_that_qemu_img_writes_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        create(&path("base"), &[]);
        assert_eq!(header_of(&path("base")).unwrap(), Header::default());
        for compat in ["compat=0.10", "compat=1.1", "compat=1.1,cluster_size=2M"] {
            create(&path("top"), &["-o", compat, "-b", "base", "-F", "qcow2"]);
            let backing = header_of(&path("top")).unwrap().backing;
            assert_eq!(backing, Some(("base".to_owned(), Some("qcow2".to_owned()))), "{compat}");
        }
        let data = format!("data_file={}", path("data").display());
        create(&path("outside"), &["-o", &data]);
        assert!(header_of(&path("outside")).unwrap().has_data_file);
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        create(&path, &[]);
        let image = fs::read(&path).unwrap();
        let spoiled = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = image.clone();
            change(&mut image);
            header_of(&{
                fs::write(&path, image).unwrap();
                path.clone()
            })
        };
        assert!(spoiled(&|_| {}).is_ok());
        assert!(spoiled(&|image| image[0] = 0).is_err());
        assert!(spoiled(&|image| image.truncate(50)).is_err());
        assert!(spoiled(&|image| image[7] = 9).is_err(), "a version that is yet to come");
        assert!(spoiled(&|image| image[23] = 60).is_err(), "clusters of an exabyte");
        // Whatever else is in the header: it is read or refused.
        for (at, bits) in (0..112).flat_map(|at| [0x01, 0x80, 0xff].map(|bits| (at, bits))) {
            let _ = spoiled(&|image| image[at] ^= bits);
        }
        // A name far behind the first cluster, and one without end.
        assert!(spoiled(&|image| image[8..20].copy_from_slice(&[0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9])).is_err());
        assert!(spoiled(&|image| image[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0, 0, 9])).is_err());
    }

    #[test]
    fn an_extension_of_any_length_ends_the_search() {
        let mut image = vec![0; 4096];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        image[23] = 12;
        // The name at 200, four bytes of it; the extension before it says that it has 4 GiB.
        image[15] = 200;
        image[19] = 4;
        image[72..80].copy_from_slice(&[1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff]);
        image[200..204].copy_from_slice(b"base");
        let read = |into: &mut [u8], at: u64| {
            into.copy_from_slice(&image[at as usize..][..into.len()]);
            Ok(())
        };
        assert_eq!(read_header(&read).unwrap().backing, Some(("base".to_owned(), None)));
    }
}
