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
mod job;
mod machines;
mod odd;
mod rollout;
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
fn a_deployment_becomes_pods_with_kubernetes_names_and_owners() {
    let sim = Sim::user_and_service(2);
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!(sets.len(), 1);
    let hash = sets[0].meta.label(deployment::HASH_LABEL).unwrap().to_owned();
    assert_eq!(&*sets[0].key.name, format!("user-{hash}"));
    assert_eq!(sets[0].raw["spec"]["selector"]["matchLabels"]["pod-template-hash"], *hash);
    assert_eq!(annotation(&sets[0].raw, deployment::REVISION_ANNOTATION), "1");
    let pods = sim.all(KindId::Pod);
    assert_eq!(pods.len(), 2);
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        let suffix = pod.key.name.strip_prefix(&format!("user-{hash}-")).unwrap();
        assert_eq!(suffix.len(), 5);
        assert_eq!(pod.meta.label("app"), Some("user"));
        assert_eq!(pod.meta.annotation("a"), Some("b"));
        let owner = pod.meta.controller().unwrap();
        assert_eq!((&*owner.kind, &owner.uid), ("ReplicaSet", &sets[0].meta.uid));
        assert_eq!(pod.raw["spec"]["nodeName"], "n1");
        assert_eq!(pod.raw["spec"]["serviceAccountName"], "default");
        let ip: std::net::Ipv4Addr = pod.raw["status"]["podIP"].as_str().unwrap().parse().unwrap();
        assert!((64..96).contains(&ip.octets()[1]) && addresses.insert(ip), "{ip}");
    }
    let status = &sim.object(KindId::Deployment, "user").raw["status"];
    assert_eq!(status["readyReplicas"], 2);
    assert_eq!(status["availableReplicas"], 2);
    assert_eq!(status["updatedReplicas"], 2);
    assert_eq!(status["observedGeneration"], 1);
    assert!(status.get("unavailableReplicas").is_none(), "zero is left out");
    let reasons: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|c| &c["reason"]).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
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
fn scaling_down_takes_those_that_do_least() {
    let mut sim = Sim::user_and_service(4);
    let pods = sim.names(KindId::Pod);
    sim.set_ready(&pods[1], false);
    sim.settle();
    sim.time.advance(std::time::Duration::from_secs(60));
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(5));
    sim.run();
    sim.set_ready(&pods[1], false);
    sim.settle();
    let young: Vec<String> =
        sim.names(KindId::Pod).into_iter().filter(|p| !pods.contains(p)).collect();
    assert_eq!(young.len(), 1);
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(3));
    sim.settle();
    let going: BTreeSet<String> = sim
        .all(KindId::Pod)
        .iter()
        .filter(|p| p.meta.is_deleting())
        .map(|p| p.key.name.to_string())
        .collect();
    assert_eq!(going, [pods[1].clone(), young[0].clone()].into(), "not ready, then the youngest");
}

#[test]
fn a_new_template_rolls_without_a_moment_of_fewer() {
    let mut sim = Sim::user_and_service(4);
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:2"));
    for round in 0.. {
        assert!(round < 60, "the rollout never ends");
        sim.settle();
        let (pods, ready) = (sim.all(KindId::Pod), sim.ready());
        assert!(ready >= 4, "only {ready} ready in round {round}");
        let alive = pods.iter().filter(|p| !p.meta.is_deleting()).count();
        assert!(alive <= 5, "{alive} pods in round {round}");
        let new = |p: &&Arc<Object>| p.raw["spec"]["containers"][0]["image"] == "user:2";
        if pods.len() == 4 && pods.iter().filter(new).count() == 4 && ready == 4 {
            break;
        }
        sim.agent(1);
    }
    let sets = sim.all(KindId::ReplicaSet);
    let mut wanted: Vec<_> = sets
        .iter()
        .map(|s| (annotation(&s.raw, deployment::REVISION_ANNOTATION), &s.raw["spec"]["replicas"]))
        .collect();
    wanted.sort_by_key(|(revision, _)| *revision);
    assert_eq!(wanted, [("1", &json!(0)), ("2", &json!(4))]);
    // Back again: the old set is the new one.
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:1"));
    sim.run();
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!(sets.len(), 2);
    let back = sets.iter().find(|s| s.raw["spec"]["replicas"] == 4).unwrap();
    let deployment = sim.object(KindId::Deployment, "user");
    for object in [back, &deployment] {
        assert_eq!(annotation(&object.raw, deployment::REVISION_ANNOTATION), "3");
    }
}

#[test]
fn a_broken_template_stops_and_what_served_goes_on() {
    let mut sim = Sim::user_and_service(3);
    let good = sim.names(KindId::Pod);
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("broken"));
    for _ in 0..5 {
        sim.settle();
        sim.agent(0);
    }
    assert_eq!(sim.ready(), 3);
    assert!(good.iter().all(|p| sim.names(KindId::Pod).contains(p)));
    sim.time.advance(std::time::Duration::from_secs(601));
    sim.queue.insert(Item::Deployment(sim.object(KindId::Deployment, "user").key.clone()));
    sim.settle();
    let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
    let progressing = &status["conditions"][1];
    assert_eq!(progressing["reason"], "ProgressDeadlineExceeded", "{status}");
    // Repaired, it goes on from there.
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:3"));
    sim.run();
    let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
    assert_eq!(status["conditions"][1]["reason"], "NewReplicaSetAvailable");
}

#[test]
fn recreate_ends_the_old_before_the_new() {
    let mut sim = Sim::user_and_service(2);
    sim.change(KindId::Deployment, "user", |d| {
        d["spec"]["strategy"] = json!({ "type": "Recreate" });
        *template(d) = json!("user:2");
    });
    sim.settle();
    assert_eq!(sim.ready(), 0);
    assert_eq!(sim.all(KindId::Pod).len(), 2, "the old are on their way out");
    sim.run();
    assert_eq!(sim.ready(), 2);
    let new = |p: &Arc<Object>| p.raw["spec"]["containers"][0]["image"] == "user:2";
    assert!(sim.all(KindId::Pod).iter().all(new));
}

#[test]
fn pods_that_end_or_vanish_are_replaced() {
    let mut sim = Sim::user_and_service(2);
    let pods = sim.names(KindId::Pod);
    sim.change(KindId::Pod, &pods[0], |p| p["status"]["phase"] = json!("Failed"));
    sim.settle();
    let now = sim.names(KindId::Pod);
    assert_eq!(now.len(), 3, "the one that ended stays for its logs");
    sim.delete(KindId::Pod, &pods[1], Propagation::Background);
    sim.run();
    assert_eq!(sim.ready(), 2);
    for pod in sim.names(KindId::Pod) {
        sim.change(KindId::Pod, &pod, |p| p["status"]["phase"] = json!("Failed"));
    }
    sim.run();
    assert_eq!(sim.ready(), 2);
    assert_eq!(sim.all(KindId::Pod).len(), 3, "only the last that ended is kept");
}

#[test]
fn slices_tell_ready_and_draining() {
    let mut sim = Sim::user_and_service(2);
    let ready = |e: &[(String, bool, bool, bool)]| e.iter().filter(|e| e.1).count();
    assert_eq!(ready(&sim.endpoints("user")), 2);
    let slice = sim.all(KindId::EndpointSlice)[0].clone();
    assert_eq!(slice.raw["ports"], json!([{ "name": "", "port": 8080, "protocol": "TCP" }]));
    assert_eq!((slice.meta.label("team"), &slice.raw["addressType"]), (Some("a"), &json!("IPv4")));
    assert_eq!(sim.world.instances(NS, "user").len(), 2, "the World reads them");

    let pods = sim.names(KindId::Pod);
    sim.set_ready(&pods[0], false);
    sim.settle();
    assert_eq!(ready(&sim.endpoints("user")), 1);
    sim.set_ready(&pods[0], true);
    sim.delete(KindId::Pod, &pods[0], Propagation::Background);
    sim.settle();
    let draining: Vec<_> = sim.endpoints("user").into_iter().filter(|e| e.3).collect();
    assert_eq!(draining.len(), 1);
    assert!(!draining[0].1 && draining[0].2, "not ready, still serving what it has");
    assert_eq!(sim.all(KindId::EndpointSlice).len(), 1, "the slice keeps its name");
    sim.run();
    assert_eq!(ready(&sim.endpoints("user")), 2);

    // A selector that meets nobody leaves an empty slice; no selector none.
    sim.change(KindId::Service, "user", |s| s["spec"]["selector"] = json!({ "app": "none" }));
    sim.settle();
    assert_eq!((sim.endpoints("user").len(), sim.all(KindId::EndpointSlice).len()), (0, 1));
    sim.delete(KindId::Service, "user", Propagation::Background);
    sim.settle();
    assert_eq!(sim.all(KindId::EndpointSlice).len(), 0, "they go with the Service");
}

#[test]
fn a_label_change_moves_a_pod_between_services() {
    let mut sim = Sim::user_and_service(1);
    let other = json!({ "metadata": { "name": "other" }, "spec": {
        "selector": { "app": "other" }, "ports": [{ "port": 80 }] } });
    sim.create(KindId::Service, NS, other);
    sim.run();
    let pod = sim.names(KindId::Pod)[0].clone();
    sim.change(KindId::Pod, &pod, |p| p["metadata"]["labels"]["app"] = json!("other"));
    sim.settle();
    assert_eq!((sim.endpoints("user").len(), sim.endpoints("other").len()), (0, 1));
}

#[test]
fn a_deleted_deployment_takes_everything_along() {
    for how in [Propagation::Background, Propagation::Foreground] {
        let mut sim = Sim::user_and_service(2);
        sim.delete(KindId::Deployment, "user", how);
        sim.settle();
        let waits = sim.world.get(KindId::Deployment, NS, "user").is_some();
        assert_eq!(waits, how == Propagation::Foreground, "{how:?}");
        sim.run();
        for kind in [KindId::Deployment, KindId::ReplicaSet, KindId::Pod] {
            assert_eq!(sim.names(kind), [""; 0], "{how:?}");
        }
        let held = sim.world.settings().filter(|(k, _)| k.starts_with("addresses/127.6"));
        assert_eq!(held.count(), 0, "addresses are given back");
    }
}

#[test]
fn an_orphaned_set_lives_on() {
    let mut sim = Sim::user_and_service(2);
    sim.delete(KindId::Deployment, "user", Propagation::Orphan);
    sim.run();
    assert!(sim.world.get(KindId::Deployment, NS, "user").is_none());
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!((sets.len(), sim.ready()), (1, 2));
    assert!(sets[0].meta.owner_references.is_empty());
}

#[test]
fn a_deployment_made_again_takes_over_what_was_left() {
    let mut sim = Sim::user_and_service(2);
    let (sets, pods) = (sim.names(KindId::ReplicaSet), sim.names(KindId::Pod));
    sim.delete(KindId::Deployment, "user", Propagation::Orphan);
    sim.run();
    sim.create(KindId::Deployment, NS, deployment("user", 2, "user:1"));
    sim.run();
    assert_eq!(sim.names(KindId::ReplicaSet), sets);
    assert_eq!(sim.names(KindId::Pod), pods);
    let owner = sim.all(KindId::ReplicaSet)[0].meta.controller().unwrap().clone();
    assert_eq!(owner.uid, sim.object(KindId::Deployment, "user").meta.uid);
    assert_eq!(sim.object(KindId::Deployment, "user").raw["status"]["readyReplicas"], 2);
    // The same one level below.
    sim.delete(KindId::ReplicaSet, &sets[0], Propagation::Orphan);
    sim.run();
    assert_eq!(sim.names(KindId::Pod), pods);
    assert_eq!(sim.ready(), 2);
}

#[test]
fn pods_of_a_node_that_stays_away_are_replaced() {
    let mut sim = Sim::user_and_service(2);
    let bare = json!({ "metadata": { "name": "bare" }, "spec": {} });
    sim.create(KindId::Pod, NS, bare);
    sim.run();
    let old = sim.names(KindId::Pod);
    let second = json!({ "metadata": { "name": "n2" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    sim.create(KindId::Node, "", second);
    let gone = crate::objects::meta::timestamp(sim.clock.wall_ms());
    sim.change(KindId::Node, "n1", |n| {
        n["status"]["conditions"] = json!([{ "type": "Ready", "status": "False",
            "lastTransitionTime": gone }]);
    });
    sim.settle();
    assert_eq!(sim.names(KindId::Pod), old, "it may come back");
    sim.time.advance(std::time::Duration::from_secs(61));
    let items = old.iter().map(|p| Item::Pod(sim.object(KindId::Pod, p).key.clone()));
    let items: Vec<Item> = items.collect();
    sim.queue.extend(items);
    sim.run();
    let now = sim.names(KindId::Pod);
    assert!(now.contains(&"bare".to_owned()), "what nobody would replace stays");
    let moved: Vec<_> = sim.all(KindId::Pod);
    let moved = moved.iter().filter(|p| &*p.key.name != "bare");
    assert!(moved.clone().all(|p| p.raw["spec"]["nodeName"] == "n2"));
    assert_eq!(moved.count(), 2);
}

#[test]
fn a_set_and_a_node_have_limits() {
    let mut sim = Sim::new();
    sim.change(KindId::Node, "n1", |n| n["status"]["allocatable"] = json!({ "pods": "3" }));
    sim.create(KindId::Deployment, NS, deployment("user", 5, "user:1"));
    sim.run();
    let placed = sim.all(KindId::Pod).iter().filter(|p| pod::is_placed(p)).count();
    assert_eq!((sim.all(KindId::Pod).len(), placed), (5, 3));
    let waiting = sim.all(KindId::Pod).into_iter().find(|p| !pod::is_placed(p)).unwrap();
    let message = waiting.raw["status"]["conditions"][0]["message"].clone();
    assert_eq!(message, "0/1 nodes are available, 1 had too many pods");
    // One that goes makes room.
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(3));
    sim.run();
    assert_eq!(sim.ready(), 3);
    let first = sim.names(KindId::Pod)[0].clone();
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(4));
    sim.run();
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(4));
    sim.delete(KindId::Pod, &first, Propagation::Background);
    sim.run();
    assert_eq!(sim.ready(), 3, "the one that waited has the place");
}

#[test]
fn pods_wait_for_a_node_that_fits() {
    let mut sim = Sim::new();
    sim.change(KindId::Node, "n1", |n| n["spec"]["unschedulable"] = json!(true));
    sim.create(KindId::Pod, NS, json!({ "metadata": { "name": "p" }, "spec": {} }));
    sim.settle();
    let condition = &sim.object(KindId::Pod, "p").raw["status"]["conditions"][0];
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(condition["message"], "0/1 nodes are available, 1 were not ready or unschedulable");
    sim.change(KindId::Node, "n1", |n| n["spec"]["unschedulable"] = json!(false));
    sim.settle();
    let pod = sim.object(KindId::Pod, "p");
    assert_eq!(pod.raw["spec"]["nodeName"], "n1");
    assert_eq!(pod.raw["status"]["conditions"][0]["status"], "True");
}

#[test]
fn a_gateway_has_one_proxy_pod_and_an_address() {
    let mut sim = Sim::new();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [{ "name": "http", "port": 8000 }, { "name": "b", "port": 8000 }] } });
    sim.create(KindId::Gateway, NS, gateway.clone());
    let mut foreign = gateway;
    foreign["metadata"]["name"] = json!("foreign");
    foreign["spec"]["gatewayClassName"] = json!("nginx");
    sim.create(KindId::Gateway, NS, foreign);
    sim.run();
    let pods = sim.all(KindId::Pod);
    assert_eq!(pods.len(), 1);
    let pod = &pods[0];
    assert_eq!(pod.meta.annotation("weft.dev/proxy"), Some("gateway"));
    assert_eq!(pod.meta.annotation(gateway::GATEWAY_ANNOTATION), Some("shop"));
    assert_eq!(pod.raw["spec"]["serviceAccountName"], "shop-weft");
    assert_eq!(pod.raw["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 1);
    assert!(!annotation(&sim.object(KindId::Gateway, "shop").raw, ADDRESS_ANNOTATION).is_empty());
    // Its class comes later.
    let class = json!({ "metadata": { "name": "nginx" },
        "spec": { "controllerName": "weft.dev/gateway" } });
    sim.create(KindId::GatewayClass, "", class);
    sim.run();
    assert_eq!(sim.all(KindId::Pod).len(), 2);
    assert!(
        !annotation(&sim.object(KindId::Gateway, "foreign").raw, ADDRESS_ANNOTATION).is_empty()
    );
    // The pod dies and comes back; the Gateway goes and takes it along.
    let name = pod.key.name.clone();
    sim.delete(KindId::Pod, &name, Propagation::Background);
    sim.settle();
    assert_eq!(sim.all(KindId::Pod).len(), 2, "the next waits until the port is free");
    sim.run();
    assert!(!sim.names(KindId::Pod).contains(&name.to_string()));
    assert_eq!(sim.ready(), 2);
    sim.delete(KindId::Gateway, "shop", Propagation::Background);
    sim.run();
    assert_eq!(sim.all(KindId::Pod).len(), 1);
}

#[test]
fn what_a_gateway_causes_is_its_own_and_goes_with_it() {
    let mut sim = Sim::new();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": {
        "gatewayClassName": "weft",
        "addresses": [{ "value": "127.0.0.1" }],
        "infrastructure": { "labels": { "team": "a" }, "annotations": { "note": "b" } },
        "listeners": [
            { "name": "http", "port": 8000, "protocol": "HTTP" },
            { "name": "more", "port": 8000, "protocol": "HTTP", "hostname": "x.example" },
        ],
    } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    let service = sim.object(KindId::Service, "shop-weft");
    let spec = &service.raw["spec"];
    assert_eq!(
        spec["ports"],
        json!([{ "name": "http", "port": 8000, "targetPort": 8000,
        "protocol": "TCP", "appProtocol": "http" }])
    );
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("127."), "{spec}");
    assert_eq!(service.raw["status"]["loadBalancer"]["ingress"][0]["ip"], "127.0.0.1");
    for kind in [KindId::Service, KindId::ServiceAccount, KindId::Pod] {
        let all = sim.all(kind);
        let caused = all.iter().find(|o| o.meta.label(gateway::NAME_LABEL) == Some("shop"));
        let caused = caused.unwrap_or_else(|| panic!("{kind}"));
        assert_eq!(caused.meta.label("team"), Some("a"), "{kind}");
        assert_eq!(caused.meta.annotation("note"), Some("b"), "{kind}");
        assert_eq!(&*caused.meta.controller().unwrap().kind, "Gateway");
    }
    // The proxy is the Service's instance.
    let slices = sim.all(KindId::EndpointSlice);
    let pod = sim.all(KindId::Pod)[0].key.name.to_string();
    assert_eq!(slices[0].raw["endpoints"][0]["targetRef"]["name"], pod.as_str());
    // A new listener is a new port; what is deleted comes back.
    sim.change(KindId::Gateway, "shop", |g| {
        let tcp = json!({ "name": "db", "port": 5432, "protocol": "TCP" });
        g["spec"]["listeners"].as_array_mut().unwrap().push(tcp);
    });
    sim.run();
    let ports = sim.object(KindId::Service, "shop-weft").raw["spec"]["ports"].clone();
    assert_eq!((ports.as_array().unwrap().len(), &ports[1]["name"]), (2, &json!("db")));
    for kind in [KindId::Service, KindId::ServiceAccount] {
        sim.delete(kind, "shop-weft", Propagation::Background);
        sim.run();
        assert!(sim.world.get(kind, NS, "shop-weft").is_some(), "{kind}");
    }
    sim.delete(KindId::Gateway, "shop", Propagation::Background);
    sim.run();
    assert_eq!(sim.names(KindId::ServiceAccount), ["default"]);
    assert!(sim.all(KindId::Service).is_empty() && sim.all(KindId::Pod).is_empty());
    assert_eq!(sim.world.settings().filter(|(n, _)| n.starts_with("addresses/")).count(), 0);
}

#[test]
fn a_users_own_service_of_that_name_stays() {
    let mut sim = Sim::new();
    let own = json!({ "metadata": { "name": "shop-weft" }, "spec": { "ports": [{ "port": 1 }] } });
    sim.create(KindId::Service, NS, own);
    let before = sim.object(KindId::Service, "shop-weft").raw.clone();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [{ "name": "http", "port": 8000, "protocol": "HTTP" }] } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    assert_eq!(sim.ready(), 1, "the Gateway works without");
    assert_eq!(sim.object(KindId::Service, "shop-weft").raw, before);
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

#[test]
fn what_consul_clients_register_is_mirrored_read_only() {
    let mut sim = Sim::new();
    let register = |sim: &mut Sim, ns: &str, id: &str, port: u16| {
        let record = json!({ "id": id, "service": "Web_1", "node": "laptop", "namespace": ns,
            "address": "127.0.0.1", "port": port, "meta": { "protocol": "http" } });
        let op = Op::put(format!("/c/i/{ns}/laptop/{id}"), record.to_string());
        sim.store.txn(Txn::of([op])).now_or_never().unwrap().unwrap();
        sim.fold();
        sim.settle();
    };
    register(&mut sim, NS, "web-a", 5000);
    register(&mut sim, NS, "web-b", 5001);
    let name = weft_base::name::slug("Web_1");
    let service = sim.object(KindId::Service, &name);
    assert!(is_mirror(&service.meta));
    assert_eq!(service.raw["spec"]["ports"][0]["port"], 5000);
    assert_eq!(service.raw["spec"]["ports"][0]["appProtocol"], "http");
    assert!(service.raw["spec"]["clusterIP"].as_str().unwrap().starts_with("127."));
    assert_eq!(sim.endpoints(&name).len(), 2);
    assert_eq!(sim.world.instances(NS, &name).len(), 2, "nothing counts twice");

    let sick = json!({ "status": "critical", "output": "" }).to_string();
    let check = json!({ "id": "c", "node": "laptop", "namespace": NS, "service_id": "web-b" });
    let ops = [
        Op::put(format!("/c/k/{NS}/laptop/c"), check.to_string()),
        Op::put_ephemeral(format!("/e/k/{NS}/laptop/c"), sick),
    ];
    sim.store.txn(Txn::of(ops)).now_or_never().unwrap().unwrap();
    sim.fold();
    sim.settle();
    let ready = sim.endpoints(&name).iter().filter(|e| e.1).count();
    assert_eq!(ready, 1, "a critical one is not ready");

    register(&mut sim, "elsewhere", "web-c", 5002);
    assert!(sim.world.get(KindId::Namespace, "", "elsewhere").is_some());
    for id in ["web-a", "web-b"] {
        let op = Op::delete(format!("/c/i/{NS}/laptop/{id}"));
        sim.store.txn(Txn::of([op])).now_or_never().unwrap().unwrap();
        sim.fold();
        sim.settle();
    }
    assert_eq!(sim.names(KindId::Service), [""; 0]);
    assert_eq!(sim.names(KindId::EndpointSlice), [""; 0]);
}

#[test]
fn an_event_costs_what_it_touches() {
    let mut few = Sim::user_and_service(2);
    let mut many = Sim::user_and_service(2);
    for i in 0..200 {
        let service = json!({ "metadata": { "name": format!("s{i}") },
            "spec": { "selector": { "app": format!("s{i}") }, "ports": [{ "port": 80 }] } });
        many.create(KindId::Service, NS, service);
    }
    many.run();
    let cost = |sim: &mut Sim| {
        let pod = sim.names(KindId::Pod)[0].clone();
        sim.steps = 0;
        sim.set_ready(&pod, false);
        sim.settle();
        sim.steps
    };
    assert_eq!(cost(&mut few), cost(&mut many));
}

/// The same through the real loop, with an agent that follows the World.
#[tokio::test]
async fn the_loop_keeps_up_with_the_world() {
    use crate::{Part, Registry, WorldChange, WriteOptions};
    let clock = Clock::system();
    let tasks = weft_base::task::TaskGroup::new();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let o = registry.objects();
    let system = WriteOptions::SYSTEM;
    o.create(KindId::Node, "", json!({ "metadata": { "name": "n1" } }), system).await.unwrap();
    run(&registry);
    let agent = registry.clone();
    tasks.spawn("agent", async move {
        let (mut world, mut watch) = agent.watch_world();
        loop {
            let pods: Vec<_> = world.objects(KindId::Pod, None).cloned().collect();
            for pod in pods {
                let View::Pod(view) = &pod.view else { continue };
                let (ns, name) = (&*pod.key.namespace, &*pod.key.name);
                let status = json!({ "phase": "Running", "conditions":
                    [{ "type": "Ready", "status": "True" }] });
                if pod.meta.is_deleting() {
                    let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
                    let _ = agent.objects().delete(KindId::Pod, ns, name, &now).await;
                } else if pod::is_placed(&pod) && !view.is_ready() {
                    let _ = agent.objects().write_status(KindId::Pod, ns, name, &status).await;
                }
            }
            match watch.next().await {
                Some(WorldChange::Delta(now, _) | WorldChange::Reset(now)) => world = now,
                None => return,
            }
        }
    });
    let user = WriteOptions::default();
    let made = deployment("web", 3, "web:1");
    o.create(KindId::Deployment, "default", made, user).await.unwrap();
    let done = |image: &'static str, n: u64| {
        let o = o.clone();
        move || {
            let (_, pods) = o.list(KindId::Pod, Some("default"));
            let status = o.get(KindId::Deployment, "default", "web").unwrap()["status"].clone();
            status["availableReplicas"] == n
                && status["updatedReplicas"] == n
                && pods.len() as u64 == n
                && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == image)
        }
    };
    wait(&registry, done("web:1", 3)).await;
    let mut next = o.get(KindId::Deployment, "default", "web").unwrap();
    *template(&mut next) = json!("web:2");
    next["spec"]["replicas"] = json!(5);
    o.modify(
        crate::Change {
            kind: KindId::Deployment,
            namespace: "default",
            name: "web",
            part: Part::Spec,
            options: user,
        },
        |_| {
            let mut next = next.clone();
            crate::objects::meta::metadata_mut(&mut next).remove("resourceVersion");
            Ok(next)
        },
    )
    .await
    .unwrap();
    wait(&registry, done("web:2", 5)).await;
    let said = |reason: &'static str| {
        let o = o.clone();
        let (_, events) = o.list(KindId::Event, Some("default"));
        events.iter().any(|e| e["reason"] == reason)
    };
    wait(&registry, || said("ScalingReplicaSet") && said("Scheduled")).await;
    let stats = registry.stats();
    assert!(stats.reconciles > 0 && stats.events_dropped == 0, "{stats:?}");
    assert!(registry.wait_revision(stats.store.revision).await.revision() >= stats.world_revision);
    assert!(tasks.shutdown(std::time::Duration::from_secs(5)).await, "everything drains");
}

async fn wait(registry: &crate::Registry, done: impl Fn() -> bool) {
    let mut world = registry.world();
    let all = async {
        while !done() {
            assert!(world.changed().await);
        }
    };
    let limit = std::time::Duration::from_secs(20);
    tokio::time::timeout(limit, all).await.expect("the world never got there");
}
