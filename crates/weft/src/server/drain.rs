// SPDX-License-Identifier: Apache-2.0
//! `weft drain`, the server's end: finds the instance, says in the registry that it drains, and
//! waits until the proxies that know it have heard.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use weft_base::name::ServiceKey;
use weft_control::push::Pusher;
use weft_kinds::world::{Door, Instance, RegistrationKey, World};
use weft_model::Root;
use weft_registry::Registry;
use weft_registry::drain::Drainable;
use weft_server::drain::{DrainAsk, DrainError, Drains};

use super::CLUSTER_DOMAIN;

/// How long the World and the proxies may take. A proxy that is cut off is not waited for longer:
/// it hears when it is back.
const HEAR_MAX: Duration = Duration::from_secs(2);
const REASON_BYTES_MAX: usize = 256;

pub struct Drainer {
    pub registry: Registry,
    pub pusher: Pusher,
}

// === impl Drainer ===

impl Drains for Drainer {
    fn drain(&self, ask: DrainAsk) -> BoxFuture<'static, Result<Value, DrainError>> {
        let this = Self { registry: self.registry.clone(), pusher: self.pusher.clone() };
        async move { this.carry_out(ask).await }.boxed()
    }
}

impl Drainer {
    async fn carry_out(&self, ask: DrainAsk) -> Result<Value, DrainError> {
        if ask.instance.is_empty() {
            return Err(DrainError::Invalid("name an instance".into()));
        }
        if ask.reason.len() > REASON_BYTES_MAX || ask.reason.chars().any(char::is_control) {
            let why = format!("the reason is at most {REASON_BYTES_MAX} bytes of plain text");
            return Err(DrainError::Invalid(why));
        }
        let (what, services) = find(&self.registry.now(), &ask)?;
        let reason = match ask.reason.as_str() {
            "" => "weft drain",
            reason => reason,
        };
        let begun = self.registry.clock().now();
        let wrote = self.registry.drain(&what, (!ask.undo).then_some(reason)).await;
        wrote.map_err(|e| DrainError::Unavailable(e.to_string()))?;
        let behind = self.heard(&what, &services, !ask.undo).await;
        let took = self.registry.clock().now().since(begun);
        Ok(json!({
            "instance": ask.instance,
            "services": services.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "draining": !ask.undo,
            "behind": behind,
            "tookMs": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    /// Waits until the World shows it and the proxies have answered; who has not.
    async fn heard(
        &self,
        what: &Drainable,
        services: &BTreeSet<ServiceKey>,
        draining: bool,
    ) -> Vec<String> {
        let mut worlds = self.registry.world();
        let shown = async {
            loop {
                let world = worlds.load();
                let as_asked = |i: &&Arc<Instance>| i.draining == draining || leaves(&world, i);
                let all: Vec<&Arc<Instance>> = instances(&world, what).collect();
                if all.iter().all(as_asked) || !worlds.changed().await {
                    return world.revision();
                }
            }
        };
        let Ok(revision) = tokio::time::timeout(HEAR_MAX, shown).await else {
            return vec!["the controllers of this server".to_owned()];
        };
        let mut behind = BTreeSet::new();
        for service in services {
            let host = Root::host(service.host(CLUSTER_DOMAIN).as_str());
            if let Err(late) = self.pusher.wait_acked(Some(&host), revision, HEAR_MAX).await {
                behind.extend(late.nodes.iter().map(ToString::to_string));
            }
        }
        behind.into_iter().collect()
    }
}

// === helpers ===

/// A pod that is being deleted drains whatever is asked.
fn leaves(world: &World, instance: &Instance) -> bool {
    let namespace = instance.service.namespace.as_str();
    let pod = world.get(weft_kinds::kind::KindId::Pod, namespace, &instance.id);
    pod.is_some_and(|pod| pod.meta.is_deleting())
}

fn of(instance: &Instance) -> Drainable {
    let namespace = instance.service.namespace.as_str();
    match instance.origin {
        Door::Kubernetes => {
            Drainable::Pod { namespace: namespace.to_owned(), name: instance.id.to_string() }
        }
        Door::Consul => {
            let id = instance.id.strip_prefix(&*instance.node).unwrap_or(&instance.id);
            Drainable::Registration(RegistrationKey {
                namespace: namespace.into(),
                node: instance.node.clone(),
                id: id.strip_prefix('/').unwrap_or(id).into(),
            })
        }
    }
}

fn instances<'a>(world: &'a World, what: &Drainable) -> impl Iterator<Item = &'a Arc<Instance>> {
    let all = world.services_with_instances().flat_map(|(_, all)| all.values());
    all.filter(move |instance| of(instance) == *what)
}

/// The one instance that is meant, and the services that it is of.
fn find(world: &World, ask: &DrainAsk) -> Result<(Drainable, BTreeSet<ServiceKey>), DrainError> {
    let mut found: Vec<(Drainable, BTreeSet<ServiceKey>)> = Vec::new();
    for instance in world.services_with_instances().flat_map(|(_, all)| all.values()) {
        let namespace = instance.service.namespace.as_str();
        let what = of(instance);
        let alone = match &what {
            Drainable::Registration(key) => &*key.id,
            Drainable::Pod { .. } => "",
        };
        let named = *instance.id == *ask.instance || alone == ask.instance;
        if !named || ask.namespace.as_deref().is_some_and(|n| n != namespace) {
            continue;
        }
        match found.iter_mut().find(|(known, _)| *known == what) {
            Some((_, services)) => {
                services.insert(instance.service.clone());
            }
            None => found.push((what, BTreeSet::from([instance.service.clone()]))),
        }
    }
    let name = &ask.instance;
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(DrainError::NotFound(format!(
            "no service has an instance {name:?}; `weft get endpoints -A` lists them"
        ))),
        (Some(_), more) => Err(DrainError::Invalid(format!(
            "{} instances are called {name:?}; name its --namespace, or NODE/ID of a registration",
            more + 1
        ))),
    }
}
