mod cluster;
mod crafted;
mod strangers;

use super::*;
use crate::arrivals::Arrivals;
use crate::connection::acceptor::Acceptor;
use crate::connection::{self, ConnectionError, Receiver, Sender};
use crate::socket::tests::connected;
use cluster::{Cluster, joined};
use rustls::crypto::CryptoProvider;
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use std::net::Shutdown;
use std::thread;
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::hello::{Hello, Lane, VERSIONS};

fn hello(host: &str) -> Hello {
    Hello {
        versions: VERSIONS,
        host: host.to_owned(),
        software: "test".to_owned(),
        port: 1,
        lane: Lane::Control,
        connection: None,
        heard: None,
    }
}

type Ends = [Result<(Sender, Receiver), ConnectionError>; 2];

/// What comes of `a` connecting to `b` when it says to be the host of that name.
fn greet(a: &Security, b: &Security, name: &str) -> Ends {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (b, name) = (b.clone(), name.to_owned());
    let accepts = thread::spawn(move || {
        let link = accept(listener.accept().unwrap().0, &b)?;
        let accepted = Acceptor::default().accept(link, "b", "test")?;
        let (sender, receiver, _) = accepted.expect("nothing was there to be taken up");
        Ok((sender, receiver))
    });
    let a = a.clone();
    let connected = connection::connect(address, move || a.clone(), &hello(&name), Duration::ZERO);
    [connected, accepts.join().unwrap()]
}

fn greeted(a: &Security, b: &Security) -> [(Sender, Receiver); 2] {
    greet(a, b, "a").map(Result::unwrap)
}

/// Sends frames both ways at once: so many, with contents that tell them apart.
fn exchange(ends: [(Sender, Receiver); 2], frames: usize) {
    let payload = |end: usize, frame: usize| -> Vec<u8> {
        let bytes = (frame * 7919) % 400_000;
        (0..bytes).map(|at| (at + frame + end) as u8).collect()
    };
    thread::scope(|scope| {
        for (end, (mut sender, mut receiver)) in ends.into_iter().enumerate() {
            scope.spawn(move || {
                for frame in 0..frames {
                    sender.send(Kind::Data, payload(end, frame)).unwrap();
                }
                sender
            });
            scope.spawn(move || {
                for frame in 0..frames {
                    let (kind, got) = receiver.receive().unwrap();
                    assert!(kind == Kind::Data && got == payload(1 - end, frame), "frame {frame}");
                }
            });
        }
    });
}

#[test]
fn both_directions_carry_at_once() {
    let cluster = Cluster::new();
    exchange(greeted(&cluster.host("a"), &cluster.host("b")), 60);
}

#[test]
fn a_session_outlives_its_keys() {
    let cluster = Cluster::new();
    // New keys after so few records, where they come else after hundreds of gigabytes.
    let provider = hasty(20);
    exchange(
        greeted(
            &cluster.host_with("a", provider.clone()),
            &cluster.host_with("b", provider),
        ),
        60,
    );
}

fn hasty(records: u64) -> Arc<CryptoProvider> {
    let mut hasty = (*provider()).clone();
    for suite in &mut hasty.cipher_suites {
        let SupportedCipherSuite::Tls13(known) = suite;
        let mut common = rustls::crypto::CipherSuiteCommon {
            suite: known.common.suite,
            hash_provider: known.common.hash_provider,
            confidentiality_limit: known.common.confidentiality_limit,
        };
        common.confidentiality_limit = records;
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite { common, ..**known })));
    }
    Arc::new(hasty)
}

#[test]
fn a_direction_that_is_closed_leaves_the_other() {
    let cluster = Cluster::new();
    let [(mut a, from_b), (b, mut from_a)] = greeted(&cluster.host("a"), &cluster.host("b"));
    from_b.socket().unwrap().shutdown(Shutdown::Read).unwrap();
    let to_a = from_a.socket().unwrap();
    drop(b);
    to_a.shutdown(Shutdown::Write).unwrap();
    a.send(Kind::Ack, b"one".to_vec()).unwrap();
    a.send(Kind::Ack, b"two".to_vec()).unwrap();
    assert_eq!(from_a.receive().unwrap(), (Kind::Ack, &b"one"[..]));
    assert_eq!(from_a.receive().unwrap(), (Kind::Ack, &b"two"[..]));
    a.handle().close();
    assert!(matches!(from_a.receive(), Err(ConnectionError::Closed)));
}

#[test]
fn hosts_learn_who_the_other_is() {
    let cluster = Cluster::new();
    let [(a, _), (b, _)] = greeted(&cluster.host("a"), &cluster.host("b"));
    assert_eq!((a.host(), b.host()), (Some("b"), Some("a")));
}

#[test]
fn a_host_that_calls_itself_by_another_name_is_not_welcome() {
    let cluster = Cluster::new();
    for end in greet(&cluster.host("a"), &cluster.host("b"), "c") {
        let error = end.unwrap_err().to_string();
        assert!(error.contains("says to be c") && error.contains("that of a"), "{error}");
    }
}

#[test]
fn what_is_received_and_not_opened_is_here() {
    let cluster = Cluster::new();
    let [(mut a, _), (_, mut from_a)] = greeted(&cluster.host("a"), &cluster.host("b"));
    let arrivals = Arc::new(Arrivals::new([from_a.socket().unwrap()]));
    from_a.count_arrivals(arrivals.clone(), 0);
    // Both are received when the first is read, and what of the second is left in the kernel is less than it takes.
    for _ in 0..2 {
        a.send(Kind::Data, vec![7; 9000]).unwrap();
    }
    let socket = from_a.socket().unwrap();
    while rustix::io::ioctl_fionread(&socket).unwrap() < 18_000 {
        thread::yield_now();
    }
    for _ in 0..2 {
        assert_eq!(from_a.receive().unwrap().1.len(), 9000);
    }
    assert!(arrivals.seen().time.is_zero(), "nobody had to wait");
    thread::scope(|scope| {
        let received = scope.spawn(|| from_a.receive().map(|(_, payload)| payload.len()));
        // A frame of which the end is not here before somebody waits for it.
        let payload = vec![7; 8_000_000];
        scope.spawn(move || {
            a.send(
                Kind::Data,
                payload[..vmferry_core::limits::DATA_FRAME_BYTES_MAX].to_vec(),
            )
        });
        assert!(received.join().unwrap().unwrap() > 1_000_000);
    });
    let seen = arrivals.seen();
    assert!(seen.bytes > 0 && !seen.time.is_zero(), "{seen:?}");
}
