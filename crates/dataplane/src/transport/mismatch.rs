//! One side speaks TLS and the other does not: each is told so in a way that it understands.

use std::io::Write;
use std::net::TcpStream;

use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{Header, Kind};
use vmferry_core::wire::hello::HelloReply;

use super::handshake::farewell;
use super::{Deadline, Hurried, TransportError};

/// The first byte of TLS: the kind of a record that belongs to a handshake.
pub(super) const TLS: u8 = 22;
/// The first byte of a lane without TLS.
pub(super) const PLAIN: u8 = PREFACE[0];

/// What the peer begins with; it is still to be read.
pub(super) fn first_byte(stream: &TcpStream, deadline: Deadline) -> Result<u8, TransportError> {
    let mut first = [0];
    stream.set_read_timeout(Some(deadline.left()?))?;
    match stream.peek(&mut first)? {
        0 => Err(TransportError::Closed),
        _ => Ok(first[0]),
    }
}

/// Answers a peer that speaks TLS to a side that does not.
pub(super) fn needs_plaintext(stream: &TcpStream, deadline: Deadline) -> TransportError {
    // No record of TLS begins like this, which its side understands well enough.
    let _ = Hurried { stream, deadline }.write_all(&PREFACE);
    farewell(stream, deadline);
    TransportError::SpeaksTls
}

/// Answers a peer that speaks no TLS to a side that does.
pub(super) fn needs_tls(stream: &TcpStream, deadline: Deadline) -> TransportError {
    let reply = HelloReply::Unwelcome {
        reason: "it speaks TLS only, and this side does not: start it without --insecure-plaintext, with a certificate from \
                 `vmferry pki join`"
            .to_owned(),
    };
    let payload = serde_json::to_vec(&reply).unwrap_or_default();
    if let Some(header) = Header::encode(Kind::HelloReply, 0, 0, &payload) {
        let _ = Hurried { stream, deadline }.write_all(&[&PREFACE[..], &header, &payload].concat());
    }
    farewell(stream, deadline);
    TransportError::SpeaksPlain
}
