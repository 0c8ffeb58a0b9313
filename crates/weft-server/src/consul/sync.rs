// SPDX-License-Identifier: Apache-2.0
//! Anti-entropy: what is registered with a machine's own agent, in the catalog under that node.
//! The agent tells what changed at once and everything now and then; here it is compared, admitted
//! by the token that it was registered with, and written where it differs. What the agent does not
//! name in a whole set is removed: a node's agent is the authority on what is on its node.
//!
//! Checks of an agent are run by it and only shown here: their definitions lose what would make a
//! server run or time them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use weft_kinds::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration};
use weft_kinds::views::check::{CheckDefinition, Probe, SERF_HEALTH};
use weft_kinds::world::{CheckKey, RegistrationKey};
use weft_registry::catalog::{CatalogError, ServiceRequest, check_key, registration_key};

use super::error::Refusal;
use super::http::Ask;
use super::params::Params;
use super::who::Who;
use super::{Door, node_id, shapes};

/// Instances and checks in one message.
pub const ITEMS_MAX: usize = 10_000;
/// How often everything is told in a mesh of few machines; Consul's figure.
const WHOLE_EVERY_MS: u64 = 60_000;
/// From so many machines on it is told less often.
const MACHINES: usize = 128;
/// Of what a mark is.
const SERVICE: &str = "service";
const CHECK: &str = "check";
/// Hexadecimal digits of a mark: short, and nobody makes another id of the same one.
const MARK_DIGITS: usize = 24;

/// What an agent tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncAsk {
    /// This is everything: what is not named is not there.
    pub whole: bool,
    pub services: Vec<SyncService>,
    /// Checks of the node itself.
    pub checks: Vec<SyncCheck>,
    pub gone: Vec<(Arc<str>, Arc<str>)>,
    pub gone_checks: Vec<(Arc<str>, Arc<str>)>,
    /// The end of everything, where it is more than one message: marks of all that is there
    /// ([`SyncAsk::marks`]). Not `whole`, which says that what this message does not name is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub there: Option<Vec<String>>,
}

/// One instance with all its checks.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncService {
    pub registration: Registration,
    /// It was told before as it is: what is new is one of its checks, or everything is told again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retold: bool,
    pub checks: Vec<SyncCheck>,
    /// What it was registered with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncCheck {
    pub check: CheckRecord,
    pub result: CheckStatus,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncAnswer {
    /// What was not taken, and why.
    pub refused: Vec<(String, String)>,
    /// When everything is to be told again.
    pub whole_every_ms: u64,
}

impl SyncAsk {
    /// Marks of the instances and checks that are in it, of the same length whatever their ids.
    pub fn marks(&self) -> Vec<String> {
        let of = |s: &SyncService| mark(SERVICE, &s.registration.namespace, &s.registration.id);
        let checks = self.checks.iter().map(|c| mark(CHECK, &c.check.namespace, &c.check.id));
        self.services.iter().map(of).chain(checks).collect()
    }

    /// How many instances and checks it speaks of.
    pub fn items(&self) -> usize {
        self.services.iter().map(SyncService::items).sum::<usize>()
            + self.checks.len()
            + self.gone.len()
            + self.gone_checks.len()
    }
}

impl SyncService {
    /// It and its checks.
    pub fn items(&self) -> usize {
        1 + self.checks.len()
    }
}

impl Door {
    /// Takes what a machine tells of itself.
    ///
    /// # Errors
    /// When it cannot be taken now, or is too much.
    pub async fn sync(
        &self,
        host: &str,
        address: IpAddr,
        ask: SyncAsk,
    ) -> Result<SyncAnswer, Refusal> {
        if ask.items() > ITEMS_MAX {
            return Err(Refusal::bad(format!("more than {ITEMS_MAX} instances and checks")));
        }
        let host: Arc<str> = host.into();
        let node = self.node_of(&host, address);
        let mut refused = Vec::new();
        let there = if ask.whole { Some(ask.marks()) } else { ask.there.clone() };
        if let Some(there) = there {
            // It is there with nothing on it, too: locks are held on it.
            self.catalog().register_node(&node, true).await?;
            self.remove_foreign(&host, &there.into_iter().collect()).await?;
        }
        for (namespace, id) in &ask.gone {
            let (namespace, id) = (namespace.clone(), id.clone());
            self.remove(&RegistrationKey { namespace, node: host.clone(), id }).await?;
        }
        for (namespace, id) in &ask.gone_checks {
            let (namespace, id) = (namespace.clone(), id.clone());
            self.remove_check(&CheckKey { namespace, node: host.clone(), id }).await?;
        }
        for mut service in ask.services {
            let what = format!("service {}", service.registration.id);
            // Older agents do not say of each that it is told again.
            if ask.whole || service.retold {
                self.adopt_tags(&host, &mut service.registration);
            }
            match self.take(&host, &node, service).await {
                Err(refusal) if refusal.status.is_client_error() => {
                    refused.push((what, refusal.text));
                }
                other => other?,
            }
        }
        for check in ask.checks {
            let what = format!("check {}", check.check.id);
            match self.take_check(&host, &node, check).await {
                Err(refusal) if refusal.status.is_client_error() => {
                    refused.push((what, refusal.text));
                }
                other => other?,
            }
        }
        self.settled().await;
        let machines = self.view().world.catalog().nodes().count();
        Ok(SyncAnswer { refused, whole_every_ms: every(machines) })
    }

    /// The node's record: what people wrote about it stays, but for where the machine is.
    fn node_of(&self, host: &Arc<str>, address: IpAddr) -> NodeRecord {
        let view = self.view();
        let known = view.world.catalog().node(host).map(|known| NodeRecord::clone(known));
        let known = known.unwrap_or_default();
        let address: Arc<str> = address.to_string().into();
        let mut tagged_addresses = known.tagged_addresses;
        // What the machine said before goes, of the other family too; what people wrote stays.
        tagged_addresses.retain(|name, at| !shapes::is_usual_address(name) || *at != known.address);
        tagged_addresses.extend(shapes::usual_addresses(&address));
        NodeRecord {
            id: node_id(host).into(),
            node: host.clone(),
            address,
            datacenter: self.own().datacenter.clone(),
            tagged_addresses,
            ..known
        }
    }

    /// Where an agent leaves the tags to others, those that others wrote stay, until it has new
    /// ones itself.
    fn adopt_tags(&self, host: &Arc<str>, told: &mut Registration) {
        if !told.enable_tag_override {
            return;
        }
        let key = RegistrationKey { node: host.clone(), ..registration_key(told) };
        if let Some(known) = self.view().world.catalog().registration(&key) {
            told.tags.clone_from(&known.tags);
        }
    }

    async fn take(
        &self,
        host: &Arc<str>,
        node: &NodeRecord,
        told: SyncService,
    ) -> Result<(), Refusal> {
        let mut registration = told.registration;
        registration.node.clone_from(host);
        registration.agent = true;
        let key = registration_key(&registration);
        let (mut checks, mut results, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        // As of one of the node: an older agent may have it.
        let told_checks = told.checks.into_iter().filter(|one| *one.check.id != *SERF_HEALTH);
        for SyncCheck { mut check, result, token } in told_checks {
            check.service_id.clone_from(&registration.id);
            check.service_name.clone_from(&registration.service);
            check.namespace.clone_from(&registration.namespace);
            let check = self.shown(host, check, &result);
            results.push((check_key(&check), result, is_told(&check)));
            checks.push(check);
            tokens.push(token);
        }
        if !self.is_so(&registration, &checks, node) {
            let whole = self.take_whole((host, node), &registration, &checks, &told.token);
            match Box::pin(whole).await {
                Err(refusal) if refusal.status.is_client_error() => {
                    // Who put a check there, maintenance among them, may be another.
                    let known = self.is_so(&registration, &[], node);
                    let own = checks.iter().zip(&tokens);
                    if !known || !self.take_apart((host, node), own).await? {
                        return Err(refusal);
                    }
                }
                other => other?,
            }
        }
        // Those of maintenance stay when an instance is registered anew.
        let view = self.view();
        let listed: HashSet<&Arc<str>> = checks.iter().map(|check| &check.id).collect();
        let known = view.world.catalog().checks_of(&key);
        let gone = known.filter(|(known, _)| !listed.contains(&known.id));
        let gone: Vec<CheckKey> = gone.map(|(known, _)| known.clone()).collect();
        drop(view);
        for check in gone {
            self.remove_check(&check).await?;
        }
        for (key, result, told) in results {
            if told {
                self.report(&key, &result).await?;
            }
        }
        Ok(())
    }

    async fn take_whole(
        &self,
        (host, node): (&Arc<str>, &NodeRecord),
        registration: &Registration,
        checks: &[CheckRecord],
        token: &str,
    ) -> Result<(), Refusal> {
        let ask = self.asked(host, &registration.namespace, token)?;
        let catalog = self.for_service(&ask, registration, checks).await?;
        let (registration, checks) = (registration.clone(), checks.to_vec());
        let (replace_checks, update_node, node) = (true, true, node.clone());
        let others = Vec::new();
        let request =
            ServiceRequest { registration, checks, replace_checks, others, node, update_node };
        Ok(catalog.register_service(request).await?)
    }

    /// Takes those checks that are new or others with their own tokens; whether all were.
    async fn take_apart(
        &self,
        (host, node): (&Arc<str>, &NodeRecord),
        checks: impl Iterator<Item = (&CheckRecord, &String)>,
    ) -> Result<bool, Refusal> {
        let mut all = true;
        for (check, token) in checks {
            let key = check_key(check);
            if self.view().world.catalog().check(&key).is_some_and(|known| **known == *check) {
                continue;
            }
            let admitted = async {
                let ask = self.asked(host, &check.namespace, token)?;
                let catalog = self.for_check(&ask, check).await?;
                Ok::<_, Refusal>(catalog.register_check(node, check.clone()).await?)
            };
            match admitted.await {
                Err(refusal) if refusal.status.is_client_error() => all = false,
                other => other?,
            }
        }
        Ok(all)
    }

    async fn take_check(
        &self,
        host: &Arc<str>,
        node: &NodeRecord,
        told: SyncCheck,
    ) -> Result<(), Refusal> {
        let SyncCheck { check, result, token } = told;
        if *check.id == *SERF_HEALTH {
            return Err(Refusal::bad("a machine does not say whether it can be reached"));
        }
        let check = self.shown(host, check, &result);
        let key = check_key(&check);
        let known = self.view().world.catalog().check(&key).is_some_and(|known| **known == check);
        let is_told = is_told(&check);
        if !known {
            let ask = self.asked(host, &check.namespace, &token)?;
            let catalog = self.for_check(&ask, &check).await?;
            catalog.register_node(node, true).await?;
            catalog.register_check(node, check).await?;
        }
        if is_told { self.report(&key, &result).await } else { Ok(()) }
    }

    async fn report(&self, key: &CheckKey, result: &CheckStatus) -> Result<(), Refusal> {
        let view = self.view();
        let catalog = view.world.catalog();
        let known = catalog.result(key).map(|known| &**known);
        // What another server wrote ends with that server.
        let same = catalog.status(key) == result.status
            && known.map_or("", |known| &*known.output) == &*result.output
            && !self.catalog().is_anothers(known);
        drop(view);
        if same {
            return Ok(());
        }
        match self.catalog().report(key, result.status, &result.output).await {
            // It went meanwhile, and its agent will say so.
            Err(CatalogError::UnknownCheck { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// A check as the server keeps it: nobody here runs it, times it or reaps its instance.
    fn shown(&self, host: &Arc<str>, mut check: CheckRecord, result: &CheckStatus) -> CheckRecord {
        check.node.clone_from(host);
        let mut definition = check.typed();
        let elsewhere = matches!(&definition.probe, Probe::Alias { node, .. }
            if !node.is_empty() && **node != **host);
        if definition.probe.ttl_ms().is_some()
            || (matches!(definition.probe, Probe::Alias { .. }) && !elsewhere)
        {
            definition.probe = Probe::None;
        }
        // The one kind that is worked out here, as whoever leads does with those of `agent`.
        definition.agent = elsewhere;
        definition.deregister_after_ms = 0;
        let kind = check.kind.clone();
        let mut check = check.with(&definition);
        check.kind = kind;
        if definition == CheckDefinition::default() {
            check.definition = None;
        }
        // It begins as it is now, and is not written again because it is another way later.
        let view = self.view();
        let known = view.world.catalog().check(&check_key(&check));
        check.initial = known.map_or(result.status, |known| known.initial);
        check
    }

    /// Whether the catalog says exactly this.
    fn is_so(&self, new: &Registration, checks: &[CheckRecord], node: &NodeRecord) -> bool {
        let view = self.view();
        let catalog = view.world.catalog();
        catalog.registration(&registration_key(new)).is_some_and(|known| **known == *new)
            && catalog.node(&node.node).is_some_and(|known| **known == *node)
            && checks
                .iter()
                .all(|c| catalog.check(&check_key(c)).is_some_and(|known| **known == *c))
    }

    /// Removes what a machine does not name. `there`: marks of what it names.
    async fn remove_foreign(
        &self,
        host: &Arc<str>,
        there: &HashSet<String>,
    ) -> Result<(), Refusal> {
        let view = self.view();
        let catalog = view.world.catalog();
        let on_node = catalog.on_node(host).map(|(key, _)| key.clone());
        let services: Vec<RegistrationKey> = on_node
            .filter(|key| !there.contains(&mark(SERVICE, &key.namespace, &key.id)))
            .collect();
        let of_node = catalog.node_checks(host).map(|(key, _)| key.clone());
        let of_node = of_node.filter(|key| *key.id != *SERF_HEALTH);
        let foreign: Vec<CheckKey> =
            of_node.filter(|key| !there.contains(&mark(CHECK, &key.namespace, &key.id))).collect();
        drop(view);
        for key in services {
            tracing::info!(node = ?host, service = ?key.id, "removed what its agent does not know");
            self.remove(&key).await?;
        }
        for key in foreign {
            self.remove_check(&key).await?;
        }
        Ok(())
    }

    async fn remove(&self, key: &RegistrationKey) -> Result<(), Refusal> {
        match self.catalog().deregister_service(key).await {
            Err(CatalogError::UnknownService { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    async fn remove_check(&self, key: &CheckKey) -> Result<(), Refusal> {
        match self.catalog().deregister_check(key).await {
            Err(CatalogError::UnknownCheck { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// As if the client asked here, with what it showed there.
    fn asked(&self, host: &Arc<str>, namespace: &Arc<str>, token: &str) -> Result<Ask, Refusal> {
        let who: Who = self.who_at(host, token)?;
        Ok(Ask {
            argument: String::new(),
            params: Params::default(),
            body: Bytes::new(),
            namespace: namespace.clone(),
            method: Method::PUT,
            who,
            secret: None,
        })
    }
}

fn mark(kind: &str, namespace: &str, id: &str) -> String {
    let mut whole = super::acl::hash(format!("{kind}\0{namespace}\0{id}"));
    whole.truncate(MARK_DIGITS);
    whole
}

/// Whether its agent says how it is; an alias of another node's is worked out by the server.
fn is_told(check: &CheckRecord) -> bool {
    !matches!(check.typed().probe, Probe::Alias { .. })
}

/// Longer in a mesh of many machines, by Consul's rule.
fn every(machines: usize) -> u64 {
    let times = machines.div_ceil(MACHINES).next_power_of_two().trailing_zeros();
    WHOLE_EVERY_MS * u64::from(times + 1)
}

// Secrets are in them.
impl std::fmt::Debug for SyncService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncService").field("id", &self.registration.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SyncCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncCheck").field("id", &self.check.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_told_less_often_among_many_machines() {
        assert_eq!([1, 128, 129, 512, 8192].map(|n| every(n) / WHOLE_EVERY_MS), [1, 1, 2, 3, 7]);
    }
}
