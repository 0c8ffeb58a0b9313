// SPDX-License-Identifier: Apache-2.0
//! Controllers under random users, agents and accidents. After every step: whoever looks at
//! everything finds nothing to do that was not woken, and each pod holds an address of its own,
//! and nobody else one. At the end: what is wanted is what is.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Scale(u32),
    Template(u8),
    Strategy(bool),
    Select(bool),
    /// The agent ends what is to end and starts this many.
    Agent(usize),
    Flap(usize),
    Fail(usize),
    DeletePod(usize),
    DeleteSet(usize, bool),
    Again(bool),
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6u32).prop_map(Step::Scale),
        2 => (0..3u8).prop_map(Step::Template),
        1 => any::<bool>().prop_map(Step::Strategy),
        1 => any::<bool>().prop_map(Step::Select),
        6 => (0..3usize).prop_map(Step::Agent),
        2 => (0..8usize).prop_map(Step::Flap),
        1 => (0..8usize).prop_map(Step::Fail),
        2 => (0..8usize).prop_map(Step::DeletePod),
        1 => (0..3usize, any::<bool>()).prop_map(|(n, o)| Step::DeleteSet(n, o)),
        1 => any::<bool>().prop_map(Step::Again),
        1 => (1..100u64).prop_map(Step::Later),
    ]
}

impl Sim {
    fn nth(&self, kind: KindId, n: usize) -> Option<Arc<Object>> {
        let all = self.all(kind);
        (!all.is_empty()).then(|| all[n % all.len()].clone())
    }

    fn act(&mut self, step: &Step) {
        let deployed = self.world.get(KindId::Deployment, NS, "user").is_some();
        match step {
            Step::Scale(n) if deployed => {
                self.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(n));
            }
            Step::Template(n) if deployed => {
                self.change(KindId::Deployment, "user", |d| *template(d) = json!(format!("u:{n}")));
            }
            Step::Strategy(recreate) if deployed => {
                let word = if *recreate { "Recreate" } else { "RollingUpdate" };
                let strategy = json!({ "type": word });
                self.change(KindId::Deployment, "user", |d| d["spec"]["strategy"] = strategy);
            }
            Step::Select(ours) => {
                let app = if *ours { "user" } else { "none" };
                let selector = json!({ "app": app });
                self.change(KindId::Service, "user", |s| s["spec"]["selector"] = selector);
            }
            Step::Agent(n) => self.agent(*n),
            Step::Flap(n) => {
                if let Some(pod) = self.nth(KindId::Pod, *n) {
                    let ready = matches!(&pod.view, View::Pod(p) if p.is_ready());
                    self.set_ready(&pod.key.name, !ready && pod::is_placed(&pod));
                }
            }
            Step::Fail(n) => {
                if let Some(pod) = self.nth(KindId::Pod, *n) {
                    let name = pod.key.name.clone();
                    self.change(KindId::Pod, &name, |p| p["status"]["phase"] = json!("Failed"));
                }
            }
            Step::DeletePod(n) => {
                if let Some(pod) = self.nth(KindId::Pod, *n) {
                    self.delete(KindId::Pod, &pod.key.name, Propagation::Background);
                }
            }
            Step::DeleteSet(n, orphan) => {
                let how = if *orphan { Propagation::Orphan } else { Propagation::Foreground };
                if let Some(set) = self.nth(KindId::ReplicaSet, *n) {
                    self.delete(KindId::ReplicaSet, &set.key.name, how);
                }
            }
            Step::Again(orphan) if deployed => {
                let how = if *orphan { Propagation::Orphan } else { Propagation::Background };
                self.delete(KindId::Deployment, "user", how);
            }
            Step::Again(_) => {
                self.create(KindId::Deployment, NS, deployment("user", 2, "u:0"));
            }
            Step::Later(s) => self.time.advance(std::time::Duration::from_secs(*s)),
            Step::Scale(_) | Step::Template(_) | Step::Strategy(_) => {}
        }
        self.settle();
    }

    /// The user removes what nobody manages.
    fn sweep(&mut self) {
        for kind in [KindId::ReplicaSet, KindId::Pod] {
            for object in self.all(kind).iter().filter(|o| o.meta.controller().is_none()) {
                if self.world.object(&object.key).is_some() {
                    self.delete(kind, &object.key.name, Propagation::Background);
                }
            }
            self.settle();
        }
    }

    /// Nothing was left undone by forgetting to wake someone.
    pub(super) fn check_woken(&self) {
        for item in everything(&self.world) {
            let plan = reconcile(&item, &self.world, self.clock.wall_ms(), 1);
            // What time alone brings is the queue's to bring again.
            let timed = plan.again.is_some();
            assert!(plan.txns.is_empty() || timed, "{item:?} was not woken for {:?}", plan.txns);
        }
    }

    fn check_addresses(&self) {
        let mut seen = BTreeMap::new();
        for pod in self.all(KindId::Pod) {
            let ip = pod.raw["status"]["podIP"].as_str().unwrap_or("").to_owned();
            if ip.is_empty() {
                continue;
            }
            let held = self.world.setting(&format!("addresses/{ip}")).expect("it is held");
            assert_eq!(held["owner"], format!("Pod {NS}/{}", pod.key.name));
            let twice = seen.insert(ip, pod.key.name.clone());
            assert!(twice.is_none(), "{twice:?} and {} share an address", pod.key.name);
        }
        let of_pods = |owner: &Value| owner.as_str().is_some_and(|o| o.starts_with("Pod "));
        let held = self.world.settings().filter(|(_, v)| of_pods(&v["owner"]));
        assert_eq!(held.count(), seen.len(), "an address is held for nobody");
    }

    /// Pods that count.
    fn active(&self) -> usize {
        let ended = |o: &Arc<Object>| matches!(&o.view, View::Pod(p) if p.is_finished());
        let pods = self.all(KindId::Pod);
        pods.iter().filter(|p| !p.meta.is_deleting() && !ended(p)).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_is_wanted_becomes_what_is(steps in proptest::collection::vec(step(), 1..50)) {
        let mut sim = Sim::user_and_service(2);
        for step in &steps {
            sim.act(step);
            sim.check_woken();
            sim.check_addresses();
        }
        // Peace: the user wants three of the newest, all selected, removes what was orphaned, and
        // nobody disturbs.
        if sim.world.get(KindId::Deployment, NS, "user").is_none() {
            sim.create(KindId::Deployment, NS, deployment("user", 3, "u:0"));
        }
        sim.change(KindId::Deployment, "user", |d| {
            d["spec"]["replicas"] = json!(3);
            *template(d) = json!("peace");
        });
        sim.act(&Step::Select(true));
        sim.run();
        sim.sweep();
        sim.run();
        sim.check_woken();
        sim.check_addresses();
        prop_assert_eq!((sim.ready(), sim.active()), (3, 3));
        let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
        prop_assert_eq!(&status["availableReplicas"], 3, "{}", status);
        prop_assert_eq!(&status["updatedReplicas"], 3);
        let endpoints = sim.endpoints("user");
        prop_assert_eq!(endpoints.iter().filter(|e| e.1).count(), 3, "{:?}", endpoints);
        prop_assert_eq!(endpoints.len(), 3);
        let images = sim.all(KindId::Pod);
        let newest = |p: &&Arc<Object>| p.raw["spec"]["containers"][0]["image"] == "peace";
        prop_assert_eq!(images.iter().filter(newest).count(), 3);
    }
}
