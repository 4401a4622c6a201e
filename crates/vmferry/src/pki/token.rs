//! What invites a host: who it shall be, where the authority is and how it is recognised, and a secret that shows that
//! the host was invited. One line of text.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use super::{from_hex, hex};

/// In front of a token, so that it is not taken for something else. The number is that of the format.
const PREFIX: &str = "vmferry-join/1";

/// An invitation. Its text is a secret, so it has no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Who is invited.
    pub host: String,
    /// Where the authority is.
    pub authority_host: String,
    /// Where that host's agent is reached.
    pub address: String,
    /// SHA-256 of the authority's certificate.
    pub fingerprint: [u8; 32],
    /// What shows that the host was invited.
    pub secret: [u8; 32],
}

impl Token {
    /// The token's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Token {
            host,
            authority_host,
            address,
            fingerprint,
            secret,
        } = self;
        let (fingerprint, secret) = (hex(fingerprint), hex(secret));
        format!("{PREFIX}/{host}/{authority_host}/{address}/{fingerprint}/{secret}")
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Token> {
        let parts = text.trim().strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('/'));
        let parts: Vec<&str> = parts
            .context("that is no token; `vmferry pki invite` on the authority's host prints one")?
            .split('/')
            .collect();
        ensure!(
            parts.len() == 5,
            "the token is damaged: it has to be one line, all of it"
        );
        let number = |digits: &str| from_hex(digits).context("the token is damaged: part of a number in it is missing");
        Ok(Token {
            host: parts[0].to_owned(),
            authority_host: parts[1].to_owned(),
            address: parts[2].to_owned(),
            fingerprint: number(parts[3])?,
            secret: number(parts[4])?,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_not_otherwise() {
        let token = Token {
            host: "host-b".to_owned(),
            authority_host: "host-a".to_owned(),
            address: "[fd00::1]:7464".to_owned(),
            fingerprint: [7; 32],
            secret: [0xab; 32],
        };
        let text = token.to_text();
        assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains("abab"));
        for damaged in [&text[1..], &text[..text.len() - 1], "vmferry-join/1/a/b", ""] {
            assert!(damaged.parse::<Token>().is_err(), "{damaged}");
        }
    }
}
