// SPDX-License-Identifier: Apache-2.0
//! Checks that nobody asks: an alias is as healthy as what it names, and a node is as alive as its
//! agent is heard of. Whoever leads writes what aliases are; `hosts` says whom it hears.

use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckRecord, Status};
use weft_kinds::views::check::{CheckDefinition, Probe, SERF_HEALTH, SERF_NAMESPACE};
use weft_kinds::world::{Catalog, CheckKey, RegistrationKey};
use weft_store::Compare;

use super::{CatalogError, Handle, plan};

/// What Consul says of a node that answers, and of one that does not.
pub const ALIVE: &str = "Agent alive and reachable";
pub const SILENT: &str = "Agent not live or unreachable";

/// What an alias is now, and why. Aliases that name each other stay as they are.
pub fn state(catalog: &Catalog, key: &CheckKey, probe: &Probe) -> Option<(Status, String)> {
    let Probe::Alias { node, service_id } = probe else { return None };
    let node = if node.is_empty() { &*key.node } else { node.as_str() };
    let target = RegistrationKey {
        namespace: key.namespace.clone(),
        node: node.into(),
        id: service_id.as_str().into(),
    };
    if !service_id.is_empty() && catalog.registration(&target).is_none() {
        let why = format!("Service {service_id} could not be found on node {node}");
        return Some((Status::Critical, why));
    }
    let own = (!service_id.is_empty()).then(|| catalog.checks_of(&target));
    let all = own.into_iter().flatten().chain(catalog.node_checks(node));
    let mut worst = (Status::Passing, "No checks found.".to_owned());
    for (other, check) in all.filter(|(other, _)| *other != key) {
        let status = catalog.status(other);
        if status > worst.0 {
            let output = match catalog.result(other) {
                // What an alias says of an alias would grow in a circle.
                _ if &*check.kind == "alias" => String::new(),
                Some(result) => result.output.to_string(),
                None => check.typed().initial_output,
            };
            worst = (status, format!("Aliased check {:?} failing: {output}", check.name));
        } else if worst.0 == Status::Passing {
            worst.1 = "All checks passing.".to_owned();
        }
    }
    Some(worst)
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
    // Not a result, which would end with the server that wrote it: silence outlasts servers.
    record.with(&CheckDefinition { initial_output: output.into(), ..CheckDefinition::default() })
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
                handle.work_out_aliases().await;
                tokio::select! {
                    () = group.draining() => return,
                    more = worlds.changed() => if !more { return },
                    _ = terms.changed(), if shared => {}
                }
            }
        });
    }

    /// Writes what aliases are where the catalog says something else.
    pub async fn work_out_aliases(&self) {
        if !self.0.leader.is_here() {
            return;
        }
        let world = self.0.world.load();
        let catalog = world.catalog();
        for (key, check) in catalog.aliases() {
            let definition = check.typed();
            let Some((status, output)) = state(catalog, key, &definition.probe) else { continue };
            let same = catalog.result(key).is_some_and(|r| *r.output == *output);
            if !definition.agent || (same && catalog.status(key) == status) {
                continue;
            }
            if let Err(why) = self.report(key, status, &output).await {
                tracing::debug!(check = ?key.id, %why, "an alias could not be written");
            }
        }
    }

    /// Notes whether a node's agent is heard of, if that is new; the write holds only while
    /// `compares` do.
    pub(crate) async fn node_heard(
        &self,
        node: &str,
        heard: bool,
        compares: impl IntoIterator<Item = Compare>,
    ) -> Result<(), CatalogError> {
        let _turn = self.turn(node, SERF_HEALTH).await;
        let txn = plan::node_check(self.0.world.load().catalog(), liveness(node, heard))?;
        self.held(compares).write(txn).await
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
        let writer = self.minder(key, world.catalog().result(key).map(|r| &**r));
        drop(turn);
        tracing::info!(service = ?instance.id, node = ?key.node, "its process is gone");
        match writer.deregister_service(&instance).await {
            Err(CatalogError::UnknownService { .. }) => writer.deregister_check(key).await,
            done => done,
        }
    }
}
