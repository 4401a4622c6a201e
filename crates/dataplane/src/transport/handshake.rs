//! The handshake of TLS: by a deadline, and with a buffer that is allocated before the first byte came and does not
//! grow.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::{Acceptor, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, Error};

use super::halves::{Incoming, Outgoing, Received};
use super::session::{Established, Records};
use super::{Deadline, Hurried, Link, Purpose, Tls, TransportError, host_of};

/// Bytes that one side has to say in a handshake, at the most; two certificates take two KiB.
const SAID_BYTES_MAX: usize = 64 * 1024;
/// What a peer that is let go may have on its way: it is read, so that it can read why it was.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// A name for the peer that is neither sent nor checked.
const ANY_HOST: &str = "vmferry.invalid";

pub(super) fn connect(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    purpose: Purpose,
    deadline: Deadline,
) -> Result<Link, TransportError> {
    let name = ServerName::try_from(ANY_HOST).map_err(|_| TransportError::NoHost)?;
    let session = UnbufferedClientConnection::new(config, name)?;
    let peer = stream.try_clone()?;
    match shake(session, stream, Received::new(), deadline) {
        Ok(link) if link.purpose != purpose => Err(TransportError::NoAgent),
        shaken => shaken.inspect_err(|_| farewell(&peer, deadline)),
    }
}

pub(super) fn accept(stream: TcpStream, tls: &Tls, deadline: Deadline) -> Result<Link, TransportError> {
    let peer = stream.try_clone()?;
    hear(stream, tls, deadline).inspect_err(|_| farewell(&peer, deadline))
}

fn hear(stream: TcpStream, tls: &Tls, deadline: Deadline) -> Result<Link, TransportError> {
    let mut received = Received::new();
    let mut raw = Hurried {
        stream: &stream,
        deadline,
    };
    // What it wants decides whether it has to show a certificate, and that is in the first thing that it says.
    let mut acceptor = Acceptor::default();
    let is_joining = loop {
        let before = received.held().len();
        if received.receive(&mut raw)? == 0 {
            return Err(TransportError::Closed);
        }
        let mut new = &received.held()[before..];
        while !new.is_empty() {
            // It fails only for want of room.
            acceptor.read_tls(&mut new).map_err(|_| TransportError::TooLong)?;
        }
        match acceptor.accept() {
            Ok(Some(begun)) => {
                let hello = begun.client_hello();
                let mut offered = hello.alpn().into_iter().flatten();
                break offered.any(|protocol| protocol == Purpose::Join.protocol());
            }
            Ok(None) if received.is_full() => return Err(TransportError::TooLong),
            Ok(None) => {}
            Err((error, mut alert)) => {
                // It is gone, or learns why it is let go.
                let _ = alert.write_all(&mut raw);
                return Err(error.into());
            }
        }
    };
    let session = UnbufferedServerConnection::new(tls.serving(is_joining))?;
    shake(session, stream, received, deadline)
}

fn shake<R: Records + 'static>(
    mut session: R,
    stream: TcpStream,
    mut received: Received,
    deadline: Deadline,
) -> Result<Link, TransportError> {
    let mut raw = Hurried {
        stream: &stream,
        deadline,
    };
    let (mut said, mut opened) = (Vec::new(), Vec::new());
    loop {
        let UnbufferedStatus { mut discard, state } = session.process(received.held());
        let (mut wants_more, mut is_over) = (false, false);
        match state {
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut said)?,
            Ok(ConnectionState::TransmitTlsData(message)) => {
                raw.write_all(&said)?;
                said.clear();
                message.done();
            }
            Ok(ConnectionState::BlockedHandshake) => wants_more = true,
            Ok(ConnectionState::WriteTraffic(_)) => is_over = true,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    // No more than was received, which is bounded.
                    opened.extend_from_slice(record.payload);
                }
            }
            Ok(_) => return Err(TransportError::Closed),
            Err(error) => {
                received.discard(discard);
                explain(&mut session, &mut received, &mut said);
                let _ = raw.write_all(&said);
                return Err(error.into());
            }
        }
        received.discard(discard);
        if is_over {
            break;
        }
        if wants_more {
            if received.is_full() {
                return Err(TransportError::TooLong);
            }
            if received.receive(&mut raw)? == 0 {
                return Err(TransportError::Closed);
            }
        }
    }
    let purpose = session.common().alpn_protocol().and_then(Purpose::of);
    let certificate = session.common().peer_certificates().and_then(|chain| chain.first());
    let host = certificate.map(host_of).transpose()?;
    let purpose = purpose.ok_or(TransportError::NoAgent)?;
    if host.is_none() && purpose != Purpose::Join {
        return Err(TransportError::NoHost);
    }
    let session = Arc::new(Mutex::new(Established::new(session)));
    Ok(Link {
        outgoing: Outgoing::of(session.clone(), stream.try_clone()?),
        incoming: Incoming::of(session, received, opened),
        stream,
        deadline,
        purpose,
        host,
    })
}

/// Encodes a message of the handshake behind what is to be said already.
fn encode<Data>(mut message: EncodeTlsData<'_, Data>, said: &mut Vec<u8>) -> Result<(), TransportError> {
    let used = said.len();
    let written = match message.encode(&mut []) {
        Ok(written) => written,
        Err(EncodeError::InsufficientSize(size)) if used + size.required_size <= SAID_BYTES_MAX => {
            said.resize(used + size.required_size, 0);
            message
                .encode(&mut said[used..])
                .map_err(|error| Error::General(error.to_string()))?
        }
        Err(error) => return Err(Error::General(error.to_string()).into()),
    };
    said.truncate(used + written);
    Ok(())
}

/// What TLS has to say of the error that the handshake ends with. Once it has said that, rustls is not to be asked for
/// more.
fn explain<R: Records>(session: &mut R, received: &mut Received, said: &mut Vec<u8>) {
    while session.common().wants_write() {
        let Ok(ConnectionState::EncodeTlsData(message)) = session.process(received.held()).state else {
            return;
        };
        if encode(message, said).is_err() {
            return;
        }
    }
}

/// Lets the peer read what was said last: were bytes of it left unread, closing the socket would take that away from
/// it.
pub(super) fn farewell(stream: &TcpStream, deadline: Deadline) {
    // Whatever fails here, the connection is over.
    let _ = stream.shutdown(Shutdown::Write);
    let mut raw = Hurried { stream, deadline };
    let (mut buffer, mut bytes) = ([0; 4096], 0);
    while bytes < UNREAD_BYTES_MAX {
        match raw.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes += read,
        }
    }
}
