//! What the two ends of a tunnel say to each other about one connection that they carry, as JSON on a lane of its own.
//!
//! ```text
//! source                                     target
//! open                     ────────────────▶
//!                          ◀────────────────  opened
//! (a migration stream: data lanes; else: Data and Ack frames here, both ways)
//!                          ◀────────────────  loaded       (a migration stream with a return path)
//! over                     ◀───────────────▶  over         (whoever sees the end first)
//! ```

use super::message::{MessageError, read_json};
use crate::page::{CodecSettings, Coders, StreamDigest};
use serde::{Deserialize, Serialize};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// Source to target, first: a connection was made to the source's end.
    Open {
        /// The name of the socket that it is to be joined with.
        socket: String,
        /// What it carries.
        carries: Carries,
        /// How long both ends wait for a link that breaks, milliseconds.
        link_patience_ms: u64,
    },
    /// Target to source: it may begin.
    Opened,
    /// Target to source: its QEMU has loaded the stream, all of it, and said so (SHUT 0); that message stays with the target.
    Loaded {
        /// What it has loaded.
        stream: StreamDigest,
    },
    /// Either way, last: the connection is over.
    Over {
        /// Why, if something failed. Otherwise the sender's QEMU has closed its socket, and the other was given all that it sent.
        failed: Option<String>,
    },
    /// Either way: there is nothing else to say.
    Heartbeat,
    /// Of a later version; means nothing.
    #[serde(other)]
    Unknown,
}

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Carries {
    /// QEMU's migration stream, over data lanes that name the tunnel's connection as their migration.
    Migration {
        /// Data lanes.
        lanes: u16,
        /// The coders that pages go through.
        coders: Coders,
        /// Key of this stream's page fingerprints, drawn by the source.
        fingerprint_key: [u8; 32],
    },
    /// Bytes that mean nothing to the tunnel: on the tunnel's connection, both ways, through an LZ coder each.
    Bytes {
        /// The coder.
        codec: CodecSettings,
        /// Whether it is the target's end that speaks first, so that it has to be connected to before a byte came.
        target_speaks_first: bool,
    },
}

impl Message {
    /// Reads the payload of a `Message` frame. Values are counted before anything is allocated for them.
    pub fn read(payload: &[u8]) -> Result<Message, MessageError> {
        read_json(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_protocol_says_it_is() {
        let open = Message::Open {
            socket: "web.sock".to_owned(),
            carries: Carries::Bytes {
                codec: CodecSettings::default(),
                target_speaks_first: true,
            },
            link_patience_ms: 1000,
        };
        let json = r#"{"message":"open","socket":"web.sock","carries":{"kind":"bytes","codec":{"codec":"zstd","level":1,"window_log":19},"target_speaks_first":true},"link_patience_ms":1000}"#;
        assert_eq!(serde_json::to_string(&open).unwrap(), json);
        assert_eq!(Message::read(json.as_bytes()).unwrap(), open);
        let over = r#"{"message":"over","failed":null}"#;
        assert_eq!(Message::read(over.as_bytes()).unwrap(), Message::Over { failed: None });
    }

    #[test]
    fn a_message_of_a_later_version_is_not_an_error() {
        assert_eq!(
            Message::read(br#"{"message":"sing","song":["la"]}"#).unwrap(),
            Message::Unknown
        );
    }
}
