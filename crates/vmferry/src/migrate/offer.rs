//! Offering a VM, and admitting one that is offered: the host's checks, and what is set aside.

use serde_json::Value;
use vmferry_core::wire::message::Handover;
use vmferry_dataplane::guest_memory::GuestMemory;

use crate::agent::Agent;
use crate::arbiter::ArbiterName;
use crate::content::{Known, name::ContentName};
pub(super) use crate::host::Offer;
use crate::host::check::{MemoryPolicy, Occupancy, check, reservation_for};
use crate::host::{Refusal, TargetFacts, describe};
use crate::vm::{Role, RunningVm, VmDefinition};

/// How often disks are compared before differences count: a guest that writes changes them between both hosts' looks.
pub(super) const DISK_LOOKS: usize = 4;

/// Describes a VM that runs here, for a target to check; and the content that its pages may be referred to.
pub(super) async fn make(agent: &Agent, vm: &RunningVm) -> Result<(Value, Vec<Known>), String> {
    let mut offer = describe(vm)
        .await
        .map_err(|error| format!("the VM can't be offered: {error}"))?;
    let contents = agent.content.of(vm).await;
    offer.arbiter = agent.arbiter.name().await.map_err(|error| error.to_string())?;
    offer.contents = contents.iter().map(|known| known.name.clone()).collect();
    let offer = serde_json::to_value(offer).map_err(|error| error.to_string())?;
    Ok((offer, contents))
}

/// A VM that was checked and has its memory and its name set aside, until it is given back.
#[derive(Debug)]
pub(super) struct Admission {
    /// What it is.
    pub(super) definition: VmDefinition,
    /// What the source may refer its pages to.
    pub(super) contents: Vec<ContentName>,
    /// Its guest's memory, once its QEMU is there, if it may be read.
    pub(super) memory: Option<GuestMemory>,
}

/// Weighs an offer against what this host was found to be, everything at once, and sets aside what it needs.
pub(super) fn admit(
    agent: &Agent,
    handover: &Handover,
    offer: Offer,
    facts: &TargetFacts,
) -> Result<Admission, Vec<String>> {
    if offer.definition.name != handover.vm {
        return Err(vec![format!(
            "the offer is of {}, the definition of {}",
            handover.vm, offer.definition.name
        )]);
    }
    let policy = MemoryPolicy {
        limit: agent.config.memory_limit.map(|limit| limit.0),
        headroom: agent.config.memory_headroom.0,
    };
    // Check and promise are one step, so that two offers at once do not both get the last of the memory.
    let mut reservations = agent.peers.reservations();
    let definitions: Vec<VmDefinition> = agent.registry.lock().values().map(|vm| vm.definition.clone()).collect();
    let occupancy = Occupancy::new(&definitions, &reservations);
    let mut refusals = check(&offer, facts, &occupancy, policy);
    refusals.extend(agent.config.policy.check_count(occupancy.vms()).map(Refusal::Policy));
    if !refusals.is_empty() {
        return Err(refusals.iter().map(Refusal::to_string).collect());
    }
    let definition = offer.definition;
    agent
        .enter_incoming(definition.clone(), handover.epoch, handover.migration)
        .map_err(|error| vec![error.to_string()])?;
    reservations.hold(&definition.name, reservation_for(&definition));
    Ok(Admission {
        definition,
        contents: offer.contents,
        memory: None,
    })
}

/// Both agents have to ask the same arbiter, or none, and be told apart there.
pub(super) async fn same_arbiter(agent: &Agent, theirs: Option<&ArbiterName>) -> Result<Option<String>, String> {
    let ours = agent.arbiter.name().await.map_err(|error| error.to_string())?;
    match (ours, theirs) {
        (None, None) => Ok(None),
        (Some(ours), Some(theirs)) if (&ours.cluster, &ours.prefix) != (&theirs.cluster, &theirs.prefix) => Err(
            "the target's agent asks another arbiter than the source's: name the same etcd with --arbiter and \
             --arbiter-prefix"
                .to_owned(),
        ),
        (Some(ours), Some(theirs)) if ours.host == theirs.host => Err(format!(
            "both agents are called {:?}, and the arbiter could not tell them apart: name one otherwise with --name",
            ours.host
        )),
        (Some(ours), Some(_)) => Ok(Some(ours.host)),
        (Some(_), None) => {
            Err("the target's agent has an arbiter and the source's has none: start both with it".to_owned())
        }
        (None, Some(_)) => {
            Err("the source's agent has an arbiter and the target's has none: start both with it".to_owned())
        }
    }
}

/// Sets aside what a VM takes that was admitted before the agent restarted.
pub(super) fn hold(agent: &Agent, handover: &Handover, definition: &VmDefinition) {
    agent
        .peers
        .reservations()
        .hold(&handover.vm, reservation_for(definition));
    if let Err(error) = agent.enter_incoming(definition.clone(), handover.epoch, handover.migration) {
        tracing::error!(vm = handover.vm, %error, "a prepared VM has no place here");
    }
}

impl Admission {
    /// Starts the QEMU that is to be filled.
    pub(super) async fn launch(&self, agent: &Agent) -> Result<RunningVm, String> {
        let folder = agent.folder(&self.definition.name);
        let (definition, policy) = (self.definition.clone(), &agent.config.policy);
        let launched = agent
            .launcher
            .launch(definition, folder, Role::Incoming, Some(policy))
            .await;
        launched.map_err(|error| error.to_string())
    }
}

/// Gives back what was set aside for a VM that did not come.
pub(super) fn give_back(agent: &Agent, handover: &Handover, reason: &str) {
    agent.peers.reservations().release(&handover.vm);
    agent.drop_incoming(&handover.vm, handover.migration, reason);
}
