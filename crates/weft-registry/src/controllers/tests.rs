// SPDX-License-Identifier: Apache-2.0
//! Controllers together, step by step and without time: a store, the World folded from it, and
//! an agent that does what it is told. After the start only what a change wakes is looked at, so
//! a forgotten trigger shows as work not done.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::{Value, json};
use weft_base::clock::{Clock, ManualClock};
use weft_kinds::world::{KindId, Object, World};
use weft_store::{EventKind, MemoryStore, Op, Revision, Store, Txn, Watch};

use super::plan::Context;
use super::*;
use crate::objects::admit::{ADDRESS_ANNOTATION, annotation};
use crate::{DeleteOptions, Propagation};

mod autoscaler;
mod balancer;
mod chaos;
mod deployments;
mod gateways;
mod job;
mod live;
mod machines;
mod nodes;
mod odd;
mod rollout;
mod services;
mod sets;

const NS: &str = "shop";

struct Sim {
    store: MemoryStore,
    log: Watch,
    world: World,
    time: Arc<ManualClock>,
    clock: Clock,
    queue: BTreeSet<Item>,
    /// Who wants to look again, and when.
    timers: BTreeSet<(u64, Item)>,
    seed: u64,
    steps: usize,
    usage: crate::Usage,
    memories: std::collections::BTreeMap<Item, super::autoscaler::Memory>,
}

impl Sim {
    /// A server with one ready node and one namespace.
    fn new() -> Self {
        let (clock, time) = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let log = store.watch("", Revision(1)).unwrap();
        let world = World::new();
        let queue = BTreeSet::new();
        let timers = BTreeSet::new();
        let (usage, memories) = Default::default();
        let mut sim = Self {
            store,
            log,
            world,
            time,
            clock,
            queue,
            timers,
            seed: 0,
            steps: 0,
            usage,
            memories,
        };
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        sim.create(KindId::Node, "", json!({ "metadata": { "name": "n1" }, "status": ready }));
        sim.create(KindId::Namespace, "", json!({ "metadata": { "name": NS } }));
        let class = json!({ "metadata": { "name": "weft" },
            "spec": { "controllerName": "weft.dev/gateway" } });
        sim.create(KindId::GatewayClass, "", class);
        sim.settle();
        sim
    }

    fn plan(&mut self, f: impl FnOnce(&mut Context<'_>)) {
        self.seed += 1;
        let world = self.world.clone();
        let mut ctx = Context::new(&world, self.clock.wall_ms(), self.seed);
        f(&mut ctx);
        self.commit(ctx.into_plan());
    }

    fn commit(&mut self, plan: plan::Plan) {
        for txn in plan.txns {
            let done = self.store.txn(txn.clone()).now_or_never().unwrap().unwrap();
            assert!(done.succeeded, "nobody else writes: {txn:?}");
        }
        self.fold();
    }

    fn fold(&mut self) {
        let old = self.world.clone();
        let mut delta = WorldDelta::default();
        for e in self.log.try_next().unwrap() {
            let value = (e.kind == EventKind::Put).then_some(&*e.value);
            delta.merge(self.world.apply(&e.key, value, e.revision.0));
        }
        self.queue.extend(woken(&old, &self.world, &delta));
    }

    /// Sees to everything that is woken, and to what that wakes.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(item) = self.queue.pop_first() else { return };
            self.steps += 1;
            self.seed += 1;
            let memory = self.memories.remove(&item);
            let ctx = Context::new(&self.world, self.clock.wall_ms(), self.seed)
                .knowing(Arc::new(self.usage.clone()), memory);
            let plan = see_to(&item, ctx);
            if let Some(memory) = plan.memory.clone() {
                self.memories.insert(item.clone(), memory);
            }
            if let Some(after) = plan.again {
                let after = u64::try_from(after.as_millis()).unwrap();
                match after {
                    0 => drop(self.queue.insert(item)),
                    _ => drop(self.timers.insert((self.clock.wall_ms() + after, item))),
                }
            }
            self.commit(plan);
        }
        panic!("the controllers never come to rest; {:?}", self.queue);
    }

    /// Time passes, one timer after the other.
    fn later(&mut self, seconds: u64) {
        let end = self.clock.wall_ms() + seconds * 1000;
        while let Some((at, item)) = self.timers.first().cloned().filter(|(at, _)| *at <= end) {
            self.timers.remove(&(at, item.clone()));
            let left = at.saturating_sub(self.clock.wall_ms());
            self.time.advance(std::time::Duration::from_millis(left));
            self.queue.insert(item);
            self.settle();
        }
        let left = end.saturating_sub(self.clock.wall_ms());
        self.time.advance(std::time::Duration::from_millis(left));
    }

    fn create(&mut self, kind: KindId, namespace: &str, raw: Value) {
        self.plan(|ctx| drop(ctx.create(kind, namespace, raw)));
    }

    fn change(&mut self, kind: KindId, name: &str, f: impl FnOnce(&mut Value)) {
        let old = self.object(kind, name);
        let mut new = Value::clone(&old.raw);
        f(&mut new);
        self.plan(|ctx| ctx.write(&old, new));
    }

    fn delete(&mut self, kind: KindId, name: &str, propagation: Propagation) {
        let old = self.object(kind, name);
        self.plan(|ctx| ctx.delete(&old, propagation));
    }

    fn object(&self, kind: KindId, name: &str) -> Arc<Object> {
        let ns = if kind.row().namespaced { NS } else { "" };
        self.world.get(kind, ns, name).unwrap_or_else(|| panic!("no {kind} {name}")).clone()
    }

    fn all(&self, kind: KindId) -> Vec<Arc<Object>> {
        self.world.objects(kind, Some(NS)).cloned().collect()
    }

    fn names(&self, kind: KindId) -> Vec<String> {
        self.all(kind).iter().map(|o| o.key.name.to_string()).collect()
    }

    /// The agent: ends what is to end, starts `start` of the rest and makes them ready.
    fn agent(&mut self, start: usize) {
        let mut left = start;
        for pod in self.all(KindId::Pod) {
            let View::Pod(view) = &pod.view else { panic!("{pod:?}") };
            if pod.meta.is_deleting() {
                let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
                self.plan(|ctx| ctx.delete_with(&pod, &now));
            } else if !view.is_ready() && !view.is_finished() && pod::is_placed(&pod) && left > 0 {
                left -= 1;
                self.set_ready(&pod.key.name, true);
            }
        }
        self.settle();
    }

    fn set_ready(&mut self, pod: &str, ready: bool) {
        let now = crate::objects::meta::timestamp(self.clock.wall_ms());
        self.change(KindId::Pod, pod, |raw| {
            raw["status"]["phase"] = json!("Running");
            raw["status"]["conditions"] = json!([{ "type": "Ready",
                "status": if ready { "True" } else { "False" }, "lastTransitionTime": now }]);
        });
    }

    /// Until nothing is left to start or to end.
    fn run(&mut self) {
        for _ in 0..50 {
            let before = self.world.revision();
            self.settle();
            self.agent(usize::MAX);
            if self.world.revision() == before {
                return;
            }
        }
        panic!("the agent and the controllers never come to rest");
    }

    fn ready(&self) -> usize {
        let pods = self.all(KindId::Pod);
        let ready = |o: &&Arc<Object>| {
            matches!(&o.view, View::Pod(p) if p.is_ready() && !p.is_finished())
                && !o.meta.is_deleting()
        };
        pods.iter().filter(ready).count()
    }

    fn user_and_service(replicas: u32) -> Self {
        let mut sim = Self::new();
        sim.create(KindId::Deployment, NS, deployment("user", replicas, "user:1"));
        let service = json!({ "metadata": { "name": "user", "labels": { "team": "a" } }, "spec": {
            "selector": { "app": "user" }, "ports": [{ "port": 80, "targetPort": "http" }] } });
        sim.create(KindId::Service, NS, service);
        sim.run();
        sim
    }

    /// (address, ready, serving, terminating) of all endpoints of a service.
    fn endpoints(&self, service: &str) -> Vec<(String, bool, bool, bool)> {
        let mut out = Vec::new();
        for slice in self.world.index(Index::SlicesByService, &format!("{NS}/{service}")) {
            for e in slice.raw["endpoints"].as_array().unwrap() {
                let is = |c: &str| e["conditions"][c].as_bool().unwrap();
                let address = e["addresses"][0].as_str().unwrap().to_owned();
                out.push((address, is("ready"), is("serving"), is("terminating")));
            }
        }
        out
    }
}

fn deployment(name: &str, replicas: u32, image: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name }, "annotations": { "a": "b" } },
                "spec": { "containers": [{
                    "name": "main", "image": image,
                    "ports": [{ "name": "http", "containerPort": 8080 }],
                }] },
            },
        },
    })
}

fn template(raw: &mut Value) -> &mut Value {
    &mut raw["spec"]["template"]["spec"]["containers"][0]["image"]
}

#[test]
fn at_rest_nothing_is_written() {
    let mut sim = Sim::user_and_service(3);
    let before = sim.world.revision();
    sim.queue = everything(&sim.world);
    sim.time.advance(std::time::Duration::from_secs(3600));
    sim.settle();
    assert_eq!(sim.world.revision(), before);
}

#[test]
fn a_deleted_namespace_is_emptied_first() {
    let mut sim = Sim::user_and_service(2);
    assert_eq!(sim.names(KindId::ServiceAccount), ["default"]);
    sim.create(KindId::ConfigMap, NS, json!({ "metadata": { "name": "c" } }));
    sim.delete(KindId::Namespace, NS, Propagation::Background);
    sim.settle();
    let namespace = sim.object(KindId::Namespace, NS);
    assert_eq!(namespace.raw["status"]["phase"], "Terminating");
    assert_eq!(sim.all(KindId::Pod).len(), 2, "their processes end first");
    sim.run();
    assert!(sim.world.get(KindId::Namespace, "", NS).is_none());
    assert_eq!(sim.world.all_objects().filter(|o| &*o.key.namespace == NS).count(), 0);
}
