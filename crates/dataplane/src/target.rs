//! The target's half: decodes on every lane at once, puts the stream together again, places its pages, and has QEMU load
//! the rest.

use crate::coding::{Bill, DecodeMeter, Spent};
use crate::connection::{Closer, Receiver, Sender};
use crate::guest_memory::GuestMemory;
use crate::placement::Placement;
use crate::threads;
use crossbeam_channel::{Receiver as Inbox, Sender as Outbox, bounded};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmferry_core::limits::{BATCH_PLAIN_BYTES_MAX, LANE_CREDIT_BYTES_MAX, RETURN_PATH_FRAME_BYTES_MAX};
use vmferry_core::page::{Assembler, Coders, Decoded, Decoder, FingerprintKey, Op, ReadError, StreamDigest};
use vmferry_core::qemu::return_path::{Message, ReturnPath};
use vmferry_core::session::{Ack, Reorder};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::message::MemoryHash;

/// The socket buffer towards QEMU, bytes: what is in it when the guest stops still has to be loaded.
const QEMU_BUFFER_BYTES: usize = 256 * 1024;

/// How a stream is received.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The coders that the source uses.
    pub coders: Coders,
    /// The session's key.
    pub key: FingerprintKey,
    /// The socket on which QEMU waits for its stream. Connected to when the first bytes are there: a QEMU that looks for a
    /// channel's first bytes stands still until they come.
    pub qemu: PathBuf,
}

/// What the threads have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// QEMU says this on its return path, for the source's QEMU.
    ReturnPath(Vec<u8>),
    /// QEMU has loaded the stream, all of it, and said so (SHUT 0); that message stays here.
    Loaded(StreamDigest),
    /// A lane, the stream, or QEMU's loading of it failed.
    Failed(String),
}

/// The running threads of the target's half. They end when [`close`](Target::close) is called or something fails.
#[derive(Debug)]
pub struct Target {
    shared: Arc<Shared>,
}

/// The part that works in the order of batches.
struct Ordered {
    assembler: Assembler,
    memory: Option<GuestMemory>,
    /// Once the stream has listed its blocks, if the guest's memory can be reached.
    placement: Option<Placement>,
}

struct Shared {
    settings: Settings,
    lanes: Vec<Closer>,
    ordered: Mutex<Ordered>,
    qemu: Mutex<Option<UnixStream>>,
    closed: AtomicBool,
    /// QEMU said that it has loaded everything.
    loaded: AtomicBool,
    on_event: Box<dyn Fn(Event) + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A batch on its way from a lane to the writer.
struct Arrived {
    lane: usize,
    wire_bytes: u64,
    decoded: Decoded,
    spent: Spent,
}

impl Target {
    /// Starts to receive over `lanes`. References reach as far as `memory` lets them. `on_event` is called from the threads
    /// and must not wait.
    pub fn start(
        lanes: Vec<(Sender, Receiver)>,
        memory: Option<GuestMemory>,
        settings: Settings,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> io::Result<Target> {
        let shared = Arc::new(Shared {
            lanes: lanes
                .iter()
                .map(|(sender, _)| sender.closer())
                .collect::<io::Result<Vec<_>>>()?,
            ordered: Mutex::new(Ordered {
                assembler: Assembler::new(settings.key.clone()),
                memory,
                placement: None,
            }),
            settings,
            qemu: Mutex::new(None),
            closed: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            on_event: Box::new(on_event),
        });
        let (arrived, inbox) = bounded(lanes.len());
        let (returned, buffers) = bounded(4 * lanes.len());
        let mut senders = Vec::new();
        for (index, (sender, receiver)) in lanes.into_iter().enumerate() {
            senders.push(sender);
            let (arrived, buffers) = (arrived.clone(), buffers.clone());
            shared.spawn(format!("lane-{index}"), move |shared| {
                shared.run_lane(index, receiver, arrived, buffers);
            })?;
        }
        shared.spawn("writer".to_owned(), move |shared| {
            shared.run_writer(senders, inbox, returned);
        })?;
        Ok(Target { shared })
    }

    /// Hashes every page that the stream carried, as the guest's memory holds it now; `None` if it can't be read.
    pub fn hash_memory(&self) -> Option<io::Result<MemoryHash>> {
        let ordered = self.shared.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = ordered.memory.as_ref()?;
        Some(memory.hash(ordered.assembler.touched(), ordered.assembler.page_bytes()))
    }

    /// Bytes of pages that were written straight into the guest's memory, and why it is not all of them if others went
    /// through QEMU.
    pub fn placed(&self) -> (u64, Option<String>) {
        let ordered = self.shared.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        let unreachable = || "this host can't reach its guest's memory".to_owned();
        match &ordered.placement {
            Some(placement) => placement.placed(),
            None => (0, ordered.memory.is_none().then(unreachable)),
        }
    }

    /// Closes every lane and QEMU's socket. A QEMU that has not loaded everything fails; one that has is not disturbed.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            lane.close();
        }
        if let Some(qemu) = &*self.qemu.lock().unwrap_or_else(PoisonError::into_inner) {
            // An error says that it is closed already.
            let _ = qemu.shutdown(Shutdown::Both);
        }
    }

    /// Runs a part of this on a thread of its own.
    fn spawn(self: &Arc<Self>, name: String, run: impl FnOnce(&Arc<Self>) + Send + 'static) -> io::Result<()> {
        let (for_run, for_panic) = (self.clone(), self.clone());
        let why = format!("the thread {name} panicked, which is a defect in vmferry: see the agent's log");
        threads::spawn(name, move || run(&for_run), move || for_panic.fail(why))
    }

    /// Reports the first failure; what follows from it is silent.
    fn fail(&self, why: String) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            (self.on_event)(Event::Failed(why));
            self.close();
        }
    }

    fn run_lane(&self, index: usize, mut receiver: Receiver, arrived: Outbox<Arrived>, buffers: Inbox<Vec<u8>>) {
        let mut decoder = Decoder::new(self.settings.key.clone(), self.settings.coders.clone());
        loop {
            if let Ok(buffer) = buffers.try_recv() {
                decoder.recycle(buffer);
            }
            let mut meter = DecodeMeter::waits();
            let received = receiver.receive();
            meter.came();
            let (decoded, wire_bytes) = match received {
                Ok((Kind::Data, payload)) => (decoder.decode(payload), payload.len() as u64),
                Ok((kind, _)) => return self.fail(format!("lane {index}: a {kind:?} frame instead of data")),
                Err(error) => return self.fail(format!("lane {index}: {error}")),
            };
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error) => return self.fail(format!("lane {index}: {error}")),
            };
            let wire_bytes = wire_bytes + vmferry_core::wire::frame::HEADER_BYTES as u64;
            if arrived
                .send(Arrived {
                    lane: index,
                    wire_bytes,
                    decoded,
                    spent: meter.decoded(),
                })
                .is_err()
            {
                return;
            }
        }
    }

    fn run_writer(self: &Arc<Self>, mut lanes: Vec<Sender>, inbox: Inbox<Arrived>, returned: Outbox<Vec<u8>>) {
        let mut qemu = None;
        let mut acks = vec![Ack::default(); lanes.len()];
        let mut bill = Bill::new();
        // Nothing can be further ahead than all lanes' credit in the smallest batches; a batch stands for a byte at least,
        // but a source that cuts such batches is idle and has nothing ahead.
        let window = lanes.len() as u64 * LANE_CREDIT_BYTES_MAX;
        let mut reorder = Reorder::new(window);
        // A source that keeps to its credit is never so far ahead with bytes either.
        let waiting_max = lanes.len() as u64 * (LANE_CREDIT_BYTES_MAX + BATCH_PLAIN_BYTES_MAX as u64);
        let mut waiting = 0;
        for arrived in inbox {
            waiting += arrived.decoded.stream_bytes();
            if waiting > waiting_max {
                return self.fail("the source sends more than it has credit for".to_owned());
            }
            if let Err(error) = reorder.put(arrived.decoded.seq(), arrived) {
                return self.fail(error.to_string());
            }
            while let Some(arrived) = reorder.take() {
                let (lane, wire_bytes, spent) = (arrived.lane, arrived.wire_bytes, arrived.spent);
                waiting -= arrived.decoded.stream_bytes();
                let stream_bytes = match self.write(&mut qemu, arrived.decoded) {
                    Ok(bytes) => bytes,
                    Err(why) => return self.fail(why),
                };
                while let Some(buffer) = self.spent() {
                    // Full when the lanes have enough.
                    let _ = returned.try_send(buffer);
                }
                acks[lane].stream_bytes += stream_bytes;
                acks[lane].wire_bytes += wire_bytes;
                bill.add(spent, &mut acks[lane]);
                if let Err(error) = lanes[lane].send(Kind::Ack, &acks[lane].encode()) {
                    return self.fail(format!("lane {lane}: {error}"));
                }
            }
        }
    }

    fn spent(&self) -> Option<Vec<u8>> {
        self.ordered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .assembler
            .spent()
    }

    /// Places the next batch's pages and gives QEMU the rest; returns the length of its stream.
    fn write(self: &Arc<Self>, qemu: &mut Option<UnixStream>, decoded: Decoded) -> Result<u64, String> {
        let mut ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        // From then on the guest's memory is nobody's but the guest's.
        if self.loaded.load(Ordering::SeqCst) || self.closed.load(Ordering::SeqCst) {
            return Err("the source sends more than its QEMU's stream".to_owned());
        }
        let Ordered {
            assembler,
            memory,
            placement,
        } = &mut *ordered;
        let batch = assembler
            .apply(decoded, &mut |block, offset, into| match memory {
                Some(memory) => memory
                    .read(block, offset, into)
                    .map_err(|error| ReadError(error.to_string())),
                None => Err(ReadError(
                    "it lies beyond what this host keeps and may not be read".to_owned(),
                )),
            })
            .map_err(|error| error.to_string())?;
        for op in batch.ops() {
            if let (Op::Blocks(blocks), Some(memory)) = (op, &mut *memory) {
                memory.set_blocks(blocks);
                *placement = Some(Placement::new(memory, blocks, batch.page_bytes()));
            }
        }
        let for_qemu = match (placement, memory) {
            (Some(placement), Some(memory)) => placement
                .place(memory, &batch)
                .map_err(|error| format!("can't write the target guest's memory: {error}"))?,
            _ => batch.stream().into(),
        };
        // QEMU's word that it has loaded all of this can't overtake the digest, which is complete here.
        drop(ordered);
        if !for_qemu.is_empty() {
            let qemu = match qemu {
                Some(qemu) => qemu,
                None => qemu.insert(self.connect()?),
            };
            qemu.write_all(&for_qemu)
                .map_err(|error| format!("the target's QEMU stopped reading: {error}"))?;
        }
        Ok(batch.stream().len() as u64)
    }

    fn connect(self: &Arc<Self>) -> Result<UnixStream, String> {
        let connect = || {
            let qemu = UnixStream::connect(&self.settings.qemu)?;
            rustix::net::sockopt::set_socket_send_buffer_size(&qemu, QEMU_BUFFER_BYTES)?;
            let (for_close, for_return_path) = (qemu.try_clone()?, qemu.try_clone()?);
            let mut to_close = self.qemu.lock().unwrap_or_else(PoisonError::into_inner);
            // `close` looks for this socket after it has set the mark: a connection made meanwhile would stay open.
            if self.closed.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            *to_close = Some(for_close);
            drop(to_close);
            self.spawn("return-path".to_owned(), move |shared| {
                shared.run_return_path(for_return_path);
            })?;
            Ok(qemu)
        };
        connect().map_err(|error: io::Error| format!("can't reach the target's QEMU: {error}"))
    }

    /// Passes on what QEMU says to the source's QEMU, except its last word, which decides who owns the VM.
    fn run_return_path(&self, mut qemu: UnixStream) {
        let mut return_path = ReturnPath::new();
        let mut buffer = vec![0; RETURN_PATH_FRAME_BYTES_MAX];
        let mut filled = 0;
        loop {
            match qemu.read(&mut buffer[filled..]) {
                Ok(0) => {
                    return self.fail("the target's QEMU closed its socket: it could not load the stream".to_owned());
                }
                Ok(bytes) => filled += bytes,
                Err(error) => return self.fail(format!("can't read from the target's QEMU: {error}")),
            }
            let mut parsed = 0;
            let last_word = loop {
                match return_path.next(&buffer[parsed..filled]) {
                    Ok(Some((_, Message::Shut(value)))) => break Some(value),
                    Ok(Some((bytes, _))) => parsed += bytes,
                    Ok(None) => break None,
                    Err(error) => return self.fail(error.to_string()),
                }
            };
            if parsed > 0 {
                (self.on_event)(Event::ReturnPath(buffer[..parsed].to_vec()));
            }
            match last_word {
                Some(0) => {
                    let ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
                    self.loaded.store(true, Ordering::SeqCst);
                    let digest = ordered.assembler.digest();
                    drop(ordered);
                    return (self.on_event)(Event::Loaded(digest));
                }
                Some(value) => {
                    return self.fail(format!("the target's QEMU could not load the stream (it said {value})"));
                }
                None => {}
            }
            buffer.copy_within(parsed..filled, 0);
            filled -= parsed;
        }
    }
}
