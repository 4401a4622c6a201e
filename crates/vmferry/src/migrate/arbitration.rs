//! Asking the arbiter for a driver, one question at a time.

use std::sync::Arc;

use tokio::task::JoinHandle;
use vmferry_core::handover::arbiter::{Claim, NoRuling, Ruling, Side};
use vmferry_core::wire::message::Handover;

use crate::agent::Agent;

/// What came of a question.
pub(super) type Ruled = (Claim, Result<Ruling, NoRuling>);

/// The question that is under way, if one is.
#[derive(Debug, Default)]
pub(super) struct Arbitration {
    asked: Option<(Claim, JoinHandle<Result<Ruling, NoRuling>>)>,
}

impl Arbitration {
    /// Asks; what was asked before is not waited for any more, unless it was the same.
    pub(super) fn ask(
        &mut self,
        agent: &Arc<Agent>,
        side: Side,
        handover: &Handover,
        claim: Claim,
        target: Option<&str>,
    ) {
        if self
            .asked
            .as_ref()
            .is_some_and(|(asked, task)| *asked == claim && !task.is_finished())
        {
            return;
        }
        let (agent, handover, target) = (agent.clone(), handover.clone(), target.map(str::to_owned));
        // Not ended when it is replaced: what it asks may be on its way.
        let task = tokio::spawn(async move { agent.arbiter.ask(side, &handover, claim, target.as_deref()).await });
        self.asked = Some((claim, task));
    }

    /// What came of the last question; waits for ever while there is none. Dropping the future loses nothing.
    pub(super) async fn ruled(&mut self) -> Ruled {
        let Some((claim, task)) = &mut self.asked else {
            return std::future::pending().await;
        };
        let (claim, ruling) = (*claim, task.await);
        self.asked = None;
        let ruling = ruling.unwrap_or_else(|panic| Err(NoRuling::Unanswered(panic.to_string())));
        if let Err(why) = &ruling {
            tracing::warn!(?claim, %why, "the arbiter does not answer");
        }
        (claim, ruling)
    }
}
