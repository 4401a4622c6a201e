//! How fast data arrives, seen where it does: while a lane waits for the rest of a frame, the link is at work, for that lane and
//! for all others. So what all of them receive meanwhile is counted, read or not. What was there when the wait began came at
//! an unknown time and is not counted, and a busy target is not taken for a slow link.
//!
//! A wait ends when the frame's last byte came, which the kernel tells, and not when its thread was given a processor to read
//! it. What came between the two for others is known only together with what came before, and counts by the time.

use crate::socket::{Held, Socket};
use crate::threads::lock;
use crate::transport::Incoming;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Of all lanes of a session.
#[derive(Debug)]
pub(crate) struct Arrivals {
    lanes: Vec<Socket>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Lanes that wait at present.
    waiting: u32,
    /// Up to when all is counted, if one does, and what each lane had received then.
    since: Instant,
    held: Vec<Held>,
    /// When the last frame that a lane waited for was here.
    whole: Instant,
    seen: Seen,
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Of all lanes, in that time.
    pub(crate) bytes: u64,
    /// Time in which at least one lane waited.
    pub(crate) time: Duration,
}

impl Seen {
    /// Becomes `now`, if that is more, and says by how much. Acknowledgements of several lanes overtake one another, so it may be
    /// less.
    pub(crate) fn grow(&mut self, now: Seen) -> Seen {
        if now.bytes <= self.bytes {
            return Seen::default();
        }
        let before = std::mem::replace(self, now);
        Seen {
            bytes: now.bytes - before.bytes,
            time: now.time.saturating_sub(before.time),
        }
    }
}

impl Arrivals {
    /// Of lanes that receive over these sockets, which are to be read by [`Lane`]s only from now on.
    pub(crate) fn new(sockets: impl IntoIterator<Item = TcpStream>) -> Arrivals {
        Arrivals {
            lanes: sockets.into_iter().map(Socket::new).collect(),
            state: Mutex::new(State::new()),
        }
    }

    /// What was seen up to now.
    pub(crate) fn seen(&self) -> Seen {
        let mut state = lock(&self.state);
        if state.waiting > 0 {
            let held = self.held();
            let now = Instant::now();
            state.count(now, now, held);
        }
        state.seen
    }

    /// Whether a lane waits at present.
    #[cfg(test)]
    pub(crate) fn are_awaited(&self) -> bool {
        lock(&self.state).waiting > 0
    }

    fn held(&self) -> Vec<Held> {
        self.lanes.iter().map(Socket::held).collect()
    }
}

/// A lane that reads its socket.
#[derive(Debug)]
pub(crate) struct Lane {
    arrivals: Arc<Arrivals>,
    index: usize,
}

impl Lane {
    /// The one of that number among the sockets.
    pub(crate) fn new(arrivals: Arc<Arrivals>, index: usize) -> Lane {
        Lane { arrivals, index }
    }

    /// Reads what there is of what comes in, and waits for it if there is nothing, for so long at the most.
    pub(crate) fn read(
        &self,
        incoming: &mut Incoming,
        buffer: &mut [u8],
        patience: Option<Duration>,
    ) -> io::Result<usize> {
        incoming.read(&mut self.socket().reader(patience), buffer)
    }

    /// Reads the rest of a frame whose beginning was read, and waits for it as [`read`](Self::read) does. Bytes of it that were
    /// received and are yet to be opened are here.
    pub(crate) fn read_rest(
        &self,
        incoming: &mut Incoming,
        rest: &mut [u8],
        patience: Option<Duration>,
    ) -> io::Result<()> {
        let mut reader = self.socket().reader(patience);
        if self.socket().held().unread >= incoming.lacks(rest.len()) {
            return incoming.read_exact(&mut reader, rest);
        }
        {
            let mut state = lock(&self.arrivals.state);
            if state.waiting == 0 {
                let held = self.arrivals.held();
                state.begin(Instant::now(), held);
            }
            state.waiting += 1;
        }
        let result = incoming.read_exact(&mut reader, rest);
        let mut state = lock(&self.arrivals.state);
        state.waiting -= 1;
        state.whole = state.whole.max(reader.came());
        if state.waiting == 0 {
            let (held, until) = (self.arrivals.held(), state.whole);
            state.count(Instant::now(), until, held);
        }
        result
    }

    /// The lane goes on over another socket.
    pub(crate) fn goes_on(&self, stream: TcpStream) {
        self.socket().goes_on(stream);
    }

    fn socket(&self) -> &Socket {
        &self.arrivals.lanes[self.index]
    }
}

impl State {
    fn new() -> State {
        let now = Instant::now();
        State {
            waiting: 0,
            since: now,
            held: Vec::new(),
            whole: now,
            seen: Seen::default(),
        }
    }

    /// A lane begins to wait when no other does.
    fn begin(&mut self, now: Instant, held: Vec<Held>) {
        (self.since, self.whole, self.held) = (now, now, held);
    }

    /// Counts what came up to now, and the time until the given moment, when the last lane's wait was over.
    fn count(&mut self, now: Instant, until: Instant, held: Vec<Held>) {
        let time = until.min(now).saturating_duration_since(self.since);
        let part = time.as_secs_f64() / (now - self.since).as_secs_f64().max(f64::MIN_POSITIVE);
        if !time.is_zero() {
            for (before, after) in self.held.iter().zip(&held) {
                let came = |up_to: u64| up_to.saturating_sub(before.received());
                // What was read is what was waited for. Of what was not, nobody knows when it came.
                let (all, read) = (came(after.received()), came(after.read));
                self.seen.bytes += read + ((all - read) as f64 * part) as u64;
            }
            self.seen.time += time;
        }
        (self.since, self.held) = (now, held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::tests::{connected, until_unread};
    use std::io::Write;

    const MS: Duration = Duration::from_millis(1);

    /// Two lanes and their peers.
    fn two_lanes() -> (Arc<Arrivals>, [Lane; 2], [TcpStream; 2]) {
        let (here, peers): (Vec<_>, Vec<_>) = [(); 2].map(|()| connected()).into_iter().unzip();
        let arrivals = Arc::new(Arrivals::new(here));
        let lanes = [0, 1].map(|index| Lane::new(arrivals.clone(), index));
        (arrivals, lanes, peers.try_into().unwrap())
    }

    #[test]
    fn while_one_lane_waits_what_the_other_does_not_read_counts_too() {
        let (arrivals, [waits, works], [mut to_waiting, mut to_working]) = two_lanes();
        // Nobody waits for these, and who reads them later did not either.
        to_working.write_all(&[1; 5000]).unwrap();
        until_unread(works.socket(), 5000);
        let mut rest = vec![0; 1000];
        std::thread::scope(|scope| {
            let read = scope.spawn(|| waits.read_rest(&mut Incoming::plain(), &mut rest, None));
            while !arrivals.are_awaited() {
                std::thread::yield_now();
            }
            to_working.write_all(&[2; 3000]).unwrap();
            until_unread(works.socket(), 8000);
            let seen = arrivals.seen();
            assert!(seen.bytes == 3000 && !seen.time.is_zero(), "{seen:?}");
            assert_eq!(works.read(&mut Incoming::plain(), &mut [0; 8000], None).unwrap(), 8000);
            assert_eq!(arrivals.seen().bytes, 3000, "it came already");
            to_waiting.write_all(&[3; 1000]).unwrap();
            read.join().unwrap().unwrap();
        });
        assert_eq!(arrivals.seen().bytes, 4000);
        let seen = arrivals.seen();
        to_working.write_all(&[4; 2000]).unwrap();
        until_unread(works.socket(), 2000);
        works.read_rest(&mut Incoming::plain(), &mut [0; 2000], None).unwrap();
        assert_eq!(arrivals.seen(), seen, "nobody waited");
    }

    #[test]
    fn lanes_that_wait_at_the_same_time_share_the_time_and_add_their_bytes() {
        let (arrivals, lanes, peers) = two_lanes();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let reads = lanes
                .each_ref()
                .map(|lane| scope.spawn(|| lane.read_rest(&mut Incoming::plain(), &mut [0; 1000], None)));
            while lock(&arrivals.state).waiting < 2 {
                std::thread::yield_now();
            }
            for (mut peer, read) in peers.iter().zip(reads) {
                peer.write_all(&[1; 1000]).unwrap();
                read.join().unwrap().unwrap();
            }
        });
        let (seen, most) = (arrivals.seen(), began.elapsed());
        assert_eq!(seen.bytes, 2000);
        assert!(!seen.time.is_zero() && seen.time <= most, "{seen:?} of {most:?}");
    }

    #[test]
    fn a_wait_ends_when_its_last_byte_came_not_when_somebody_could_read_it() {
        let held = |read, unread| Held { read, unread };
        let began = Instant::now();
        let mut state = State::new();
        state.begin(began, vec![held(100, 20), held(0, 500)]);
        // Of the second lane came 1000 bytes meanwhile, and the frame of the first was here after a quarter of the time.
        state.count(began + 40 * MS, began + 10 * MS, vec![held(320, 0), held(0, 1500)]);
        let seen = Seen {
            bytes: 200 + 250,
            time: 10 * MS,
        };
        assert_eq!(state.seen, seen);
        // What was here before all this was counted adds neither time nor bytes.
        state.count(began + 80 * MS, began + 10 * MS, vec![held(320, 100), held(0, 9000)]);
        assert_eq!(state.seen, seen);
    }

    #[test]
    fn what_was_said_later_and_is_less_counts_for_nothing() {
        let seen = |bytes, ms| Seen {
            bytes,
            time: Duration::from_millis(ms),
        };
        let mut all = Seen::default();
        assert_eq!(all.grow(seen(0, 0)), Seen::default());
        assert_eq!(all.grow(seen(300, 3)), seen(300, 3));
        for overtaken in [seen(0, 0), seen(200, 2), seen(300, 9)] {
            assert_eq!((all.grow(overtaken), all), (Seen::default(), seen(300, 3)));
        }
        assert_eq!(all.grow(seen(500, 1)), seen(200, 0));
    }
}
