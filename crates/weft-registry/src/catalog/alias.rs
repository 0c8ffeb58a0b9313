// SPDX-License-Identifier: Apache-2.0
//! Checks that nobody asks: an alias is as healthy as what it names, and a node is as alive as its
//! agent is heard of. Whoever leads writes what aliases are; `hosts` says whom it hears.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Status};
use weft_kinds::views::check::{CheckDefinition, Probe, SERF_HEALTH, SERF_NAMESPACE};
use weft_kinds::world::{Catalog, CheckKey, KindId, RegistrationKey, World};
use weft_store::Compare;

use super::{CatalogError, Handle, plan};
use crate::hosts::JOIN_ANNOTATION;

/// What Consul says of a node that answers, and of one that does not.
pub const ALIVE: &str = "Agent alive and reachable";
pub const SILENT: &str = "Agent not live or unreachable";
/// When an alias that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The aliases that are worked out here, and what each of them names.
struct Aliases<'a> {
    catalog: &'a Catalog,
    named: BTreeMap<&'a CheckKey, RegistrationKey>,
}

/// The check that says whether a node's agent is heard of.
pub fn liveness(node: &str, heard: bool) -> CheckRecord {
    let (initial, output) = match heard {
        true => (Status::Passing, ALIVE),
        false => (Status::Critical, SILENT),
    };
    let record = CheckRecord {
        id: SERF_HEALTH.into(),
        name: "Serf Health Status".into(),
        node: node.into(),
        namespace: SERF_NAMESPACE.into(),
        initial,
        ..CheckRecord::default()
    };
    // Not a result: nobody reports it, and it is true whichever server heard of it.
    record.with(&CheckDefinition { initial_output: output.into(), ..CheckDefinition::default() })
}

fn liveness_key(node: &str) -> CheckKey {
    CheckKey { namespace: SERF_NAMESPACE.into(), node: node.into(), id: SERF_HEALTH.into() }
}

/// Whether it is said here whether a node is alive: of servers, and of machines that joined. What
/// others write of that is not true for long, or not at all.
pub fn is_spoken_for(world: &World, node: &str) -> bool {
    world.catalog().node(node).is_some_and(|known| known.server) || has_joined(world, node)
}

/// Whether a machine of this name is in the mesh.
pub(crate) fn has_joined(world: &World, node: &str) -> bool {
    let object = world.get(KindId::Node, "", node);
    object.is_some_and(|object| object.meta.annotation(JOIN_ANNOTATION).is_some())
}

/// The checks that this registry made which say whether a node's agent is heard of.
pub(crate) fn liveness_checks(catalog: &Catalog) -> impl Iterator<Item = &CheckKey> {
    let own = |(key, check): &(&CheckKey, &Arc<CheckRecord>)| {
        *key.id == *SERF_HEALTH
            && [true, false].into_iter().any(|heard| ***check == liveness(&key.node, heard))
    };
    catalog.checks().filter(own).map(|(key, _)| key)
}

// === impl Aliases ===

impl<'a> Aliases<'a> {
    fn of(catalog: &'a Catalog) -> Self {
        let named = |(key, check): (&'a CheckKey, &'a Arc<CheckRecord>)| {
            let definition = check.typed();
            let Probe::Alias { node, service_id } = definition.probe else { return None };
            let node = if node.is_empty() { key.node.clone() } else { node.into() };
            let target = match service_id.is_empty() {
                true => whole(&node),
                false => RegistrationKey {
                    namespace: key.namespace.clone(),
                    node,
                    id: service_id.into(),
                },
            };
            definition.agent.then_some((key, target))
        };
        Self { catalog, named: catalog.aliases().filter_map(named).collect() }
    }

    /// What an alias is now, and why: the worst of the checks of what it names. An alias among
    /// those counts as what it names in turn, and never as what was last written of it, so that
    /// no alias holds itself or another one down, and one look at the catalog settles them all.
    fn state(&self, named: &RegistrationKey) -> (Status, String) {
        let (mut open, mut seen) = (vec![named.clone()], BTreeSet::new());
        let mut worst = (Status::Passing, "No checks found.".to_owned());
        while let Some(target) = open.pop() {
            if !seen.insert(target.clone()) {
                continue;
            }
            if !target.id.is_empty() && self.catalog.registration(&target).is_none() {
                let RegistrationKey { id, node, .. } = &target;
                let why = format!("Service {id} could not be found on node {node}");
                return (Status::Critical, why);
            }
            for (key, check) in self.catalog.checks_of(&target) {
                match self.named.get(key) {
                    Some(further) => open.push(further.clone()),
                    None => self.weigh(key, check, &mut worst),
                }
            }
            if !target.id.is_empty() {
                open.push(whole(&target.node));
            }
        }
        worst
    }

    fn weigh(&self, key: &CheckKey, check: &CheckRecord, worst: &mut (Status, String)) {
        let status = self.catalog.status(key);
        if status > worst.0 {
            let output = match self.catalog.result(key) {
                // What an alias says of an alias would grow in a circle.
                _ if &*check.kind == "alias" => String::new(),
                Some(result) => result.output.to_string(),
                None => check.typed().initial_output,
            };
            *worst = (status, format!("Aliased check {:?} failing: {output}", check.name));
        } else if worst.0 == Status::Passing {
            "All checks passing.".clone_into(&mut worst.1);
        }
    }
}

/// A node as a whole, as the catalog has it.
fn whole(node: &str) -> RegistrationKey {
    RegistrationKey { namespace: "".into(), node: node.into(), id: "".into() }
}

// === impl Handle ===

impl Handle {
    /// Works aliases out whenever the World changes, until the group drains.
    pub(super) fn run_aliases(&self, tasks: &TaskGroup) {
        let (handle, group) = (self.clone(), tasks.clone());
        tasks.spawn("alias checks", async move {
            let mut worlds = handle.0.world.clone();
            let mut terms = handle.0.leader.changes();
            let shared = handle.0.leader.is_shared();
            loop {
                let written = handle.work_out_aliases().await;
                tokio::select! {
                    () = group.draining() => return,
                    more = worlds.changed() => if !more { return },
                    _ = terms.changed(), if shared => {}
                    () = tokio::time::sleep(AGAIN), if !written => {}
                }
            }
        });
    }

    /// Writes what aliases are where the catalog says something else. Whether all could be.
    pub async fn work_out_aliases(&self) -> bool {
        if !self.0.leader.is_here() {
            return true;
        }
        let world = self.0.world.load();
        let aliases = Aliases::of(world.catalog());
        let writer = self.held(self.0.leader.fence());
        let mut written = true;
        for (key, named) in &aliases.named {
            let (status, output) = aliases.state(named);
            // Who leads says it: what another server wrote is taken over.
            let own = world.catalog().result(key).filter(|r| !self.is_anothers(Some(&***r)));
            let same = own.is_some_and(|r| r.status == status && *r.output == *output);
            if same && self.pending_output(key).is_none() {
                continue;
            }
            if let Err(why) = writer.report(key, status, &output).await {
                tracing::debug!(check = ?key.id, %why, "an alias could not be written");
                written = false;
            }
        }
        written
    }

    /// Notes whether a node's agent is heard of, if that is new; the write holds only while
    /// `compares` do. Silence of a machine that is not there, and was not, is nothing to note.
    pub(crate) async fn node_heard(
        &self,
        node: &str,
        heard: bool,
        compares: impl IntoIterator<Item = Compare>,
    ) -> Result<(), CatalogError> {
        let _turn = self.turn(node, SERF_HEALTH).await;
        let world = self.caught_up().await?;
        let known = world.catalog().check(&liveness_key(node)).is_some();
        if !heard && !known && world.get(KindId::Node, "", node).is_none() {
            return Ok(());
        }
        let txn = plan::node_check(world.catalog(), liveness(node, heard))?;
        self.held(compares).write(txn).await
    }

    /// Notes what a server says of its own node, if that is new; the write holds only while
    /// `compares` do.
    pub(crate) async fn server_says(
        &self,
        node: &NodeRecord,
        compares: impl IntoIterator<Item = Compare>,
    ) -> Result<(), CatalogError> {
        let known = self.0.world.load().catalog().node(&node.node).cloned();
        if known.is_some_and(|known| *known == *node) {
            return Ok(());
        }
        let txn = plan::register_on(self.caught_up().await?.catalog(), (node, true), &[])?;
        self.held(compares).write(txn).await
    }

    /// The nodes that servers wrote of themselves.
    pub(crate) fn servers(&self) -> Vec<Arc<str>> {
        let world = self.0.world.load();
        let servers = world.catalog().nodes().filter(|(_, node)| node.server);
        servers.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a node's record says that it is a server's; none where there is no record.
    pub(crate) fn serves(&self, node: &str) -> Option<bool> {
        self.0.world.load().catalog().node(node).map(|known| known.server)
    }

    /// Whether a machine joined under this name.
    pub(crate) fn is_machines(&self, node: &str) -> bool {
        has_joined(&self.0.world.load(), node)
    }

    /// Whether the catalog says that a node's agent is heard of.
    pub(crate) fn is_heard(&self, node: &str) -> bool {
        let world = self.0.world.load();
        // By all that it says: who else wrote it is put right.
        let check = world.catalog().check(&liveness_key(node));
        check.is_some_and(|check| **check == liveness(node, true))
    }

    /// Whether the catalog says that it is not, or nothing at all.
    pub(crate) fn is_silent(&self, node: &str) -> bool {
        let world = self.0.world.load();
        let check = world.catalog().check(&liveness_key(node));
        check.is_none_or(|check| **check == liveness(node, false))
    }

    /// Says no more whether a node's agent is heard of; the write holds only while `compares` do.
    pub(crate) async fn node_forgotten(
        &self,
        node: &str,
        compares: impl IntoIterator<Item = Compare>,
    ) -> Result<(), CatalogError> {
        let _turn = self.turn(node, SERF_HEALTH).await;
        let world = self.caught_up().await?;
        match plan::deregister_check(world.catalog(), &liveness_key(node)) {
            Err(CatalogError::UnknownCheck { .. }) => Ok(()),
            txn => self.held(compares).write(txn?).await,
        }
    }

    /// Whether a check is held up by `weft run`.
    pub(super) fn is_process(&self, key: &CheckKey) -> bool {
        let world = self.0.world.load();
        let check = world.catalog().check(key);
        check.is_some_and(|c| matches!(c.typed().probe, Probe::Process { .. }))
    }

    /// The process that held an instance up is gone, and the instance with it.
    pub(super) async fn let_go(&self, key: &CheckKey) -> Result<(), CatalogError> {
        let turn = self.turn(&key.node, &key.id).await;
        let world = self.0.world.load();
        let Some(check) = world.catalog().check(key) else { return Ok(()) };
        if !self.timers().is_expired(key, self.0.clock.now()) || !self.is_mine(&world, key) {
            return Ok(());
        }
        let instance = RegistrationKey {
            namespace: key.namespace.clone(),
            node: key.node.clone(),
            id: check.service_id.clone(),
        };
        let Some(writer) = self.minder(key).await? else { return Ok(()) };
        drop(turn);
        tracing::info!(service = ?instance.id, node = ?key.node, "its process is gone");
        match writer.deregister_service(&instance).await {
            Err(CatalogError::UnknownService { .. }) => writer.deregister_check(key).await,
            done => done,
        }
    }
}
