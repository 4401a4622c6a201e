//! An agent and peers that don't keep to the protocol: it lets them go, and goes on to serve others.

#[expect(dead_code, reason = "other tests use the rest of it")]
mod host;

use std::time::Duration;

use host::Host;
use vmferry_core::limits::UNCLAIMED_LANES_MAX;
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::hello::{Hello, Lane, MigrationId, VERSIONS};
use vmferry_core::wire::message::{Epoch, Handover, Message, Verdict};
use vmferry_dataplane::connection::{self, Receiver, Sender};
use vmferry_dataplane::transport::Security;

fn connect(host: &Host, lane: Lane) -> (Sender, Receiver) {
    let hello = Hello {
        versions: VERSIONS,
        host: "b".to_owned(),
        software: "test".to_owned(),
        port: 1,
        lane,
        connection: None,
        heard: None,
    };
    connection::connect(host.peers, || Security::Plaintext, &hello, Duration::ZERO).unwrap()
}

/// Asks about a handover that nobody knows of.
fn inquire((sender, receiver): &mut (Sender, Receiver)) {
    let handover = Handover {
        migration: MigrationId(7),
        vm: "nobody".to_owned(),
        epoch: Epoch(1),
    };
    let question = serde_json::to_vec(&Message::Inquire { handover }).unwrap();
    sender.send(Kind::Message, question).unwrap();
    let verdict = loop {
        let (kind, payload) = receiver.receive().unwrap();
        assert_eq!(kind, Kind::Message);
        match Message::read(payload).unwrap() {
            Message::Heartbeat => {}
            Message::Outcome { verdict, .. } => break verdict,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(verdict, Verdict::Aborted);
}

/// Waits until the agent closes a connection. It may have said at most so many heartbeats by then: one that it serves hears more
/// of them before its silence is noticed.
fn is_let_go((_, receiver): &mut (Sender, Receiver), heartbeats_max: usize) {
    let mut heartbeats = 0;
    while let Ok((kind, payload)) = receiver.receive() {
        assert_eq!(kind, Kind::Message);
        assert_eq!(Message::read(payload).unwrap(), Message::Heartbeat);
        heartbeats += 1;
        assert!(heartbeats <= heartbeats_max, "the agent serves it");
    }
}

#[tokio::test]
async fn control_lanes_that_no_migration_claims_are_turned_away_beyond_a_number() {
    let host = Host::start().await;
    let mut lanes: Vec<_> = (0..UNCLAIMED_LANES_MAX)
        .map(|_| {
            let mut lane = connect(&host, Lane::Control);
            // Answered, so it is counted.
            inquire(&mut lane);
            lane
        })
        .collect();
    is_let_go(&mut connect(&host, Lane::Control), 0);
    inquire(&mut lanes[0]);
    // A lane that is about nothing here is closed and makes room.
    let mut lane = lanes.remove(0);
    let stopped = serde_json::to_vec(&Message::Stopped).unwrap();
    lane.0.send(Kind::Message, stopped).unwrap();
    // Those that it was said while the others connected.
    is_let_go(&mut lane, 5);
}

#[tokio::test]
async fn a_data_lane_of_no_migration_is_turned_away() {
    let host = Host::start().await;
    let lane = Lane::Data {
        migration: MigrationId(7),
        index: 0,
    };
    is_let_go(&mut connect(&host, lane), 0);
    inquire(&mut connect(&host, Lane::Control));
}
