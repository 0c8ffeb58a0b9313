// SPDX-License-Identifier: Apache-2.0
//! Golden files: `testdata/<sentence>/in.yaml` (ordinary manifests) compiles to `mesh.yaml`
//! (resources, without what has its default) and `status.yaml`; `nodes.yaml`, where there is one,
//! lists nodes and what each of them sees. `UPDATE_GOLDEN=1` writes what is found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_model::{BackendPolicy, Resource, Retry, Timeouts};

use crate::common::world_of;

const HEADER: &str = "# SPDX-License-Identifier: Apache-2.0\n";

#[test]
fn every_feature_compiles_to_its_golden_mesh_and_status() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(&root)
        .expect("testdata is beside this crate")
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("in.yaml").exists())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 10, "golden features went missing: {dirs:?}");
    let mut wrong = String::new();
    for dir in dirs {
        check(&dir, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong}\nUPDATE_GOLDEN=1 writes what was found");
}

fn check(dir: &Path, wrong: &mut String) {
    let world = world_of([&*std::fs::read_to_string(dir.join("in.yaml")).unwrap()]);
    let (compiler, update) = Compiler::new(Env::default(), &world);
    let resources: BTreeMap<String, Value> = update
        .delta
        .upserts
        .iter()
        .map(|(name, resource)| (name.to_string(), plain(resource)))
        .collect();
    compare(&dir.join("mesh.yaml"), &json!(resources), wrong);
    let statuses: BTreeMap<String, Value> = update
        .statuses
        .iter()
        .map(|s| (s.object.to_string(), s.settle(None, "NOW").unwrap_or(Value::Null)))
        .map(|(name, mut status)| {
            short(&mut status);
            (name, status)
        })
        .collect();
    compare(&dir.join("status.yaml"), &json!(statuses), wrong);
    let nodes = dir.join("nodes.yaml");
    if let Ok(text) = std::fs::read_to_string(&nodes) {
        let asked: BTreeMap<String, Value> = serde_saphyr::from_str(&text).unwrap();
        let seen: BTreeMap<String, Vec<String>> = asked
            .into_keys()
            .map(|node| {
                let scope = compiler.mesh().scope(&node.parse().unwrap());
                let scope = scope.unwrap_or_else(|| panic!("{node} is unknown in {dir:?}"));
                let names = compiler.mesh().view(&scope).map(|(name, _)| name.to_string());
                (node, names.collect())
            })
            .collect();
        compare(&nodes, &json!(seen), wrong);
    }
}

/// The resource as a person would write it: without defaults and nothings.
fn plain(resource: &Resource) -> Value {
    let mut value = serde_json::to_value(resource).unwrap();
    strip(&mut value);
    value
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, default) in defaults() {
                if fields.get(name) == Some(&default) {
                    fields.remove(name);
                }
            }
            strip_changed(fields, "policy", &json!(BackendPolicy::default()));
            strip_changed(fields, "retry", &json!(Retry::default()));
            fields.values_mut().for_each(strip);
            fields.retain(|_, v| !is_nothing(v));
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn defaults() -> [(&'static str, Value); 3] {
    [
        ("policy", json!(BackendPolicy::default())),
        ("retry", json!(Retry::default())),
        ("timeouts", json!(Timeouts::default())),
    ]
}

/// Leaves only the fields that differ from their defaults.
fn strip_changed(fields: &mut Map<String, Value>, name: &str, default: &Value) {
    if let Some(Value::Object(inner)) = fields.get_mut(name) {
        inner.retain(|k, v| default.get(k) != Some(v));
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Times and generations are tested elsewhere; ranges of status codes are long.
fn short(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|k, _| k != "lastTransitionTime" && k != "observedGeneration");
            fields.values_mut().for_each(short);
        }
        Value::Array(items) => items.iter_mut().for_each(short),
        _ => {}
    }
}

fn compare(path: &Path, found: &Value, wrong: &mut String) {
    let yaml = serde_saphyr::to_string(found).unwrap();
    let text = format!("{HEADER}{yaml}");
    let have = std::fs::read_to_string(path).unwrap_or_default();
    if have == text {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let name = path.display();
    let _ = writeln!(wrong, "--- {name} differs, first at:");
    let (mut old, mut new) = (have.lines(), text.lines());
    loop {
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => {
                let _ = writeln!(wrong, "  golden: {a:?}\n  found:  {b:?}");
                break;
            }
        }
    }
}
