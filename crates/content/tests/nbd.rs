//! Exports of a real `qemu-nbd`.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use vmferry_content::{BLOCK_BYTES, Blocks, Cancel, Change, Identity, NbdExport, NbdUri, ScanOptions, index::scan};
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
    let index = scan(&*export, None, &options, &Cancel::new(), |_| {}).unwrap();
    let hashes: Vec<u64> = (0..BLOCKS).map(|number| block_hash(&content(number))).collect();
    assert_eq!(index.hashes, hashes);
    assert_eq!(index.digest, Some(*blake3::hash(&bytes).as_bytes()));
    // An export does not tell of writes.
    assert_eq!(export.identity().unwrap().since(&index.identity), Change::Unknown);

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
