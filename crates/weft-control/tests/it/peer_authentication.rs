// SPDX-License-Identifier: Apache-2.0
//! A PeerAuthentication over its life: what is enforced where pods are captured, that the reports
//! say the same, and that a change of it moves what it is about and nothing else.

use serde_json::{Value, json};
use weft_control::compile::{Env, effective};
use weft_control::compiler::{Compiler, Update};
use weft_kinds::world::{ReadKey, World, WorldDelta};
use weft_model::{ListenerKind, MtlsMode, Resource};

use crate::common::{put, world_of};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata:
  { name: a, namespace: shop, labels: { app: a }, annotations: { weft.dev/pods: namespace } }
spec: { containers: [{ name: app, ports: [{ containerPort: 80 }] }] }
status: { podIP: 10.244.1.1 }
---
apiVersion: v1
kind: Pod
metadata:
  { name: b, namespace: other, labels: { app: b }, annotations: { weft.dev/pods: namespace } }
spec: { containers: [{ name: app, ports: [{ containerPort: 80 }] }] }
status: { podIP: 10.244.1.2 }
";

fn policy(mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "shop" },
        "spec": { "mtls": { "mode": mode } },
    })
}

fn touched(key: ReadKey) -> WorldDelta {
    let mut delta = WorldDelta::default();
    delta.touch(key);
    delta
}

/// The modes of the listeners that an update changes, by name.
fn modes(update: &Update) -> Vec<(String, MtlsMode)> {
    let each = update.delta.upserts.iter().filter_map(|(name, resource)| match &**resource {
        Resource::Listener(l) => match &l.kind {
            ListenerKind::Inbound(inbound) => Some((name.to_string(), inbound.mtls)),
            ListenerKind::Capture(capture) => Some((name.to_string(), capture.mtls)),
            ListenerKind::Gateway(_) => None,
        },
        _ => None,
    });
    each.collect()
}

fn conditions(update: &Update) -> Vec<(String, String)> {
    let status = update.statuses.first().expect("its status").settle(None, "t").unwrap();
    let word = |c: &Value, k: &str| c[k].as_str().unwrap().to_owned();
    let list = status["conditions"].as_array().unwrap();
    list.iter().map(|c| (word(c, "status"), word(c, "reason"))).collect()
}

/// Folds one object in, and compiles what that touches.
fn step(world: &mut World, compiler: &mut Compiler, object: &Value) -> Update {
    let before = world.clone();
    put(world, object);
    let mut delta = WorldDelta::default();
    for key in [
        ReadKey::Kind(weft_kinds::world::KindId::PeerAuthentication),
        ReadKey::KindIn(weft_kinds::world::KindId::PeerAuthentication, "shop".into()),
    ] {
        delta.touch(key);
    }
    for object in world.all_objects() {
        if before.object(&object.key) != Some(object) {
            delta.touch(ReadKey::Object(object.key.clone()));
        }
    }
    compiler.update(world, &delta)
}

#[test]
fn a_policy_moves_the_pods_of_its_namespace_and_no_others() {
    let mut world = world_of([PODS]);
    let (mut compiler, first) = Compiler::new(Env::default(), &world);
    assert_eq!(modes(&first).len(), 4);
    assert!(modes(&first).iter().all(|(_, m)| *m == MtlsMode::Permissive));

    let update = step(&mut world, &mut compiler, &policy("STRICT"));
    let found = modes(&update);
    let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["listener:inbound~shop~a~80", "listener:inbound~shop~a~capture"]);
    assert!(found.iter().all(|(_, m)| *m == MtlsMode::Strict));
    let labels = [("app".into(), "a".into())].into();
    let told = effective(&world, "shop", &labels);
    assert_eq!(
        (told.of(80), told.by.unwrap().to_string()),
        (MtlsMode::Strict, "PeerAuthentication shop/default".to_owned(),)
    );
    assert_eq!(effective(&world, "other", &labels).mode, MtlsMode::Permissive);

    let update = step(&mut world, &mut compiler, &policy("UNSET"));
    assert!(modes(&update).iter().all(|(_, m)| *m == MtlsMode::Permissive));
    assert_eq!(modes(&update).len(), 2);
}

#[test]
fn it_reads_not_enforceable_until_pods_run_in_namespaces() {
    let mut world = world_of([PODS]);
    put(&mut world, &policy("STRICT"));
    let (mut compiler, first) = Compiler::new(Env::default(), &world);
    let no = ("False".to_owned(), "NotEnforceable".to_owned());
    assert_eq!(conditions(&first), [("True".into(), "Accepted".into()), no]);

    let revision = world.revision() + 1;
    world.apply("/s/pods", Some(br#"{"mode":"namespace"}"#), revision);
    let update = compiler.update(&world, &touched(ReadKey::Setting("pods".into())));
    let yes = ("True".to_owned(), "Enforced".to_owned());
    assert_eq!(conditions(&update), [("True".into(), "Accepted".into()), yes]);
    assert_eq!(update.compiled, 1, "the policy's own status, nothing else");
}
