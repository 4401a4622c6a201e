//! The source's half: reads QEMU's stream, encodes it on every lane at once, and sends it.

use crate::coding::Coding;
use crate::connection::{Handle, Receiver, Sender};
use crate::guest_memory::GuestMemory;
use crate::kept::Kept;
use crate::pace::Pace;
use crate::threads::{self, lock};
use crate::turn::InTurn;
use crossbeam_channel::{Receiver as Inbox, Sender as Outbox, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmferry_core::limits::{BATCH_BYTES, BATCH_BYTES_LEAST, LANE_CREDIT_BYTES_MAX};
use vmferry_core::page::choice::Log;
use vmferry_core::page::content::BLOCK_BYTES;
use vmferry_core::page::{
    Ask, Batch, BatchBuilder, BatchDigest, Catalog, Class, Coders, Encoders, EncodingStats, Fingerprint,
    FingerprintKey, Known, LineHashes, Op, PageSet, Place, Reach, RunningDigest, StreamDigest, catalog::ContentTally,
    encode, stats::Tally,
};
use vmferry_core::qemu::{Block, Mark};
use vmferry_core::session::{self, Ack, LaneCredit};
use vmferry_core::wire::frame::{HEADER_BYTES, Kind};
use vmferry_core::wire::message::MemoryHash;

/// A link that broke and is there again sooner was only that of the connection that noticed it.
const RECONNECT_MAX: Duration = Duration::from_millis(500);
/// How long the reader waits for more of a batch before it sends what there is. QEMU writes some 128 KiB at a time; while the
/// guest runs a moment's patience makes whole batches of them.
const PATIENCE: Duration = Duration::from_millis(2);

/// How long QEMU may take to read what it is given on its return path. It reads at once, unless the target has sent it what it
/// does not understand; then it never reads again.
const RETURN_PATH_LIMIT: Duration = Duration::from_secs(1);

/// Empty buffers that wait for the reader, at most. Acknowledgements give several back at once, as many as a lane may have on
/// its way; those that find no room are freed, and a new one costs a page fault for each of its pages.
const BUFFERS_PER_LANE: usize = LANE_CREDIT_BYTES_MAX as usize / BATCH_BYTES;

/// How a stream is sent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The coders that pages which have to be sent may go through; chosen from as they cost and save.
    pub coders: Coders,
    /// The session's key.
    pub key: FingerprintKey,
    /// Which pages the target can be referred to.
    pub reach: Reach,
    /// Known content that the target can read.
    pub catalog: Arc<Catalog>,
    /// Memory for hashes of pages as they were sent, bytes: pages sent again cross as their difference to those.
    pub versions_bytes_max: usize,
    /// The most that all lanes together may send, bytes per second.
    pub bandwidth: Option<u64>,
}

/// What the reader and the lanes have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest is stopped: the stream's last part began.
    Switchover,
    /// The stream can't be followed any further and is passed on as it is; the sentence says where and why.
    Lost(String),
    /// QEMU closed its socket.
    Ended,
    /// The target has placed, or its QEMU has taken, all that QEMU sent until then.
    Taken,
    /// A lane or the socket broke; nothing is sent any more.
    Failed(String),
}

/// Sums since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Bytes of QEMU's stream read.
    pub stream_bytes: u64,
    /// Wire bytes sent on the lanes, frames included; of those that were sent more than once, once.
    pub wire_bytes: u64,
    /// Wire bytes sent again over another TCP connection.
    pub resent_bytes: u64,
    /// Wire bytes that the target has received.
    pub acknowledged_bytes: u64,
    /// Bytes of the stream that the target has placed or its QEMU has taken.
    pub taken_bytes: u64,
    /// What was encoded, by round; index 0 is round 0, before QEMU told of its first.
    pub rounds: Vec<EncodingStats>,
    /// Of each content source: what came of referring to it.
    pub content: Vec<ContentTally>,
}

/// The running threads of the source's half. They end when [`close`](Source::close) is called or something fails.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
}

/// What happens in the order of batches.
struct Ordered {
    known: Known,
    digest: RunningDigest,
    sent: PageSet,
    blocks: Arc<[Block]>,
    page_bytes: usize,
}

struct Lane {
    sender: Mutex<Sender>,
    kept: Mutex<Kept>,
    credit: Mutex<LaneCredit>,
    acknowledged: Condvar,
    taken_bytes: AtomicU64,
    handle: Handle,
}

struct Shared {
    settings: Settings,
    qemu: UnixStream,
    ordered: InTurn<Ordered>,
    lanes: Vec<Lane>,
    pace: Option<Pace>,
    coding: Option<Coding>,
    began: Instant,
    round: AtomicU32,
    stopped: AtomicBool,
    /// QEMU closed its socket, and nobody was told yet that the target has all.
    untaken: AtomicBool,
    closed: AtomicBool,
    stream_bytes: AtomicU64,
    wire_bytes: AtomicU64,
    acknowledged_bytes: AtomicU64,
    rounds: Mutex<Vec<EncodingStats>>,
    on_event: Box<dyn Fn(Event) + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Starts to carry the stream that `qemu` sends over `lanes`. `on_event` is called from the threads and must not wait.
    pub fn start(
        qemu: UnixStream,
        lanes: Vec<(Sender, Receiver)>,
        settings: Settings,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> io::Result<Source> {
        let (senders, receivers): (Vec<Sender>, Vec<Receiver>) = lanes.into_iter().unzip();
        let lane = |sender: Sender| Lane {
            handle: sender.handle(),
            sender: Mutex::new(sender),
            kept: Mutex::default(),
            credit: Mutex::default(),
            acknowledged: Condvar::new(),
            taken_bytes: AtomicU64::new(0),
        };
        let lanes = senders.into_iter().map(lane).collect::<Vec<_>>();
        qemu.set_write_timeout(Some(RETURN_PATH_LIMIT))?;
        let reader_socket = qemu.try_clone()?;
        let shared = Arc::new(Shared {
            ordered: InTurn::new(Ordered {
                known: Known::new(settings.reach, settings.versions_bytes_max),
                digest: RunningDigest::new(&settings.key),
                sent: PageSet::default(),
                blocks: Arc::from([]),
                page_bytes: 0,
            }),
            pace: settings.bandwidth.map(Pace::new),
            coding: Coding::new(settings.coders.clone(), lanes.len(), settings.bandwidth),
            settings,
            qemu,
            lanes,
            began: Instant::now(),
            round: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            untaken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            stream_bytes: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            acknowledged_bytes: AtomicU64::new(0),
            rounds: Mutex::default(),
            on_event: Box::new(on_event),
        });
        // One batch waits per lane, and empty buffers come back.
        let (batches, inbox) = bounded(receivers.len());
        let (returned, buffers) = bounded(receivers.len() * BUFFERS_PER_LANE);
        for (index, receiver) in receivers.into_iter().enumerate() {
            let (inbox, for_lane, for_acks) = (inbox.clone(), returned.clone(), returned.clone());
            shared.spawn(format!("lane-{index}"), move |shared| {
                shared.run_lane(index, inbox, for_lane);
            })?;
            shared.spawn(format!("acks-{index}"), move |shared| {
                shared.run_acks(index, receiver, for_acks);
            })?;
        }
        shared.spawn("reader".to_owned(), move |shared| {
            shared.run_reader(reader_socket, batches, buffers);
        })?;
        Ok(Source { shared })
    }

    /// Batches cut from here on belong to this pre-copy round.
    pub fn set_round(&self, round: u32) {
        self.shared.round.store(round, Ordering::Relaxed);
    }

    /// Gives QEMU bytes on its return path. Fails if it does not read them in a second.
    pub fn return_path(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.shared.qemu).write_all(bytes)
    }

    /// The digest of everything read and encoded so far.
    pub fn digest(&self) -> StreamDigest {
        self.shared.ordered.look(|ordered| ordered.digest.current())
    }

    /// Hashes every page that was sent, as the guest's memory holds it now.
    pub fn hash_memory(&self, memory: &mut GuestMemory) -> io::Result<MemoryHash> {
        self.shared.ordered.look(|ordered| {
            memory.set_blocks(&ordered.blocks);
            memory.hash(&ordered.sent, ordered.page_bytes)
        })
    }

    /// Reads every page that was sent, as the guest's memory holds it now, except those that will stand in known content
    /// still when the guest comes back. Whole pages, some at once, with the place of the first.
    pub fn read_memory(
        &self,
        memory: &mut GuestMemory,
        each: &mut dyn FnMut(Place, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let catalog = &self.shared.settings.catalog;
        self.shared.ordered.look(|ordered| {
            memory.set_blocks(&ordered.blocks);
            let page_bytes = ordered.page_bytes.max(1);
            memory.read_all(&ordered.sent, page_bytes, &mut |first, pages| {
                let blocks = |bytes| (bytes / BLOCK_BYTES) as u64;
                (0..)
                    .zip(pages.chunks(page_bytes))
                    .filter(|(_, page)| !catalog.holds(page))
                    .try_for_each(|(number, page)| each(first.ahead(blocks(number * page_bytes)), page))
            })
        })
    }

    /// The sums so far.
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        Counters {
            stream_bytes: shared.stream_bytes.load(Ordering::Relaxed),
            wire_bytes: shared.wire_bytes.load(Ordering::Relaxed),
            resent_bytes: shared.lanes.iter().map(|lane| lane.handle.resent_bytes()).sum(),
            acknowledged_bytes: shared.acknowledged_bytes.load(Ordering::Relaxed),
            taken_bytes: shared.taken_bytes(),
            rounds: lock(&shared.rounds).clone(),
            content: shared.settings.catalog.tallies(),
        }
    }

    /// Which coders were chosen so far, and why.
    pub fn coding(&self) -> Log {
        self.shared.coding.as_ref().map(Coding::log).unwrap_or_default()
    }

    /// The link of another connection to the same peer is there again after that time. If that is longer than it takes to connect,
    /// all of the link was away, and the lanes would be slow to notice that it is there again: the kernel sends ever more rarely
    /// what is not acknowledged. So every lane whose TCP connection was made before is taken up again over another.
    pub fn link_was_down(&self, was_down: Duration) {
        let Some(before) = Instant::now()
            .checked_sub(was_down)
            .filter(|_| was_down > RECONNECT_MAX)
        else {
            return;
        };
        for lane in &self.shared.lanes {
            lane.handle.suspect(before);
        }
    }

    /// Whether what the target's QEMU has loaded is what was sent.
    ///
    /// # Errors
    /// That it is not.
    pub fn check_loaded(&self, loaded: &StreamDigest) -> Result<(), String> {
        let sent = self.digest();
        if sent == *loaded {
            return Ok(());
        }
        Err(format!(
            "{} bytes of QEMU's stream were sent, {} loaded, or others",
            sent.bytes, loaded.bytes
        ))
    }

    /// Closes QEMU's socket and every lane. A QEMU whose migration is not over ends it and resumes its guest.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // An error says that it is closed already.
        let _ = self.qemu.shutdown(Shutdown::Both);
        self.ordered.end();
        for lane in &self.lanes {
            lane.handle.close();
            // Whoever waits for credit holds the lock while it looks at `closed`, so it can't miss this.
            drop(lock(&lane.credit));
            lane.acknowledged.notify_all();
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

    fn run_reader(&self, mut qemu: UnixStream, batches: Outbox<Batch>, buffers: Inbox<Vec<u8>>) {
        let mut builder = BatchBuilder::new();
        let mut seq = 0;
        builder.set_batch_bytes(BATCH_BYTES_LEAST);
        loop {
            let more = match self.read_some(&mut qemu, &mut builder) {
                Ok(more) => more,
                Err(error) => return self.fail(format!("can't read from the source's QEMU: {error}")),
            };
            if more == More::Soon && !builder.is_full() {
                continue;
            }
            if more == More::Never {
                builder.end();
            }
            let fresh = buffers.try_recv().unwrap_or_default();
            if let Some(batch) = builder.cut(seq, self.round.load(Ordering::Relaxed), fresh) {
                seq += 1;
                if batches.send(batch).is_err() {
                    return;
                }
                let shares = self.lanes.iter().map(|lane| lock(&lane.credit).batch_share());
                builder.set_batch_bytes(session::batch_bytes(shares));
            }
            if more == More::Never {
                if !self.closed.load(Ordering::SeqCst) {
                    (self.on_event)(Event::Ended);
                    self.untaken.store(true, Ordering::SeqCst);
                    self.tell_if_taken();
                }
                return;
            }
        }
    }

    /// Reads once and says whether the rest of the batch is worth waiting for.
    fn read_some(&self, qemu: &mut UnixStream, builder: &mut BatchBuilder) -> io::Result<More> {
        let bytes = match qemu.read(builder.spare()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(More::Soon),
            // A QEMU that died without having read its return path. What it sent before may be all there is.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(More::Never),
            Err(error) => return Err(error),
        };
        if bytes == 0 {
            return Ok(More::Never);
        }
        self.stream_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        for mark in builder.filled(bytes) {
            match mark {
                Mark::Switchover => {
                    self.stopped.store(true, Ordering::Relaxed);
                    (self.on_event)(Event::Switchover);
                }
                Mark::Lost(reason) => (self.on_event)(Event::Lost(reason.to_string())),
                Mark::Blocks | Mark::Postcopy | Mark::RamEnd => {}
            }
        }
        let patience = if self.stopped.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            PATIENCE
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: patience.subsec_nanos().into(),
        };
        let readable = poll(&mut [PollFd::new(&*qemu, PollFlags::IN)], Some(&timeout));
        Ok(if readable.is_ok_and(|ready| ready == 0) {
            More::Later
        } else {
            More::Soon
        })
    }

    fn run_lane(&self, index: usize, inbox: Inbox<Batch>, returned: Outbox<Vec<u8>>) {
        let mut encoders = Encoders::new(self.settings.coders.clone());
        let mut meter = self.coding.as_ref().map(|coding| coding.lane(index));
        let mut sent_bytes = 0;
        for batch in inbox {
            if let Some(meter) = &mut meter {
                meter.came();
            }
            let fingerprints = self.settings.key.pages(&batch);
            let lines = if self.settings.versions_bytes_max > 0 {
                self.settings.key.lines(&batch)
            } else {
                Vec::new()
            };
            let batch_digest = self.settings.key.batch(&batch, &fingerprints);
            let in_turn = self.ordered.take(batch.seq, |ordered| {
                ordered.pass(&batch, &fingerprints, &lines, batch_digest)
            });
            let Some((mut classes, digest, blocks)) = in_turn else {
                return;
            };
            // While the guest stands still it does not wait for the target's disks.
            if !batch.is_of_stopped_guest() {
                self.settings
                    .catalog
                    .refer(&batch, &blocks, &fingerprints, &mut classes);
            }
            let mut stats = EncodingStats::default();
            let mut payload = lock(&self.lanes[index].sender).buffer();
            let coder = meter.as_mut().map_or(0, |meter| meter.choose(&batch, &classes));
            let stream_bytes = batch.stream().len() as u64;
            let encoded = encode(&batch, &classes, digest, &mut encoders, coder, &mut payload, &mut stats);
            match encoded {
                Ok(coded) => {
                    if let Some(meter) = &mut meter {
                        meter.encoded(stream_bytes, coded);
                    }
                }
                Err(error) => return self.fail(format!("can't encode batch {}: {error}", batch.seq)),
            }
            self.count(batch.round, &stats);
            sent_bytes += stream_bytes;
            if let Some(batch) = lock(&self.lanes[index].kept).keep(sent_bytes, batch, &classes) {
                // Full when more buffers circulate than are needed: this one may go.
                let _ = returned.try_send(batch.into_buffer());
            }
            if !self.wait_for_credit(index, stream_bytes, frame_bytes(&payload)) {
                return;
            }
            if let Some(pace) = &self.pace {
                pace.wait(payload.len() as u64);
            }
            if let Err(why) = self.send(index, Kind::Data, payload) {
                return self.fail(why);
            }
            if let Some(meter) = &mut meter {
                meter.sent();
            }
        }
    }

    fn send(&self, index: usize, kind: Kind, payload: Vec<u8>) -> Result<(), String> {
        let sent = lock(&self.lanes[index].sender).send(kind, payload);
        let bytes = sent.map_err(|error| format!("lane {index}: {error}"))?;
        self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn wait_for_credit(&self, index: usize, stream_bytes: u64, wire_bytes: u64) -> bool {
        let lane = &self.lanes[index];
        let waiting = |credit: &mut LaneCredit| !credit.allows(stream_bytes) && !self.closed.load(Ordering::SeqCst);
        let mut credit = lane
            .acknowledged
            .wait_while(lock(&lane.credit), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        credit.sent(stream_bytes, wire_bytes, self.began.elapsed());
        !self.closed.load(Ordering::SeqCst)
    }

    fn run_acks(&self, index: usize, mut receiver: Receiver, returned: Outbox<Vec<u8>>) {
        loop {
            let heard = match receiver.receive() {
                Ok((Kind::Ack, payload)) => match Ack::decode(payload) {
                    Some(ack) => self.acknowledged(index, ack, &returned),
                    None => Err("an unreadable acknowledgement".to_owned()),
                },
                Ok((Kind::Ask, payload)) => match Ask::decode(payload) {
                    Some(ask) => self.asked(index, &ask),
                    None => Err("a question that can't be read".to_owned()),
                },
                Ok((kind, _)) => Err(format!("a {kind:?} frame instead of an acknowledgement")),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = heard {
                return self.fail(format!("lane {index}: {why}"));
            }
        }
    }

    fn acknowledged(&self, index: usize, ack: Ack, returned: &Outbox<Vec<u8>>) -> Result<(), String> {
        let lane = &self.lanes[index];
        let acknowledged = lock(&lane.credit).acknowledged(ack, self.began.elapsed());
        let wire_bytes = acknowledged.map_err(|error| error.to_string())?;
        self.acknowledged_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
        self.settings.catalog.refused(ack.refused);
        if let Some(coding) = &self.coding {
            coding.acknowledged(index, &ack);
        }
        lane.taken_bytes.store(ack.stream_bytes, Ordering::SeqCst);
        lane.acknowledged.notify_all();
        self.tell_if_taken();
        while let Some(batch) = lock(&lane.kept).placed(ack.stream_bytes) {
            let _ = returned.try_send(batch.into_buffer());
        }
        Ok(())
    }

    /// Bytes of the stream that the target has placed or its QEMU has taken.
    fn taken_bytes(&self) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.taken_bytes.load(Ordering::SeqCst))
            .sum()
    }

    /// Both the reader and whoever hears the last acknowledgement look, each after it has set what the other looks at.
    fn tell_if_taken(&self) {
        if self.untaken.load(Ordering::SeqCst)
            && self.taken_bytes() == self.stream_bytes.load(Ordering::Relaxed)
            && self.untaken.swap(false, Ordering::SeqCst)
        {
            (self.on_event)(Event::Taken);
        }
    }

    /// Sends pages that the target did not find where it was referred to.
    fn asked(&self, index: usize, ask: &Ask) -> Result<(), String> {
        let answer = lock(&self.lanes[index].kept).answer(ask)?;
        lock(&self.lanes[index].credit).sent_beside(frame_bytes(&answer.payload));
        for source in &answer.sources {
            self.settings.catalog.missed(*source);
        }
        let supplied = Tally {
            pages: 0,
            wire_bytes: answer.payload.len() as u64,
        };
        self.count(
            answer.round,
            &EncodingStats {
                content: supplied,
                ..EncodingStats::default()
            },
        );
        if let Some(pace) = &self.pace {
            pace.wait(answer.payload.len() as u64);
        }
        self.send(index, Kind::Supply, answer.payload)
    }

    fn count(&self, round: u32, stats: &EncodingStats) {
        let mut rounds = lock(&self.rounds);
        let index = round as usize;
        if rounds.len() <= index {
            rounds.resize(index + 1, EncodingStats::default());
        }
        rounds[index] += *stats;
    }
}

/// Bytes of the frame that carries this.
fn frame_bytes(payload: &[u8]) -> u64 {
    (HEADER_BYTES + payload.len()) as u64
}

impl Ordered {
    /// What has to be done with a batch in its turn. The block list is the stream's.
    fn pass(
        &mut self,
        batch: &Batch,
        fingerprints: &[Fingerprint],
        lines: &[LineHashes],
        digest: BatchDigest,
    ) -> (Vec<Class>, StreamDigest, Arc<[Block]>) {
        let page_bytes = batch.page_bytes().max(1) as u64;
        for op in batch.ops() {
            let (block, offset, pages) = match op {
                Op::Blocks(blocks) => {
                    self.blocks = blocks.clone();
                    self.page_bytes = batch.page_bytes();
                    continue;
                }
                Op::Bytes(_) => continue,
                Op::Page { at, .. } => (at.block, at.offset, 1),
                Op::Zero { at, pages, .. } => (at.block, at.offset, *pages),
                Op::Foreign { block, offset, .. } => (*block, *offset, 1),
            };
            let page = offset / page_bytes;
            self.sent.insert(block, page..page + pages);
        }
        (
            self.known.classify(batch, fingerprints, lines),
            self.digest.extend(batch.stream().len(), digest),
            self.blocks.clone(),
        )
    }
}

/// Whether more of the stream can be had.
#[derive(PartialEq)]
enum More {
    /// At once.
    Soon,
    /// Not just now.
    Later,
    /// QEMU closed its socket.
    Never,
}
