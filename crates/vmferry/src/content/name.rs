//! What two hosts call the same content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A content source, by a name that both hosts understand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ContentName {
    /// Something that the VM reads, on either host by the same path or URI: a disk, its backing file, its kernel.
    Storage {
        /// That path or URI.
        source: String,
    },
    /// An image that the operator named on both hosts, by its content; it may have another path on each.
    Image {
        /// BLAKE3-256 of it, hexadecimal.
        digest: String,
    },
    /// One of a kind that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ContentName {
    /// Of the image with that content.
    pub fn image(digest: &[u8; 32]) -> Self {
        Self::Image {
            digest: blake3::Hash::from_bytes(*digest).to_hex().to_string(),
        }
    }
}

impl fmt::Display for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentName::Storage { source } => f.write_str(source),
            ContentName::Image { digest } => write!(f, "image {}", digest.get(..12).unwrap_or(digest)),
            ContentName::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_a_later_version_is_read_and_means_nothing() {
        let names: Vec<ContentName> =
            serde_json::from_str(r#"[{"kind":"storage","source":"/d"},{"kind":"tape","reel":1}]"#).unwrap();
        assert_eq!(
            names,
            [
                ContentName::Storage {
                    source: "/d".to_owned()
                },
                ContentName::Unknown
            ]
        );
    }
}
