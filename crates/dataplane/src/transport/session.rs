//! A TLS session once its handshake is over: what seals and opens records, for both directions.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{CommonState, Error};

/// Plain bytes in one record, at the most.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// What a record adds: its header, its true kind, and what shows that it was not changed.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;
/// The bytes of a record's header, the last two of which are the length of the rest.
const HEADER_BYTES: usize = 5;

/// So many plain bytes once they are sealed.
pub(super) const fn sealed_bytes(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD_BYTES_MAX) * RECORD_OVERHEAD_BYTES
}

/// What came of looking at bytes that were received.
pub(super) struct Opened {
    /// Bytes of what was looked at that are done with.
    pub(super) discard: usize,
    /// Plain bytes that were written to where they are wanted.
    pub(super) wanted: usize,
    /// Whether anything was in it; else more has to be received.
    pub(super) any: bool,
    /// The peer says that nothing follows.
    pub(super) end: bool,
}

/// Both directions of a session. Neither waits for anything in here.
pub(super) trait Session: Send {
    /// Opens the first record of `sealed`. Of its plain bytes, `wanted` takes as many as it has room for, `rest` the
    /// others.
    fn open(&mut self, sealed: &mut [u8], wanted: &mut [u8], rest: &mut Vec<u8>) -> Result<Opened, Error>;

    /// Seals `plain`; gives how many bytes of `sealed` that took.
    fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, Error>;
}

/// The same steps for the connecting and for the accepting side.
pub(super) trait Records: Send {
    type Data;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(sealed)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(sealed)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// A session whose handshake is over.
pub(super) struct Established<R> {
    records: R,
    /// It failed, and rustls is not to be asked for more: what it holds of messages refers to bytes of the receiving
    /// direction.
    failed: bool,
}

impl<R: Records> Established<R> {
    pub(super) fn new(records: R) -> Established<R> {
        Established { records, failed: false }
    }

    fn has_not_failed(&self) -> Result<(), Error> {
        match self.failed {
            true => Err(Error::General("the session has failed".to_owned())),
            false => Ok(()),
        }
    }

    fn open_record(&mut self, sealed: &mut [u8], wanted: &mut [u8], rest: &mut Vec<u8>) -> Result<Opened, Error> {
        let UnbufferedStatus { discard, state } = self.records.process(sealed);
        let mut opened = Opened {
            discard,
            wanted: 0,
            any: false,
            end: false,
        };
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                opened.any = true;
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    opened.discard += record.discard;
                    let here = record.payload.len().min(wanted.len() - opened.wanted);
                    wanted[opened.wanted..][..here].copy_from_slice(&record.payload[..here]);
                    rest.extend_from_slice(&record.payload[here..]);
                    opened.wanted += here;
                }
            }
            ConnectionState::WriteTraffic(_) => {
                // Part of a message about the session itself, such as new keys, would have to stay where it is until
                // its rest has come; but the other direction looks at other bytes meanwhile. Agents send none in parts.
                if is_whole_record(&sealed[opened.discard..]) {
                    return Err(Error::General("a message about the session comes in parts".to_owned()));
                }
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => opened.end = true,
            _ => return Err(Error::General("a message that belongs in a handshake".to_owned())),
        }
        Ok(opened)
    }
}

impl<R: Records> Session for Established<R> {
    fn open(&mut self, sealed: &mut [u8], wanted: &mut [u8], rest: &mut Vec<u8>) -> Result<Opened, Error> {
        self.has_not_failed()?;
        let opened = self.open_record(sealed, wanted, rest);
        self.failed |= opened.is_err();
        opened
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, Error> {
        self.has_not_failed()?;
        let UnbufferedStatus { state, .. } = self.records.process(&mut []);
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => traffic
                .encrypt(plain, sealed)
                .map_err(|error| Error::General(error.to_string())),
            _ => Err(Error::General("the session is over".to_owned())),
        }
    }
}

fn is_whole_record(sealed: &[u8]) -> bool {
    sealed
        .first_chunk::<HEADER_BYTES>()
        .is_some_and(|header| sealed.len() >= HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]])))
}
