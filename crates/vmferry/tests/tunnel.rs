//! Both ends of a tunnel as processes, joined by a relay, between sockets that this test has in place of QEMUs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use vmferry_core::qemu::return_path;

/// QEMU's stream begins so, and goes on in a way that nobody follows: then it is passed on as it is.
const MIGRATION: &[u8] = b"QEVM\0\0\0\x03 and what comes then";

/// What a multifd channel begins with, and something behind it.
const CHANNEL: &[u8] = b"\x11\x22\x33\x44 and what comes then";

/// One end; killed when dropped.
struct End {
    process: Child,
    /// What it said when it was ready.
    ready: String,
}

impl End {
    fn start(arguments: &[&str]) -> End {
        let mut process = Command::new(env!("CARGO_BIN_EXE_vmferry"))
            .arg("tunnel")
            .args(arguments)
            .arg("--insecure-plaintext")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        End { process, ready }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Tunnel {
    folder: tempfile::TempDir,
    relay: Relay,
    target: End,
    _source: End,
}

impl Tunnel {
    fn start() -> Tunnel {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for end in ["source", "target"] {
            std::fs::create_dir(path(end)).unwrap();
        }
        let target = End::start(&["target", "--listen", "127.0.0.1:0", "--sockets", &path("target")]);
        let address = target.ready.split(' ').find_map(|word| word.parse().ok()).unwrap();
        let relay = Relay::start(address);
        let to = relay.address.to_string();
        let (migrations, disks) = (path("source/mig"), path("source/disks"));
        let source = ["source", "--to", &to, "--listen", &migrations, "--disks", &disks];
        Tunnel {
            _source: End::start(&source),
            folder,
            relay,
            target,
        }
    }

    fn path(&self, end: &str, name: &str) -> PathBuf {
        self.folder.path().join(end).join(name)
    }

    /// As a QEMU at the target.
    fn listen(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.path("target", name)).unwrap()
    }

    /// As a QEMU at the source.
    fn connect(&self, name: &str) -> UnixStream {
        UnixStream::connect(self.path("source", name)).unwrap()
    }
}

/// Passes TCP connections on, and cuts them.
struct Relay {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn start(to: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let relayed = open.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                // Nobody is there once the target's end has ended.
                let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(to)) else {
                    continue;
                };
                let ends = || [near.try_clone().unwrap(), far.try_clone().unwrap()];
                relayed.lock().unwrap().extend(ends());
                let [mut from, mut into] = ends();
                thread::spawn(move || copy(&mut from, &mut into));
                let [mut into, mut from] = ends();
                thread::spawn(move || copy(&mut from, &mut into));
            }
        });
        Relay { address, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn copy(from: &mut TcpStream, into: &mut TcpStream) {
    // It ends by an error where it is cut.
    let _ = std::io::copy(from, into);
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Bytes that no coder makes less of.
fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    noise
}

fn rest_of(mut socket: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).unwrap();
    all
}

fn read(mut socket: &UnixStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    socket.read_exact(&mut read).unwrap();
    read
}

#[test]
fn disks_are_connected_to_at_once_and_what_is_written_at_either_end_comes_out_at_the_other() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("disks");
    let mut near = tunnel.connect("disks");
    let (mut far, _) = server.accept().unwrap();
    far.write_all(b"NBDMAGIC").unwrap();
    assert_eq!(read(&near, 8), b"NBDMAGIC");
    let (there, back) = (noise(9 << 20, 1), noise(7 << 20, 2));
    thread::scope(|scope| {
        scope.spawn(|| near.try_clone().unwrap().write_all(&there).unwrap());
        scope.spawn(|| far.try_clone().unwrap().write_all(&back).unwrap());
        scope.spawn(|| assert!(read(&near, back.len()) == back));
        assert!(read(&far, there.len()) == there);
    });
    // All of it comes before the end does.
    thread::scope(|scope| {
        scope.spawn(|| {
            near.write_all(&there).unwrap();
            near.shutdown(Shutdown::Both).unwrap();
        });
        assert!(rest_of(&far) == there);
    });
}

#[test]
fn a_socket_that_is_closed_at_the_target_is_closed_at_the_source() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("disks");
    let near = tunnel.connect("disks");
    let (mut far, _) = server.accept().unwrap();
    far.write_all(b"bye").unwrap();
    drop(far);
    assert_eq!(rest_of(&near), b"bye");
}

#[test]
fn who_does_not_read_holds_up_neither_the_other_way_nor_others() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("disks");
    let near = tunnel.connect("disks");
    let (mut far, _) = server.accept().unwrap();
    let much = noise(64 << 20, 3);
    thread::scope(|scope| {
        let writer = scope.spawn(|| near.try_clone().unwrap().write_all(&much));
        far.write_all(b"the other way").unwrap();
        assert_eq!(read(&near, 13), b"the other way");
        let mut other = tunnel.connect("disks");
        let (other_far, _) = server.accept().unwrap();
        other.write_all(b"others").unwrap();
        assert_eq!(read(&other_far, 6), b"others");
        // More than all on the way can hold: the writer still waits.
        assert!(!writer.is_finished());
        assert!(read(&far, much.len()) == much);
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_qemu_is_not_connected_to_before_the_first_byte_is_there() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("mig");
    let _silent = tunnel.connect("mig");
    let mut speaks = tunnel.connect("mig");
    speaks.write_all(CHANNEL).unwrap();
    let (far, _) = server.accept().unwrap();
    assert_eq!(read(&far, CHANNEL.len()), CHANNEL);
    drop(speaks);
    assert_eq!(rest_of(&far), b"");
}

#[test]
fn a_socket_that_nobody_listens_on_is_closed_at_the_source() {
    let tunnel = Tunnel::start();
    assert_eq!(rest_of(&tunnel.connect("disks")), b"");
    let mut migration = tunnel.connect("mig");
    migration.write_all(MIGRATION).unwrap();
    assert_eq!(rest_of(&migration), b"");
}

#[test]
fn a_migration_crosses_and_its_last_word_comes_back() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("mig");
    let mut near = tunnel.connect("mig");
    near.write_all(MIGRATION).unwrap();
    let (mut far, _) = server.accept().unwrap();
    assert_eq!(read(&far, MIGRATION.len()), MIGRATION);
    far.write_all(&return_path::pong(1)).unwrap();
    assert_eq!(read(&near, 8), return_path::pong(1));
    let more = noise(20 << 20, 4);
    thread::scope(|scope| {
        scope.spawn(|| near.write_all(&more).unwrap());
        assert!(read(&far, more.len()) == more);
    });
    far.write_all(&return_path::shut(0)).unwrap();
    assert_eq!(read(&near, 8), return_path::shut(0));
    drop(near);
    assert_eq!(rest_of(&far), b"");
}

#[test]
fn a_migration_without_a_return_path_ends_with_its_stream() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("mig");
    let mut near = tunnel.connect("mig");
    let stream = [MIGRATION, &noise(20 << 20, 5)].concat();
    thread::scope(|scope| {
        scope.spawn(|| {
            near.write_all(&stream).unwrap();
            near.shutdown(Shutdown::Both).unwrap();
        });
        assert!(rest_of(&server.accept().unwrap().0) == stream);
    });
}

#[test]
fn a_target_that_could_not_load_has_the_source_fail() {
    let tunnel = Tunnel::start();
    let server = tunnel.listen("mig");
    for last_word in [&return_path::shut(1)[..], b""] {
        let mut near = tunnel.connect("mig");
        near.write_all(MIGRATION).unwrap();
        let (mut far, _) = server.accept().unwrap();
        assert_eq!(read(&far, MIGRATION.len()), MIGRATION);
        far.write_all(last_word).unwrap();
        drop(far);
        assert_eq!(rest_of(&near), b"");
    }
}

#[test]
fn who_is_let_go_by_an_end_that_was_killed_is_told_by_the_one_that_is_started_anew() {
    let mut tunnel = Tunnel::start();
    let server = tunnel.listen("disks");
    let near = tunnel.connect("disks");
    let (far, _) = server.accept().unwrap();
    let address = tunnel
        .target
        .ready
        .split(' ')
        .find(|word| word.contains(':'))
        .unwrap()
        .to_owned();
    let sockets = tunnel.path("target", "").display().to_string();
    let _ = tunnel.target.process.kill();
    assert_eq!(rest_of(&far), b"", "the kernel closes what a process had");
    tunnel.target = End::start(&["target", "--listen", &address, "--sockets", &sockets]);
    assert_eq!(rest_of(&near), b"");
}

#[test]
fn connections_outlive_their_links() {
    let tunnel = Tunnel::start();
    let (disks, migrations) = (tunnel.listen("disks"), tunnel.listen("mig"));
    let disk = tunnel.connect("disks");
    let (mut far_disk, _) = disks.accept().unwrap();
    let mut migration = tunnel.connect("mig");
    migration.write_all(MIGRATION).unwrap();
    let (mut far_migration, _) = migrations.accept().unwrap();
    assert_eq!(read(&far_migration, MIGRATION.len()), MIGRATION);
    for round in 0..3 {
        let (there, back) = (noise(8 << 20, round), noise(100, 10 + round));
        thread::scope(|scope| {
            scope.spawn(|| disk.try_clone().unwrap().write_all(&there).unwrap());
            scope.spawn(|| migration.try_clone().unwrap().write_all(&there).unwrap());
            // Some of it is here, the rest on its way.
            let begin = [read(&far_disk, 1 << 20), read(&far_migration, 1 << 20)];
            tunnel.relay.cut();
            for (far, begin) in [&far_disk, &far_migration].into_iter().zip(begin) {
                assert!([begin, read(far, there.len() - (1 << 20))].concat() == there);
            }
        });
        far_disk.write_all(&back).unwrap();
        assert_eq!(read(&disk, back.len()), back);
    }
    far_migration.write_all(&return_path::shut(0)).unwrap();
    assert_eq!(read(&migration, 8), return_path::shut(0));
}
