use std::{
    fs,
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::vm::definition::{CacheMode, DiskFormat};
use tempfile::TempDir;

fn file_disk(path: PathBuf) -> Disk {
    Disk {
        id: "root".into(),
        path: Some(path),
        nbd: None,
        format: DiskFormat::Raw,
        cache: CacheMode::Writeback,
        readonly: false,
    }
}

/// 1 MiB with content in every block.
fn image(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let content: Vec<u8> = (0..1u32 << 18).flat_map(|word| (word ^ 0x5eed).to_le_bytes()).collect();
    fs::write(&path, content).unwrap();
    path
}

/// The lock that a QEMU takes on an image it writes to, held through a file of our own: an open file description's locks are
/// seen by every other one, in whatever process.
fn lock_as_qemu_does(path: &Path) -> File {
    let file = File::open(path).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: 0,
        l_start: 101,
        l_len: 1,
        l_pid: 0,
    };
    fcntl::fcntl(&file, fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file
}

#[test]
fn the_file_that_the_source_has_locked_is_the_same_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = file_disk(image(&folder, "disk"));
    let _lock = lock_as_qemu_does(disk.path.as_ref().unwrap());
    let facts = describe(&disk).unwrap();
    assert!(facts.locked);
    assert_eq!(compare(&disk, &facts), Ok(Proof::Lock));
    // By another path it still is the same disk.
    let other_path = folder.path().join("link");
    fs::hard_link(folder.path().join("disk"), &other_path).unwrap();
    assert_eq!(compare(&file_disk(other_path), &facts), Ok(Proof::Lock));
}

#[test]
fn a_copy_with_equal_content_at_the_same_path_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    let lock = lock_as_qemu_does(&path);
    let facts = describe(&file_disk(path.clone())).unwrap();
    // The original stays where the source has it open; the copy takes its path.
    fs::rename(&path, folder.path().join("original")).unwrap();
    fs::copy(folder.path().join("original"), &path).unwrap();
    let problem = compare(&file_disk(path.clone()), &facts).unwrap_err();
    assert!(problem.to_string().contains("inode"), "{problem}");
    // Even if the copy had the original's inode number, as on another file system, the lock is not on it.
    let same_number = DiskFacts {
        inode: Some(fs::metadata(&path).unwrap().ino()),
        ..facts
    };
    let problem = compare(&file_disk(path), &same_number).unwrap_err();
    assert!(problem.to_string().contains("lock"), "{problem}");
    drop(lock);
}

#[test]
fn a_missing_file_and_another_size_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    let facts = describe(&file_disk(path.clone())).unwrap();
    let missing = compare(&file_disk(folder.path().join("none")), &facts);
    assert!(matches!(missing, Err(DiskProblem::Unreachable { .. })));
    assert!(matches!(
        compare(&file_disk(folder.path().into()), &facts),
        Err(DiskProblem::Unreachable { .. })
    ));
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(matches!(
        compare(&file_disk(path), &facts),
        Err(DiskProblem::OtherSize { .. })
    ));
}

#[test]
fn an_image_that_grew_while_its_guest_wrote_is_the_same_disk_unless_its_size_is_fixed() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    let raw = file_disk(path.clone());
    let qcow2 = Disk {
        format: DiskFormat::Qcow2,
        ..raw.clone()
    };
    let _lock = lock_as_qemu_does(&path);
    let facts = describe(&qcow2).unwrap();
    let resize = |bytes| File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    resize(facts.bytes + (64 << 10));
    assert_eq!(compare(&qcow2, &facts), Ok(Proof::Lock));
    assert!(matches!(compare(&raw, &facts), Err(DiskProblem::OtherSize { .. })));
    resize(facts.bytes - (64 << 10));
    assert!(matches!(compare(&qcow2, &facts), Err(DiskProblem::OtherSize { .. })));
}

#[test]
fn without_locks_content_decides_and_a_busy_guest_may_change_some_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    let disk = file_disk(path.clone());
    let facts = describe(&disk).unwrap();
    assert!(!facts.locked);
    assert_eq!(compare(&disk, &facts), Ok(Proof::Content));

    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 4 * BLOCK_BYTES], 0).unwrap();
    assert_eq!(compare(&disk, &facts), Ok(Proof::Content));
    file.write_all_at(&[7; 200 * BLOCK_BYTES], 0).unwrap();
    assert!(matches!(compare(&disk, &facts), Err(DiskProblem::OtherContent { .. })));

    file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
    let empty = describe(&disk).unwrap();
    assert_eq!(compare(&disk, &empty), Err(DiskProblem::NothingToCompare));
}

#[test]
fn samples_are_whole_blocks_within_the_disk() {
    for bytes in [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 30) + 5, u64::MAX] {
        let offsets = sample_offsets(bytes);
        assert!(offsets.is_sorted_by(|a, b| a < b));
        assert!(offsets.len() <= (LEADING_BLOCKS + SPREAD_BLOCKS + 1) as usize);
        assert!(offsets.iter().all(|offset| bytes - offset >= BLOCK_BYTES as u64));
        assert_eq!(offsets.is_empty(), bytes < BLOCK_BYTES as u64);
    }
}

#[test]
fn what_a_peer_claims_of_offsets_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let disk = file_disk(image(&folder, "disk"));
    let mut facts = describe(&disk).unwrap();
    for (sample, offset) in facts
        .samples
        .iter_mut()
        .zip([u64::MAX, u64::MAX - 4095, 1 << 20, 17].into_iter().cycle())
    {
        sample.offset = offset;
    }
    assert!(matches!(compare(&disk, &facts), Err(DiskProblem::OtherContent { .. })));
}

/// A qemu-nbd that serves one image on a unix socket, and on a TCP port of loopback.
struct NbdServerProcess(Child);

impl NbdServerProcess {
    fn start(image: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=4", "--format=raw", "--export-name=disk"]);
        command.args(arguments).arg(image).stdin(Stdio::null());
        Self(command.spawn().expect("qemu-nbd is needed: install qemu-utils"))
    }

    /// Tries until the server listens; its process ends where it cannot.
    fn wait_for(&mut self, disk: &Disk) -> DiskFacts {
        loop {
            match describe(disk) {
                Ok(facts) => return facts,
                Err(error) => assert!(self.0.try_wait().unwrap().is_none(), "{error}"),
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for NbdServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nbd_disk(uri: &str) -> Disk {
    Disk {
        path: None,
        nbd: Some(uri.parse().unwrap()),
        ..file_disk(PathBuf::new())
    }
}

#[test]
fn an_nbd_export_is_compared_by_size_and_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    let socket = folder.path().join("nbd.sock");
    let mut server = NbdServerProcess::start(&path, &["--socket", socket.to_str().unwrap()]);
    let disk = nbd_disk(&format!("nbd+unix:///disk?socket={}", socket.display()));
    let facts = server.wait_for(&disk);
    assert_eq!((facts.bytes, facts.inode, facts.locked), (1 << 20, None, false));
    assert_eq!(compare(&disk, &facts), Ok(Proof::Content));

    let no_such_export = nbd_disk(&format!("nbd+unix:///other?socket={}", socket.display()));
    let problem = compare(&no_such_export, &facts).unwrap_err().to_string();
    assert!(problem.contains("refuses the export"), "{problem}");

    let other_socket = folder.path().join("other.sock");
    fs::write(folder.path().join("other"), vec![9; 1 << 20]).unwrap();
    let mut other = NbdServerProcess::start(
        &folder.path().join("other"),
        &["--socket", other_socket.to_str().unwrap()],
    );
    let other_disk = nbd_disk(&format!("nbd+unix:///disk?socket={}", other_socket.display()));
    other.wait_for(&other_disk);
    assert!(matches!(
        compare(&other_disk, &facts),
        Err(DiskProblem::OtherContent { .. })
    ));
}

#[test]
fn an_nbd_export_is_reached_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, "disk");
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut server = NbdServerProcess::start(&path, &["--bind=127.0.0.1", &format!("--port={port}")]);
    let disk = nbd_disk(&format!("nbd://127.0.0.1:{port}/disk"));
    let facts = server.wait_for(&disk);
    drop(server);
    assert_eq!(facts.bytes, 1 << 20);
    assert!(matches!(compare(&disk, &facts), Err(DiskProblem::Unreachable { .. })));
}

#[test]
fn what_is_no_nbd_server_is_an_error() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nbd://{}/x", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&[b'S'; 64]);
    });
    let problem = View::open(&nbd_disk(&uri)).err().unwrap();
    assert!(problem.to_string().contains("no newstyle NBD server"), "{problem}");
    serve.join().unwrap();
}
