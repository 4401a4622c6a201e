//! The target's half: decodes on every lane at once, puts the stream together again, places its pages, and has QEMU load
//! the rest.

mod reads;
mod writer;

use self::reads::{Costs, Reads, Spawn};
use self::writer::Writer;
use crate::arrivals::Arrivals;
use crate::coding::{DecodeMeter, Spent};
use crate::connection::{Handle, Receiver, Sender};
use crate::guest_memory::GuestMemory;
use crate::placement::Placement;
use crate::placers::Placers;
use crate::threads::{self, lock};
use crossbeam_channel::{Receiver as Inbox, Sender as Outbox, bounded};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmferry_core::limits::RETURN_PATH_FRAME_BYTES_MAX;
use vmferry_core::page::{Assembler, Coders, Decoded, Decoder, FingerprintKey, Place, StreamDigest};
use vmferry_core::qemu::return_path::{Message, ReturnPath};
use vmferry_core::session::{Next, TargetLane, Whole};
use vmferry_core::wire::frame::Kind;
use vmferry_core::wire::message::MemoryHash;

/// The socket buffer towards QEMU, bytes: what is in it when the guest stops still has to be loaded.
const QEMU_BUFFER_BYTES: usize = 256 * 1024;

/// How a stream is received.
#[derive(Clone)]
pub struct Settings {
    /// The coders that the source uses.
    pub coders: Coders,
    /// The session's key.
    pub key: FingerprintKey,
    /// The socket on which QEMU waits for its stream. Connected to when the first bytes are there: a QEMU that looks for a
    /// channel's first bytes stands still until they come.
    pub qemu: PathBuf,
    /// What the guest's memory blocks may have together, bytes.
    pub guest_bytes_max: u64,
    /// Reads known content: blocks of the content source of that number, from that block on; `false` if it can't. One that
    /// takes longer to read than its pages to be sent is not waited for, and not read any more.
    pub content: Arc<ReadContent>,
    /// The most that the source sends on all lanes together, bytes per second, if it keeps to a limit.
    pub bandwidth: Option<u64>,
    /// How long a lane whose link broke is waited for.
    pub link_patience: Duration,
}

/// Reads known content, from several threads at once.
pub type ReadContent = dyn Fn(u16, u64, &mut [u8]) -> bool + Send + Sync;

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

/// The running threads of the target's half. They take nothing more once [`stop`](Target::stop) is called or something fails,
/// and have ended after [`close`](Target::close).
#[derive(Debug)]
pub struct Target {
    shared: Arc<Shared>,
}

/// The part that works in the order of batches.
struct Ordered {
    assembler: Assembler,
    memory: Option<Arc<GuestMemory>>,
    /// Once the stream has listed its blocks, if the guest's memory can be reached.
    placement: Option<Placement>,
}

struct Shared {
    settings: Settings,
    lanes: Vec<Handle>,
    /// How fast they carry.
    arrivals: Arc<Arrivals>,
    costs: Arc<Costs>,
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
            .field("qemu", &self.settings.qemu)
            .finish_non_exhaustive()
    }
}

/// A batch on its way from a lane to the writer.
struct Arrived {
    lane: usize,
    whole: Whole<Spent>,
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
        let arrivals = arrivals_of(&lanes)?;
        let shared = Arc::new(Shared {
            costs: Arc::new(Costs::new(lanes.len() as u32, settings.bandwidth, arrivals.clone())),
            arrivals,
            lanes: lanes.iter().map(|(sender, _)| sender.handle()).collect(),
            ordered: Mutex::new(Ordered {
                assembler: Assembler::new(settings.key.clone()).with_guest_bytes_max(settings.guest_bytes_max),
                memory: memory.map(Arc::new),
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
        for (index, (sender, mut receiver)) in lanes.into_iter().enumerate() {
            receiver.count_arrivals(shared.arrivals.clone(), index);
            sender.handle().set_patience(shared.settings.link_patience);
            let sender = Arc::new(Mutex::new(sender));
            senders.push(sender.clone());
            let (arrived, buffers) = (arrived.clone(), buffers.clone());
            shared.spawn(format!("lane-{index}"), move |shared| {
                if let Err(why) = shared.run_lane(index, receiver, &sender, arrived, buffers) {
                    shared.fail(format!("lane {index}: {why}"));
                }
            })?;
        }
        // As many as lanes: what they write is what those decode.
        let (placers, threads) = Placers::new(senders.len());
        for (index, placer) in threads.into_iter().enumerate() {
            shared.spawn(format!("placer-{index}"), move |_| placer.run())?;
        }
        shared.spawn("writer".to_owned(), move |shared| {
            let writer = Writer::new(shared.clone(), senders, placers, returned);
            if let Err(why) = writer.run(&inbox) {
                shared.fail(why);
            }
        })?;
        Ok(Target { shared })
    }

    /// Hashes every page that the stream carried, as the guest's memory holds it now; `None` if it can't be read.
    pub fn hash_memory(&self) -> Option<io::Result<MemoryHash>> {
        let ordered = lock(&self.shared.ordered);
        let memory = ordered.memory.as_ref()?;
        Some(memory.hash(ordered.assembler.touched(), ordered.assembler.page_bytes()))
    }

    /// Reads every page that the stream carried and that was written straight into the guest's memory. Whole pages,
    /// some at once, with the place of the first.
    pub fn read_memory(&self, each: &mut dyn FnMut(Place, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let ordered = lock(&self.shared.ordered);
        let (Some(memory), Some(_)) = (&ordered.memory, &ordered.placement) else {
            return Ok(());
        };
        memory.read_all(ordered.assembler.touched(), ordered.assembler.page_bytes().max(1), each)
    }

    /// Bytes of pages that were written straight into the guest's memory, and why it is not all of them if others went
    /// through QEMU.
    pub fn placed(&self) -> (u64, Option<String>) {
        let ordered = lock(&self.shared.ordered);
        let unreachable = || "this host can't reach its guest's memory".to_owned();
        match &ordered.placement {
            Some(placement) => placement.placed(),
            None => (0, ordered.memory.is_none().then(unreachable)),
        }
    }

    /// The source's guest stands still: known content is waited for no longer than asking for the pages takes.
    pub fn guest_stopped(&self) {
        self.shared.costs.guest_stopped();
    }

    /// Closes every lane. A QEMU that has not loaded everything waits for more, and its memory can be read.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Closes QEMU's socket, too. A QEMU that has not loaded everything fails and ends; one that has is not disturbed.
    pub fn close(&self) {
        self.shared.close();
    }
}

fn arrivals_of(lanes: &[(Sender, Receiver)]) -> io::Result<Arc<Arrivals>> {
    let sockets = lanes.iter().map(|(_, receiver)| receiver.socket());
    Ok(Arc::new(Arrivals::new(sockets.collect::<io::Result<Vec<_>>>()?)))
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn stop(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            lane.close();
        }
    }

    fn close(&self) {
        self.stop();
        if let Some(qemu) = &*lock(&self.qemu) {
            // An error says that it is closed already.
            let _ = qemu.shutdown(Shutdown::Both);
        }
    }

    /// Runs a part of this on a thread of its own.
    fn spawn(self: &Arc<Self>, name: String, run: impl FnOnce(&Arc<Self>) + Send + 'static) -> io::Result<()> {
        let (for_run, for_panic) = (self.clone(), self.clone());
        let why = panicked(&name);
        threads::spawn(name, move || run(&for_run), move || for_panic.fail(why))
    }

    /// Reports the first failure; what follows from it is silent. QEMU's socket stays open for as long as somebody may want to
    /// keep what came of its memory.
    fn fail(&self, why: String) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            (self.on_event)(Event::Failed(why));
            self.stop();
        }
    }

    fn run_lane(
        self: &Arc<Self>,
        index: usize,
        mut receiver: Receiver,
        sender: &Mutex<Sender>,
        arrived: Outbox<Arrived>,
        buffers: Inbox<Vec<u8>>,
    ) -> Result<(), String> {
        let mut lane = TargetLane::new(Decoder::new(self.settings.key.clone(), self.settings.coders.clone()));
        let mut reads = Reads::new(self.settings.content.clone(), self.costs.clone(), self.reader(index));
        loop {
            if let Ok(buffer) = buffers.try_recv() {
                lane.recycle(buffer);
            }
            let (kind, payload) = receiver.receive().map_err(|error| error.to_string())?;
            let meter = self.settings.coders.is_choice().then(DecodeMeter::came);
            let find = |decoder: &Decoder, decoded: &mut Decoded| reads.find(decoder, decoded);
            let spent = || meter.map(DecodeMeter::decoded).unwrap_or_default();
            let heard = match kind {
                Kind::Data => lane.data(payload, find, spent),
                Kind::Supply => lane.supply(payload).map(Next::Complete),
                kind => return Err(format!("a {kind:?} frame instead of data")),
            };
            match heard.map_err(|error| error.to_string())? {
                Next::Ask(ask) => {
                    let asked = lock(sender).send(Kind::Ask, ask.encode());
                    asked.map_err(|error| error.to_string())?;
                }
                Next::Complete(whole) => {
                    if arrived.send(Arrived { lane: index, whole }).is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Starts threads that read for a lane. One may be stuck in its read for as long as it pleases the kernel, so it keeps
    /// nothing of this.
    fn reader(self: &Arc<Self>, lane: usize) -> Spawn {
        let shared = Arc::downgrade(self);
        Box::new(move |run| {
            let name = format!("content-{lane}");
            let (shared, why) = (shared.clone(), panicked(&name));
            let panicked = move || {
                if let Some(shared) = shared.upgrade() {
                    shared.fail(why);
                }
            };
            threads::spawn(name, run, panicked)
        })
    }

    fn connect(self: &Arc<Self>) -> Result<UnixStream, String> {
        let connect = || {
            let qemu = UnixStream::connect(&self.settings.qemu)?;
            rustix::net::sockopt::set_socket_send_buffer_size(&qemu, QEMU_BUFFER_BYTES)?;
            let (for_close, for_return_path) = (qemu.try_clone()?, qemu.try_clone()?);
            let mut to_close = lock(&self.qemu);
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
                    let ordered = lock(&self.ordered);
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

/// Why a session ends of which the thread of that name panicked.
fn panicked(name: &str) -> String {
    format!("the thread {name} panicked, which is a defect in vmferry: see the agent's log")
}
