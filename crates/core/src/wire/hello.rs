//! The first frame each way: who speaks, which lane this is, which version both understand.

use serde::{Deserialize, Serialize};

/// The protocol versions that this build speaks, oldest and newest. From 4 on connections are taken up again.
pub const VERSIONS: Versions = Versions { oldest: 4, newest: 4 };

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest one spoken.
    pub oldest: u32,
    /// The newest one spoken.
    pub newest: u32,
}

impl Versions {
    /// The newest version that both sides speak.
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// A number of 128 random bits, 32 hexadecimal digits in JSON.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub u128);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                match u128::from_str_radix(&text, 16) {
                    Ok(id) if text.len() == 32 => Ok($name(id)),
                    _ => Err(format!("`{text}` is not {} (32 hexadecimal digits)", $what)),
                }
            }
        }
    };
}

random_id!(
    /// A migration's identity, drawn by its source: it ties data lanes to their control lane and both hosts'
    /// journals, logs and reports to each other.
    MigrationId,
    "a migration id"
);

random_id!(
    /// A connection's identity, drawn by who opened it: by this it is taken up again over another TCP connection.
    ConnectionId,
    "a connection id"
);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lane", rename_all = "kebab-case")]
pub enum Lane {
    /// Messages of the handover.
    Control,
    /// Batches of one migration's stream.
    Data {
        /// The migration, known to the target from its control lane.
        migration: MigrationId,
        /// Which of the migration's data lanes, from 0.
        index: u16,
    },
    /// Messages of a [tunnel](super::tunnel), and what it carries that is no migration stream.
    Tunnel {
        /// Ties the data lanes of what is carried to this connection.
        migration: MigrationId,
    },
}

/// The connecting side's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the speaker understands.
    pub versions: Versions,
    /// The speaker's host name, for messages and logs.
    pub host: String,
    /// The speaker's vmferry version, for messages and logs.
    pub software: String,
    /// The TCP port of the speaker's agent, at which the other side can ask about an outcome later.
    pub port: u16,
    /// What this connection is for.
    #[serde(flatten)]
    pub lane: Lane,
    /// By what the connection can be taken up again, if it can.
    #[serde(default)]
    pub connection: Option<ConnectionId>,
    /// How many of its frames the speaker has, where it is taken up again.
    #[serde(default)]
    pub heard: Option<u64>,
}

/// The accepting side's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum HelloReply {
    /// The connection may be used.
    Welcome {
        /// The version that both use from here.
        version: u32,
        /// The speaker's host name.
        host: String,
        /// The speaker's vmferry version.
        software: String,
        /// How many frames of it the speaker has, where it is taken up again.
        #[serde(default)]
        heard: u64,
    },
    /// It may not, and is closed.
    Unwelcome {
        /// Why, for a person to read.
        reason: String,
    },
}

/// The accepting side's answer as far as versions decide it.
pub fn answer(hello: &Hello, own: Versions, host: &str, software: &str) -> HelloReply {
    match own.common(hello.versions) {
        Some(version) => HelloReply::Welcome {
            version,
            host: host.to_owned(),
            software: software.to_owned(),
            heard: 0,
        },
        None => HelloReply::Unwelcome {
            reason: format!(
                "{host} (vmferry {software}) speaks protocol versions {own}, {} (vmferry {}) speaks {}: upgrade the older one",
                hello.host, hello.software, hello.versions
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest: u32, newest: u32) -> Hello {
        Hello {
            versions: Versions { oldest, newest },
            host: "a".into(),
            software: "0.1".into(),
            port: 1,
            lane: Lane::Control,
            connection: Some(ConnectionId(7)),
            heard: None,
        }
    }

    #[test]
    fn the_newest_common_version_is_used() {
        let own = Versions { oldest: 2, newest: 4 };
        for (oldest, newest, common) in [
            (1, 2, Some(2)),
            (3, 3, Some(3)),
            (4, 9, Some(4)),
            (1, 1, None),
            (5, 9, None),
        ] {
            match (answer(&hello(oldest, newest), own, "b", "0.2"), common) {
                (HelloReply::Welcome { version, .. }, Some(common)) => assert_eq!(version, common),
                (HelloReply::Unwelcome { reason }, None) => {
                    assert!(reason.contains("upgrade"), "{reason}")
                }
                (reply, _) => panic!("{oldest} to {newest}: {reply:?}"),
            }
        }
    }

    #[test]
    fn a_hello_with_fields_of_a_later_version_is_still_read() {
        let lane = Lane::Data {
            migration: MigrationId(7),
            index: 3,
        };
        let mut json = serde_json::to_value(Hello { lane, ..hello(1, 1) }).unwrap();
        json["resume_from"] = 17.into();
        assert_eq!(serde_json::from_value::<Hello>(json).unwrap().lane, lane);
    }
}
