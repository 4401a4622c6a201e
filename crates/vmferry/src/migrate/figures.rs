//! What a migration measured: processor time, stages, rounds; and the report made of it.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmferry_core::controller::Forecast;
use vmferry_core::handover::Stage;
use vmferry_core::page::choice::Log;
use vmferry_core::page::{EncodingStats, catalog::ContentTally, stats::Tally};
use vmferry_dataplane::source::Counters;
use vmferry_qmp::RamInfo;

use crate::api::migration::{
    ByEncoding, Coding, ContentReport, CpuSeconds, Encoded, Progress, Report, RoundReport, StageTime, Verification,
};

/// What the target tells of its side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TargetFigures {
    /// From the source's word that its guest is stopped until the guest ran, ms.
    pub(super) blackout_ms: Option<f64>,
    /// Processor time of the target's agent, seconds.
    pub(super) agent_cpu_s: f64,
    /// Processor time of the target's QEMU, seconds.
    pub(super) qemu_cpu_s: f64,
    /// Bytes of pages written straight into the guest's memory.
    pub(super) placed_bytes: u64,
    /// Why others went through QEMU.
    pub(super) not_placed: Option<String>,
}

/// Processor time that a process has had, all threads, user and system; zero if it is gone.
pub(super) fn cpu_of(pid: impl std::fmt::Display) -> Duration {
    let read = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last parenthesis may hold anything; `utime` and `stime` are the 12th and 13th field behind.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields
            .get(11)?
            .parse::<u64>()
            .ok()?
            .checked_add(fields.get(12)?.parse().ok()?)?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    };
    read().unwrap_or_default()
}

/// What an attempt measures on the source, while it runs and at its end.
#[derive(Debug)]
pub(super) struct Account {
    began: Instant,
    stages: Stages,
    rounds: Vec<(u32, Instant)>,
    rates: Rates,
    ram: RamInfo,
    forecast: Forecast,
    stopped_at: Option<Instant>,
    blackout: Option<Duration>,
    /// When the guest ran on the target, since the beginning: what follows is done for later, not for this migration.
    arrived: Option<Duration>,
    qemu: i32,
    cpu_at_start: (Duration, Duration),
    /// QEMU's processor time when it was ended.
    qemu_cpu: Option<Duration>,
    link: LinkAccount,
    /// The comparison of both memories.
    pub(super) verification: Option<Verification>,
    /// Where the stream could not be followed any further, and why.
    pub(super) stream_lost: Option<String>,
    /// The digest that both sides agreed on.
    pub(super) digest: Option<String>,
    /// The content sources that pages could be referred to, by number.
    pub(super) contents: Vec<String>,
    /// What the target told.
    pub(super) target: TargetFigures,
}

impl Account {
    /// For an attempt that began then, of the VM whose QEMU is process `qemu`.
    pub(super) fn new(began: Instant, qemu: i32) -> Account {
        Account {
            began,
            stages: Stages::new(),
            rounds: Vec::new(),
            rates: Rates::default(),
            ram: RamInfo::default(),
            forecast: Forecast::default(),
            stopped_at: None,
            blackout: None,
            arrived: None,
            qemu,
            cpu_at_start: (cpu_of("self"), cpu_of(qemu)),
            qemu_cpu: None,
            link: LinkAccount::default(),
            verification: None,
            stream_lost: None,
            digest: None,
            contents: Vec::new(),
            target: TargetFigures::default(),
        }
    }

    /// The stage is now this one.
    pub(super) fn stage(&mut self, stage: Stage) {
        self.stages.enter(stage);
    }

    /// A round begins.
    pub(super) fn round(&mut self, round: u32) {
        self.rounds.push((round, Instant::now()));
    }

    /// The guest is stopped here.
    pub(super) fn guest_stopped(&mut self) {
        self.stopped_at = Some(Instant::now());
    }

    /// Whether the guest was stopped for this attempt.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// The target says that the guest runs there.
    pub(super) fn guest_runs_there(&mut self) {
        self.blackout = self.blackout.or(self.stopped_at.map(|at| at.elapsed()));
        self.arrived = self.arrived.or(Some(self.began.elapsed()));
    }

    /// QEMU is about to be ended.
    pub(super) fn qemu_ends(&mut self) {
        self.qemu_cpu = Some(cpu_of(self.qemu));
    }

    /// QEMU told how far it is, `at` since the stream was opened, and the controller what it expects.
    pub(super) fn looked(&mut self, ram: RamInfo, forecast: Forecast, at: Duration, counters: &Counters) {
        self.ram = ram;
        self.forecast = forecast;
        self.rates.observe(at, counters);
    }

    /// The link broke.
    pub(super) fn link_down(&mut self) {
        self.link.broken = self.link.broken.or(Some(Instant::now()));
        self.link.breaks += 1;
    }

    /// It is there again. Returns for how long it was not.
    pub(super) fn link_up(&mut self) -> Duration {
        let down = self.link.broken.take().map(|at| at.elapsed()).unwrap_or_default();
        self.link.down += down;
        down
    }

    /// Whether the link broke in this attempt.
    pub(super) fn link_broke(&self) -> bool {
        self.link.breaks > 0
    }

    /// Whether the link is broken.
    pub(super) fn is_link_down(&self) -> bool {
        self.link.broken.is_some()
    }

    /// How long it was, all breaks together that are over.
    pub(super) fn link_was_down(&self) -> Duration {
        self.link.down
    }

    /// How far it is.
    pub(super) fn progress(&self, stage: Stage, counters: &Counters) -> Progress {
        let page = self.ram.page_size.max(1);
        Progress {
            stage: stage.into(),
            round: self.rounds.last().map_or(0, |(round, _)| *round),
            pages_left: self.ram.remaining / page,
            pages_total: self.ram.total / page,
            dirty_pages_per_s: self.ram.dirty_pages_rate as f64,
            wire_bytes_per_s: self.rates.wire,
            raw_bytes_per_s: self.rates.stream,
            wire_bytes: counters.wire_bytes + counters.resent_bytes,
            stream_bytes: counters.stream_bytes,
            by_encoding: by_encoding(&total(counters)),
            predicted_blackout_ms: self.forecast.blackout.map(ms),
            eta_s: self.forecast.time_left.map(|left| left.as_secs_f64()),
            elapsed_ms: self.began.elapsed().as_millis() as u64,
            attempt: 0,
            link_down_ms: self.link.broken.map(|at| at.elapsed().as_millis() as u64),
        }
    }

    /// Fills in a report that says how it ended.
    pub(super) fn report(self, head: Report, counters: &Counters, log: &Log) -> Report {
        let (agent_start, qemu_start) = self.cpu_at_start;
        let qemu_cpu = self.qemu_cpu.unwrap_or_else(|| cpu_of(self.qemu));
        Report {
            total_ms: self.arrived.map_or(head.total_ms, ms),
            stages: self.stages.finish(),
            rounds: rounds(counters, &self.rounds, Instant::now()),
            blackout_source_ms: self.blackout.map(ms),
            blackout_target_ms: self.target.blackout_ms,
            wire_bytes: counters.wire_bytes + counters.resent_bytes,
            resent_bytes: counters.resent_bytes,
            link_breaks: self.link.breaks,
            link_down_ms: ms(self.link.down),
            stream_bytes: counters.stream_bytes,
            placed_bytes: self.target.placed_bytes,
            not_placed: self.target.not_placed,
            contents: contents(self.contents, counters),
            coding: coding(log),
            verification: self.verification,
            cpu: CpuSeconds {
                source_agent: cpu_of("self").saturating_sub(agent_start).as_secs_f64(),
                target_agent: self.target.agent_cpu_s,
                source_qemu: qemu_cpu.saturating_sub(qemu_start).as_secs_f64(),
                target_qemu: self.target.qemu_cpu_s,
            },
            stream_followed: self.stream_lost.is_none(),
            stream_lost: self.stream_lost,
            digest: self.digest,
            ..head
        }
    }
}

/// What became of the link.
#[derive(Debug, Default)]
struct LinkAccount {
    /// Since when it is broken, if it is.
    broken: Option<Instant>,
    breaks: u32,
    /// How long it was broken.
    down: Duration,
}

/// As the API tells it.
fn coding(log: &Log) -> Vec<Coding> {
    let stretches = log.stretches().iter();
    let told = stretches.map(|stretch| Coding {
        from_ms: stretch.from_ms,
        pages: stretch.kind.to_string(),
        coder: stretch.settings.to_string(),
        batches: stretch.batches,
        probes: stretch.probes,
        link_bytes_per_s: Some(stretch.link_bytes_per_s).filter(|rate| rate.is_finite()),
        ratio: stretch.cost.ratio,
        encode_ns_per_byte: stretch.cost.encode_ns_per_byte,
        decode_ns_per_byte: stretch.cost.decode_ns_per_byte,
        source_cores: stretch.source_cores,
        target_cores: stretch.target_cores,
        expected_ns_per_byte: stretch.predicted.total,
    });
    told.collect()
}

/// The least time that a rate is measured over, seconds.
const RATE_SPAN_MIN_S: f64 = 0.05;

/// Rates over the last moments, for people.
#[derive(Debug, Default)]
struct Rates {
    wire: f64,
    stream: f64,
    last: Option<(Duration, u64, u64)>,
}

impl Rates {
    fn observe(&mut self, at: Duration, counters: &Counters) {
        if let Some((before, wire, stream)) = self.last {
            let span = at.saturating_sub(before).as_secs_f64();
            if span < RATE_SPAN_MIN_S {
                return;
            }
            // An average whose memory is about a second: steady enough to read.
            let weight = span.min(1.0);
            self.wire += weight * ((counters.wire_bytes - wire) as f64 / span - self.wire);
            self.stream += weight * ((counters.stream_bytes - stream) as f64 / span - self.stream);
        }
        self.last = Some((at, counters.wire_bytes, counters.stream_bytes));
    }
}

/// How long each stage takes.
#[derive(Debug)]
struct Stages {
    current: (Stage, Instant),
    past: Vec<StageTime>,
}

impl Stages {
    fn new() -> Stages {
        Stages {
            current: (Stage::Reserve, Instant::now()),
            past: Vec::new(),
        }
    }

    /// The stage is now this one.
    fn enter(&mut self, stage: Stage) {
        let (current, since) = self.current;
        if stage > current {
            self.past.push(StageTime {
                stage: current.into(),
                ms: ms(since.elapsed()),
            });
            self.current = (stage, Instant::now());
        }
    }

    /// All stages, the present one up to now.
    fn finish(mut self) -> Vec<StageTime> {
        let (current, since) = self.current;
        self.past.push(StageTime {
            stage: current.into(),
            ms: ms(since.elapsed()),
        });
        self.past
    }
}

/// The rounds, from what was encoded in each and when each began. Round 0 is what was read before QEMU told of its first.
fn rounds(counters: &Counters, began: &[(u32, Instant)], end: Instant) -> Vec<RoundReport> {
    let mut rounds: Vec<RoundReport> = Vec::new();
    for (number, stats) in counters.rounds.iter().enumerate() {
        let round = (number as u32).max(1);
        let encoded = by_encoding(stats);
        match rounds.last_mut().filter(|last| last.round == round) {
            Some(last) => {
                last.by_encoding = last.by_encoding.plus(&encoded);
                last.pages += stats.pages();
            }
            None => rounds.push(RoundReport {
                round,
                pages: stats.pages(),
                by_encoding: encoded,
                ms: 0.0,
            }),
        }
    }
    for report in &mut rounds {
        let start = began
            .iter()
            .find(|(round, _)| *round == report.round)
            .map(|(_, at)| *at);
        let next = began
            .iter()
            .find(|(round, _)| *round > report.round)
            .map_or(end, |(_, at)| *at);
        report.ms = start.map_or(0.0, |start| ms(next.saturating_duration_since(start)));
    }
    rounds
}

/// The content sources that pages were referred to.
fn contents(names: Vec<String>, counters: &Counters) -> Vec<ContentReport> {
    let used = names
        .into_iter()
        .zip(&counters.content)
        .filter(|(_, tally)| tally.referred > 0);
    let report = |(source, tally): (String, &ContentTally)| ContentReport {
        source,
        pages: tally.referred,
        pages_missed: tally.missed,
        is_slow: tally.is_slow,
    };
    used.map(report).collect()
}

/// All rounds together.
fn total(counters: &Counters) -> EncodingStats {
    let mut total = EncodingStats::default();
    for round in &counters.rounds {
        total += *round;
    }
    total
}

/// As the API tells it.
fn by_encoding(stats: &EncodingStats) -> ByEncoding {
    let encoded = |tally: Tally| Encoded {
        pages: tally.pages,
        bytes: tally.wire_bytes,
    };
    ByEncoding {
        zero: encoded(stats.zero),
        same: encoded(stats.same),
        copy: encoded(stats.copy),
        content: encoded(stats.content),
        patch: encoded(stats.patch),
        delta: encoded(stats.delta),
        lz: encoded(stats.lz),
        raw: encoded(stats.raw),
    }
}

/// Milliseconds with a fraction.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
