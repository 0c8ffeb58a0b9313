// SPDX-License-Identifier: Apache-2.0
//! Server-side apply: ownership, conflicts, pruning, and what holds of any sequence of applies.

use serde_json::json;

use super::*;
use crate::kind::KindId;
use crate::schema::stored;

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "apps/v1", time: "2026-01-01T00:00:00Z", subresource: "" }
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn put(live: Option<&Value>, applied: &Value, manager: &str) -> Value {
    apply(&stored(KindId::Deployment), live, applied, by(manager), false).unwrap()
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let list = object["metadata"]["managedFields"].as_array().unwrap();
    let own = list.iter().find(|e| e["manager"] == manager);
    &own.unwrap_or_else(|| panic!("{manager} manages nothing: {list:?}"))["fieldsV1"]
}

fn containers(list: Value) -> Value {
    object(json!({"template": {"spec": {"containers": list}}}))
}

#[test]
fn an_apply_owns_what_it_says_in_kubernetes_form() {
    let wanted =
        containers(json!([{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}]));
    let out = put(None, &wanted, "me");
    assert_eq!(
        fields(&out, "me"),
        &json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"a\"}": {
                ".": {}, "f:image": {}, "f:name": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                    ".": {}, "f:containerPort": {}}}}}}}}})
    );
    let entry = &out["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["fieldsType"], "FieldsV1");
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_owns_it() {
    let one = put(None, &containers(json!([{"name": "a", "image": "a:1", "tty": true}])), "one");
    let two = put(
        Some(&one),
        &containers(json!([{"name": "b", "image": "b:1"}, {"name": "a", "tty": true}])),
        "two",
    );
    let names = |v: &Value| -> Vec<String> {
        let list = v["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&two), ["b", "a"]);
    // `one` gives everything up: the image goes, the rest is still `two`'s.
    let gone = put(Some(&two), &object(json!({"paused": true})), "one");
    assert_eq!(names(&gone), ["b", "a"]);
    let a = &gone["spec"]["template"]["spec"]["containers"][1];
    assert_eq!(a, &json!({"name": "a", "tty": true}));
    let last = put(Some(&gone), &object(json!({"replicas": 1})), "two");
    assert_eq!(last["spec"], json!({"paused": true, "replicas": 1}));
}

#[test]
fn another_value_is_a_conflict_and_force_takes_the_field() {
    let one = put(None, &object(json!({"replicas": 1, "paused": true})), "one");
    let wanted = object(json!({"replicas": 2, "paused": true}));
    let schema = stored(KindId::Deployment);
    let conflicts = apply(&schema, Some(&one), &wanted, by("two"), false).unwrap_err();
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    assert_eq!(
        (conflicts[0].manager.as_str(), conflicts[0].field.as_str()),
        ("one", ".spec.replicas")
    );
    let forced = apply(&schema, Some(&one), &wanted, by("two"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(fields(&forced, "one"), &json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&forced, "two"), &json!({"f:spec": {"f:paused": {}, "f:replicas": {}}}));
}

#[test]
fn an_update_takes_what_it_changes() {
    let schema = stored(KindId::Deployment);
    let one = put(None, &object(json!({"replicas": 1, "paused": true})), "one");
    let mut edited = one.clone();
    edited["spec"]["replicas"] = 5.into();
    edited["metadata"]["labels"] = json!({"a": "b"});
    track(&schema, Some(&one), &mut edited, by("edit"));
    assert_eq!(fields(&edited, "one"), &json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(
        fields(&edited, "edit"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:replicas": {}}})
    );
    let again = object(json!({"replicas": 1}));
    let conflicts = apply(&schema, Some(&edited), &again, by("one"), false).unwrap_err();
    assert_eq!(conflicts[0].field, ".spec.replicas");
}

#[test]
fn nothing_new_changes_nothing() {
    let wanted = containers(json!([{"name": "a", "image": "a:1"}]));
    let one = put(None, &wanted, "one");
    let later = Writer { time: "2030-01-01T00:00:00Z", ..by("one") };
    let again = apply(&stored(KindId::Deployment), Some(&one), &wanted, later, false).unwrap();
    assert_eq!(again, one);
    let mut same = one.clone();
    track(&stored(KindId::Deployment), Some(&one), &mut same, Writer { manager: "x", ..later });
    assert_eq!(same, one);
}

#[test]
fn atomic_parts_are_one_leaf_and_sets_are_shared() {
    let object = |spec: Value| object(spec);
    let one = put(None, &object(json!({"selector": {"matchLabels": {"a": "b"}}})), "one");
    assert_eq!(fields(&one, "one"), &json!({"f:spec": {"f:selector": {}}}));
    let meta = |list: Value| json!({"metadata": {"name": "d", "finalizers": list}});
    let a = put(None, &meta(json!(["x/a"])), "one");
    let b = put(Some(&a), &meta(json!(["x/b"])), "two");
    assert_eq!(b["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    let c = put(Some(&b), &meta(json!([])), "two");
    assert_eq!(c["metadata"]["finalizers"], json!(["x/a"]));
}

#[test]
fn updaters_are_capped() {
    let schema = stored(KindId::Deployment);
    let mut live = object(json!({"replicas": 0}));
    for i in 0..30 {
        let mut next = live.clone();
        next["metadata"]["labels"][format!("l{i}")] = "x".into();
        track(&schema, Some(&live), &mut next, by(&format!("m{i}")));
        live = next;
    }
    assert!(live["metadata"]["managedFields"].as_array().unwrap().len() <= 10);
}

/// A random Deployment: a keyed list, maps, an atomic list and scalars, small enough to collide.
fn random(rng: &mut weft_base::rng::Rng) -> Value {
    let mut spec = json!({});
    let mut some = |n: u64| rng.below(n);
    if some(2) == 0 {
        spec["replicas"] = some(3).into();
    }
    if some(3) == 0 {
        spec["paused"] = true.into();
    }
    let mut out = object(json!({}));
    for label in ["a", "b", "c"] {
        if some(2) == 0 {
            out["metadata"]["labels"][label] = some(2).to_string().into();
        }
    }
    let mut list = Vec::new();
    for name in ["x", "y", "z"] {
        if some(2) == 0 {
            continue;
        }
        let mut one = json!({"name": name});
        if some(2) == 0 {
            one["image"] = format!("i:{}", some(2)).into();
        }
        if some(2) == 0 {
            one["args"] = json!([some(2).to_string()]);
        }
        for port in [80, 81] {
            if some(3) == 0 {
                let ports = &mut one["ports"];
                let entry = json!({"containerPort": port, "name": format!("p{}", some(2))});
                match ports.as_array_mut() {
                    Some(all) => all.push(entry),
                    None => *ports = json!([entry]),
                }
            }
        }
        list.push(one);
    }
    if !list.is_empty() {
        spec["template"]["spec"]["containers"] = list.into();
    }
    out["spec"] = spec;
    out
}

/// Whether `whole` says everything that `part` says; keyed lists by their keys.
fn says(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(w), Value::Object(p)) => {
            p.iter().all(|(k, v)| w.get(k).is_some_and(|w| says(w, v)))
        }
        (Value::Array(w), Value::Array(p)) if p.iter().all(Value::is_object) => {
            p.iter().all(|p| w.iter().any(|w| says(w, p)))
        }
        _ => whole == part,
    }
}

fn bare(object: &Value) -> Value {
    let mut out = object.clone();
    out["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
    out
}

#[test]
fn any_sequence_of_applies_keeps_its_promises() {
    let schema = stored(KindId::Deployment);
    for seed in 0..120 {
        let mut rng = weft_base::rng::Rng::seeded(seed);
        let mut live = object(json!({}));
        let mut last: std::collections::BTreeMap<&str, Value> = Default::default();
        for _ in 0..12 {
            let who = ["one", "two", "three"][usize::try_from(rng.below(3)).unwrap()];
            let wanted = random(&mut rng);
            let calm = apply(&schema, Some(&live), &wanted, by(who), false);
            live = apply(&schema, Some(&live), &wanted, by(who), true).unwrap();
            if let Ok(calm) = calm {
                assert_eq!(calm, live, "seed {seed}: without conflicts force changes nothing");
                // Nobody lost anything.
                for (other, theirs) in last.iter().filter(|(o, _)| **o != who) {
                    assert!(says(&live, theirs), "seed {seed}: {other} lost {theirs}\n{live}");
                }
                last.insert(who, wanted.clone());
            } else {
                last = [(who, wanted.clone())].into();
            }
            assert!(says(&live, &wanted), "seed {seed}: {wanted}\nis not all in {live}");
            let again = apply(&schema, Some(&live), &wanted, by(who), false).unwrap();
            assert_eq!(again, live, "seed {seed}: applying twice is applying once");
        }
        // When everyone lets go, nothing is left.
        let nothing = object(json!({}));
        for who in ["one", "two", "three"] {
            live = apply(&schema, Some(&live), &nothing, by(who), false).unwrap();
        }
        let left = bare(&live);
        assert!(!left.to_string().contains("image"), "seed {seed}: {left}");
        assert!(left["metadata"]["managedFields"].is_null());
    }
}

/// Managers with what they own, in no particular order; times are not compared.
fn managers(object: &Value) -> std::collections::BTreeMap<String, String> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |e: &Value| {
        let name =
            format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap());
        (name, FieldSet::from_json(&e["fieldsV1"]).to_json().to_string())
    };
    list.iter().map(one).collect()
}

#[test]
fn sequences_end_as_in_the_real_implementation() {
    use std::io::Read;
    let mut text = String::new();
    let gz = &include_bytes!("../../testdata/apply.jsonl.gz")[..];
    flate2::read::GzDecoder::new(gz).read_to_string(&mut text).unwrap();
    let schema = stored(KindId::Deployment);
    let (mut steps, mut wrong) = (0, 0);
    for (n, line) in text.lines().enumerate() {
        let sequence: Vec<Value> = serde_json::from_str(line).unwrap();
        let mut live: Option<Value> = None;
        for (i, step) in sequence.iter().enumerate() {
            steps += 1;
            let writer = by(step["manager"].as_str().unwrap());
            let mut conflicts = Vec::new();
            let new = if step["op"] == "update" {
                let mut new = step["object"].clone();
                track(&schema, live.as_ref(), &mut new, writer);
                Some(new)
            } else {
                let force = step["force"] == true;
                let done = apply(&schema, live.as_ref(), &step["object"], writer, force);
                done.map_err(|all| conflicts = all).ok()
            };
            let new = new.or(live.clone()).unwrap_or_else(|| object(json!({})));
            let told: std::collections::BTreeSet<String> =
                conflicts.iter().map(|c| format!("{:?}: {}", c.manager, c.field)).collect();
            let mut wanted = step["live"].clone();
            wanted["metadata"]["managedFields"] = step["managedFields"].clone();
            for entry in wanted["metadata"]["managedFields"].as_array_mut().unwrap() {
                entry["apiVersion"] = "apps/v1".into();
            }
            // The real one names the version for updaters only.
            let expected: Vec<String> =
                serde_json::from_value(step["conflicts"].clone()).unwrap_or_default();
            let expected: std::collections::BTreeSet<String> =
                expected.iter().map(|c| c.replace(" using apps/v1", "")).collect();
            let same = bare(&new) == bare(&wanted)
                && managers(&new) == managers(&wanted)
                && told == expected;
            if !same {
                wrong += 1;
                if wrong <= 3 {
                    println!("sequence {n} step {i}: {} {}", step["op"], step["manager"]);
                    println!(" before {}", live.as_ref().map(bare).unwrap_or_default());
                    println!(" object {}", step["object"]);
                    println!(" wanted {}\n got    {}", bare(&wanted), bare(&new));
                    let (w, g) = (managers(&wanted), managers(&new));
                    for (who, set) in &w {
                        if g.get(who) != Some(set) {
                            println!(" {who}\n  wanted {set}\n  got    {:?}", g.get(who));
                        }
                    }
                    println!(" wanted {expected:?}\n got    {told:?}");
                }
            }
            live = Some(wanted);
        }
    }
    assert!(steps >= 900, "{steps}");
    assert_eq!(wrong, 0, "of {steps} steps");
}
