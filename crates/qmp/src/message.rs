//! One line of QMP, parsed.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::{CommandError, Event, EventKind, Version};

/// What a monitor can say in one line.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of every connection.
    Greeting(Greeting),
    /// The answer to the request with this id. QEMU omits the id only when it could not parse the request.
    Reply {
        /// The request's id.
        id: Option<u64>,
        /// `return`, or `error`.
        outcome: Result<Value, CommandError>,
    },
    /// An event.
    Event(Event),
    /// A JSON value of none of these shapes.
    Unknown,
}

/// QMP's greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The QEMU that speaks; zeros if it did not say.
    pub version: Version,
    /// Whether it offers out-of-band commands (`oob`).
    pub out_of_band: bool,
}

impl Message {
    /// Parses one line, without its newline.
    ///
    /// # Errors
    /// The line is not JSON.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let Value::Object(mut object) = serde_json::from_slice(line)? else {
            return Ok(Self::Unknown);
        };
        if let Some(greeting) = object.get("QMP") {
            return Ok(Self::Greeting(parse_greeting(greeting)));
        }
        if let Some(Value::String(name)) = object.get("event") {
            let name = name.clone();
            let data = object.remove("data").unwrap_or_default();
            return Ok(Self::Event(Event {
                kind: EventKind::new(&name, &data),
                at: parse_timestamp(&object),
                data,
            }));
        }
        let id = object.get("id").and_then(Value::as_u64);
        if let Some(value) = object.remove("return") {
            return Ok(Self::Reply { id, outcome: Ok(value) });
        }
        if let Some(error) = object.get("error") {
            let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let error = CommandError {
                class: text("class"),
                description: text("desc"),
            };
            return Ok(Self::Reply {
                id,
                outcome: Err(error),
            });
        }
        Ok(Self::Unknown)
    }
}

fn parse_greeting(greeting: &Value) -> Greeting {
    let version = greeting
        .get("version")
        .and_then(|version| serde_json::from_value(version.clone()).ok())
        .unwrap_or_default();
    let out_of_band = greeting
        .get("capabilities")
        .and_then(Value::as_array)
        .is_some_and(|capabilities| capabilities.iter().any(|name| name == "oob"));
    Greeting { version, out_of_band }
}

/// Both parts are -1 when QEMU's clock failed.
fn parse_timestamp(object: &Map<String, Value>) -> Option<Duration> {
    let timestamp = object.get("timestamp")?;
    let seconds = timestamp.get("seconds")?.as_u64()?;
    let microseconds = timestamp.get("microseconds")?.as_u64()?;
    Duration::from_secs(seconds).checked_add(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MigrationStatus;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(line: &str) -> Message {
        Message::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_greeting_gives_version_and_out_of_band() {
        let line = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"},
            "capabilities": ["oob", "later-capability"], "more": 1}}"#;
        let Message::Greeting(greeting) = parse(line) else {
            panic!("not a greeting");
        };
        assert!(greeting.out_of_band);
        assert_eq!(greeting.version.to_string(), "10.0.2");
    }

    #[test]
    fn an_unknown_event_is_data() {
        let line = r#"{"timestamp": {"seconds": 3, "microseconds": 5}, "event": "NEWER_THING", "data": {"x": [1]}}"#;
        let expected = Event {
            kind: EventKind::Other("NEWER_THING".into()),
            at: Some(Duration::new(3, 5000)),
            data: json!({"x": [1]}),
        };
        assert_eq!(parse(line), Message::Event(expected));
    }

    #[test]
    fn an_unknown_migration_status_is_data() {
        let line = r#"{"event": "MIGRATION", "data": {"status": "sideways"}, "timestamp": {"seconds": -1, "microseconds": -1}}"#;
        let Message::Event(event) = parse(line) else {
            panic!("not an event");
        };
        assert_eq!(
            event.kind,
            EventKind::Migration(MigrationStatus::Other("sideways".into()))
        );
        assert_eq!(event.at, None);
    }

    #[test]
    fn a_migration_event_without_status_keeps_its_name() {
        let Message::Event(event) = parse(r#"{"event": "MIGRATION"}"#) else {
            panic!("not an event");
        };
        assert_eq!(event.kind, EventKind::Other("MIGRATION".into()));
    }

    #[test]
    fn replies_carry_their_id_and_errors_their_reason() {
        let reply = Message::Reply {
            id: Some(7),
            outcome: Ok(json!({"a": 1})),
        };
        assert_eq!(parse(r#"{"return": {"a": 1}, "id": 7}"#), reply);
        let Message::Reply { id, outcome } = parse(r#"{"id": 8, "error": {"class": "C", "desc": "why"}}"#) else {
            panic!("not a reply");
        };
        assert_eq!(id, Some(8));
        assert_eq!(outcome.unwrap_err().to_string(), "why (C)");
    }

    #[test]
    fn other_json_is_unknown_and_other_text_an_error() {
        assert_eq!(parse("[1, 2]"), Message::Unknown);
        assert_eq!(parse(r#"{"event": 3}"#), Message::Unknown);
        assert!(Message::parse(b"{\"QMP\"").is_err());
        assert!(Message::parse(&[b'['; 100_000]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&line);
        }

        #[test]
        fn json_of_qmp_shape_never_panics(
            key in "QMP|event|return|error|id|timestamp|data",
            other in "QMP|event|return|error|id|timestamp|data",
            value in r#"-?[0-9]{1,25}|null|"[A-Z_]{0,12}"|\[\]|\{"(status|pass|seconds|version)": (-1|"x"|\{\})\}"#,
        ) {
            let line = format!(r#"{{"{key}": {value}, "{other}": {value}, "event": "MIGRATION_PASS"}}"#);
            let _ = Message::parse(line.as_bytes());
        }
    }
}
