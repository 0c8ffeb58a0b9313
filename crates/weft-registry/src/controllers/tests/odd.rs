// SPDX-License-Identifier: Apache-2.0
//! Objects that no door would let in, or that an older weft wrote: anything anywhere. Nobody
//! panics, the controllers come to rest, and what is well beside them works.

use weft_base::rng::Rng;

use super::*;

const KINDS: [KindId; 14] = [
    KindId::Deployment,
    KindId::ReplicaSet,
    KindId::Pod,
    KindId::Service,
    KindId::EndpointSlice,
    KindId::Gateway,
    KindId::Namespace,
    KindId::Node,
    KindId::StatefulSet,
    KindId::DaemonSet,
    KindId::Job,
    KindId::CronJob,
    KindId::HorizontalPodAutoscaler,
    KindId::PodDisruptionBudget,
];

fn odd(rng: &mut Rng) -> Value {
    let all = [
        json!(null),
        json!(""),
        json!("user"),
        json!("2023-11-14T22:13:20Z"),
        json!(-1),
        json!(7),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
        json!([]),
        json!({}),
        json!([null, 3, "x", { "name": [] }]),
        json!({ "app": { "app": 3 }, "uid": "", "kind": "Pod", "name": "user" }),
    ];
    all[usize::try_from(rng.below(all.len() as u64)).unwrap()].clone()
}

/// Every place in a value, by JSON pointer.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(child, format!("{at}/{key}"), out);
            }
        }
        Value::Array(list) => {
            for (i, child) in list.iter().enumerate() {
                places(child, format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}

#[test]
fn odd_objects_stop_nobody() {
    for seed in 0..100 {
        let mut rng = Rng::seeded(seed);
        let mut sim = Sim::user_and_service(2);
        let gateway = json!({ "metadata": { "name": "g" }, "spec": { "gatewayClassName": "weft",
            "listeners": [{ "name": "http", "port": 8000 }] } });
        sim.create(KindId::Gateway, NS, gateway);
        sim.others();
        sim.run();
        for _ in 0..6 {
            let kind = KINDS[usize::try_from(rng.below(KINDS.len() as u64)).unwrap()];
            let all: Vec<_> = sim.world.objects(kind, None).cloned().collect();
            let Some(object) = all.get(usize::try_from(rng.below(all.len() as u64)).unwrap())
            else {
                continue;
            };
            let mut raw = Value::clone(&object.raw);
            for _ in 0..=rng.below(3) {
                let mut found = Vec::new();
                places(&raw, String::new(), &mut found);
                let place = &found[usize::try_from(rng.below(found.len() as u64)).unwrap()];
                *raw.pointer_mut(place).unwrap() = odd(&mut rng);
            }
            let op = Op::put(object.key.store_key(), raw.to_string());
            sim.store.txn(Txn::of([op])).now_or_never().unwrap().unwrap();
            sim.fold();
            sim.settle_odd();
        }
        // Another namespace on another node is as well as ever.
        let node = json!({ "metadata": { "name": "well" }, "status": {
            "conditions": [{ "type": "Ready", "status": "True" }] } });
        sim.create(KindId::Node, "", node);
        sim.create(KindId::Namespace, "", json!({ "metadata": { "name": "well" } }));
        sim.create(KindId::Deployment, "well", deployment("web", 2, "web:1"));
        sim.settle_odd();
        let pods: Vec<_> = sim.world.objects(KindId::Pod, Some("well")).collect();
        assert_eq!(pods.len(), 2, "seed {seed}");
        assert!(pods.iter().all(|p| pod::is_placed(p)), "seed {seed}");
    }
}

impl Sim {
    /// One of each of the other kinds that controllers see to.
    fn others(&mut self) {
        let template = json!({ "metadata": { "labels": { "app": "x" } }, "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "main", "image": "x" }] } });
        let selector = json!({ "matchLabels": { "app": "x" } });
        for (kind, spec) in [
            (KindId::StatefulSet, json!({ "selector": selector, "template": template })),
            (KindId::DaemonSet, json!({ "selector": selector, "template": template })),
            (
                KindId::Job,
                json!({ "template": template, "completionMode": "Indexed",
                "completions": 3, "parallelism": 2, "backoffLimitPerIndex": 1 }),
            ),
            (
                KindId::CronJob,
                json!({ "schedule": "* * * * *",
                "jobTemplate": { "spec": { "template": template } } }),
            ),
            (
                KindId::HorizontalPodAutoscaler,
                json!({ "maxReplicas": 3, "behavior": {},
                "scaleTargetRef": { "kind": "Deployment", "name": "user" } }),
            ),
            (
                KindId::PodDisruptionBudget,
                json!({ "selector": { "matchLabels": { "app": "user" } },
                "maxUnavailable": "50%" }),
            ),
        ] {
            let mut raw = json!({ "metadata": { "name": "other" }, "spec": spec });
            weft_kinds::builtin::complete(kind, &mut raw);
            self.create(kind, NS, raw);
        }
    }

    /// Settles; a write that is refused since an odd object is in its way may be tried in vain.
    fn settle_odd(&mut self) {
        for _ in 0..2_000 {
            let Some(item) = self.queue.pop_first() else { return };
            self.seed += 1;
            let plan = reconcile(&item, &self.world, self.clock.wall_ms(), self.seed);
            for txn in plan.txns {
                self.store.txn(txn).now_or_never().unwrap().unwrap();
            }
            self.fold();
        }
        panic!("the controllers never come to rest; {:?}", self.queue);
    }
}
