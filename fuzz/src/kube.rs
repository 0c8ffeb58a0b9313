// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes' clients send beside objects: patches, selectors and the frames of exec and
//! port-forward.

use serde_json::{Value, json};
use weft_base::limits::DOCUMENT_DEPTH_MAX;
use weft_kinds::decode::{Format, document};
use weft_kinds::kind::KindId;
use weft_kinds::{patch, schema};
use weft_server::k8s::fuzz;

/// The first byte says which.
pub fn words(data: &[u8]) {
    let Some((which, text)) = data.split_first() else { return };
    match which % 5 {
        0 => selectors(text),
        4 => steps(text),
        which => patches(which, text),
    }
}

/// One for labels, one for fields, a line each.
fn selectors(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (labels, fields) = text.split_once('\n').unwrap_or((text, ""));
    fuzz::selectors(labels, fields);
}

/// As the door reads them, onto a Deployment.
fn patches(which: u8, text: &[u8]) {
    let Ok(patch) = document(text, Format::Json) else { return };
    let (patch, old) = (patch.value, deployment());
    match which {
        1 => {
            let schema = schema::of(KindId::Deployment, "v1");
            let Ok(new) = patch::strategic(&schema, &old, &patch) else { return };
            bounded(&old, &patch, &new, 0);
        }
        2 => {
            let Ok(new) = patch::merge(&old, &patch) else { return };
            bounded(&old, &patch, &new, 0);
            assert_eq!(patch::merge(&new, &patch).ok().as_ref(), Some(&new), "twice is another");
        }
        _ => {
            let Ok(new) = patch::operations(&old, &patch) else { return };
            bounded(&old, &patch, &new, 3 * 1024 * 1024);
            assert!(depth(&new) <= DOCUMENT_DEPTH_MAX, "{} levels", depth(&new));
        }
    }
}

/// Operations between places that are there, three bytes each: which, from where, to where (above
/// 127: to the deepest). What is taken one by one is taken all at once.
fn steps(bytes: &[u8]) {
    let (old, mut new, mut done) = (deployment(), deployment(), Vec::new());
    for step in bytes.chunks_exact(3).take(12) {
        let (mut values, mut gaps) = (Vec::new(), Vec::new());
        places(&new, "", &mut values, &mut gaps);
        let from = &values[usize::from(step[1]) % values.len()];
        gaps.sort_by_key(|at: &String| at.matches('/').count());
        let to = if step[2] > 127 { gaps.len() - 1 } else { usize::from(step[2]) % gaps.len() };
        let to = &gaps[to];
        let operation = match step[0] % 3 {
            0 => json!({"op": "copy", "from": from, "path": to}),
            1 => json!({"op": "move", "from": from, "path": to}),
            _ => json!({"op": "remove", "path": from}),
        };
        let Ok(made) = patch::operations(&new, &json!([operation])) else { continue };
        assert!(depth(&made) <= DOCUMENT_DEPTH_MAX, "{} levels", depth(&made));
        done.push(operation);
        new = made;
        // All copies together stay below what may be copied.
        if new.to_string().len() > 8 * 1024 || new.as_object().is_none_or(|all| all.is_empty()) {
            break;
        }
    }
    let whole = patch::operations(&old, &done.into()).expect("each was taken alone");
    assert_eq!(whole, new);
}

/// Where values are, and where one may be added.
fn places(value: &Value, at: &str, values: &mut Vec<String>, gaps: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(all) => all.iter().map(|(name, v)| (format!("{at}/{name}"), v)).collect(),
        Value::Array(all) => (0..).zip(all).map(|(n, v)| (format!("{at}/{n}"), v)).collect(),
        _ => return,
    };
    gaps.push(format!("{at}/{}", if value.is_array() { "-" } else { "x" }));
    for (at, value) in below {
        places(value, &at, values, gaps);
        values.push(at);
    }
}

/// What a patch makes is no more than there was and what it brings, and so many bytes of copies.
fn bounded(old: &Value, patch: &Value, new: &Value, copies: usize) {
    let size = |value: &Value| value.to_string().len();
    assert!(size(new) <= size(old) + size(patch) + copies);
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(all) => 1 + all.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": "web", "finalizers": ["a", "b"], "labels": {"app": "web"}},
        "spec": {"replicas": 2, "template": {"spec": {
            "containers": [
                {"name": "a", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                {"name": "b", "image": "j"},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }}},
    })
}

/// The first byte says how the others are cut.
pub fn spdy(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    fuzz::spdy(usize::from(*cut), bytes);
}
