//! Messages about the session itself that no agent sends, from a peer that is of the cluster.

use super::*;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ClientConnection, ConnectionTrafficSecrets};

const HANDSHAKE: u8 = 22;
const KEY_UPDATE: u8 = 24;

/// Has a peer seal these contents of the handshake's kind once it has greeted; gives what its other side reads then,
/// and whether that can still write.
fn after(contents: &[&[u8]]) -> (io::Result<usize>, io::Result<()>) {
    let cluster = Cluster::new();
    let (Security::Tls(a), b) = (cluster.host("a"), cluster.host("b")) else {
        panic!("it is of the cluster");
    };
    let (here, mut peer) = connected();
    let mut config = (*a.client(Purpose::Lane)).clone();
    config.enable_secret_extraction = true;
    let greets = thread::spawn(move || {
        let name = "any.invalid".try_into().unwrap();
        let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
        while session.is_handshaking() || session.wants_write() {
            session.complete_io(&mut peer).unwrap();
        }
        (session.dangerous_extract_secrets().unwrap(), peer)
    });
    let mut link = accept(here, &b).unwrap();
    let (secrets, mut peer) = greets.join().unwrap();
    let (first, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
        panic!("another suite");
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
    for (number, content) in (first..).zip(contents) {
        let mut nonce = <[u8; 12]>::try_from(iv.as_ref()).unwrap();
        for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        let mut sealed = [content, &[HANDSHAKE][..]].concat();
        let bytes = u16::try_from(sealed.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, bytes[0], bytes[1]];
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed)
            .unwrap();
        peer.write_all(&[&header[..], &sealed].concat()).unwrap();
    }
    peer.shutdown(Shutdown::Write).unwrap();
    (link.read(&mut [0; 100]), link.write_all(b"answer"))
}

#[test]
fn new_keys_that_a_peer_asks_for_are_no_matter() {
    let (read, written) = after(&[&[KEY_UPDATE, 0, 0, 1, 1]]);
    assert_eq!(read.unwrap(), 0);
    written.unwrap();
}

#[test]
fn a_message_in_parts_ends_the_session_in_both_directions() {
    let (read, written) = after(&[&[KEY_UPDATE, 0, 0]]);
    assert!(read.unwrap_err().to_string().contains("in parts"));
    assert!(written.unwrap_err().to_string().contains("has failed"));
}

#[test]
fn a_message_that_is_none_ends_it_too_whatever_stands_behind() {
    for contents in [
        &[99, 0, 0, 0, KEY_UPDATE, 0, 0, 1, 0][..],
        &[KEY_UPDATE, 0, 0, 1, 9, KEY_UPDATE, 0, 0, 1, 0],
        &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0],
        &[],
    ] {
        let (read, written) = after(&[contents]);
        assert!(read.is_err() && written.is_err(), "{contents:?}");
    }
}
