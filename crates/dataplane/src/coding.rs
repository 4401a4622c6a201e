//! Which coder the lanes use: what they and the target measure goes to the [`Chooser`], which all lanes share.

use crate::arrivals::{Arrivals, Seen};
use crate::processors::{self, Spare};
use crate::threads::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use vmferry_core::page::choice::{Chooser, Encoded, Load, Log};
use vmferry_core::page::{Batch, Class, Coded, Coders};
use vmferry_core::session::Ack;

/// Lanes that wait for QEMU for this part of their time are faster than it.
const STARVED: f64 = 0.3;

/// Batches that have to have arrived between two looks at processors and at QEMU.
const LOOK_BATCHES_MIN: u64 = 4;

/// How long it is at least from one look to the next, so long after the session began: short at first, so that a choice does
/// not come late, and later long enough for bursts of acknowledgements not to matter.
fn look_span_min(elapsed: Duration) -> Duration {
    (elapsed / 4).min(Duration::from_millis(100))
}

/// The choice of a session's lanes, if it has one.
pub(crate) struct Coding {
    state: Mutex<State>,
    host: u64,
    began: Instant,
}

struct State {
    chooser: Chooser,
    spare: Spare,
    lanes: Vec<LaneState>,
    window: Since,
    /// What the target saw arrive, as it said last.
    arrived: Seen,
}

/// A batch on its way.
struct OnTheWay {
    /// Stream bytes of its lane up to its end.
    up_to: u64,
    stream_bytes: u64,
    content_bytes: u64,
    load: Load,
    coder: u8,
}

#[derive(Default)]
struct LaneState {
    sent: u64,
    on_the_way: VecDeque<OnTheWay>,
    acked: Ack,
}

/// What was seen since the last look.
struct Since {
    at: Instant,
    batches: u64,
    stream_bytes: u64,
    /// Lanes waited for QEMU.
    starved: Duration,
}

impl Since {
    fn now() -> Since {
        Since {
            at: Instant::now(),
            batches: 0,
            stream_bytes: 0,
            starved: Duration::ZERO,
        }
    }
}

impl Coding {
    /// For so many lanes and a limit in bytes a second; `None` where there is but one coder, for which nothing need be
    /// measured.
    pub(crate) fn new(coders: Coders, lanes: usize, limit: Option<u64>) -> Option<Coding> {
        if !coders.is_choice() {
            return None;
        }
        let mut spare = Spare::new();
        Some(Coding {
            state: Mutex::new(State {
                chooser: Chooser::new(coders, lanes as u16, spare.cores().spare, limit),
                spare,
                lanes: (0..lanes).map(|_| LaneState::default()).collect(),
                window: Since::now(),
                arrived: Seen::default(),
            }),
            host: processors::host(),
            began: Instant::now(),
        })
    }

    /// What was chosen so far, and why.
    pub(crate) fn log(&self) -> Log {
        self.state().chooser.log().clone()
    }

    /// Measures the lane's thread, on which this is to be called.
    pub(crate) fn lane(&self, index: usize) -> LaneMeter<'_> {
        LaneMeter {
            coding: self,
            index,
            at: Mark::now(),
            began: Mark::now(),
            load: Load::default(),
            coder: 0,
            encode: Duration::ZERO,
            coded: Coded::default(),
            stream_bytes: 0,
        }
    }

    /// The target acknowledged something on a lane.
    pub(crate) fn acknowledged(&self, index: usize, ack: &Ack) {
        let mut state = self.state();
        let state = &mut *state;
        let lane = &mut state.lanes[index];
        let before = std::mem::replace(&mut lane.acked, *ack);
        let grown = |now: u64, then: u64| Duration::from_nanos(now.saturating_sub(then));
        let mut arrived = Vec::new();
        while let Some(batch) = lane.on_the_way.pop_front_if(|batch| batch.up_to <= ack.stream_bytes) {
            arrived.push(batch);
        }
        // A figure of several batches, which an acknowledgement may be about, can't be told apart by coder.
        if let [batch] = &arrived[..]
            && ack.decode_ns > before.decode_ns
        {
            let decode = grown(ack.decode_ns, before.decode_ns);
            let chooser = &mut state.chooser;
            chooser.decoded(&batch.load, batch.coder, batch.content_bytes, decode);
            chooser.placed(batch.stream_bytes, grown(ack.place_ns, before.place_ns));
        }
        let more = state.arrived.grow(Seen {
            bytes: ack.seen_bytes,
            time: Duration::from_nanos(ack.seen_ns),
        });
        state.chooser.carried(more.bytes, more.time);
        let window = &mut state.window;
        window.batches += arrived.len() as u64;
        window.stream_bytes += ack.stream_bytes.saturating_sub(before.stream_bytes);
        self.look(state, ack);
    }

    /// Tells the chooser what was seen, if that is enough.
    fn look(&self, state: &mut State, ack: &Ack) {
        let span = state.window.at.elapsed();
        let span_min = look_span_min(self.began.elapsed());
        if state.window.batches < LOOK_BATCHES_MIN || span < span_min {
            return;
        }
        let seen = std::mem::replace(&mut state.window, Since::now());
        let of_lanes = span.as_secs_f64() * state.lanes.len() as f64;
        let floor = (seen.starved.as_secs_f64() >= STARVED * of_lanes && seen.stream_bytes > 0)
            .then(|| span.as_nanos() as f64 / seen.stream_bytes as f64);
        let cores = state.spare.cores();
        let mut source = cores.spare;
        let target = (ack.cores_milli > 0).then(|| ack.cores_milli as f64 / 1e3);
        if ack.host != 0 && ack.host == self.host {
            state.chooser.on_one_host();
            // What the other side uses, this one counts as taken.
            source = cores.with_other(target.unwrap_or(0.0));
        }
        // A floor lasts no longer than it is seen.
        state.chooser.cores(Some(source), target, Some(floor.unwrap_or(0.0)));
        state.chooser.note(self.began.elapsed());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A moment by both clocks.
#[derive(Clone, Copy)]
struct Mark {
    wall: Instant,
    processor: Duration,
    delay: Duration,
}

impl Mark {
    fn now() -> Mark {
        Mark {
            wall: Instant::now(),
            processor: processors::of_this_thread(),
            delay: processors::delay_of_this_thread(),
        }
    }

    /// Time since then that the thread waited for others; for a processor does not count.
    fn waited(&self, until: &Mark) -> Duration {
        let delay = until.delay.saturating_sub(self.delay);
        (until.wall - self.wall).saturating_sub(self.worked(until) + delay)
    }

    fn worked(&self, until: &Mark) -> Duration {
        until.processor.saturating_sub(self.processor)
    }
}

/// Measures one lane's thread: call its functions in the order in which they stand here, once a batch each.
pub(crate) struct LaneMeter<'a> {
    coding: &'a Coding,
    index: usize,
    /// When the last part ended.
    at: Mark,
    /// When the batch came.
    began: Mark,
    load: Load,
    coder: u8,
    encode: Duration,
    coded: Coded,
    stream_bytes: u64,
}

impl LaneMeter<'_> {
    /// A batch came from the reader.
    pub(crate) fn came(&mut self) {
        self.began = Mark::now();
        let starved = self.at.waited(&self.began);
        self.coding.state().window.starved += starved;
    }

    /// It is classified and about to be encoded: by this coder.
    pub(crate) fn choose(&mut self, batch: &Batch, classes: &[Class]) -> u8 {
        self.load = Load::of(batch, classes);
        self.coder = self.coding.state().chooser.choose(&self.load);
        self.at = Mark::now();
        self.coder
    }

    /// It is encoded.
    pub(crate) fn encoded(&mut self, stream_bytes: u64, coded: Coded) {
        let now = Mark::now();
        self.encode = self.at.worked(&now);
        (self.coded, self.stream_bytes, self.at) = (coded, stream_bytes, now);
        // Before it is sent: its acknowledgement can be here before the sender is back.
        let mut state = self.coding.state();
        let lane = &mut state.lanes[self.index];
        lane.sent += stream_bytes;
        lane.on_the_way.push_back(OnTheWay {
            up_to: lane.sent,
            stream_bytes,
            content_bytes: coded.content_bytes,
            load: self.load,
            coder: self.coder,
        });
    }

    /// It is sent.
    pub(crate) fn sent(&mut self) {
        let now = Mark::now();
        let batch = Encoded {
            stream_bytes: self.stream_bytes,
            coded: self.coded,
            encode: self.encode,
            other: self.began.worked(&now).saturating_sub(self.encode),
        };
        let mut state = self.coding.state();
        state.chooser.encoded(&self.load, self.coder, &batch);
        self.at = now;
    }
}

/// What a batch cost the target, on its way from the lane's thread to its acknowledgement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    decode: Duration,
    /// Of the threads that write its pages.
    pub(crate) place: Duration,
}

/// Measures a lane's thread on the target.
pub(crate) struct DecodeMeter {
    at: Duration,
}

impl DecodeMeter {
    /// To be called on the lane's thread when the data is here.
    pub(crate) fn came() -> DecodeMeter {
        DecodeMeter {
            at: processors::of_this_thread(),
        }
    }

    /// It is decoded.
    pub(crate) fn decoded(self) -> Spent {
        Spent {
            decode: processors::of_this_thread().saturating_sub(self.at),
            place: Duration::ZERO,
        }
    }
}

/// Adds up what batches cost the target, for its acknowledgements.
pub(crate) struct Bill {
    spare: Spare,
    host: u64,
    at: Duration,
    arrivals: Arc<Arrivals>,
}

impl Bill {
    /// To be called on the writer's thread.
    pub(crate) fn new(arrivals: Arc<Arrivals>) -> Bill {
        Bill {
            arrivals,
            spare: Spare::new(),
            host: processors::host(),
            at: processors::of_this_thread(),
        }
    }

    /// A batch of the lane is placed: what it cost is in its acknowledgement.
    pub(crate) fn add(&mut self, spent: Spent, ack: &mut Ack) {
        let now = processors::of_this_thread();
        let place = spent.place + now.saturating_sub(std::mem::replace(&mut self.at, now));
        ack.decode_ns += spent.decode.as_nanos() as u64;
        ack.place_ns += place.as_nanos() as u64;
        let Seen { bytes, time } = self.arrivals.seen();
        (ack.seen_bytes, ack.seen_ns) = (bytes, time.as_nanos() as u64);
        ack.cores_milli = (self.spare.cores().spare * 1e3) as u64;
        ack.host = self.host;
    }
}
