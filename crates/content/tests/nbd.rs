//! Exports of a real `qemu-nbd`.

use std::{
    fs::{self, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use vmferry_content::{
    BLOCK_BYTES, Blocks, Cancel, Change, Identity, IndexFolder, NbdExport, NbdUri, ScanOptions, index::scan,
};
use vmferry_core::page::content::block_hash;

const BLOCKS: u64 = 1000;

/// A `qemu-nbd` that serves one image on a unix socket until it is dropped.
struct Server(Child);

impl Server {
    fn start(image: &Path, socket: &Path) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args([
            "--persistent",
            "--shared=8",
            "--format=raw",
            "--export-name=disk",
            "--socket",
        ]);
        command.arg(socket).arg(image).stdin(Stdio::null());
        Self(command.spawn().expect("qemu-nbd is needed: install qemu-utils"))
    }

    /// Tries until the server listens; its process ends where it cannot.
    fn open(&mut self, uri: &NbdUri) -> NbdExport {
        loop {
            match NbdExport::open(uri) {
                Ok(export) => return export,
                Err(error) => assert!(self.0.try_wait().unwrap().is_none(), "{error}"),
            }
            thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn content(number: u64) -> [u8; BLOCK_BYTES] {
    [(number % 251) as u8 + 1; BLOCK_BYTES]
}

#[test]
fn an_export_is_read_scanned_and_connected_to_again() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let socket = folder.path().join("socket");
    let bytes: Vec<u8> = (0..BLOCKS).flat_map(content).collect();
    fs::write(&image, &bytes).unwrap();
    let uri: NbdUri = format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap();
    let mut server = Server::start(&image, &socket);
    let export: Arc<dyn Blocks> = Arc::new(server.open(&uri));
    assert_eq!(export.blocks(), BLOCKS);

    // Longer than one request, and from several threads.
    thread::scope(|scope| {
        for first in 0..4 {
            let (export, bytes) = (&export, &bytes);
            scope.spawn(move || {
                let mut read = vec![0; (BLOCKS as usize - 4) * BLOCK_BYTES];
                export.read(first, &mut read).unwrap();
                assert!(read == bytes[first as usize * BLOCK_BYTES..][..read.len()]);
            });
        }
    });
    assert!(export.read(BLOCKS - 1, &mut [0; 2 * BLOCK_BYTES]).is_err());

    let options = ScanOptions {
        digest: true,
        ..ScanOptions::default()
    };
    let path = folder.path().join("index");
    let index = scan(&*export, None, &path, &options, &Cancel::new(), |_| {}).unwrap();
    let hashes: Vec<u64> = (0..BLOCKS).map(|number| block_hash(&content(number))).collect();
    assert_eq!(index.hashes(0..BLOCKS).unwrap(), hashes);
    assert_eq!(index.header().digest, Some(*blake3::hash(&bytes).as_bytes()));
    // An export does not tell of writes.
    assert_eq!(
        export.identity().unwrap().since(&index.header().identity),
        Change::Unknown
    );

    // The server goes and comes back: reads fail while there is none, and go on when there is.
    drop(server);
    let mut block = [0; BLOCK_BYTES];
    assert!(export.read(5, &mut block).is_err());
    fs::remove_file(&socket).unwrap();
    let mut server = Server::start(&image, &socket);
    drop(server.open(&uri));
    export.read(5, &mut block).unwrap();
    assert_eq!(block, content(5));

    // A broken connection alone is not noticed by who reads.
    drop(server);
    fs::remove_file(&socket).unwrap();
    let mut server = Server::start(&image, &socket);
    drop(server.open(&uri));
    export.read(6, &mut block).unwrap();
    assert_eq!(block, content(6));

    // Another disk by that name is not the one that was opened.
    drop(server);
    fs::remove_file(&socket).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let mut server = Server::start(&image, &socket);
    drop(server.open(&uri));
    let error = export.read(5, &mut block).unwrap_err().to_string();
    assert!(error.contains("open it again"), "{error}");
    let half = Identity::Export {
        bytes: bytes.len() as u64 / 2,
    };
    assert_eq!(server.open(&uri).identity().unwrap(), half);
}

/// An export does not tell whether it was written to: a few blocks of it do.
#[test]
fn an_export_is_scanned_again_when_much_of_it_changed() {
    const BLOCKS: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, (0..BLOCKS).flat_map(content).collect::<Vec<u8>>()).unwrap();
    let socket = folder.path().join("socket");
    let uri: NbdUri = format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap();
    let mut server = Server::start(&image, &socket);
    let export = server.open(&uri);
    let indexes = IndexFolder::open(folder.path().join("indexes"), 1 << 20).unwrap();
    let update = || {
        let mut was_scanned = false;
        let (options, cancel) = (ScanOptions::default(), Cancel::new());
        let index = indexes.update("export", &export, &options, &cancel, |_| was_scanned = true);
        (index.unwrap().hashes(0..BLOCKS).unwrap(), was_scanned)
    };
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    let overwrite = |blocks: Range<u64>| {
        let bytes = vec![0xff; (blocks.end - blocks.start) as usize * BLOCK_BYTES];
        file.write_all_at(&bytes, blocks.start * BLOCK_BYTES as u64).unwrap();
    };

    let (first, was_scanned) = update();
    assert!(was_scanned);
    assert_eq!(update(), (first.clone(), false));

    // Fewer than could make a difference if every one of them was looked at.
    overwrite(0..32);
    assert_eq!(update(), (first, false));

    overwrite(0..BLOCKS / 4);
    let (second, was_scanned) = update();
    assert!(was_scanned);
    assert_eq!(second[0], block_hash(&[0xff; BLOCK_BYTES]));
    assert_eq!(update(), (second, false));
}
