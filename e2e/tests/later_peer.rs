//! A peer of a later version, which says more than this one knows: it is understood as far as this version goes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use vmferry_core::wire::PREFACE;
use vmferry_core::wire::frame::{HEADER_BYTES, Header, Kind};
use vmferry_e2e::agent;
use vmferry_e2e::migration::ensure_moved_and_verified;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::scenario::{Scenario, ensure_alive, small_guest};

/// Stands between two agents, and has each hear from the other what a later version might say.
struct LaterVersion {
    address: SocketAddr,
    messages: Arc<AtomicU64>,
}

impl LaterVersion {
    fn start(lab: &Lab) -> Result<Self> {
        let messages = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&messages);
        let address = lab.within(Host::A, move || {
            let listener = TcpListener::bind((Host::A.address(), 0))?;
            let address = listener.local_addr()?;
            // It inherits this thread's namespace, so what it opens is on the host, too.
            thread::spawn(move || {
                for source in listener.incoming().map_while(Result::ok) {
                    // A failure shows to the agents as a connection that closes, and fails the test by that.
                    let _ = connect(source, &counter);
                }
            });
            Ok(address)
        })?;
        Ok(Self { address, messages })
    }
}

fn connect(source: TcpStream, messages: &Arc<AtomicU64>) -> Result<()> {
    let target = TcpStream::connect((Host::B.address(), agent::PORT))?;
    let (there, back) = (Arc::<Passed>::default(), Arc::<Passed>::default());
    let ways = [
        (source.try_clone()?, target.try_clone()?, [there.clone(), back.clone()]),
        (target, source, [back, there]),
    ];
    for (from, to, [passed, other_way]) in ways {
        let messages = Arc::clone(messages);
        thread::spawn(move || {
            // Ends with an error when either side closes.
            let _ = pass_on(&from, &to, &messages, &passed, &other_way);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// The frames behind the hellos that went one way: whether each was sent by the agent itself.
type Passed = Mutex<Vec<bool>>;

fn pass_on(
    mut from: &TcpStream,
    mut to: &TcpStream,
    messages: &AtomicU64,
    passed: &Passed,
    other_way: &Passed,
) -> Result<()> {
    let mut preface = [0; PREFACE.len()];
    from.read_exact(&mut preface)?;
    to.write_all(&preface)?;
    let poisoned = || anyhow!("the other direction failed");
    loop {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let header = Header::parse(&header)?;
        let mut payload = vec![0; header.payload_bytes];
        from.read_exact(&mut payload)?;
        // Of those that it heard only the other agent's own count for that.
        let heard = {
            let other_way = other_way.lock().map_err(|_| poisoned())?;
            other_way
                .iter()
                .take(header.heard as usize)
                .filter(|is_own| **is_own)
                .count() as u64
        };
        let is_numbered = !matches!(header.kind, Kind::Hello | Kind::HelloReply);
        for (index, payload) in said_later(header.kind, payload)?.into_iter().enumerate() {
            let sequence = {
                let mut passed = passed.lock().map_err(|_| poisoned())?;
                let sequence = passed.len() as u64;
                if is_numbered {
                    passed.push(index == 0);
                }
                sequence
            };
            let header = Header::encode(header.kind, sequence, heard, &payload).context("it got too long")?;
            to.write_all(&[&header[..], &payload].concat())?;
        }
        messages.fetch_add(u64::from(header.kind == Kind::Message), Ordering::Relaxed);
    }
}

/// The frames that a later version sends in place of one.
fn said_later(kind: Kind, payload: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    if !matches!(kind, Kind::Hello | Kind::HelloReply | Kind::Message) {
        return Ok(vec![payload]);
    }
    let mut value: Value = serde_json::from_slice(&payload)?;
    let more = json!({"x": [1, "y", null]});
    if let Some(newest) = value["versions"]["newest"].as_u64() {
        value["versions"]["newest"] = (newest + 1).into();
        value["versions"]["more"] = more.clone();
    }
    for part in ["handover", "transfer", "image", "offer"] {
        if let Some(part) = value.get_mut(part).filter(|part| part.is_object()) {
            part["more"] = more.clone();
        }
    }
    value["more"] = more.clone();
    let mut frames = vec![serde_json::to_vec(&value)?];
    if kind == Kind::Message {
        frames.push(serde_json::to_vec(&json!({"message": "sing", "song": more}))?);
    }
    Ok(frames)
}

#[test]
fn agents_that_hear_more_than_they_know_hand_a_guest_over() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up_in_the_clear(&lab)?;
    let later = LaterVersion::start(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 8388608")?;
    let to = later.address.to_string();
    let report = scenario.a.cli(["migrate", "web", "--to", &to, "--verify"])?.success()?;
    ensure_moved_and_verified(&report)?;
    scenario.settles(&[], &["web"])?;
    ensure_alive(&mut guest)?;
    // Reserve, Reserved, Stopped, Prepared, Commit, Figures, Running.
    let messages = later.messages.load(Ordering::Relaxed);
    assert!(messages >= 7, "{messages} messages went that way");
    Ok(())
}
