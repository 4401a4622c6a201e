//! Connections whose TCP connections break: nothing is lost, repeated or reordered, and what can't be mended is said.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::relay::{Relay, hello};
use vmferry_core::limits::RESEND_BYTES_MAX;
use vmferry_core::page::Coders;
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::hello::{ConnectionId, Lane, MigrationId};
use vmferry_dataplane::connection::{ConnectionError, LinkEvent};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn every_frame_arrives_once_and_in_order_however_often_the_link_breaks() {
    const FRAMES: u32 = 3000;
    let relay = Relay::start();
    let [(mut ours, mut our_ear), (mut theirs, mut their_ear)] = relay.connection(Lane::Control, PATIENCE);
    let (half_way, cut) = channel();
    let cuts = thread::spawn(move || {
        let mut cuts = 0;
        while cut.recv().is_ok() {
            relay.cut();
            cuts += 1;
        }
        (relay, cuts)
    });
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..FRAMES {
                let mut payload = ours.buffer();
                payload.resize(1 + number as usize % 5000, number as u8);
                ours.send(Kind::Message, payload).unwrap();
                if number % 300 == 150 {
                    half_way.send(()).unwrap();
                }
            }
            ours
        });
        scope.spawn(move || {
            for number in 0..FRAMES {
                theirs.send(Kind::Message, number.to_be_bytes().to_vec()).unwrap();
            }
            theirs
        });
        let there = scope.spawn(move || {
            for number in 0..FRAMES {
                let (_, payload) = their_ear.receive().unwrap();
                assert!(payload.len() == 1 + number as usize % 5000, "frame {number}");
                assert!(payload.iter().all(|byte| *byte == number as u8), "frame {number}");
            }
            their_ear
        });
        let here = scope.spawn(move || {
            for number in 0..FRAMES {
                assert_eq!(our_ear.receive().unwrap().1, number.to_be_bytes());
            }
            our_ear
        });
        drop((there.join().unwrap(), here.join().unwrap()));
    });
    assert_eq!(cuts.join().unwrap().1, 10);
}

#[test]
fn a_link_that_stays_away_is_given_up_after_the_patience_and_both_are_told() {
    let relay = Relay::start();
    let patience = Duration::from_millis(300);
    let [(mut ours, mut our_ear), (theirs, mut their_ear)] = relay.connection(Lane::Control, patience);
    let (tell, told) = channel();
    our_ear.on_link(move |event| tell.send(event).unwrap());
    relay.close();
    for ear in [&mut our_ear, &mut their_ear] {
        let error = ear.receive().unwrap_err();
        assert!(
            matches!(error, ConnectionError::GaveUp { after, .. } if after == patience),
            "{error}"
        );
    }
    assert!(matches!(told.recv().unwrap(), LinkEvent::Down(_)));
    assert!(ours.send(Kind::Message, vec![1]).is_err());
    drop(theirs);
}

#[test]
fn a_peer_that_no_longer_has_the_connection_says_so_at_once() {
    let relay = Relay::start();
    let [(_ours, mut our_ear), theirs] = relay.connection(Lane::Control, PATIENCE);
    drop(theirs);
    let error = our_ear.receive().unwrap_err();
    assert!(matches!(error, ConnectionError::Unwelcome(_)), "{error}");
}

#[test]
fn who_did_not_open_a_connection_can_not_take_it_up() {
    let relay = Relay::start();
    let [(mut ours, _our_ear), (_theirs, mut their_ear)] = relay.connection(Lane::Control, PATIENCE);
    let mut other = hello(Lane::Control);
    (other.connection, other.heard) = (Some(ConnectionId(99)), Some(0));
    let error = relay.dial(&other, Duration::ZERO).unwrap_err();
    assert!(matches!(error, ConnectionError::Unwelcome(_)), "{error}");
    ours.send(Kind::Message, vec![1]).unwrap();
    assert_eq!(their_ear.receive().unwrap().1, [1]);
}

#[test]
fn a_sender_waits_while_the_peer_lacks_too_much_and_the_close_of_the_connection_frees_it() {
    let relay = Relay::start();
    let [(mut ours, _our_ear), _theirs] = relay.connection(Lane::Control, PATIENCE);
    relay.hold();
    let handle = ours.handle();
    let (tell, told) = channel();
    let sends = thread::spawn(move || {
        let mut sent = 0;
        while ours.send(Kind::Message, vec![0; 1 << 20]).is_ok() {
            sent += 1 << 20;
            if sent > RESEND_BYTES_MAX {
                tell.send(()).unwrap();
            }
        }
        sent
    });
    // The relay has accepted what the sockets take; the rest is kept. The link breaks, so that writing does not wait.
    relay.close();
    told.recv().unwrap();
    handle.close();
    assert_eq!(sends.join().unwrap(), RESEND_BYTES_MAX + (1 << 20));
}

#[test]
fn a_stream_crosses_whole_while_its_lanes_are_cut_again_and_again() {
    let relay = Relay::start();
    let lane = |index| {
        let migration = MigrationId(1);
        relay.connection(Lane::Data { migration, index }, PATIENCE)
    };
    let pair = super::pair((0..3).map(lane).collect(), Coders::default());
    let (done, is_done) = channel::<()>();
    let loader = thread::scope(|scope| {
        let relay = &relay;
        scope.spawn(move || {
            // The more often, the less crosses in between.
            while is_done.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
                relay.cut();
            }
        });
        let loader = pair.carries(super::stream_in_rounds(20_000, 4));
        drop(done);
        loader
    });
    assert!(pair.source.counters().resent_bytes > 0, "nothing was cut");
    assert!(pair.from_target.try_recv().is_err(), "it failed");
    drop(loader);
}
