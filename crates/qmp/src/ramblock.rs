//! The text of HMP's `info ramblock`, which QMP has no structured form of.
//!
//! ```text
//!               Block Name    PSize              Offset               Used              Total                HVA  RO
//!                   pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fdbb7e00000  rw
//! ```
//! The host address came with QEMU 8.1 and `RO` with it; both are missing before. Names may hold spaces and may be longer than
//! their column, so a row is read from its right end.

/// One RAM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// Its name, as in the migration stream: `pc.ram`, `0000:00:02.0/virtio-net-pci.rom`, …
    pub name: String,
    /// Bytes in use, which are the bytes that migrate.
    pub used_bytes: u64,
    /// Bytes reserved for it to grow into.
    pub total_bytes: u64,
    /// Where it begins in QEMU's address space, on QEMUs that print it.
    pub host_address: Option<u64>,
}

/// A row that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row:?} of `info ramblock` is not understood; report this QEMU's version")]
pub struct ParseError {
    /// The row.
    pub row: String,
}

/// Parses the whole text, heading included.
///
/// # Errors
/// The first row that has not the columns above.
pub fn parse(text: &str) -> Result<Vec<RamBlock>, ParseError> {
    text.lines()
        .map(str::trim)
        .filter(|row| !row.is_empty() && !row.starts_with("Block Name"))
        .map(|row| parse_row(row).ok_or_else(|| ParseError { row: row.to_owned() }))
        .collect()
}

fn parse_row(row: &str) -> Option<RamBlock> {
    let row = ["rw", "ro"]
        .iter()
        .find_map(|mode| row.strip_suffix(mode))
        .unwrap_or(row);
    // From the right: the hexadecimal columns (offset, used, total and perhaps the host address) up to the page size.
    let mut rest = row.trim_end();
    let mut numbers = Vec::with_capacity(4);
    while let Some((left, number)) = rest.rsplit_once(char::is_whitespace) {
        let Some(digits) = number.strip_prefix("0x") else {
            break;
        };
        numbers.push(u64::from_str_radix(digits, 16).ok()?);
        rest = left.trim_end();
    }
    let (used_bytes, total_bytes, host_address) = match *numbers.as_slice() {
        [host_address, total, used, _offset] => (used, total, Some(host_address)),
        [total, used, _offset] => (used, total, None),
        _ => return None,
    };
    // What is left is the name and the page size, such as `4 KiB`.
    let (rest, _unit) = rest.rsplit_once(' ')?;
    let (name, count) = rest.trim_end().rsplit_once(' ')?;
    count.parse::<u64>().ok()?;
    Some(RamBlock {
        name: name.trim_end().to_owned(),
        used_bytes,
        total_bytes,
        host_address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_of_qemu_10_gives_host_addresses() {
        let text = "              Block Name    PSize              Offset               Used              Total                HVA  RO\r\n\
             \x20                 pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fdbb7e00000  rw\r\n\
             \x20   /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000 0x00007fdc0a600000  ro\r\n";
        let blocks = parse(text).unwrap();
        assert_eq!(blocks.len(), 2);
        let tables = RamBlock {
            name: "/rom@etc/acpi/tables".into(),
            used_bytes: 0x20000,
            total_bytes: 0x200000,
            host_address: Some(0x7fdc_0a60_0000),
        };
        assert_eq!(blocks[1], tables);
    }

    #[test]
    fn the_text_of_qemu_7_has_none() {
        let text = "              Block Name    PSize              Offset               Used              Total\n\
             \x20                 pc.ram    2 MiB  0x0000000000000000 0x0000000004000000 0x0000000004000000\n";
        let blocks = parse(text).unwrap();
        assert_eq!(blocks[0].name, "pc.ram");
        assert_eq!(blocks[0].host_address, None);
    }

    #[test]
    fn a_long_name_with_spaces_is_kept() {
        let row = "0000:00:02.0/a rather long device.rom 4 KiB  0x1 0x2 0x3 0x4  rw";
        assert_eq!(parse(row).unwrap()[0].name, "0000:00:02.0/a rather long device.rom");
    }

    #[test]
    fn a_row_that_is_none_is_named() {
        let error = parse("unknown command: 'info ramblock'").unwrap_err();
        assert!(error.to_string().contains("unknown command"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in r"([ a-z0-9]{0,6}(KiB|0x|rw|ro|\n|é)){0,12}") {
            let _ = parse(&text);
        }
    }
}
