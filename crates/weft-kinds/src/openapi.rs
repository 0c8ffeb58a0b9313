// SPDX-License-Identifier: Apache-2.0
//! Schemas with their words, for people and their tools: OpenAPI v3 documents of the served
//! group-versions (`kubectl explain`, client-side validation) and JSON Schema (`weft schema`).
//!
//! Made from the committed bundles when asked for and not kept.

use serde_json::{Map, Value, json};
use weft_base::name::fnv1a;

use crate::kind::{Family, KINDS, Kind, KindId};
use crate::schema::bundle::{OBJECT_META, component_name, raw, raw_components};

/// Every served group and version, in the order of the kinds.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut out = Vec::new();
    for row in KINDS {
        for version in row.versions {
            if !out.contains(&(row.group, *version)) {
                out.push((row.group, *version));
            }
        }
    }
    out
}

/// `api/v1` or `apis/apps/v1`.
pub fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A text that changes whenever any served document may: what clients cache by.
pub fn hash() -> String {
    let mut text = String::from(env!("CARGO_PKG_VERSION"));
    for row in KINDS {
        text.push_str(row.kind);
        text.push_str(row.group);
    }
    text.push_str(include_str!("../schemas/MANIFEST"));
    text.push_str(include_str!("../schemas/weft.json"));
    format!("{:016X}", fnv1a(text.as_bytes()))
}

/// The OpenAPI v3 document of a served group-version.
pub fn document(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Kind> =
        KINDS.iter().filter(|k| k.group == group && k.versions.contains(&version)).collect();
    if rows.is_empty() {
        return None;
    }
    let mut schemas = Map::new();
    let builtins = rows.iter().filter(|r| r.family == Family::Builtin);
    let mut names: Vec<String> = builtins.map(|r| component_name(r.id, version)).collect();
    if rows.iter().any(|r| r.family == Family::Custom) {
        names.push(OBJECT_META.to_owned());
    }
    schemas.extend(raw_components(&names));
    for row in rows.iter().filter(|r| r.family == Family::Custom) {
        schemas.insert(custom_name(row, version), custom(row, version));
    }
    let mut paths = Map::new();
    for row in rows {
        let base = path_of(group, version);
        let scope = if row.namespaced { "namespaces/{namespace}/" } else { "" };
        let item = format!("/{base}/{scope}{}/{{name}}", row.plural);
        paths.insert(item, operations(row, version));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "weft", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

/// A self-contained JSON Schema of a kind, for editors.
pub fn json_schema(kind: KindId, version: &str) -> Value {
    let row = kind.row();
    let (mut root, names) = match row.family {
        Family::Builtin => (Value::Null, vec![component_name(kind, version)]),
        Family::Custom => (custom(row, version), vec![OBJECT_META.to_owned()]),
    };
    let mut defs = Map::new();
    for (name, value) in raw_components(&names) {
        if root.is_null() {
            root = value;
        } else {
            defs.insert(name, value);
        }
    }
    if let Some(properties) = root.get_mut("properties") {
        properties["apiVersion"] = json!({"const": row.api_version_of(version)});
        properties["kind"] = json!({"const": row.kind});
    }
    let mut out = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": row.kind,
        "$defs": defs,
    });
    editors_form(&mut root);
    if let Some(defs) = out.get_mut("$defs") {
        editors_form(defs);
    }
    if let (Some(out), Value::Object(root)) = (out.as_object_mut(), root) {
        out.extend(root);
        out.insert("required".into(), json!(["apiVersion", "kind", "metadata"]));
    }
    out
}

/// References point into `$defs`, and unknown fields are wrong, as in the server.
fn editors_form(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get_mut("$ref") {
                *to = to.replace("#/components/schemas/", "#/$defs/");
            }
            let open = map.contains_key("additionalProperties")
                || map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            if map.get("type") == Some(&json!("object")) && map.contains_key("properties") && !open
            {
                map.insert("additionalProperties".into(), Value::Bool(false));
            }
            if map.shift_remove("x-kubernetes-int-or-string").is_some()
                || map.get("format") == Some(&json!("int-or-string"))
            {
                map.shift_remove("oneOf");
                map.shift_remove("anyOf");
                map.shift_remove("format");
                map.insert("type".into(), json!(["integer", "string"]));
            }
            map.retain(|name, _| !name.starts_with("x-kubernetes-"));
            map.values_mut().for_each(editors_form);
        }
        Value::Array(list) => list.iter_mut().for_each(editors_form),
        _ => {}
    }
}

/// `io.k8s.networking.gateway.v1.HTTPRoute`: the group reversed, as upstream names CRDs' schemas.
fn custom_name(row: &Kind, version: &str) -> String {
    let mut parts: Vec<&str> = row.group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{}", parts.join("."), row.kind)
}

fn custom(row: &Kind, version: &str) -> Value {
    let mut schema = raw(row.id, version);
    if let Some(properties) = schema.get_mut("properties") {
        properties["metadata"] = json!({
            "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
            "description": "Standard object's metadata.",
        });
        for (name, words) in [
            ("apiVersion", "The versioned schema of this representation of an object."),
            ("kind", "The REST resource that this object represents."),
        ] {
            properties[name] = json!({"type": "string", "description": words});
        }
    }
    schema["x-kubernetes-group-version-kind"] = json!([gvk(row, version)]);
    schema
}

/// What kubectl looks for: that the kind can be patched with `fieldValidation`, so that it leaves
/// validation to the server.
fn operations(row: &Kind, version: &str) -> Value {
    let name = match row.family {
        Family::Builtin => component_name(row.id, version),
        Family::Custom => custom_name(row, version),
    };
    let reference = json!({"$ref": format!("#/components/schemas/{name}")});
    let answer = json!({"200": {"description": "OK", "content": {
        "application/json": {"schema": reference}}}});
    let query = |name: &str, words: &str| {
        json!({"name": name, "in": "query", "description": words,
            "schema": {"type": "string", "uniqueItems": true}})
    };
    let changes = json!([
        query("dryRun", "`All` does everything but store."),
        query("fieldManager", "The name of whoever makes this change."),
        query("fieldValidation", "Ignore, Warn or Strict (the default)."),
    ]);
    let gvk = gvk(row, version);
    let read = json!({"responses": answer, "x-kubernetes-action": "get",
        "x-kubernetes-group-version-kind": gvk});
    let write = |action: &str| {
        json!({"responses": answer, "parameters": changes, "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk})
    };
    json!({"get": read, "put": write("put"), "patch": write("patch"),
        "delete": write("delete")})
}

fn gvk(row: &Kind, version: &str) -> Value {
    json!({"group": row.group, "version": version, "kind": row.kind})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_version_has_a_document_that_names_its_kinds() {
        for (group, version) in group_versions() {
            let doc = document(group, version).unwrap();
            let schemas = doc["components"]["schemas"].as_object().unwrap();
            for row in KINDS.iter().filter(|k| k.group == group && k.versions.contains(&version)) {
                let own = gvk(row, version);
                let named = schemas.values().any(|s| {
                    s["x-kubernetes-group-version-kind"]
                        .as_array()
                        .is_some_and(|l| l.contains(&own))
                });
                assert!(named, "{group}/{version} {}", row.kind);
                let patch = doc["paths"]
                    .as_object()
                    .unwrap()
                    .values()
                    .any(|p| p["patch"]["x-kubernetes-group-version-kind"] == own);
                assert!(patch, "{group}/{version} {}", row.kind);
            }
            let text = doc.to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{group}/{version} refers to {name}");
            }
        }
        assert!(document("apps", "v2").is_none());
    }

    #[test]
    fn editors_get_one_closed_schema() {
        let schema = json_schema(KindId::Service, "v1");
        assert_eq!(schema["properties"]["kind"], json!({"const": "Service"}));
        assert!(!schema.to_string().contains("components/schemas"));
        let spec = &schema["$defs"]["io.k8s.api.core.v1.ServiceSpec"];
        assert_eq!(spec["additionalProperties"], false);
        let route = json_schema(KindId::HttpRoute, "v1");
        assert_eq!(route["properties"]["apiVersion"]["const"], "gateway.networking.k8s.io/v1");
        assert!(route["properties"]["spec"]["properties"]["rules"]["description"].is_string());
    }
}
