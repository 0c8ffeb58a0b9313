// SPDX-License-Identifier: Apache-2.0
//! Objects bent out of shape at random: whatever the store holds, folding and compiling neither
//! panic nor disturb other objects, and following the changes stays the same as starting anew.

use serde_json::{Value, json};
use weft_base::rng::Rng;
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::{KindId, ObjectKey};

use crate::common::world_of;

const BENDS: usize = 3_000;

const STEADY: &str = "
apiVersion: v1
kind: Service
metadata: { name: steady, namespace: steady }
spec: { ports: [{ name: http, port: 80 }] }
";

fn documents() -> Vec<Value> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut out = Vec::new();
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs {
        let text = std::fs::read_to_string(dir.join("in.yaml")).unwrap();
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        out.extend(all.into_iter().filter(|d| !d.is_null()));
    }
    out
}

/// Replaces or removes one value somewhere below `value`.
fn bend(value: &mut Value, rng: &mut Rng) {
    let deeper = rng.below(5) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = pick(rng, fields.len());
            let key = fields.keys().nth(at).cloned().unwrap();
            if rng.below(12) == 0 {
                fields.remove(&key);
            } else {
                bend(&mut fields[&key], rng);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = pick(rng, items.len());
            match rng.below(8) {
                0 => {
                    items.remove(at);
                }
                1 => items.push(items[at].clone()),
                _ => bend(&mut items[at], rng),
            }
        }
        other => *other = strange(rng),
    }
}

fn strange(rng: &mut Rng) -> Value {
    let all = [
        Value::Null,
        json!(0),
        json!(-1),
        json!(65_535),
        json!(u64::MAX),
        json!(1.5),
        json!(true),
        json!(""),
        json!("*"),
        json!("."),
        json!("..svc."),
        json!("a/b/c"),
        json!("ü.Ü.svc.cluster.local"),
        json!("999999999999h"),
        json!("127.0.0.1"),
        json!("::1"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"": null}),
    ];
    all[pick(rng, all.len())].clone()
}

fn pick(rng: &mut Rng, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).unwrap()
}

fn key_of(document: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let kind = KindId::by_api(&text(&document["apiVersion"]), &text(&document["kind"])).unwrap();
    let meta = &document["metadata"];
    ObjectKey::new(kind, text(&meta["namespace"]), text(&meta["name"])).store_key()
}

#[test]
fn bent_objects_neither_panic_nor_disturb_others() {
    let documents = documents();
    let mut rng = Rng::seeded(20_261_120);
    let mut world = world_of([STEADY]);
    let (mut compiler, _) = Compiler::new(Env::default(), &world);
    for round in 0..BENDS {
        let document = &documents[pick(&mut rng, documents.len())];
        let mut bent = document.clone();
        for _ in 0..=rng.below(3) {
            bend(&mut bent, &mut rng);
        }
        let revision = world.revision() + 1;
        let bytes = bent.to_string();
        let delta = world.apply(&key_of(document), Some(bytes.as_bytes()), revision);
        compiler.update(&world, &delta);
        if round % 100 == 0 {
            let (fresh, _) = Compiler::new(Env::default(), &world);
            let keys =
                |c: &Compiler| -> Vec<_> { c.statuses().map(|s| &s.object).cloned().collect() };
            let (mut a, mut b) = (keys(&compiler), keys(&fresh));
            a.sort();
            b.sort();
            assert_eq!(a, b, "round {round}");
        }
    }
    let (compiler, _) = Compiler::new(Env::default(), &world);
    let name = weft_model::Root::host("steady.steady.svc.cluster.local").own();
    assert!(compiler.mesh().get(&name).is_some());
}
