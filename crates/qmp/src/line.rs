//! Lines of bounded length.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest line accepted from a monitor, bytes. The longest real answers (`query-cpu-model-expansion`,
/// `query-qmp-schema`) have 10 to 200 KiB.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Reads up to and without the next newline into `line` (cleared first). `false`: the stream ended before a full line.
///
/// # Errors
/// The stream's own, and `InvalidData` for a line longer than `limit` bytes, of which no more than that is held.
pub(crate) async fn read(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    limit: usize,
) -> io::Result<bool> {
    line.clear();
    loop {
        let buffered = reader.fill_buf().await?;
        if buffered.is_empty() {
            return Ok(false);
        }
        let newline = buffered.iter().position(|&byte| byte == b'\n');
        let part = buffered.get(..newline.unwrap_or(buffered.len())).unwrap_or_default();
        if part.len() > limit.saturating_sub(line.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("QEMU sent a line longer than {limit} bytes"),
            ));
        }
        line.extend_from_slice(part);
        let consumed = part.len() + usize::from(newline.is_some());
        reader.consume(consumed);
        if newline.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    #[tokio::test]
    async fn lines_come_one_by_one_and_a_torn_last_line_is_the_end() {
        let mut reader = BufReader::with_capacity(3, &b"first line\r\n\nlast"[..]);
        let mut line = Vec::new();
        assert!(read(&mut reader, &mut line, 100).await.unwrap());
        assert_eq!(line, b"first line\r");
        assert!(read(&mut reader, &mut line, 100).await.unwrap());
        assert_eq!(line, b"");
        assert!(!read(&mut reader, &mut line, 100).await.unwrap());
    }

    #[tokio::test]
    async fn a_line_over_the_limit_is_an_error_and_is_not_collected() {
        let endless = tokio::io::repeat(b'x');
        let mut reader = BufReader::with_capacity(64, endless);
        let mut line = Vec::new();
        let error = read(&mut reader, &mut line, 1000).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(line.len() <= 1000);
    }

    #[tokio::test]
    async fn a_line_of_exactly_the_limit_is_read() {
        let mut reader = BufReader::new(&b"12345\n"[..]);
        let mut line = Vec::new();
        assert!(read(&mut reader, &mut line, 5).await.unwrap());
        assert_eq!(line, b"12345");
    }
}
