// SPDX-License-Identifier: Apache-2.0
//! Strategic merge, merge and JSON patches as clients send them.

use serde_json::json;

use super::*;
use crate::kind::KindId;
use crate::schema::stored;

fn deployment(patch: &Value, current: &Value) -> Value {
    strategic(&stored(KindId::Deployment), current, patch).unwrap()
}

fn pods(containers: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

#[test]
fn lists_merge_by_their_key_and_directives_are_obeyed() {
    let current = pods(json!([
        {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]},
        {"name": "b", "image": "b:1"},
        {"name": "side", "image": "s:1"},
    ]));
    let patch = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
        "containers": [
            {"name": "a", "image": "a:2", "env": [{"name": "Y", "value": "2"}]},
            {"name": "b", "$patch": "delete"},
            {"name": "c", "image": "c:1"},
        ],
    }}}});
    // In upstream's order: what is new comes before what only the server has, unless that stood
    // before what both have.
    let wanted = pods(json!([
        {"name": "side", "image": "s:1"},
        {"name": "c", "image": "c:1"},
        {"name": "a", "image": "a:2", "env": [
            {"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
    ]));
    assert_eq!(deployment(&patch, &current), wanted);
}

#[test]
fn retain_keys_replace_and_null() {
    let current = json!({"spec": {"replicas": 2, "paused": true, "strategy": {
        "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"paused": null, "strategy": {
        "$retainKeys": ["type"], "type": "Recreate"}}});
    let wanted = json!({"spec": {"replicas": 2, "strategy": {"type": "Recreate"}}});
    assert_eq!(deployment(&patch, &current), wanted);
    let patch = json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}});
    assert_eq!(deployment(&patch, &current)["spec"]["strategy"], json!({"type": "Recreate"}));
    let patch = json!({"spec": {"strategy": {"$patch": "delete"}}});
    assert!(deployment(&patch, &current)["spec"].get("strategy").is_none());
}

#[test]
fn scalar_lists_and_labels() {
    let current = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}});
    let patch = json!({"metadata": {
        "finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"],
        "$setElementOrder/finalizers": ["c", "b"], "labels": {"x": null, "z": "3"}}});
    let wanted = json!({"metadata": {"finalizers": ["c", "b"], "labels": {"y": "2", "z": "3"}}});
    assert_eq!(deployment(&patch, &current), wanted);
}

#[test]
fn a_missing_merge_key_is_named() {
    let patch = pods(json!([{"image": "x"}]));
    let error = strategic(&stored(KindId::Deployment), &json!({}), &patch).unwrap_err();
    assert!(error.to_string().contains("the merge key \"name\" is missing"), "{error}");
    let patch = json!({"spec": {"strategy": {"$patch": "explode"}}});
    assert!(strategic(&stored(KindId::Deployment), &json!({}), &patch).is_err());
    assert!(strategic(&stored(KindId::Deployment), &json!({}), &json!([])).is_err());
}

#[test]
fn merge_patch_and_json_patch() {
    let current = json!({"a": {"b": 1, "c": [1, 2]}});
    assert_eq!(
        merge(&current, &json!({"a": {"b": null, "c": [3]}})).unwrap(),
        json!({"a": {"c": [3]}})
    );
    let ops = json!([
        {"op": "test", "path": "/a/b", "value": 1},
        {"op": "replace", "path": "/a/b", "value": 2},
        {"op": "add", "path": "/a/c/-", "value": 3},
    ]);
    assert_eq!(operations(&current, &ops).unwrap(), json!({"a": {"b": 2, "c": [1, 2, 3]}}));
    let failing = json!([{"op": "test", "path": "/a/b", "value": 9}]);
    assert!(operations(&current, &failing).is_err());
    assert!(operations(&current, &json!({"op": "x"})).is_err());
}

#[test]
fn reg_56_a_patch_that_copies_its_copies_is_refused() {
    let current = json!({"a": {"b": "x".repeat(1000)}});
    let copy = |i: u32| json!({"op": "copy", "from": "/a", "path": format!("/a/c{i}")});
    let patched = operations(&current, &(0..14).map(copy).collect());
    let size = patched.as_ref().map(|made| made.to_string().len());
    assert!(matches!(patched, Err(PatchError::TooMuchCopied)), "it grew to {size:?} bytes");
}

#[test]
fn reg_56_a_patch_that_nests_too_deeply_is_refused() {
    let current = json!({"a": {}});
    let mut path = String::new();
    let mut ops = Vec::new();
    for _ in 0..100 {
        path.push_str("/d");
        ops.push(json!({"op": "add", "path": path, "value": {}}));
    }
    let patched = operations(&current, &ops.into());
    assert!(matches!(patched, Err(PatchError::TooDeep)), "it is taken: {patched:?}");
}

#[test]
fn a_patch_that_nests_what_it_moves_again_and_again_is_refused_before_it_is_too_deep_to_drop() {
    let below = "/d".repeat(50);
    let nested = (0..50).fold(json!({}), |inner, _| json!({"d": inner}));
    let ops: Vec<Value> = std::iter::repeat_with(|| {
        [
            json!({"op": "add", "path": "/b", "value": nested}),
            json!({"op": "move", "from": "/a", "path": format!("/b{below}/a")}),
            json!({"op": "move", "from": "/b", "path": "/a"}),
        ]
    })
    .take(3_300)
    .flatten()
    .collect();
    let patched = operations(&json!({"a": {}}), &ops.into());
    assert!(matches!(patched, Err(PatchError::TooDeep)));
}

#[test]
fn a_patch_may_move_as_much_as_it_likes_when_nothing_gets_deeper() {
    let move_ = |from: &str, to: &str| json!({"op": "move", "from": from, "path": to});
    let to_and_fro = [move_("/a/b/c", "/a/b/d"), move_("/a/b/d", "/a/b/c")];
    let ops: Vec<Value> = to_and_fro.iter().cycle().take(1_000).cloned().collect();
    let current = json!({"a": {"b": {"c": [1, {}]}}});
    assert_eq!(operations(&current, &ops.into()).unwrap(), current);
}

#[test]
fn reg_56_a_patch_that_moves_a_long_list_again_and_again_is_refused() {
    let first_goes = |times| vec![json!({"op": "remove", "path": "/a/0"}); times].into();
    let patched = operations(&json!({"a": vec![0; 2_000]}), &first_goes(2_000));
    assert_eq!(patched.unwrap(), json!({"a": []}));
    // 100 million entries move.
    let patched = operations(&json!({"a": vec![0; 100_000]}), &first_goes(1_000));
    assert!(matches!(patched, Err(PatchError::TooMuchWork)), "it is taken");
}

#[test]
fn reg_56_a_patch_that_has_a_large_object_measured_again_and_again_is_refused() {
    let nested = (0..60).fold(json!({}), |inner, _| json!({"d": inner}));
    let current = json!({"a": 0, "b": nested, "c": vec![0; 300_000]});
    let copy = json!({"op": "copy", "from": "/a", "path": format!("/b{}/a", "/d".repeat(60))});
    let patched = operations(&current, &vec![copy; 1_000].into());
    assert!(matches!(patched, Err(PatchError::TooMuchWork)), "it is taken");
}

#[test]
fn fields_that_go_are_gone_at_once_and_the_others_keep_their_order() {
    let named = |n: u32| format!("field-{n}");
    let all = |value: Value| -> Value { (0..20_000).map(|n| (named(n), value.clone())).collect() };
    let mut patch = all(Value::Null);
    patch[named(7)] = json!("b");
    patch.as_object_mut().unwrap().shift_remove(&named(19_000)).unwrap();
    let merged = deployment(&json!({"data": patch}), &json!({"data": all(json!("a"))}));
    let wanted = json!({"data": {named(7): "b", named(19_000): "a"}});
    assert_eq!(merged.to_string(), wanted.to_string());
    let keep: Vec<String> = (0..20_000).rev().map(named).collect();
    let patch = json!({"data": {"$retainKeys": keep}});
    assert_eq!(deployment(&patch, &wanted).to_string(), wanted.to_string());
}

/// Lines of a committed file of cases that Kubernetes' own code made.
fn cases(gz: &[u8]) -> Vec<Value> {
    use std::io::Read;
    let mut text = String::new();
    flate2::read::GzDecoder::new(gz).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The real implementation copies an entry that it adds with all its directives and leaves them
/// to the decoder, which takes a deleted entry for one to keep. They are obeyed here.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(k, v)| !k.starts_with('$') && !v.is_null());
            Value::Object(kept.map(|(k, v)| (k.clone(), without_directives(v))).collect())
        }
        Value::Array(all) => {
            let kept = all.iter().filter(|v| v.get("$patch").is_none_or(|d| d != "delete"));
            Value::Array(kept.map(without_directives).collect())
        }
        other => other.clone(),
    }
}

#[test]
fn patches_merge_as_the_real_implementation_merges_them() {
    let cases = cases(include_bytes!("../../testdata/strategic.jsonl.gz"));
    assert!(cases.len() >= 400);
    let mut wrong = 0;
    for (i, case) in cases.iter().enumerate() {
        let got = deployment(&case["patch"], &case["current"]);
        if got != without_directives(&case["result"]) {
            wrong += 1;
            if wrong <= 3 {
                println!(
                    "{i}\n current {}\n patch   {}\n wanted  {}\n got     {got}",
                    case["current"], case["patch"], case["result"]
                );
            }
        }
    }
    assert_eq!(wrong, 0);
}
