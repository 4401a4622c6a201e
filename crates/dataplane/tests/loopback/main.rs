//! Both halves joined over loopback: QEMU's ends are plain sockets here, since what is tested is that the bytes arrive, all
//! of them and only they. Real QEMUs are in the end-to-end tests.

mod links;
mod relay;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Inbox, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use vmferry_core::page::catalog::ContentTally;
use vmferry_core::page::content::block_hash;
use vmferry_core::page::{Ask, BlockTable, Catalog, Codec, CodecSettings, Coders, FingerprintKey, RING_BATCHES, Reach};
use vmferry_core::qemu::return_path;
use vmferry_core::session::Ack;
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::hello::{Hello, Lane, MigrationId, VERSIONS};
use vmferry_dataplane::connection::acceptor::Acceptor;
use vmferry_dataplane::connection::{self, ConnectionError, Receiver, Sender};
use vmferry_dataplane::transport::{self, Security};
use vmferry_dataplane::{source, target};

/// Far longer than anything here takes; a test that hangs fails with it.
const PATIENCE: Duration = Duration::from_secs(60);

fn hello(lane: Lane) -> Hello {
    Hello {
        versions: VERSIONS,
        host: "a".into(),
        software: "test".into(),
        port: 1,
        lane,
        connection: None,
        heard: None,
    }
}

/// A connection through `spoil`, which may change what the source sends.
fn lane(index: u16, mut spoil: impl FnMut(&mut [u8]) + Send + 'static) -> [(Sender, Receiver); 2] {
    let (front, back) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let (front_address, back_address) = (front.local_addr().unwrap(), back.local_addr().unwrap());
    thread::spawn(move || {
        let (from, to) = (front.accept().unwrap().0, TcpStream::connect(back_address).unwrap());
        let (from_back, to_back) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        thread::spawn(move || forward(from_back, to_back, |_| ()));
        forward(from, to, &mut spoil);
    });
    let accepted = thread::spawn(move || {
        let link = transport::accept(back.accept().unwrap().0, &Security::Plaintext).unwrap();
        Acceptor::default().accept(link, "b", "test").unwrap()
    });
    let connected = connection::connect(
        front_address,
        || Security::Plaintext,
        &hello(Lane::Data {
            migration: MigrationId(1),
            index,
        }),
        Duration::ZERO,
    )
    .unwrap();
    let Some((sender, receiver, greeting)) = accepted.join().unwrap() else {
        panic!("nothing was there to be taken up")
    };
    assert_eq!(
        greeting.lane,
        Lane::Data {
            migration: MigrationId(1),
            index
        }
    );
    [connected, (sender, receiver)]
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut spoil: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        spoil(&mut buffer[..bytes]);
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = (
        from.shutdown(std::net::Shutdown::Both),
        to.shutdown(std::net::Shutdown::Both),
    );
}

struct Pair {
    qemu: UnixStream,
    loader: UnixListener,
    source: source::Source,
    target: target::Target,
    from_source: Inbox<source::Event>,
    from_target: Inbox<target::Event>,
    _folder: tempfile::TempDir,
}

impl Pair {
    /// Has a stream cross; returns the socket over which it came out as it went in.
    fn carries(&self, stream: Vec<u8>) -> UnixStream {
        let (to_send, mut qemu) = (stream.clone(), self.qemu.try_clone().unwrap());
        let writer = thread::spawn(move || qemu.write_all(&to_send).unwrap());
        let mut loader = self.loader.accept().unwrap().0;
        loader.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut loaded = vec![0; stream.len()];
        loader.read_exact(&mut loaded).unwrap();
        writer.join().unwrap();
        assert!(loaded == stream, "the streams differ");
        loader
    }
}

fn pair(lanes: Vec<[(Sender, Receiver); 2]>, coders: Coders) -> Pair {
    pair_with(lanes, coders, Catalog::default(), Arc::new(|_, _, _| false))
}

/// The same, with known content: what the source believes of it, and how the target reads it.
fn pair_with(
    lanes: Vec<[(Sender, Receiver); 2]>,
    coders: Coders,
    catalog: Catalog,
    content: Arc<target::ReadContent>,
) -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qemu.sock");
    let loader = UnixListener::bind(&path).unwrap();
    let (qemu, into_source) = UnixStream::pair().unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for [connected, accepted] in lanes {
        ours.push(connected);
        theirs.push(accepted);
    }
    let key = FingerprintKey::new([7; 32]);
    let (to_test, from_target) = channel();
    let settings = target::Settings {
        coders: coders.clone(),
        key: key.clone(),
        qemu: path,
        guest_bytes_max: u64::MAX,
        content,
        bandwidth: None,
        link_patience: PATIENCE,
    };
    let target = target::Target::start(theirs, None, settings, move |event| drop(to_test.send(event))).unwrap();
    let (to_test, from_source) = channel();
    let settings = source::Settings {
        coders,
        key,
        catalog: Arc::new(catalog),
        reach: Reach::Batches(RING_BATCHES),
        versions_bytes_max: 0,
        bandwidth: None,
    };
    let source = source::Source::start(into_source, ours, settings, move |event| drop(to_test.send(event))).unwrap();
    Pair {
        qemu,
        loader,
        source,
        target,
        from_source,
        from_target,
        _folder: folder,
    }
}

/// A stream with `pages` pages of one block, in two rounds, the second of which repeats every other page, half of them
/// unchanged.
fn stream(pages: u64) -> Vec<u8> {
    stream_in_rounds(pages, 2)
}

/// The same with as many more such rounds; the guest is stopped for the last.
fn stream_in_rounds(pages: u64, rounds: u64) -> Vec<u8> {
    const PAGE: u64 = 4096;
    let mut stream = Vec::new();
    let word = |stream: &mut Vec<u8>, word: u64| stream.extend_from_slice(&word.to_be_bytes());
    stream.extend_from_slice(b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0");
    stream.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    word(&mut stream, (pages * PAGE) | 0x04);
    stream.extend_from_slice(b"\x06pc.ram");
    word(&mut stream, pages * PAGE);
    word(&mut stream, 0x10);
    stream.extend_from_slice(b"\x7e\0\0\0\x02");
    let mut named = true;
    for round in 0..rounds {
        stream.extend_from_slice(if round + 1 < rounds {
            b"\x02\0\0\0\x02"
        } else {
            b"\x03\0\0\0\x02"
        });
        for page in (0..pages).filter(|page| round == 0 || page % 2 == 0) {
            let zero = page % 7 == 0;
            let flags = if zero { 0x02 } else { 0x08 } + if named { 0 } else { 0x20 };
            word(&mut stream, (page * PAGE) | flags);
            if named {
                stream.extend_from_slice(b"\x06pc.ram");
                named = false;
            }
            if zero {
                stream.push(0);
                continue;
            }
            let version = if page % 4 == 0 { round } else { 0 };
            stream.extend(text(page, version));
        }
        word(&mut stream, 0x10);
        stream.extend_from_slice(b"\x7e\0\0\0\x02");
    }
    stream.extend_from_slice(&[0xab; 5000]);
    stream
}

/// A page's content: the same in every thousandth page.
fn text(page: u64, version: u64) -> Vec<u8> {
    let text = format!("page {} version {version} ", page % 1000);
    text.bytes().cycle().take(4096).collect()
}

#[test]
fn what_a_disk_holds_is_read_there_and_what_it_holds_no_more_is_asked_for() {
    // Of all pages' first versions, in disk order; since the source looked, every fiftieth was rewritten.
    let disk: Vec<Vec<u8>> = (0..1000).map(|page| text(page, 0)).collect();
    let hashes: Vec<u64> = disk.iter().map(|block| block_hash(block)).collect();
    let content = move |source: u16, first: u64, into: &mut [u8]| {
        assert_eq!(source, 0);
        for (block, into) in (first..).zip(into.chunks_mut(4096)) {
            match disk.get(block as usize) {
                Some(content) if block % 50 != 0 => into.copy_from_slice(content),
                Some(_) => into.fill(9),
                None => return false,
            }
        }
        true
    };
    let catalog = Catalog::new(vec![BlockTable::new(&hashes).into()]);
    let lanes = (0..3).map(|index| lane(index, |_| ())).collect();
    let pair = pair_with(lanes, Coders::default(), catalog, Arc::new(content));
    let _loader = pair.carries(stream(5000));
    let counters = pair.source.counters();
    let ContentTally {
        referred,
        missed,
        is_slow,
    } = counters.content[0];
    assert!(
        referred > 800 && (15..100).contains(&missed) && !is_slow,
        "{counters:?}"
    );
    let in_rounds: u64 = counters.rounds.iter().map(|round| round.content.pages).sum();
    assert_eq!(in_rounds, referred);
}

#[test]
fn a_disk_that_does_not_answer_is_left_alone_and_holds_nothing_up() {
    // Both disks hold what the second round changes, one of them only half of it and the other what the first sends as well.
    // That one answers nothing while its server is there.
    let [first, second] = [0, 1].map(|version| (0..1000).map(move |page| text(page, version)));
    let stuck: Vec<u64> = first.chain(second.clone()).map(|page| block_hash(&page)).collect();
    let half: Vec<Vec<u8>> = second.step_by(8).collect();
    let hashes: Vec<u64> = half.iter().map(|block| block_hash(block)).collect();
    let (server, client) = UnixStream::pair().unwrap();
    let (reading, read) = channel::<()>();
    let content = move |source: u16, first: u64, into: &mut [u8]| {
        let _reading = &reading;
        if source == 0 {
            return (&client).read_exact(into).is_ok();
        }
        let blocks = half[first as usize..].iter().take(into.len() / 4096);
        into.chunks_mut(4096)
            .zip(blocks)
            .for_each(|(into, block)| into.copy_from_slice(block));
        true
    };
    let tables = [stuck, hashes].map(|hashes| BlockTable::new(&hashes).into());
    let lanes = (0..3).map(|index| lane(index, |_| ())).collect();
    let pair = pair_with(
        lanes,
        Coders::default(),
        Catalog::new(tables.to_vec()),
        Arc::new(content),
    );
    let _loader = pair.carries(stream_in_rounds(5000, 3));
    let counters = pair.source.counters();
    let [stuck, half] = counters.content[..] else {
        panic!("{counters:?}")
    };
    assert!(stuck.is_slow && stuck.referred > 0, "{counters:?}");
    assert_eq!(stuck.missed, stuck.referred, "each was asked for: {counters:?}");
    assert!(
        half.referred >= 100 && half.missed == 0 && !half.is_slow,
        "{counters:?}"
    );
    let sent_as_they_are: u64 = counters.rounds.iter().map(|round| round.lz.pages).sum();
    assert!(sent_as_they_are >= 100, "{counters:?}");

    // Whoever still waits for an answer ends when the server does.
    drop((pair, server));
    assert_eq!(read.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

/// What a source fails with that was told this before it sent anything; its QEMU goes on.
fn lied_to(kind: Kind, payload: &[u8]) -> (String, source::Source) {
    let (mut qemu, into_source) = UnixStream::pair().unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let [connected, (mut liar, _receiver)] = lane(0, |_| ());
    let settings = source::Settings {
        coders: Coders::default(),
        key: FingerprintKey::new([7; 32]),
        catalog: Arc::default(),
        reach: Reach::Batches(RING_BATCHES),
        versions_bytes_max: 0,
        bandwidth: None,
    };
    let (to_test, from_source) = channel();
    let source = source::Source::start(into_source, vec![connected], settings, move |event| {
        drop(to_test.send(event));
    })
    .unwrap();
    liar.send(kind, payload.to_vec()).unwrap();
    let source::Event::Failed(why) = from_source.recv_timeout(PATIENCE).unwrap() else {
        panic!()
    };
    assert_eq!(qemu.read(&mut [0]).unwrap(), 0, "the source's QEMU goes on");
    (why, source)
}

#[test]
fn a_target_that_asks_for_what_it_was_not_referred_to_ends_the_session() {
    let ask = Ask { seq: 0, pages: vec![0] };
    let (why, _source) = lied_to(Kind::Ask, &ask.encode());
    assert!(why.contains("asks for pages"), "{why}");
}

#[test]
fn a_target_that_sends_what_does_not_belong_there_ends_the_session() {
    let refused = |kind, payload: &[u8], with: &str| {
        let (why, _source) = lied_to(kind, payload);
        assert!(why.contains(with), "{kind:?}: {why}");
    };
    refused(Kind::Ack, &[], "unreadable acknowledgement");
    refused(Kind::Ask, &[], "can't be read");
    refused(Kind::Ask, &[0; 8], "can't be read");
    let wire_alone = Ack {
        wire_bytes: 1,
        ..Ack::default()
    };
    refused(Kind::Ack, &wire_alone.encode(), "1 wire bytes");
    for kind in [
        Kind::Data,
        Kind::Supply,
        Kind::Message,
        Kind::ContentTable,
        Kind::HelloReply,
    ] {
        refused(kind, &[0; 64], "instead of an acknowledgement");
    }
}

/// What a target fails with whose source does this.
fn lied_to_by(lie: impl FnOnce(&mut Sender)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let [(mut liar, _acks), accepted] = lane(0, |_| ());
    let settings = target::Settings {
        coders: Coders::default(),
        key: FingerprintKey::new([7; 32]),
        qemu: folder.path().join("qemu.sock"),
        guest_bytes_max: u64::MAX,
        content: Arc::new(|_, _, _| false),
        bandwidth: None,
        link_patience: Duration::ZERO,
    };
    let (to_test, from_target) = channel();
    let _target = target::Target::start(vec![accepted], None, settings, move |event| {
        drop(to_test.send(event));
    })
    .unwrap();
    lie(&mut liar);
    match from_target.recv_timeout(PATIENCE).unwrap() {
        target::Event::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A batch of one zero page, whose digest is wrong: it only ever waits.
fn small_batch(seq: u64) -> Vec<u8> {
    let operations = [2, 0, 0, 1];
    let mut payload = [&seq.to_be_bytes()[..], &[0; 28], &[12, 0]].concat();
    for length in [operations.len() as u32, 0, 0] {
        payload.extend(length.to_be_bytes());
    }
    payload.extend(operations);
    payload
}

#[test]
fn a_source_that_sends_what_does_not_belong_there_ends_the_session() {
    let refused = |kind, payload: Vec<u8>, with: &str| {
        let why = lied_to_by(|liar| drop(liar.send(kind, payload)));
        assert!(why.contains(with), "{kind:?}: {why}");
    };
    refused(Kind::Data, Vec::new(), "short header");
    refused(Kind::Data, small_batch(0)[..46].to_vec(), "short header");
    let mut empty = small_batch(0)[..38].to_vec();
    empty.extend([0; 12]);
    refused(Kind::Data, empty, "a batch of nothing");
    refused(Kind::Data, small_batch(u64::MAX), "further ahead");
    refused(Kind::Supply, Vec::new(), "not asked for");
    refused(Kind::Supply, [0; 9].to_vec(), "not asked for");
    for kind in [Kind::Ack, Kind::Ask, Kind::Message, Kind::ContentTable, Kind::Hello] {
        refused(kind, vec![0; 64], "instead of data");
    }
}

#[test]
fn batches_that_wait_for_one_that_never_comes_end_the_session_however_small() {
    let why = lied_to_by(|liar| {
        // Sending fails once the target has closed.
        let _ = (1..).find(|seq| liar.send(Kind::Data, small_batch(*seq)).is_err());
    });
    assert!(why.contains("further ahead"), "{why}");
    let why = lied_to_by(|liar| {
        for _ in 0..2 {
            let _ = liar.send(Kind::Data, small_batch(7));
        }
    });
    assert!(why.contains("came twice"), "{why}");
}

#[test]
fn a_qemu_that_does_not_read_its_return_path_holds_nobody_up() {
    let (_qemu, into_source) = UnixStream::pair().unwrap();
    let [connected, _target] = lane(0, |_| ());
    let settings = source::Settings {
        coders: Coders::default(),
        key: FingerprintKey::new([7; 32]),
        catalog: Arc::default(),
        reach: Reach::Batches(RING_BATCHES),
        versions_bytes_max: 0,
        bandwidth: None,
    };
    let source = source::Source::start(into_source, vec![connected], settings, |_| ()).unwrap();
    let error = (0..).find_map(|_| source.return_path(&[0; 64 * 1024]).err());
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
}

#[test]
fn every_coder_carries_the_stream_byte_for_byte_over_several_lanes() {
    let alone = [Codec::Raw, Codec::Zstd, Codec::Lz4, Codec::Lz78].map(|codec| {
        let settings = CodecSettings {
            codec,
            ..CodecSettings::default()
        };
        Coders::new(vec![settings]).unwrap()
    });
    for coders in alone.into_iter().chain([Coders::auto()]) {
        let lanes = (0..3).map(|index| lane(index, |_| ())).collect();
        let mut pair = pair(lanes, coders.clone());
        let sent = stream(5000);
        let length = sent.len();
        let mut loader = pair.carries(sent);
        assert_eq!(pair.from_source.recv_timeout(PATIENCE), Ok(source::Event::Switchover));

        loader
            .write_all(&[return_path::pong(1), return_path::shut(0)].concat())
            .unwrap();
        let pong = pair.from_target.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            pong,
            target::Event::ReturnPath(return_path::pong(1).to_vec()),
            "SHUT stays here"
        );
        let target::Event::Loaded(digest) = pair.from_target.recv_timeout(PATIENCE).unwrap() else {
            panic!()
        };
        assert_eq!((digest, digest.bytes), (pair.source.digest(), length as u64));
        let counters = pair.source.counters();
        assert_eq!(counters.stream_bytes, length as u64);
        // Whatever was chosen, the first batches went through a coder; how many did is up to the machine.
        if coders.len() == 1 && coders.get(0).is_some_and(|coder| coder.codec != Codec::Raw) {
            assert!(counters.wire_bytes < length as u64 / 4, "{coders:?}: {counters:?}");
        }

        pair.source.return_path(&return_path::shut(0)).unwrap();
        let mut shut = [0; 8];
        pair.qemu.read_exact(&mut shut).unwrap();
        assert_eq!(shut, return_path::shut(0));
    }
}

#[test]
fn a_byte_changed_on_the_way_fails_both_sides_before_it_reaches_qemu() {
    let mut seen = 0;
    let spoil = move |bytes: &mut [u8]| {
        let target = 1_000usize;
        if (seen..seen + bytes.len()).contains(&target) {
            bytes[target - seen] ^= 1;
        }
        seen += bytes.len();
    };
    let mut pair = pair(vec![lane(0, spoil)], Coders::default());
    let sent = stream(5000);
    let (to_send, mut qemu) = (sent.clone(), pair.qemu.try_clone().unwrap());
    // Fails once the source's half has closed its end.
    let writer = thread::spawn(move || qemu.write_all(&to_send));
    let target::Event::Failed(why) = pair.from_target.recv_timeout(PATIENCE).unwrap() else {
        panic!()
    };
    assert!(why.contains("checksum"), "{why}");
    loop {
        match pair.from_source.recv_timeout(PATIENCE).unwrap() {
            source::Event::Failed(_) => break,
            source::Event::Switchover | source::Event::Ended | source::Event::Taken => {}
            other => panic!("{other:?}"),
        }
    }
    let _ = writer.join().unwrap();
    assert_eq!(
        pair.qemu.read(&mut [0]).unwrap(),
        0,
        "the source's QEMU sees its socket closed, and resumes its guest"
    );
    pair.loader.set_nonblocking(true).unwrap();
    let mut loaded = Vec::new();
    if let Ok((mut loader, _)) = pair.loader.accept() {
        loader.set_nonblocking(true).unwrap();
        let waits = loader.read_to_end(&mut loaded).unwrap_err();
        assert_eq!(
            waits.kind(),
            ErrorKind::WouldBlock,
            "its memory could not be kept any more"
        );
        pair.target.close();
        loader.set_nonblocking(false).unwrap();
        loader.set_read_timeout(Some(PATIENCE)).unwrap();
        loader
            .read_to_end(&mut loaded)
            .expect("the target's QEMU sees its socket closed, and ends");
    }
    assert!(
        sent.starts_with(&loaded),
        "QEMU was given something else than the stream"
    );
    drop(pair.target);
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_ends_the_source_and_holds_nobody_up() {
    let lie = Ack {
        stream_bytes: 1 << 40,
        wire_bytes: 1 << 40,
        ..Ack::default()
    };
    let (why, source) = lied_to(Kind::Ack, &lie.encode());
    assert!(why.contains("acknowledges"), "{why}");
    // Closing takes every lock that the thread which failed could still hold.
    let (to_test, closed) = channel();
    thread::spawn(move || {
        drop(source);
        to_test.send(())
    });
    closed.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_stranger_is_recognised_by_its_first_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stranger = thread::spawn(move || {
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // Closed without an answer.
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        answer
    });
    let link = transport::accept(listener.accept().unwrap().0, &Security::Plaintext).unwrap();
    let error = Acceptor::default().accept(link, "b", "test").unwrap_err();
    assert!(matches!(error, ConnectionError::Frame(_)), "{error}");
    assert!(stranger.join().unwrap().is_empty());
}
