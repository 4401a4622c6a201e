//! All that a connection brings before anything is known of its peer, and the messages of a control lane or a tunnel behind that: preface,
//! frames, the hello or its answer, messages. Refused, or within what each frame's kind allows.
//!
//! Either bytes as they are, or frames that each are a byte for the kind, one for what is wrong with it, and a payload behind its
//! length (u16, big-endian); no fuzzer guesses their checksums.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::limits::{CONTROL_FRAME_BYTES_MAX, MESSAGE_VALUES_MAX};
use vmferry_core::session::Unheard;
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{FrameError, HEADER_BYTES, Header, Kind, Received, check_preface};
use vmferry_core::wire::hello::{Hello, HelloReply, VERSIONS, answer};
use vmferry_core::wire::message::Message;
use vmferry_core::wire::tunnel;
use vmferry_fuzz::within;

/// A frame's payload, and what the JSON of a whole message takes at the most.
const MEMORY_BYTES_MAX: usize = CONTROL_FRAME_BYTES_MAX + 256 * MESSAGE_VALUES_MAX;

const KINDS: [Kind; 6] = [
    Kind::Hello,
    Kind::HelloReply,
    Kind::Message,
    Kind::ReturnPath,
    Kind::Ask,
    Kind::ContentTable,
];

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let stream = match way % 3 {
        0 => bytes.to_vec(),
        1 => [&PREFACE[..], bytes].concat(),
        _ => [&PREFACE[..], &frames(bytes)].concat(),
    };
    within(stream.len() + MEMORY_BYTES_MAX, || {
        // Whatever ends the connection is a sentence for people.
        if let Err(error) = receive(&stream) {
            assert!(!error.to_string().is_empty());
        }
    });
});

/// Frames as they should be, but for what the fuzzer has wrong with them.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut sent = 0u64;
    while let Some(([kind, wrong, l0, l1], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*l0, *l1])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        bytes = rest;
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        // The hello in front is not numbered.
        let Some(mut header) = Header::encode(kind, sent.saturating_sub(1), u64::from(wrong / 64), payload) else {
            continue;
        };
        sent += 1;
        match wrong % 8 {
            0 => header[usize::from(wrong / 8) % HEADER_BYTES] ^= 1,
            1 => {
                // Sent twice; the second one is not due.
                frames.extend([&header, payload].concat());
            }
            _ => {}
        }
        frames.extend([&header, payload].concat());
    }
    frames
}

/// What the reading side of a connection does, without its socket.
fn receive(mut stream: &[u8]) -> Result<(), FrameError> {
    let Some(preface) = take(&mut stream, PREFACE.len()) else {
        return Ok(());
    };
    check_preface(preface.try_into().expect("it was cut to this length"))?;
    let mut received = Received::default();
    // What this side has sent, of which the peer may say that it has it.
    let mut unheard = Unheard::default();
    unheard.push(Kind::Message, vec![0; 8]);
    let mut is_greeted = false;
    while let Some(header) = take(&mut stream, HEADER_BYTES) {
        let header = Header::parse(header.try_into().expect("it was cut to this length"))?;
        assert!(header.payload_bytes <= header.kind.payload_bytes_max());
        let mut payload = vec![0; header.payload_bytes];
        let Some(came) = take(&mut stream, header.payload_bytes) else {
            return Ok(());
        };
        payload.copy_from_slice(came);
        if is_greeted {
            received.accept(&header, &payload)?;
            if unheard.heard(header.heard, drop).is_err() {
                return Ok(());
            }
        } else {
            header.verify(&payload)?;
        }
        match header.kind {
            Kind::Hello if !is_greeted => greeted(&payload),
            Kind::HelloReply if !is_greeted => replied(&payload),
            Kind::Message if is_greeted => said(&payload),
            got => return Err(FrameError::Unexpected { got, wanted: "another" }),
        }
        is_greeted = true;
    }
    Ok(())
}

fn take<'a>(stream: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, rest) = stream.split_at_checked(bytes)?;
    *stream = rest;
    Some(taken)
}

fn greeted(payload: &[u8]) {
    let Ok(hello) = serde_json::from_slice::<Hello>(payload) else {
        return;
    };
    let json = serde_json::to_vec(&hello).expect("it has a JSON form");
    assert_eq!(serde_json::from_slice::<Hello>(&json).expect("it reads back"), hello);
    match answer(&hello, VERSIONS, "b", "test") {
        HelloReply::Welcome { version, .. } => {
            assert!((hello.versions.oldest..=hello.versions.newest).contains(&version));
            assert!((VERSIONS.oldest..=VERSIONS.newest).contains(&version));
        }
        HelloReply::Unwelcome { reason } => assert!(reason.contains("upgrade")),
    }
}

fn replied(payload: &[u8]) {
    if let Ok(reply) = serde_json::from_slice::<HelloReply>(payload) {
        let json = serde_json::to_vec(&reply).expect("it has a JSON form");
        assert_eq!(
            serde_json::from_slice::<HelloReply>(&json).expect("it reads back"),
            reply
        );
    }
}

fn said(payload: &[u8]) {
    if let Ok(message) = Message::read(payload) {
        let json = serde_json::to_vec(&message).expect("it has a JSON form");
        // A number with a fraction may lose its last digit in an agent's matter, which nobody compares.
        let again = Message::read(&json).expect("it reads back");
        assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&message));
    }
    if let Ok(message) = tunnel::Message::read(payload) {
        let json = serde_json::to_vec(&message).expect("it has a JSON form");
        assert_eq!(tunnel::Message::read(&json).expect("it reads back"), message);
    }
}
