//! A link on loopback that a test can cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Inbox, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vmferry_core::wire::hello::{ConnectionId, Hello, Lane, VERSIONS};
use vmferry_dataplane::connection::acceptor::Acceptor;
use vmferry_dataplane::connection::{self, ConnectionError, Receiver, Sender};
use vmferry_dataplane::transport::{self, Security};

/// Forwards what connects to it to an acceptor.
pub(super) struct Relay {
    front: SocketAddr,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    closed: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    accepted: Mutex<Inbox<(Sender, Receiver, Hello)>>,
}

/// Who speaks, for tests.
pub(super) fn hello(lane: Lane) -> Hello {
    Hello {
        versions: VERSIONS,
        host: "a".into(),
        software: "test".into(),
        port: 1,
        lane,
        connection: Some(ConnectionId(1)),
        heard: None,
    }
}

impl Relay {
    /// Starts one, and the acceptor behind it.
    pub(super) fn start() -> Relay {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (front, back) = (bind(), bind());
        let (front_address, back_address) = (front.local_addr().unwrap(), back.local_addr().unwrap());
        let (give, accepted) = channel();
        let acceptor = Arc::new(Acceptor::default());
        thread::spawn(move || {
            for stream in back.incoming() {
                let (acceptor, give) = (acceptor.clone(), give.clone());
                thread::spawn(move || {
                    let Ok(link) = transport::accept(stream.unwrap(), &Security::Plaintext) else {
                        return;
                    };
                    if let Ok(Some((sender, receiver, hello))) = acceptor.accept(link, "b", "test") {
                        // Fails when the test is over.
                        let _ = give.send((sender, receiver, hello));
                    }
                });
            }
        });
        let relay = Relay {
            front: front_address,
            streams: Arc::default(),
            closed: Arc::default(),
            held: Arc::default(),
            accepted: Mutex::new(accepted),
        };
        let (streams, closed, held) = (relay.streams.clone(), relay.closed.clone(), relay.held.clone());
        thread::spawn(move || {
            for from in front.incoming().map(Result::unwrap) {
                if closed.load(Ordering::SeqCst) {
                    continue;
                }
                let to = TcpStream::connect(back_address).unwrap();
                let mut all = streams.lock().unwrap();
                for (mut from, mut to) in [(&from, &to), (&to, &from)].map(|(from, to)| (copy(from), copy(to))) {
                    all.push(copy(&from));
                    let held = held.clone();
                    thread::spawn(move || {
                        let mut buffer = vec![0; 64 * 1024];
                        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                            if held.load(Ordering::SeqCst) {
                                thread::park();
                            }
                            if to.write_all(&buffer[..bytes]).is_err() {
                                break;
                            }
                        }
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    });
                }
            }
        });
        relay
    }

    /// Connects through it.
    pub(super) fn dial(&self, hello: &Hello, patience: Duration) -> Result<(Sender, Receiver), ConnectionError> {
        connection::connect(self.front, || Security::Plaintext, hello, patience)
    }

    /// A connection through it: the end that opened it, and the other.
    pub(super) fn connection(&self, lane: Lane, patience: Duration) -> [(Sender, Receiver); 2] {
        let mut hello = hello(lane);
        if let Lane::Data { index, .. } = lane {
            hello.connection = Some(ConnectionId(2 + u128::from(index)));
        }
        let connected = self.dial(&hello, patience).unwrap();
        let (sender, receiver, said) = self.accepted.lock().unwrap().recv().unwrap();
        assert_eq!(said, hello);
        sender.handle().set_patience(patience);
        [connected, (sender, receiver)]
    }

    /// Breaks every TCP connection through it.
    pub(super) fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Breaks every TCP connection, and makes no more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Passes nothing on any more.
    pub(super) fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().unwrap()
}
