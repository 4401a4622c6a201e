//! A migration under way, watched through the agent's API.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::api::{Next, Stream};
use crate::scenario::SMALL_GUEST_MIB;

/// The longest silence of a migration that is still alive: views come at each look at QEMU, several a second, and the
/// longest wait of a handover is 30 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A migration that was begun and runs by itself. Dropping it changes nothing.
pub struct Migration {
    views: Stream,
    last: Value,
}

impl Migration {
    /// Has `agent` begin to move `vm` to the agent at `to`, with further `flags` of `vmferry migrate`.
    ///
    /// # Errors
    /// When the agent does not begin it; what it said is in the error.
    pub fn begin(agent: &Agent, vm: &str, to: &str, flags: &[&str]) -> Result<Self> {
        let arguments = [&["migrate", vm, "--to", to, "--detach"], flags].concat();
        let begun = agent.cli(arguments)?.success()?;
        let id = begun["id"].as_str().with_context(|| format!("no id in {begun}"))?;
        let views = Stream::open(&agent.socket(), &format!("/v1/migrations/{id}/events"))?;
        Ok(Self { views, last: begun })
    }

    /// Waits until a view of its progress satisfies `reached`.
    ///
    /// # Errors
    /// When it ends before, with its report.
    pub fn until(&mut self, what: &str, reached: impl Fn(&Value) -> bool) -> Result<()> {
        while !reached(&self.last["progress"]) {
            let Some(view) = self.next()? else {
                bail!("it ended before {what}: {}", self.last["report"]);
            };
            self.last = view;
        }
        Ok(())
    }

    /// Waits until the guest's memory is crossing, with most of it still to come.
    ///
    /// # Errors
    /// As [`Migration::until`].
    pub fn until_precopy(&mut self) -> Result<()> {
        self.until("its pre-copy", |progress| {
            progress["stage"] == "precopy" && progress["wire_bytes"].as_u64() > Some(1 << 20)
        })
    }

    /// Waits for its end and returns the report.
    ///
    /// # Errors
    /// When the agent goes away first.
    pub fn report(mut self) -> Result<Value> {
        while let Some(view) = self.next()? {
            self.last = view;
        }
        let report = self.last["report"].take();
        ensure!(!report.is_null(), "the agent went away during the migration");
        Ok(report)
    }

    fn next(&mut self) -> Result<Option<Value>> {
        match self.views.next(SILENCE_MAX)? {
            Next::Object(view) => Ok(Some(view)),
            Next::End => Ok(None),
            Next::Silence => bail!("nothing was heard of it for {SILENCE_MAX:?}; last: {}", self.last),
        }
    }
}

/// Whether a report tells of a [small guest](crate::scenario::small_guest) that moved, and whose memory was found equal before
/// it did, byte for byte and all of it.
///
/// # Errors
/// When it tells of anything else.
pub fn ensure_moved_and_verified(report: &Value) -> Result<()> {
    ensure!(report["outcome"] == "completed", "{report:#}");
    let verification = &report["verification"];
    ensure!(verification["equal"] == true, "{report:#}");
    let all = u64::from(SMALL_GUEST_MIB) << 20;
    ensure!(verification["bytes_compared"].as_u64() >= Some(all), "{report:#}");
    ensure!(report["stream_followed"] == true, "{report:#}");
    Ok(())
}

/// The reasons in a report, one a line.
#[must_use]
pub fn reasons(report: &Value) -> Vec<String> {
    let listed = report["reasons"].as_array().into_iter().flatten();
    listed.filter_map(|reason| Some(reason.as_str()?.to_owned())).collect()
}
