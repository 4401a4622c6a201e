use super::acceptor::Acceptor;
use super::*;
use crate::socket::tests::connected;
use crate::transport::{accept as greet, accept_within};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{RecvTimeoutError, channel};
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::hello::HelloReply;

/// A peer that has connected and said so much.
fn says(listener: &TcpListener, frame: &[u8]) -> TcpStream {
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.write_all(&[&PREFACE[..], frame].concat()).unwrap();
    peer
}

/// A connection after its hellos, and its other end.
fn channel_of(outlives: bool) -> (Arc<Channel>, TcpStream) {
    let (here, mut peer) = connected();
    let reply = HelloReply::Welcome {
        version: 0,
        host: "b".to_owned(),
        software: "test".to_owned(),
        heard: 0,
    };
    peer.write_all(&PREFACE).unwrap();
    let greeting = Greeting::begin(greet(here, &Security::Plaintext).unwrap());
    let greeted = greeting.reply(reply).unwrap();
    (&greeted.stream).read_exact(&mut [0; PREFACE.len()]).unwrap();
    (Channel::new(greeted, outlives, None), peer)
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn a_peer_that_is_never_done_with_its_hello_is_let_go() {
    let listener = listener();
    let header = Header::encode(Kind::Hello, 0, 0, &[b' '; 60_000]).unwrap();
    let mut peer = says(&listener, &header);
    let (over, is_over) = channel::<()>();
    let sends = std::thread::spawn(move || {
        // Each byte comes well within the limit; all together take minutes.
        let pace = Duration::from_millis(5);
        while is_over.recv_timeout(pace) == Err(RecvTimeoutError::Timeout) && peer.write_all(b" ").is_ok() {}
    });
    let limit = Duration::from_millis(300);
    let link = accept_within(limit, listener.accept().unwrap().0, &Security::Plaintext).unwrap();
    let accepted = Acceptor::default().accept(link, "b", "test");
    drop(over);
    sends.join().unwrap();
    let error = accepted.unwrap_err();
    assert!(matches!(error, ConnectionError::Silent(_)), "{error}");
}

#[test]
fn a_frame_that_is_no_hello_is_not_waited_for() {
    for kind in [Kind::Data, Kind::Message, Kind::Ask] {
        let listener = listener();
        let _peer = says(&listener, &Header::encode(kind, 0, 0, &[]).unwrap());
        let link = greet(listener.accept().unwrap().0, &Security::Plaintext).unwrap();
        let accepted = Acceptor::default().accept(link, "b", "test");
        let error = accepted.unwrap_err();
        assert!(matches!(error, ConnectionError::Frame(_)), "{error}");
    }
}

#[test]
fn a_payload_that_comes_after_its_header_is_seen_to_arrive() {
    let (channel, mut peer) = channel_of(false);
    let (_sender, mut receiver) = directions(channel);
    let arrivals = Arc::new(Arrivals::new([receiver.socket().unwrap()]));
    receiver.count_arrivals(arrivals.clone(), 0);
    let payload = vec![7; 1000];
    let header = Header::encode(Kind::Data, 0, 0, &payload).unwrap();
    std::thread::scope(|scope| {
        let received = scope.spawn(|| receiver.receive().map(|(_, payload)| payload.len()));
        peer.write_all(&header).unwrap();
        while !arrivals.are_awaited() {
            assert!(!received.is_finished(), "it did not wait for the payload");
            std::thread::yield_now();
        }
        peer.write_all(&payload).unwrap();
        assert_eq!(received.join().unwrap().unwrap(), payload.len());
    });
    let seen = arrivals.seen();
    assert!(seen.bytes == 1000 && !seen.time.is_zero(), "{seen:?}");
}

#[test]
fn a_peer_that_has_what_was_never_sent_is_let_go() {
    let (channel, mut peer) = channel_of(true);
    let (sender, mut receiver) = directions(channel);
    sender.handle().set_patience(Duration::from_secs(60));
    peer.write_all(&Header::encode(Kind::Ack, 0, 1, &[]).unwrap()).unwrap();
    let error = receiver.receive().unwrap_err();
    assert!(matches!(error, ConnectionError::Count(_)), "{error}");
}
