// SPDX-License-Identifier: Apache-2.0
//! What writers to the catalog may change of the nodes of servers. As with Consul its agent is the
//! truth of each. Consul's puts right within a minute what others wrote; here it is never
//! written: the request is answered as if it had been. The same of whether other servers and
//! machines are alive. Called by the catalog's endpoints; for the rest a machine's agent has its
//! anti-entropy (`sync`).

use std::sync::Arc;

use weft_base::name::fnv1a;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Status};
use weft_kinds::views::check::SERF_HEALTH;
use weft_kinds::world::{CheckKey, RegistrationKey};
use weft_registry::catalog::{CatalogError, is_spoken_for, registration_key};

use super::Door;
use super::error::Refusal;
use super::view::{CheckView, View};

/// The id of a node that weft speaks for: always the same of a name.
pub fn node_id(name: &str) -> String {
    let (a, b) = (fnv1a(name.as_bytes()), fnv1a(&[name.as_bytes(), b"weft"].concat()));
    uuid::Uuid::from_u64_pair(a, b).to_string()
}

impl Door {
    pub(super) fn is_own(&self, node: &str) -> bool {
        *node == *self.own().node.node
    }

    /// The node as it may be written: where the server's own is, it says itself.
    pub(super) fn node_as_it_is(&self, mut node: NodeRecord) -> NodeRecord {
        let own = &self.own().node;
        if self.is_own(&node.node) {
            node.id = own.id.clone();
            node.address = own.address.clone();
            node.tagged_addresses = own.tagged_addresses.clone();
        }
        node
    }

    /// As no two nodes may have one id.
    ///
    /// # Errors
    /// 500 when it is another node's.
    pub(super) fn check_id(&self, node: &NodeRecord) -> Result<(), Refusal> {
        let view = self.view();
        let known = view.world.catalog().node(&node.node);
        if node.id.is_empty() || known.is_some_and(|known| known.id == node.id) {
            return Ok(());
        }
        let registered = view.world.catalog().nodes().map(|(_, known)| known);
        let mut all = std::iter::once(&self.own().node).chain(registered);
        match all.find(|other| other.id == node.id && other.node != node.node) {
            None => Ok(()),
            Some(other) => Err(Refusal::internal(format!(
                "Error while renaming Node ID: {:?} is that of node {:?}; deregister that first",
                &*node.id, &*other.node
            ))),
        }
    }

    /// Without what says that a node is alive or not, where weft says it.
    pub(super) fn without_life(
        &self,
        node: &str,
        mut checks: Vec<CheckRecord>,
    ) -> Vec<CheckRecord> {
        checks.retain(|check| !self.is_life(node, &check.id));
        checks
    }

    /// Whether a check says what weft itself says of a node: that it is there. The own one is, if
    /// it answers.
    fn is_life(&self, node: &str, check: &str) -> bool {
        *check == *SERF_HEALTH && (self.is_own(node) || is_spoken_for(&self.view().world, node))
    }

    /// Whether a node is that of a server which is there: its agent says what is on it. Of one that
    /// is gone operators do.
    pub(super) fn answers_for(&self, view: &View, node: &str) -> bool {
        let is_dead = |check: &CheckView| {
            *check.record.id == *SERF_HEALTH && check.status == Status::Critical
        };
        self.is_own(node) || (view.is_server(node) && !view.node_checks(node).iter().any(is_dead))
    }

    /// Whether a program registered this instance with a server's agent, which alone takes it away:
    /// it has no list of its own to write it again from.
    pub(super) fn is_agents_instance(&self, key: &RegistrationKey) -> bool {
        let view = self.view();
        let there = view.world.catalog().registration(key);
        self.answers_for(&view, &key.node) && there.is_some_and(|registration| registration.agent)
    }

    /// What of a registration is taken: of one that a server's agent has nothing, but for the tags
    /// where the agent leaves those to others.
    pub(super) fn as_its_agent_has_it(&self, new: Registration) -> Option<Registration> {
        let key = registration_key(&new);
        if !self.is_agents_instance(&key) {
            return Some(new);
        }
        let view = self.view();
        let there = view.world.catalog().registration(&key).filter(|r| r.enable_tag_override)?;
        Some(Registration { tags: new.tags, ..Registration::clone(there) })
    }

    /// The same of a check, or it is weft's own.
    pub(super) fn is_agents_check(&self, key: &CheckKey) -> bool {
        let view = self.view();
        let there = view.world.catalog().check(key);
        let agents = || there.is_some_and(|check| check.typed().agent);
        self.is_life(&key.node, &key.id) || (self.answers_for(&view, &key.node) && agents())
    }

    /// Takes a node away; of a server's what others wrote to the catalog.
    pub(super) async fn deregister_node(&self, node: &Arc<str>) -> Result<(), CatalogError> {
        if !self.answers_for(&self.view(), node) {
            return self.catalog().deregister_node(node).await;
        }
        let (instances, checks) = self.others_on(node);
        for key in instances {
            unless_gone(self.catalog().deregister_service(&key).await)?;
        }
        for key in checks {
            unless_gone(self.catalog().deregister_check(&key).await)?;
        }
        Ok(())
    }

    /// What is on a node that its agent knows nothing of.
    fn others_on(&self, node: &str) -> (Vec<RegistrationKey>, Vec<CheckKey>) {
        let view = self.view();
        let catalog = view.world.catalog();
        let instances = catalog.on_node(node).filter(|(_, one)| !one.agent);
        let checks = catalog.node_checks(node);
        let checks = checks.filter(|(key, one)| !one.typed().agent && *key.id != *SERF_HEALTH);
        (
            instances.map(|(key, _)| key.clone()).collect(),
            checks.map(|(key, _)| key.clone()).collect(),
        )
    }
}

/// What is gone already is as it was asked to be.
fn unless_gone(done: Result<(), CatalogError>) -> Result<(), CatalogError> {
    match done {
        Err(CatalogError::UnknownService { .. } | CatalogError::UnknownCheck { .. }) => Ok(()),
        done => done,
    }
}
