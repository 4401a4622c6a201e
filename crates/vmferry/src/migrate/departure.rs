//! Moving a VM away from here, in as many attempts as links that break make necessary. What an attempt left in the target's memory
//! is kept there, so that the next one does not send it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use vmferry_core::limits::HEARTBEAT;
use vmferry_core::wire::hello::MigrationId;
use vmferry_core::wire::message::{Handover, Message};

use super::figures::ms;
use super::peers::ask;
use super::source::{self, Attempt, Ended};
use crate::agent::Agent;
use crate::agent::migrations::MigrationHandle;
use crate::api::migration::{Outcome, Progress, Report};

/// Carries a migration out and reports how it ended.
pub async fn run(agent: Arc<Agent>, handle: MigrationHandle) -> Report {
    let began = Instant::now();
    let mut cancel = handle.cancel();
    let (mut id, mut number, mut earlier_wire_bytes) = (handle.id, 1, 0);
    let mut before = None;
    loop {
        let attempt = Attempt {
            id,
            handle: &handle,
            number,
        };
        let Ended {
            mut report,
            is_worth_another,
            handover,
        } = source::run(&agent, attempt).await;
        before = handover.or(before);
        report.attempts = number;
        report.earlier_wire_bytes = earlier_wire_bytes;
        if number > 1 {
            report.total_ms = ms(began.elapsed());
        }
        let Some(before) = before
            .clone()
            .filter(|_| is_worth_another && number <= handle.request.retries)
        else {
            return report;
        };
        tracing::warn!(migration = %handle.id, reasons = ?report.reasons, "trying again");
        earlier_wire_bytes += report.wire_bytes;
        id = tokio::select! {
            next = next_id(&agent, &handle, before, number) => match next {
                Ok(id) => id,
                Err(why) => {
                    report.reasons.push(why);
                    return report;
                }
            },
            () = cancel.wait() => {
                report.outcome = Outcome::Cancelled;
                return report;
            }
        };
        number += 1;
    }
}

/// The id of the next attempt, once the target has said that nothing is left of the one before.
async fn next_id(
    agent: &Agent,
    handle: &MigrationHandle,
    before: Handover,
    number: u32,
) -> Result<MigrationId, String> {
    let began = Instant::now();
    let patience = Duration::from_millis(handle.request.link_patience_ms);
    loop {
        let abort = Message::Abort {
            handover: before.clone(),
            reason: "it is tried again".to_owned(),
        };
        let why = match ask(agent, &handle.request.address(), abort).await {
            Ok(Message::Dropped { .. }) => return Ok(MigrationId(u128::from_ne_bytes(super::random()?))),
            Ok(other) => format!("the target's agent answers {other:?}"),
            Err(why) => why,
        };
        if began.elapsed() >= patience {
            return Err(format!("not tried again, as the target can't be reached: {why}"));
        }
        handle.progress(Progress {
            attempt: number,
            link_down_ms: Some(began.elapsed().as_millis() as u64),
            ..Progress::default()
        });
        sleep(HEARTBEAT).await;
    }
}
