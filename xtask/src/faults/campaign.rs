//! Run after run: a migration, its fault, and the judgement.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use vmferry_e2e::guest::Ticks;
use vmferry_e2e::image::{fsck, fsck_mounted};
use vmferry_e2e::migration::Migration;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::scenario::address;

use super::client::{Client, ensure_recorded};
use super::evidence;
use super::inject::{Carried, carry_out};
use super::judge::{Place, ensure_calm, ensure_true, settle};
use super::plan::{Fault, Plan, Side};
use super::step::Journals;
use super::world::{DATA, VM, World};

const TICK_INTERVAL: Duration = Duration::from_millis(5);

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The guest runs on the target.
    Completed,
    /// It runs on the source.
    RolledBack,
    /// It is gone, with the one QEMU that had all of it.
    Lost,
}

impl Outcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 3] = [Self::Completed, Self::RolledBack, Self::Lost];

    /// What people call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Completed => "moved",
            Self::RolledBack => "stayed",
            Self::Lost => "lost",
        }
    }
}

/// A run that was found good.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// What was to fail.
    pub(crate) plan: Plan,
    /// Whether it came: the migration got to the step, and there was something to fail.
    pub(crate) carried_out: bool,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// What the source's agent reported, where it lived to do so: outcome and reasons.
    pub(crate) reported: Option<String>,
    /// The longest that the client heard nothing of the guest, milliseconds. Of a guest that was lost there is none.
    pub(crate) silence_ms: Option<f64>,
    /// How long the run took, judgement included, seconds.
    pub(crate) took_s: f64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.plan, self.outcome.name())?;
        if let Some(silence) = self.silence_ms {
            write!(f, ", silent {silence:.0} ms")?;
        }
        if !self.carried_out && self.plan.fault != Fault::None {
            write!(f, ", the fault came too late")?;
        }
        write!(f, " ({:.1} s", self.took_s)?;
        match &self.reported {
            Some(reported) => write!(f, "; {reported})"),
            None => write!(f, ")"),
        }
    }
}

/// A campaign under way.
pub(crate) struct Campaign<'lab> {
    world: World<'lab>,
    /// Absent between a guest that was lost and the next one.
    client: Option<Client>,
    /// The records of a guest that was lost: in which file, and how many it had acknowledged.
    owed: Option<(String, u64)>,
    seed: u32,
    out: &'lab Path,
}

impl<'lab> Campaign<'lab> {
    /// Starts the agents of the program `vmferry`, with or without an arbiter; what is to be kept goes to `out`.
    pub(crate) fn begin(lab: &'lab Lab, vmferry: &Path, arbiter: bool, seed: u32, out: &'lab Path) -> Result<Self> {
        Ok(Self {
            world: World::new(lab, vmferry, arbiter)?,
            client: None,
            owed: None,
            seed,
            out,
        })
    }

    /// Carries run `number` out and judges it.
    ///
    /// # Errors
    /// What does not hold, and where all that is known of it was kept.
    pub(crate) fn run(&mut self, number: u32) -> Result<Run> {
        let plan = Plan::drawn(self.seed, number);
        self.try_run(&plan).or_else(|finding| {
            let folder = evidence::keep(&self.world, self.out, self.seed, &plan, &finding)?;
            let again = format!("cargo xtask faults --seed {} --only {number}", self.seed);
            Err(finding.context(format!("{plan}\nkept in {}; again: {again}", folder.display())))
        })
    }

    fn try_run(&mut self, plan: &Plan) -> Result<Run> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.boot()?,
        };
        let started = Instant::now();
        let [source, target] = [Side::Source, Side::Target].map(|side| self.world.host(side));
        let ticks = Ticks::start(self.world.lab, Host::Client, &mut client.guest, TICK_INTERVAL)?;
        let log = format!("{DATA}/log-{}", plan.number);
        let traffic = client.start(&log);
        let journals = Journals::watch(self.world.agent(source).folder(), self.world.agent(target).folder())?;

        let bandwidth = format!("{}MB/s", plan.bandwidth_mb_s);
        let agent = self.world.agent(source);
        let mut migration = Migration::begin(agent, VM, &address(target), &["--bandwidth", &bandwidth])?;
        let is_reached = plan.fault != Fault::None && journals.reach(plan.step, &mut migration)?;
        let carried = if is_reached {
            carry_out(&mut self.world, plan)?
        } else {
            Carried {
                out: false,
                source_restarted: false,
            }
        };
        let place = settle(&self.world)?;

        let report = match carried.source_restarted {
            true => None,
            false => Some(migration.report()?),
        };
        ensure_true(plan, &self.world, place, report.as_ref(), &journals)?;
        ensure_calm(&self.world)?;
        let silence = match place {
            Place::Running(at) => {
                let mut client = traffic.finish()?;
                client.guest.ask("stop-tick")?;
                let silence = ticks.finish()?;
                ensure!(
                    silence.repeated == 0,
                    "{} ticks of the guest came from two copies, or from a state that it had left",
                    silence.repeated
                );
                fsck_mounted(&self.world.disk)?;
                self.client = Some(client);
                self.world.at = at;
                Some(silence.gap_max)
            }
            Place::Ended(at) => {
                self.owed = Some((log, traffic.records()));
                self.world.agent(at).cli(["stop", VM])?.success()?;
                let silence = ticks.finish()?;
                ensure!(silence.repeated == 0, "ticks of the guest came from two copies");
                None
            }
        };
        Ok(Run {
            plan: *plan,
            carried_out: carried.out,
            outcome: match place {
                Place::Running(at) if at == target => Outcome::Completed,
                Place::Running(_) => Outcome::RolledBack,
                Place::Ended(_) => Outcome::Lost,
            },
            reported: report.as_ref().map(summary),
            silence_ms: silence.map(|silence| silence.as_secs_f64() * 1e3),
            took_s: started.elapsed().as_secs_f64(),
        })
    }

    /// Boots the guest, and checks that its disk has what the one before had acknowledged.
    fn boot(&mut self) -> Result<Client> {
        let mut client = self.world.boot().context("booting the guest")?;
        if let Some((log, acknowledged)) = self.owed.take() {
            ensure_recorded(&mut client.guest, &log, acknowledged)?;
        }
        Ok(client)
    }

    /// Ends the guest and checks its disk.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some(mut client) = self.client {
            client.guest.ask(&format!("unmount {DATA}"))?;
            self.world.agent(self.world.at).cli(["stop", VM])?.success()?;
            fsck(&self.world.disk, "raw")?;
        }
        Ok(())
    }
}

/// A report in a line.
fn summary(report: &Value) -> String {
    let reasons = report["reasons"].as_array().into_iter().flatten();
    let reasons: Vec<&str> = reasons.filter_map(Value::as_str).collect();
    let outcome = report["outcome"].as_str().unwrap_or("no outcome");
    match reasons.is_empty() {
        true => outcome.to_owned(),
        false => format!("{outcome}: {}", reasons.join("; ")),
    }
}
