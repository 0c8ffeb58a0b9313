// SPDX-License-Identifier: Apache-2.0
//! Controllers: what is wanted becomes what is. Each is a pure function from the World and a name
//! to transactions ([`plan::Context`]); this file says which change of the World wakes which of
//! them, and `run.rs` does the rest.
//!
//! | file | what it sees to |
//! |---|---|
//! | `deployment.rs` | Deployment → ReplicaSets, rolling |
//! | `replica_set.rs` | ReplicaSet → pods |
//! | `stateful_set.rs` | StatefulSet → pods with names that stay |
//! | `daemon_set.rs` | DaemonSet → a pod on each node |
//! | `job.rs` | Job → pods until enough succeeded |
//! | `cron_job.rs` | CronJob → Jobs |
//! | `autoscaler.rs` | HorizontalPodAutoscaler → replicas |
//! | `disruption.rs` | how many pods of a budget may go |
//! | `pod.rs`, `schedule.rs` | a node and an address for each pod |
//! | `endpoint_slice.rs` | Service + pods → EndpointSlices |
//! | `mirror.rs` | what Consul clients registered, as read-only Services and EndpointSlices |
//! | `balancer.rs` | an account and a proxy pod for each Service of type LoadBalancer |
//! | `gateway.rs` | an account, a Service and a proxy pod for each Gateway |
//! | `namespace.rs` | a service account in each namespace; emptying one that is deleted |
//! | `garbage.rs` | dependents whose owners are gone; foreground and orphan deletion |
//!
//! Addresses are given where objects are written (`objects/admit.rs`), so that none is ever seen
//! without. They never read the clock, the store or a door.

pub mod autoscaler;
pub mod balancer;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod garbage;
pub mod gateway;
pub mod job;
pub mod mirror;
pub mod namespace;
pub mod plan;
pub mod pod;
mod queue;
pub mod replica_set;
mod revision;
mod run;
mod schedule;
pub mod stateful_set;

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::core::Service;
use weft_kinds::world::{
    Index, KindId, Object, ObjectKey, ReadKey, World, WorldDelta, is_mirror, service_of,
};

pub use run::run;

use self::plan::{Context, Plan};
/// Something to see to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    Deployment(ObjectKey),
    ReplicaSet(ObjectKey),
    StatefulSet(ObjectKey),
    DaemonSet(ObjectKey),
    Job(ObjectKey),
    CronJob(ObjectKey),
    Autoscaler(ObjectKey),
    Disruption(ObjectKey),
    Pod(ObjectKey),
    Slices(ObjectKey),
    Mirror(ServiceKey),
    Gateway(ObjectKey),
    Balancer(ObjectKey),
    Namespace(Arc<str>),
    Garbage(ObjectKey),
}

/// Sees to one item. Pure: the same World, time and seed give the same plan.
pub fn reconcile(item: &Item, world: &World, wall_ms: u64, seed: u64) -> Plan {
    see_to(item, Context::new(world, wall_ms, seed))
}

/// The same with more than the World to go by.
pub fn see_to(item: &Item, mut ctx: Context<'_>) -> Plan {
    match item {
        Item::Deployment(key) => deployment::reconcile(&mut ctx, key),
        Item::ReplicaSet(key) => replica_set::reconcile(&mut ctx, key),
        Item::StatefulSet(key) => stateful_set::reconcile(&mut ctx, key),
        Item::DaemonSet(key) => daemon_set::reconcile(&mut ctx, key),
        Item::Job(key) => job::reconcile(&mut ctx, key),
        Item::CronJob(key) => cron_job::reconcile(&mut ctx, key),
        Item::Autoscaler(key) => autoscaler::reconcile(&mut ctx, key),
        Item::Disruption(key) => disruption::reconcile(&mut ctx, key),
        Item::Pod(key) => pod::reconcile(&mut ctx, key),
        Item::Slices(key) => endpoint_slice::reconcile(&mut ctx, key),
        Item::Mirror(service) => mirror::reconcile(&mut ctx, service),
        Item::Gateway(key) => gateway::reconcile(&mut ctx, key),
        Item::Balancer(key) => balancer::reconcile(&mut ctx, key),
        Item::Namespace(name) => namespace::reconcile(&mut ctx, name),
        Item::Garbage(key) => garbage::reconcile(&mut ctx, key),
    }
    ctx.into_plan()
}

/// What a step of the World wakes.
pub fn woken(old: &World, new: &World, delta: &WorldDelta) -> BTreeSet<Item> {
    let mut out = BTreeSet::new();
    for key in delta.iter() {
        match key {
            ReadKey::Raw(key) => {
                by_object(new, old.object(key), new.object(key), &mut out);
            }
            ReadKey::Catalog(service) | ReadKey::Instances(service) => {
                by_service(new, service, &mut out);
            }
            _ => {}
        }
    }
    out
}

/// Everything: at the start, and when steps were missed.
pub fn everything(world: &World) -> BTreeSet<Item> {
    let mut out = BTreeSet::new();
    for object in world.all_objects() {
        by_object(world, None, Some(object), &mut out);
    }
    out.extend(world.catalog().services().cloned().map(Item::Mirror));
    out
}

/// A service of the catalog, or one that mirrors it and may have to go.
fn by_service(world: &World, service: &ServiceKey, out: &mut BTreeSet<Item>) {
    let object = world.get(KindId::Service, service.namespace.as_str(), service.name.as_str());
    let mirrored = object.is_some_and(|o| is_mirror(&o.meta));
    if mirrored || world.catalog().of_service(service).next().is_some() {
        out.insert(Item::Mirror(service.clone()));
    }
}

fn by_object(
    world: &World,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    out: &mut BTreeSet<Item>,
) {
    let Some(key) = new.or(old).map(|o| o.key.clone()) else { return };
    let both = || old.into_iter().chain(new);
    match key.kind {
        KindId::Deployment => {
            out.insert(Item::Deployment(key.clone()));
            budgets_in(world, &key, out);
        }
        KindId::ReplicaSet => {
            out.insert(Item::ReplicaSet(key.clone()));
            both().for_each(|o| by_controller(o, out));
            budgets_in(world, &key, out);
        }
        KindId::StatefulSet => {
            out.insert(Item::StatefulSet(key.clone()));
            budgets_in(world, &key, out);
        }
        KindId::DaemonSet => drop(out.insert(Item::DaemonSet(key.clone()))),
        KindId::ControllerRevision => both().for_each(|o| by_controller(o, out)),
        KindId::Job => {
            out.insert(Item::Job(key.clone()));
            both().for_each(|o| by_controller(o, out));
        }
        KindId::PodDisruptionBudget => drop(out.insert(Item::Disruption(key.clone()))),
        KindId::HorizontalPodAutoscaler => drop(out.insert(Item::Autoscaler(key.clone()))),
        KindId::CronJob => drop(out.insert(Item::CronJob(key.clone()))),
        KindId::Pod => by_pod(world, &key, old, new, out),
        KindId::Node => {
            waiting(world, out);
            let sets = world.objects(KindId::DaemonSet, None);
            out.extend(sets.map(|s| Item::DaemonSet(s.key.clone())));
            let there = world.index(Index::PodsByNode, &key.name);
            out.extend(there.map(|p| Item::Pod(p.key.clone())));
        }
        KindId::ServiceAccount => both().for_each(|o| by_controller(o, out)),
        KindId::Service => {
            out.insert(Item::Slices(key.clone()));
            out.insert(Item::Balancer(key.clone()));
            both().for_each(|o| by_controller(o, out));
            let service = ServiceKey::new(&key.namespace, &key.name);
            service.into_iter().for_each(|s| by_service(world, &s, out));
        }
        KindId::EndpointSlice => {
            for name in both().filter_map(|o| service_of(&o.meta)) {
                let service = ObjectKey::new(KindId::Service, key.namespace.clone(), name);
                out.insert(Item::Slices(service));
            }
        }
        KindId::Gateway | KindId::IstioGateway => drop(out.insert(Item::Gateway(key.clone()))),
        KindId::ListenerSet => out.extend(both().filter_map(|set| by_listener_set(set))),
        KindId::GatewayClass => {
            let gateways = world.index(Index::GatewaysByClass, &key.name);
            out.extend(gateways.map(|g| Item::Gateway(g.key.clone())));
        }
        KindId::Namespace => drop(out.insert(Item::Namespace(key.name.clone()))),
        _ => {}
    }
    let home = world.get(KindId::Namespace, "", &key.namespace);
    if new.is_none() && home.is_some_and(|ns| ns.meta.is_deleting()) {
        out.insert(Item::Namespace(key.namespace.clone()));
    }
    garbage_of(world, &key, old, new, out);
}

/// A pod: who made it, who counts it, and who sends it requests.
fn by_pod(
    world: &World,
    key: &ObjectKey,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    out: &mut BTreeSet<Item>,
) {
    let both = || old.into_iter().chain(new);
    out.insert(Item::Pod(key.clone()));
    both().for_each(|o| by_controller(o, out));
    // A Deployment counts the pods of its sets, also those on their way out.
    for set in both().filter_map(|o| set_of(world, o)) {
        by_controller(set, out);
    }
    both().for_each(|o| services_of(world, o, out));
    let budgets = both().flat_map(|o| disruption::budgets_of(world, o));
    out.extend(budgets.map(|b| Item::Disruption(b.key.clone())));
    if new.is_none() {
        waiting(world, out);
    }
}

/// Budgets that may count by the replicas of an object.
fn budgets_in(world: &World, key: &ObjectKey, out: &mut BTreeSet<Item>) {
    let budgets = world.objects(KindId::PodDisruptionBudget, Some(&key.namespace));
    out.extend(budgets.map(|b| Item::Disruption(b.key.clone())));
}

/// The Gateway that a ListenerSet is for.
fn by_listener_set(set: &Object) -> Option<Item> {
    let View::ListenerSet(view) = &set.view else { return None };
    let parent = &view.spec.parent_ref;
    let ns = parent.namespace.clone().unwrap_or_else(|| set.key.namespace.clone());
    Some(Item::Gateway(ObjectKey::new(KindId::Gateway, ns, &*parent.name)))
}

/// The object that manages this one.
fn by_controller(object: &Object, out: &mut BTreeSet<Item>) {
    let Some(owner) = object.meta.controller() else { return };
    let key = |kind| ObjectKey::new(kind, object.key.namespace.clone(), owner.name.clone());
    match &*owner.kind {
        "Deployment" => drop(out.insert(Item::Deployment(key(KindId::Deployment)))),
        "ReplicaSet" => drop(out.insert(Item::ReplicaSet(key(KindId::ReplicaSet)))),
        "StatefulSet" => drop(out.insert(Item::StatefulSet(key(KindId::StatefulSet)))),
        "DaemonSet" => drop(out.insert(Item::DaemonSet(key(KindId::DaemonSet)))),
        "Job" => drop(out.insert(Item::Job(key(KindId::Job)))),
        "CronJob" => drop(out.insert(Item::CronJob(key(KindId::CronJob)))),
        "Service" => drop(out.insert(Item::Balancer(key(KindId::Service)))),
        "Gateway" => {
            out.insert(Item::Gateway(key(KindId::Gateway)));
            out.insert(Item::Gateway(key(KindId::IstioGateway)));
        }
        _ => {}
    }
}

/// Pods that wait for a place: there may be one now.
fn waiting(world: &World, out: &mut BTreeSet<Item>) {
    let waiting = world.objects(KindId::Pod, None).filter(|p| !pod::is_placed(p));
    out.extend(waiting.map(|p| Item::Pod(p.key.clone())));
}

/// The ReplicaSet that made a pod.
fn set_of<'w>(world: &'w World, pod: &Object) -> Option<&'w Arc<Object>> {
    let owner = pod.meta.controller().filter(|o| &*o.kind == "ReplicaSet")?;
    world.get(KindId::ReplicaSet, &pod.key.namespace, &owner.name)
}

fn services_of(world: &World, pod: &Object, out: &mut BTreeSet<Item>) {
    for object in world.objects(KindId::Service, Some(&pod.key.namespace)) {
        if let View::Service(service) = &object.view
            && selects(service, pod)
        {
            out.insert(Item::Slices(object.key.clone()));
        }
    }
}

/// Whether a Service has a selector and the pod's labels meet it.
pub(crate) fn selects(service: &Service, pod: &Object) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty() && selector.iter().all(|(k, v)| pod.meta.labels.get(k) == Some(v))
}

fn garbage_of(
    world: &World,
    key: &ObjectKey,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    out: &mut BTreeSet<Item>,
) {
    let collecting = new.is_some_and(|o| garbage::collection(o).is_some());
    if let Some(object) = new
        && (collecting || !object.meta.owner_references.is_empty())
    {
        out.insert(Item::Garbage(key.clone()));
    }
    if let Some(object) = new.or(old)
        && (collecting || new.is_none())
    {
        let dependents = world.index(Index::ByOwner, &object.meta.uid);
        out.extend(dependents.map(|d| Item::Garbage(d.key.clone())));
    }
    // An owner may be waiting for this one to go, or to let go of it.
    for owner in old.iter().flat_map(|o| &o.meta.owner_references) {
        if let Some(owner) = garbage::owner(world, key, owner)
            && garbage::collection(owner).is_some()
        {
            out.insert(Item::Garbage(owner.key.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
