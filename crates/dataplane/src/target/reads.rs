//! Known content is read on a thread beside the lane's, which goes on without it where reading takes longer than to be sent
//! the pages. Such a thread ends when its read does.

use super::ReadContent;
use crate::arrivals::{Arrivals, Seen};
use crate::processors;
use crate::threads::lock;
use crossbeam_channel::{Receiver as Inbox, RecvTimeoutError, Sender as Outbox, bounded, select};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmferry_core::page::content::BLOCK_BYTES;
use vmferry_core::page::{Coded, Decoded, Decoder, Reading, Sending, Span, reading};

/// Spans that are read and that the lane has not come to.
const AHEAD_MAX: usize = 2;

/// What reading costs the lanes of a session, and what sending would.
pub(super) struct Costs {
    arrivals: Arc<Arrivals>,
    state: Mutex<State>,
    /// Disconnected once the guest stands still.
    stopped: Inbox<Infallible>,
}

struct State {
    reading: Reading,
    sending: Sending,
    /// Dropped then.
    stopping: Option<Outbox<Infallible>>,
    /// Those that were refused before: what is not waited for while the guest stands still may be as fast as any.
    slow: u64,
}

impl Costs {
    /// For so many lanes, and a limit in bytes a second of what they carry together.
    pub(super) fn new(lanes: u32, bandwidth: Option<u64>, arrivals: Arc<Arrivals>) -> Self {
        let (stopping, stopped) = bounded(0);
        Self {
            arrivals,
            state: Mutex::new(State {
                reading: Reading::new(lanes),
                sending: Sending {
                    lanes,
                    bandwidth,
                    ..Sending::default()
                },
                stopping: Some(stopping),
                slow: 0,
            }),
            stopped,
        }
    }

    /// The guest stands still.
    pub(super) fn guest_stopped(&self) {
        lock(&self.state).stopping = None;
    }

    /// A bit for each content source that is read no more because it is slow, the first one's the lowest.
    pub(super) fn refused(&self) -> u64 {
        let mut state = lock(&self.state);
        if state.stopping.is_some() {
            state.slow = state.reading.refused();
        }
        state.slow
    }

    fn refuse(&self, source: u16) {
        lock(&self.state).reading.refuse(source);
    }

    /// A batch came.
    fn came(&self, coded: Coded) {
        let sum = &mut lock(&self.state).sending.coded;
        sum.content_bytes += coded.content_bytes;
        sum.wire_bytes += coded.wire_bytes;
    }

    /// How long a page would take to be sent, as far as is known by now.
    fn time_per_page(&self) -> Duration {
        let Seen { bytes, time } = self.arrivals.seen();
        let sending = &mut lock(&self.state).sending;
        (sending.seen_bytes, sending.seen) = (bytes, time);
        sending.time_per_page()
    }

    /// Sorts out the spans that are not to be read, and returns their pages.
    fn sort_out(&self, spans: &mut VecDeque<Span>) -> Vec<u16> {
        let reading = &lock(&self.state).reading;
        let mut pages = Vec::new();
        spans.retain(|span| {
            let is_refused = reading.is_refused(span.source());
            if is_refused {
                pages.extend(span.pages());
            }
            !is_refused
        });
        pages
    }
}

/// Starts a thread that runs what it is given.
pub(super) type Spawn = Box<dyn FnMut(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send>;

/// The reads of one lane.
pub(super) struct Reads {
    content: Arc<ReadContent>,
    costs: Arc<Costs>,
    spawn: Spawn,
    /// As of the first read, until one lasts too long.
    thread: Option<Thread>,
}

/// The lane's end of the thread that reads for it.
struct Thread {
    jobs: Outbox<Vec<Job>>,
    results: Inbox<Read>,
    /// Buffers to read into.
    spent: Outbox<Vec<u8>>,
}

struct Job {
    source: u16,
    first: u64,
    blocks: usize,
}

struct Read {
    /// `None` if they can't be read.
    blocks: Option<Vec<u8>>,
    time: Duration,
}

impl Reads {
    pub(super) fn new(content: Arc<ReadContent>, costs: Arc<Costs>, spawn: Spawn) -> Self {
        Self {
            content,
            costs,
            spawn,
            thread: None,
        }
    }

    /// Fills in the pages that stand in known content. Returns those that have to be asked for, by their number in the batch.
    pub(super) fn find(&mut self, decoder: &Decoder, decoded: &mut Decoded) -> Vec<u16> {
        self.costs.came(decoded.coded());
        let mut spans = VecDeque::from(decoded.spans());
        let mut missing = Vec::new();
        if spans.is_empty() {
            return missing;
        }
        let per_page = self.costs.time_per_page();
        // More than once only where a read lasted too long.
        loop {
            missing.extend(self.costs.sort_out(&mut spans));
            if spans.is_empty() {
                return missing;
            }
            if self.begin(&spans).is_none() {
                // Without a thread nothing is read, and all can be sent.
                missing.extend(spans.iter().flat_map(Span::pages));
                return missing;
            }
            while let Some(span) = spans.pop_front() {
                let sending = |pages: usize| per_page.saturating_mul(pages as u32);
                let pages = span.pages();
                let Some(read) = self.wait(sending(pages.len())) else {
                    self.costs.refuse(span.source());
                    missing.extend(pages);
                    break;
                };
                let not_found = match &read.blocks {
                    Some(blocks) => decoder.fill(decoded, &span, blocks),
                    None => pages.clone(),
                };
                let found = sending(pages.len() - not_found.len());
                lock(&self.costs.state).reading.took(span.source(), read.time, found);
                missing.extend(not_found);
                if let (Some(thread), Some(blocks)) = (&self.thread, read.blocks) {
                    // Full when the thread has enough.
                    let _ = thread.spent.try_send(blocks);
                }
            }
        }
    }

    /// Has the thread read these one after the other; `None` if there is none.
    fn begin(&mut self, spans: &VecDeque<Span>) -> Option<()> {
        let job = |span: &Span| Job {
            source: span.source(),
            first: span.first(),
            blocks: span.blocks(),
        };
        let thread = match &self.thread {
            Some(thread) => thread,
            None => {
                let (jobs, inbox) = bounded(1);
                let (outbox, results) = bounded(AHEAD_MAX);
                let (spent, buffers) = bounded(AHEAD_MAX + 1);
                let content = self.content.clone();
                (self.spawn)(Box::new(move || run(&*content, &inbox, &outbox, &buffers))).ok()?;
                self.thread.insert(Thread { jobs, results, spent })
            }
        };
        thread.jobs.send(spans.iter().map(job).collect()).ok()
    }

    /// The next of those reads, of pages that would take `sending` to send; `None` if it takes too long, and those behind it
    /// are not read then.
    fn wait(&mut self, sending: Duration) -> Option<Read> {
        let results = &self.thread.as_ref()?.results;
        let read = select! {
            recv(results) -> read => read.map_err(|_| RecvTimeoutError::Disconnected),
            recv(self.costs.stopped) -> _ => results.recv_timeout(reading::wait_max(sending, true)),
            default(reading::wait_max(sending, false)) => Err(RecvTimeoutError::Timeout),
        };
        if read.is_err() {
            self.thread = None;
        }
        read.ok()
    }
}

/// Reads until the lane has ended or waits no more.
fn run(content: &ReadContent, jobs: &Inbox<Vec<Job>>, results: &Outbox<Read>, buffers: &Inbox<Vec<u8>>) {
    for Job { source, first, blocks } in jobs.iter().flatten() {
        let mut buffer = buffers.try_recv().unwrap_or_default();
        buffer.resize(blocks * BLOCK_BYTES, 0);
        let (began, delay) = (Instant::now(), processors::delay_of_this_thread());
        let is_read = content(source, first, &mut buffer);
        // A busy host is no slow disk.
        let delay = processors::delay_of_this_thread().saturating_sub(delay);
        let read = Read {
            blocks: is_read.then_some(buffer),
            time: began.elapsed().saturating_sub(delay),
        };
        if results.send(read).is_err() {
            return;
        }
    }
}
