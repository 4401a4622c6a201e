//! A migration stream through the engine. The target can't read its guest's memory, which takes QEMU's monitor, and that is the
//! manager's: so pages are referred to only among the last batches, and all go through QEMU.
//!
//! QEMU's last word on its return path (SHUT 0) crosses as the digest of what it has loaded. The source's QEMU is given it only
//! if that is what was sent: else its manager sees a migration that failed.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::limits::GUEST_BYTES_MAX;
use vmferry_core::page::{Catalog, Coders, FingerprintKey, RING_BATCHES, Reach};
use vmferry_core::qemu::return_path;
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::tunnel::Message;
use vmferry_dataplane::connection::{LinkEvent, Receiver, Sender};
use vmferry_dataplane::source::{self, Source};
use vmferry_dataplane::target::{self, Target};

use super::Carried;
use super::link::{Heard, Link};
use crate::migrate::peers::lock;

/// What an end's driver is told.
enum Told<Event> {
    Stream(Event),
    /// Both ends know, or are about to, that it is over.
    Over,
}

/// Carries what QEMU sends, and gives it what comes back, until either QEMU closes its socket or something fails.
pub(super) fn send(
    qemu: &UnixStream,
    (link, receiver): (&Link, &mut Receiver),
    lanes: Vec<(Sender, Receiver)>,
    coders: Coders,
    fingerprint_key: [u8; 32],
) -> Result<Carried, String> {
    let settings = source::Settings {
        coders,
        key: FingerprintKey::new(fingerprint_key),
        reach: Reach::Batches(RING_BATCHES),
        catalog: Arc::new(Catalog::default()),
        versions_bytes_max: 0,
        bandwidth: None,
    };
    let (tell, told) = mpsc::channel();
    let tell_stream = tell.clone();
    let on_event = move |event| drop(tell_stream.send(Told::Stream(event)));
    let stream = qemu
        .try_clone()
        .and_then(|qemu| Source::start(qemu, lanes, settings, on_event));
    let stream = Arc::new(stream.map_err(|error| format!("can't start the lanes: {error}"))?);
    watch_link(receiver, stream.clone());
    let mut written_bytes = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for told in told {
                match told {
                    Told::Stream(source::Event::Switchover | source::Event::Ended) => {}
                    Told::Stream(source::Event::Lost(why)) => tracing::info!(why, "passed on as it is"),
                    Told::Stream(source::Event::Taken) => link.end(None),
                    Told::Stream(source::Event::Failed(why)) => link.end(Some(why)),
                    Told::Over => break,
                }
            }
            stream.close();
        });
        let mut hear = |heard: Heard<'_>| match heard {
            Heard::Frame(Kind::ReturnPath, bytes) => {
                written_bytes += bytes.len() as u64;
                give(&stream, bytes)
            }
            Heard::Message(Message::Loaded { stream: loaded }) => {
                stream.check_loaded(&loaded)?;
                give(&stream, &return_path::shut(0))
            }
            Heard::Message(message) => Err(format!("{message:?} from the target's end")),
            Heard::Frame(kind, _) => Err(format!("a {kind:?} frame from the target's end")),
        };
        while let Some(heard) = link.next(receiver, &mut hear) {
            if let Err(why) = heard {
                link.end(Some(why));
                break;
            }
        }
        let _ = tell.send(Told::Over);
    });
    link.settle(receiver)?;
    let counters = stream.counters();
    Ok(Carried {
        read_bytes: counters.stream_bytes,
        written_bytes,
        wire_bytes: counters.wire_bytes,
    })
}

/// Bytes for the source's QEMU. That it has closed its socket its reader finds, too, when it has read what came before.
fn give(stream: &Source, bytes: &[u8]) -> Result<(), String> {
    match stream.return_path(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("the source's QEMU does not read its return path: {error}"))
        }
        _ => Ok(()),
    }
}

/// Has the lanes look after their own links when that of the tunnel's connection is there again.
fn watch_link(receiver: &mut Receiver, stream: Arc<Source>) {
    let down_since = Mutex::new(None);
    receiver.on_link(move |event| match event {
        LinkEvent::Down(why) => {
            tracing::warn!(%why, "the link broke; waiting for it");
            lock(&down_since).get_or_insert_with(Instant::now);
        }
        LinkEvent::Up => {
            tracing::info!("the link is there again");
            if let Some(since) = lock(&down_since).take() {
                stream.link_was_down(since.elapsed());
            }
        }
    });
}

/// Gives QEMU, which waits on that socket, what comes over the lanes, and sends back what it says, until either QEMU closes its
/// socket or something fails.
pub(super) fn receive(
    qemu: PathBuf,
    (link, receiver): (&Link, &mut Receiver),
    lanes: Vec<(Sender, Receiver)>,
    coders: Coders,
    fingerprint_key: [u8; 32],
    link_patience: Duration,
) -> Result<(), String> {
    let settings = target::Settings {
        coders,
        key: FingerprintKey::new(fingerprint_key),
        qemu,
        guest_bytes_max: GUEST_BYTES_MAX,
        content: Arc::new(|_, _, _| false),
        bandwidth: None,
        link_patience,
    };
    let (tell, told) = mpsc::channel();
    let tell_stream = tell.clone();
    let on_event = move |event| drop(tell_stream.send(Told::Stream(event)));
    let stream = Target::start(lanes, None, settings, on_event);
    let stream = stream.map_err(|error| format!("can't start the lanes: {error}"))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            for told in told {
                let said = match told {
                    Told::Stream(target::Event::ReturnPath(bytes)) => link.send(Kind::ReturnPath, bytes),
                    Told::Stream(target::Event::Loaded(stream)) => link.say(&Message::Loaded { stream }),
                    Told::Stream(target::Event::Failed(why)) => {
                        stream.close();
                        link.end(Some(why));
                        continue;
                    }
                    Told::Over => break,
                };
                if let Err(why) = said {
                    link.end(Some(why));
                }
            }
            stream.close();
        });
        let unasked = |heard: Heard<'_>| match heard {
            Heard::Message(message) => format!("{message:?} from the source's end"),
            Heard::Frame(kind, _) => format!("a {kind:?} frame from the source's end"),
        };
        if let Some(why) = link.next(receiver, unasked) {
            link.end(Some(why));
        }
        let _ = tell.send(Told::Over);
    });
    link.settle(receiver)
}
