//! What earlier versions wrote, this one reads: journals at every point at which an agent can be ended to be upgraded, hellos, and
//! messages. `tests/recorded/by/vPROTOCOL-COMMIT` is what the build of that commit wrote, and is never changed.
//!
//! What this build writes, to be kept beside those when formats or messages change:
//! `cargo test -p vmferry --test recorded -- --ignored`, which says where it is.

mod points;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use vmferry::agent::journal::Journal;
use vmferry::agent::record::Ledger;
use vmferry_core::handover::after_restart;
use vmferry_core::page::{Codec, CodecSettings, Coders, StreamDigest};
use vmferry_core::wire::hello::{Hello, HelloReply, Lane, VERSIONS, Versions, answer};
use vmferry_core::wire::message::{Handover, Image, MemoryHash, Message, Reservation, Transfer, Verdict};

use points::{Point, definition, handover, points};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/by")
}

/// Not what a build chooses by itself, which is for each to say.
fn coders() -> Coders {
    let zstd = CodecSettings {
        codec: Codec::Zstd,
        level: 3,
        window_log: 19,
    };
    let lz4 = CodecSettings {
        codec: Codec::Lz4,
        ..zstd
    };
    Coders::new(vec![zstd, lz4]).unwrap()
}

/// Every kind of message, with all that it can have.
fn messages() -> BTreeMap<&'static str, Message> {
    let handover = handover();
    let reason = "the network is down".to_owned();
    let image = Image {
        stream: StreamDigest {
            bytes: 1 << 30,
            hash: [7; 16],
        },
        memory: Some(MemoryHash {
            bytes: 1 << 30,
            hash: [8; 32],
        }),
    };
    let transfer = Transfer {
        lanes: 4,
        coders: coders(),
        fingerprint_key: [9; 32],
        verify_memory: true,
        bandwidth: Some(125_000_000),
        link_patience_ms: 0,
    };
    let reservation = Reservation {
        reads_guest_memory: true,
        contents: vec![0, 2],
        arbiter_host: None,
    };
    let said = |message: &dyn Fn(Handover) -> Message| message(handover.clone());
    BTreeMap::from([
        (
            "reserve",
            said(&|handover| Message::Reserve {
                handover,
                transfer: transfer.clone(),
                offer: json!({"a": [1]}),
            }),
        ),
        ("reserved", Message::Reserved(reservation)),
        (
            "refused",
            Message::Refused {
                reasons: vec![reason.clone(), String::new()],
            },
        ),
        ("describe-disks", Message::DescribeDisks),
        (
            "disks",
            Message::Disks {
                disks: json!([{"id": "root"}]),
            },
        ),
        ("prepared", said(&|handover| Message::Prepared { handover, image })),
        ("commit", said(&|handover| Message::Commit { handover })),
        ("running", said(&|handover| Message::Running { handover })),
        (
            "abort",
            said(&|handover| Message::Abort {
                handover,
                reason: reason.clone(),
            }),
        ),
        (
            "dropped",
            said(&|handover| Message::Dropped {
                handover,
                reason: reason.clone(),
            }),
        ),
        (
            "stuck",
            said(&|handover| Message::Stuck {
                handover,
                reason: reason.clone(),
            }),
        ),
        ("inquire", said(&|handover| Message::Inquire { handover })),
        (
            "released",
            said(&|handover| Message::Outcome {
                handover,
                verdict: Verdict::Released,
            }),
        ),
        (
            "undecided",
            said(&|handover| Message::Outcome {
                handover,
                verdict: Verdict::Undecided,
            }),
        ),
        (
            "aborted",
            said(&|handover| Message::Outcome {
                handover,
                verdict: Verdict::Aborted,
            }),
        ),
        ("stopped", Message::Stopped),
        ("heartbeat", Message::Heartbeat),
        (
            "figures",
            Message::Figures {
                figures: json!({"cpu": 1.5}),
            },
        ),
    ])
}

fn hellos() -> BTreeMap<&'static str, Hello> {
    let hello = |lane| Hello {
        versions: VERSIONS,
        host: "a".to_owned(),
        software: "0.1.0".to_owned(),
        port: 7464,
        lane,
        connection: None,
        heard: None,
    };
    let migration = handover().migration;
    BTreeMap::from([
        ("control", hello(Lane::Control)),
        ("data", hello(Lane::Data { migration, index: 3 })),
    ])
}

/// The folders of all versions, each with its name.
fn versions() -> Vec<(String, PathBuf)> {
    let folders = fs::read_dir(recorded()).unwrap().map(|entry| entry.unwrap().path());
    let named = folders.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    let versions: Vec<_> = named.collect();
    assert!(!versions.is_empty());
    versions
}

/// Reads what a version recorded, and again with fields that only a later version knows.
fn read<T: DeserializeOwned + PartialEq + std::fmt::Debug>(path: &Path) -> T {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value: T = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut later: Value = serde_json::from_slice(&text).unwrap();
    later["of-a-later-version"] = json!({"x": [1, "y", null]});
    assert_eq!(serde_json::from_value::<T>(later).unwrap(), value, "{}", path.display());
    value
}

#[test]
fn a_journal_of_any_version_says_what_its_agent_owes() {
    for (version, folder) in versions() {
        for point in points() {
            let state = tempfile::tempdir().unwrap();
            let at = format!("{version}, {}", point.name);
            let file = folder.join("journals").join(point.name);
            fs::copy(&file, state.path().join("journal")).unwrap_or_else(|error| panic!("{at}: {error}"));
            let (_, ledger) = Journal::open(state.path()).unwrap_or_else(|error| panic!("{at}: {error}"));
            decides(&ledger, &point, &at);
            // And so does what it is rewritten to.
            decides(&Ledger::replay(ledger.records()), &point, &at);
        }
    }
}

fn decides(ledger: &Ledger, point: &Point, at: &str) {
    let facts = ledger.handovers.get(&handover().migration);
    assert_eq!(after_restart(facts.map_or(&[], Vec::as_slice)), point.owes, "{at}");
    let vm = ledger.vms.get("web");
    assert_eq!(vm.map(|vm| vm.epoch), point.owns, "{at}");
    let awaited = ledger.incoming.get(&handover().migration);
    assert_eq!(awaited.is_some(), point.awaits, "{at}");
    for known in vm.map(|vm| &vm.definition).into_iter().chain(awaited) {
        assert_eq!(known, &definition(), "{at}");
    }
}

#[test]
fn hellos_of_any_version_are_answered() {
    for (version, folder) in versions() {
        let speaks = version
            .strip_prefix('v')
            .and_then(|name| name.split_once('-'))
            .unwrap()
            .0;
        let newest: u32 = speaks.parse().unwrap();
        for (name, expected) in hellos() {
            let hello: Hello = read(&folder.join("hellos").join(name));
            assert_eq!(hello.versions.newest, newest, "{version}");
            assert_eq!(
                Hello {
                    versions: VERSIONS,
                    ..hello.clone()
                },
                expected,
                "{version}"
            );
            let common = VERSIONS.common(hello.versions);
            match answer(&hello, VERSIONS, "b", "0.1.0") {
                HelloReply::Welcome { version, .. } => assert_eq!(Some(version), common),
                HelloReply::Unwelcome { reason } => assert!(common.is_none() && reason.contains("upgrade"), "{reason}"),
            }
            // The first version that speaks of more than this one does, and of this one's, too.
            let later = Hello {
                versions: Versions {
                    oldest: VERSIONS.newest,
                    newest: VERSIONS.newest + 1,
                },
                ..hello
            };
            let reply = answer(&later, VERSIONS, "b", "0.1.0");
            assert!(matches!(reply, HelloReply::Welcome { version, .. } if version == VERSIONS.newest));
        }
        let welcome: HelloReply = read(&folder.join("hellos/welcome"));
        assert!(matches!(welcome, HelloReply::Welcome { version, .. } if version == newest));
        let unwelcome: HelloReply = read(&folder.join("hellos/unwelcome"));
        assert!(matches!(unwelcome, HelloReply::Unwelcome { reason } if reason.contains("upgrade")));
    }
}

#[test]
fn messages_of_any_version_mean_what_they_meant() {
    for (version, folder) in versions() {
        for (name, expected) in messages() {
            let message: Message = read(&folder.join("messages").join(name));
            assert_eq!(message, expected, "{version}, {name}");
        }
    }
}

#[tokio::test]
#[ignore = "writes files to be kept, once for each version"]
async fn record_what_this_build_writes() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("recorded/v{}-COMMIT", VERSIONS.newest));
    let _ = fs::remove_dir_all(&folder);
    for kind in ["journals", "hellos", "messages"] {
        fs::create_dir_all(folder.join(kind)).unwrap();
    }
    for point in points() {
        let state = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(state.path()).unwrap();
        for record in point.records {
            journal.append(record).await.unwrap();
        }
        let mut bytes = fs::read(state.path().join("journal")).unwrap();
        bytes.truncate(bytes.len() - if point.torn { 5 } else { 0 });
        fs::write(folder.join("journals").join(point.name), bytes).unwrap();
    }
    for (name, hello) in hellos() {
        write(&folder.join("hellos").join(name), &hello);
    }
    let hello = &hellos()["control"];
    write(&folder.join("hellos/welcome"), &answer(hello, VERSIONS, "b", "0.1.0"));
    let older = Hello {
        versions: Versions { oldest: 1, newest: 1 },
        ..hello.clone()
    };
    write(
        &folder.join("hellos/unwelcome"),
        &answer(&older, VERSIONS, "b", "0.1.0"),
    );
    for (name, message) in messages() {
        write(&folder.join("messages").join(name), &message);
    }
    println!("written to {}", folder.display());
}

fn write(path: &Path, value: &impl Serialize) {
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}
