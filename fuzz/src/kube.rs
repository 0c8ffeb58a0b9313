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
    match which % 4 {
        0 => selectors(text),
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
