//! Processor time: what this thread has used, and what the host has to spare.

use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Processor time of this thread.
pub(crate) fn of_this_thread() -> Duration {
    time_of(ClockId::ThreadCPUTime)
}

thread_local! {
    /// Of the thread itself; none where the kernel does not tell.
    static SCHEDULED: Option<File> = File::open("/proc/thread-self/schedstat").ok();
}

/// Time that this thread could have run and had to wait for a processor.
pub(crate) fn delay_of_this_thread() -> Duration {
    let delay = SCHEDULED.with(|file| {
        let mut text = [0; 64];
        let bytes = file.as_ref()?.read_at(&mut text, 0).ok()?;
        // Time that it ran, time that it waited, how often it ran.
        let text = str::from_utf8(text.get(..bytes)?).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(delay.unwrap_or(0))
}

fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The kernel counts idle time in hundredths of a second on every processor, so a shorter look says little.
const SPAN_MIN: Duration = Duration::from_millis(200);

/// Processors that the host has for this process: what it uses, and what nobody does.
#[derive(Debug)]
pub(crate) struct Spare {
    looked_at: Instant,
    idle: Duration,
    own: Duration,
    cores: Cores,
}

/// Processors, on average over a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cores {
    /// What this process uses.
    own: f64,
    /// That, and what nobody uses.
    pub(crate) spare: f64,
}

impl Cores {
    /// What this process has together with another one of the host, which has so many to spare.
    pub(crate) fn with_other(self, other_spare: f64) -> f64 {
        // What nobody uses is in the other's already.
        (self.own + other_spare).max(self.spare).min(permitted())
    }
}

impl Spare {
    /// Before the first look, all that this process may run on.
    pub(crate) fn new() -> Spare {
        Spare {
            looked_at: Instant::now(),
            idle: idle().unwrap_or_default(),
            own: time_of(ClockId::ProcessCPUTime),
            cores: Cores {
                own: 0.0,
                spare: permitted(),
            },
        }
    }

    /// How many there are at present, on average over a moment.
    pub(crate) fn cores(&mut self) -> Cores {
        let now = Instant::now();
        let span = now - self.looked_at;
        if span >= SPAN_MIN
            && let Some(idle) = idle()
        {
            let own = time_of(ClockId::ProcessCPUTime);
            let cores = |time: Duration| time.as_secs_f64() / span.as_secs_f64();
            let (used, unused) = (
                cores(own.saturating_sub(self.own)),
                cores(idle.saturating_sub(self.idle)),
            );
            self.cores = Cores {
                own: used,
                spare: (used + unused).clamp(CORES_MIN, permitted()),
            };
            (self.looked_at, self.idle, self.own) = (now, idle, own);
        }
        self.cores
    }
}

/// A process gets its share of a host that others keep busy.
const CORES_MIN: f64 = 0.25;

/// Processors that this process may run on.
fn permitted() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// Idle time of all processors since the host started; `None` where the kernel does not tell.
fn idle() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    // "cpu", user, nice, system, idle, waiting for disks, which is idle as well.
    let mut fields = stat.lines().next()?.split_whitespace().skip(4);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()? + next()?;
    Some(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64,
    ))
}

/// A number that is the same for all processes of a host and hardly for two hosts; 0 where the kernel does not tell.
pub(crate) fn host() -> u64 {
    let id = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match id.is_empty() {
        true => 0,
        false => blake3::hash(&id)
            .as_bytes()
            .first_chunk()
            .map_or(0, |first| u64::from_be_bytes(*first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_uses_processor_time() {
        let before = of_this_thread();
        let mut hash = blake3::Hasher::new();
        hash.update(&vec![1; 8 << 20]);
        assert_ne!(hash.finalize().as_bytes()[..], [0; 32]);
        assert!(of_this_thread() > before);
    }

    #[test]
    fn two_processes_of_a_host_have_what_each_uses_and_what_nobody_does_once() {
        // As parts of all, however many there are here.
        let of = |part: f64| part * permitted();
        let this = Cores {
            own: of(0.25),
            spare: of(0.375),
        };
        assert_eq!(this.with_other(of(0.5)), of(0.75));
        assert_eq!(this.with_other(0.0), of(0.375), "looked at different moments");
        assert_eq!(this.with_other(of(1.0)), of(1.0));
    }

    #[test]
    fn this_host_has_processors_and_a_number_that_stays() {
        let cores = Spare::new().cores().spare;
        assert!(cores >= CORES_MIN && cores <= permitted());
        assert!(idle().is_some());
        assert_ne!(host(), 0);
        assert_eq!(host(), host());
    }
}
