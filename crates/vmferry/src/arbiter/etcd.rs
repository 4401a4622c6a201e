//! etcd as the arbiter: a key for each VM, changed by compare-and-swap, and a lease for each host.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use vmferry_core::{
    handover::arbiter::{Claim, Holder, NoRuling, Ruling, Side},
    wire::message::{Epoch, Handover},
};

use super::{
    ArbiterError, ArbiterName,
    entry::Entry,
    gateway::{Gateway, Unanswered, base64, from_base64},
};

/// How long a host that says nothing counts as alive, s.
const LEASE_S: u64 = 10;

/// The keys of one prefix in one cluster.
#[derive(Debug)]
pub struct Etcd {
    gateway: Gateway,
    prefix: String,
    host: String,
    instance: String,
    lease: Mutex<Option<String>>,
}

/// An entry, and the revision at which it stands; 0 for none.
#[derive(Debug, Clone)]
struct Found {
    entry: Option<Entry>,
    revision: String,
}

/// Why an entry is not what it should be by now.
enum Failed {
    /// Nothing was to be changed yet.
    Reading(String),
    /// It was to be changed, and may be yet.
    Changing(String),
}

impl Etcd {
    pub(super) fn new(gateway: Gateway, prefix: String, host: String, instance: String) -> Etcd {
        Etcd {
            gateway,
            prefix,
            host,
            instance,
            lease: Mutex::default(),
        }
    }

    fn vm_key(&self, vm: &str) -> String {
        format!("{}/vms/{vm}", self.prefix)
    }

    fn host_key(&self, host: &str) -> String {
        format!("{}/hosts/{host}", self.prefix)
    }

    pub(super) async fn name(&self) -> Result<ArbiterName, ArbiterError> {
        let answer = self.range(&self.host_key(&self.host)).await?;
        let cluster = answer["header"]["cluster_id"].as_str().unwrap_or_default().to_owned();
        Ok(ArbiterName {
            cluster,
            prefix: self.prefix.clone(),
            host: self.host.clone(),
        })
    }

    pub(super) async fn ask(
        &self,
        side: Side,
        handover: &Handover,
        claim: Claim,
        target: Option<&str>,
    ) -> Result<Ruling, NoRuling> {
        let mut was_asked = false;
        let ruling = async {
            let key = self.vm_key(&handover.vm);
            let mut found = self
                .read(&key)
                .await
                .map_err(|error| Failed::Reading(error.to_string()))?;
            loop {
                let entry = found.entry.as_ref().ok_or_else(|| {
                    Failed::Reading(format!("etcd has no entry of VM {:?}: what became of it?", handover.vm))
                })?;
                let holder = entry
                    .holder(side, handover, &self.host)
                    .map_err(|host| Failed::Reading(format!("etcd says that host {host:?} has the VM")))?;
                let target = target.unwrap_or(&self.host);
                let Some(next) = Entry::after(holder, claim, handover, &self.host, target) else {
                    return Ok(holder);
                };
                was_asked = true;
                match self.swap(&key, &found.revision, Some(&next)).await {
                    Ok(None) => return Ok(claim.after(holder)),
                    Ok(Some(other)) => found = other,
                    Err(error) => return Err(Failed::Changing(error.to_string())),
                }
            }
        };
        let ruling = match tokio::time::timeout(super::gateway::ANSWER_LIMIT, ruling).await {
            Ok(ruling) => ruling,
            Err(_) => Err(Failed::Reading("etcd does not answer".to_owned())),
        };
        let holder = ruling.map_err(|failed| match failed {
            Failed::Reading(why) if !was_asked => NoRuling::Unasked(why),
            Failed::Reading(why) | Failed::Changing(why) => NoRuling::Unanswered(why),
        })?;
        let other_is_gone = match (side, claim, target) {
            // The release is not to wait for more than it has to.
            (Side::Source, Claim::Ask | Claim::TakeBack, Some(target)) => self.is_gone(target).await,
            _ => false,
        };
        if holder == Holder::Target && other_is_gone {
            tracing::warn!(
                vm = handover.vm,
                target,
                "took the VM and is gone: the copy here is given up"
            );
        }
        Ok(Ruling { holder, other_is_gone })
    }

    pub(super) async fn own(&self, vm: &str, epoch: Epoch) -> Result<Epoch, ArbiterError> {
        let entered = self
            .enter(vm, |entry| match entry {
                Some(entry) if entry.host != self.host => Err(entry.host.clone()),
                Some(entry) => Ok(Some(Entry::held(&self.host, epoch.max(entry.epoch), None))),
                None => Ok(Some(Entry::held(&self.host, epoch, None))),
            })
            .await?;
        Ok(entered.map_or(epoch, |entry| entry.epoch))
    }

    /// Enters what this host's journal says, unless a later epoch is known.
    pub(super) async fn affirm(
        &self,
        vm: &str,
        epoch: Epoch,
        is_still_so: impl Fn() -> bool,
    ) -> Result<(), ArbiterError> {
        self.enter(vm, |entry| match entry {
            _ if !is_still_so() => Ok(None),
            Some(entry) if entry.epoch > epoch && entry.host != self.host => Err(entry.host.clone()),
            Some(entry) if entry.host == self.host && entry.released_to.is_none() => Ok(None),
            _ => Ok(Some(Entry::held(&self.host, epoch, None))),
        })
        .await?;
        Ok(())
    }

    pub(super) async fn decide(&self, handover: &Handover, has_it: bool) -> Result<(), ArbiterError> {
        let held = |host: &str| Entry::held(host, handover.epoch, Some(handover.migration));
        self.enter(&handover.vm, |entry| {
            Ok(match (entry, has_it) {
                (_, true) | (None, false) => Some(held(&self.host)),
                // Which it is of the two that a release names.
                (
                    Some(Entry {
                        host,
                        released_to: Some(to),
                        ..
                    }),
                    false,
                ) => Some(held(if *host == self.host { to } else { host })),
                // Not released: the other host's operator has to say so, too.
                (Some(_), false) => None,
            })
        })
        .await?;
        Ok(())
    }

    pub(super) async fn forget(&self, vm: &str) -> Result<(), ArbiterError> {
        let key = self.vm_key(vm);
        let mut found = self.read(&key).await?;
        while found.entry.as_ref().is_some_and(|entry| entry.host == self.host) {
            match self.swap(&key, &found.revision, None).await? {
                None => return Ok(()),
                Some(other) => found = other,
            }
        }
        Ok(())
    }

    pub(super) async fn describe(&self, vm: &str) -> String {
        match self.read(&self.vm_key(vm)).await {
            Err(error) => error.to_string(),
            Ok(Found { entry: None, .. }) => "etcd has no entry of the VM".to_owned(),
            Ok(Found { entry: Some(entry), .. }) => {
                let gone = |is_gone| if is_gone { ", whose lease has run out" } else { "" };
                let (epoch, host) = (entry.epoch, &entry.host);
                match &entry.released_to {
                    None => format!(
                        "etcd says that {host} has it in epoch {epoch}{}",
                        gone(self.is_gone(host).await)
                    ),
                    Some(to) => format!(
                        "etcd says that {host} released it to {to}{}, which has not taken it, for epoch {epoch}",
                        gone(self.is_gone(to).await)
                    ),
                }
            }
        }
    }

    /// Renews this host's lease, or takes a new one.
    pub(super) async fn renew(&self) -> Result<(), ArbiterError> {
        let lease = self.lease().clone();
        if let Some(lease) = lease {
            let answer = self
                .gateway
                .post("/v3/lease/keepalive", &json!({ "ID": lease }))
                .await?;
            if answer["result"]["TTL"].as_str().is_some_and(|ttl| ttl != "0") {
                return Ok(());
            }
            *self.lease() = None;
        }
        let key = self.host_key(&self.host);
        let held = self.range(&key).await?;
        let held = &held["kvs"][0];
        let by = held["value"].as_str().and_then(from_base64);
        if by.is_some_and(|by| by != self.instance.as_bytes()) {
            return Err(ArbiterError::Settings(format!(
                "another agent is called {:?} in etcd: start this one with another --name",
                self.host
            )));
        }
        let granted = self.gateway.post("/v3/lease/grant", &json!({ "TTL": LEASE_S })).await?;
        let lease = granted["ID"].as_str().unwrap_or_default().to_owned();
        let put = json!({ "key": base64(key.as_bytes()), "value": base64(self.instance.as_bytes()), "lease": lease });
        let revision = held["mod_revision"].as_str().unwrap_or("0");
        let answer = self.compare(&key, revision, json!({ "requestPut": put })).await?;
        if answer["succeeded"] == true {
            *self.lease() = Some(lease);
        }
        Ok(())
    }

    fn lease(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a host's lease has run out. What can't be found out counts as no.
    async fn is_gone(&self, host: &str) -> bool {
        let found = self.range(&self.host_key(host)).await;
        found.is_ok_and(|answer| answer["kvs"][0]["value"].as_str().is_none())
    }

    /// Changes an entry to what `next` makes of it, if anything, or says whose the VM is. Gives what was entered.
    async fn enter(
        &self,
        vm: &str,
        next: impl Fn(Option<&Entry>) -> Result<Option<Entry>, String>,
    ) -> Result<Option<Entry>, ArbiterError> {
        let key = self.vm_key(vm);
        let mut found = self.read(&key).await?;
        loop {
            let next = next(found.entry.as_ref()).map_err(|host| ArbiterError::OwnedElsewhere {
                vm: vm.to_owned(),
                host,
                here: self.host.clone(),
            })?;
            let Some(entry) = next.as_ref().filter(|next| found.entry.as_ref() != Some(*next)) else {
                return Ok(next);
            };
            match self.swap(&key, &found.revision, Some(entry)).await? {
                None => return Ok(next),
                Some(other) => found = other,
            }
        }
    }

    async fn range(&self, key: &str) -> Result<Value, Unanswered> {
        let key = base64(key.as_bytes());
        self.gateway.post("/v3/kv/range", &json!({ "key": key })).await
    }

    async fn read(&self, key: &str) -> Result<Found, ArbiterError> {
        found(&self.range(key).await?["kvs"][0])
    }

    /// Changes a key that still stands at `revision`, or removes it; otherwise gives what is there.
    async fn swap(&self, key: &str, revision: &str, entry: Option<&Entry>) -> Result<Option<Found>, ArbiterError> {
        let encoded = base64(key.as_bytes());
        let operation = match entry {
            None => json!({ "requestDeleteRange": { "key": encoded } }),
            Some(entry) => {
                let value = serde_json::to_vec(entry).map_err(|error| ArbiterError::Unreachable(error.to_string()))?;
                json!({ "requestPut": { "key": encoded, "value": base64(&value) } })
            }
        };
        let answer = self.compare(key, revision, operation).await?;
        match answer["succeeded"] == true {
            true => Ok(None),
            false => found(&answer["responses"][0]["response_range"]["kvs"][0]).map(Some),
        }
    }

    /// Carries `operation` out if the key still stands at `revision`, and reads it otherwise.
    async fn compare(&self, key: &str, revision: &str, operation: Value) -> Result<Value, Unanswered> {
        let key = base64(key.as_bytes());
        let request = json!({
            "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "modRevision": revision }],
            "success": [operation],
            "failure": [{ "requestRange": { "key": key } }],
        });
        self.gateway.post("/v3/kv/txn", &request).await
    }
}

fn found(kv: &Value) -> Result<Found, ArbiterError> {
    let Some(value) = kv["value"].as_str() else {
        return Ok(Found {
            entry: None,
            revision: "0".to_owned(),
        });
    };
    let bytes = from_base64(value).unwrap_or_default();
    let entry = serde_json::from_slice(&bytes).map_err(|error| {
        ArbiterError::Unreachable(format!(
            "what stands there is no entry of vmferry's ({error}): choose another prefix"
        ))
    })?;
    Ok(Found {
        entry: Some(entry),
        revision: kv["mod_revision"].as_str().unwrap_or("0").to_owned(),
    })
}

impl From<Unanswered> for ArbiterError {
    fn from(error: Unanswered) -> ArbiterError {
        ArbiterError::Unreachable(error.to_string())
    }
}
