// SPDX-License-Identifier: Apache-2.0
//! The committed schema bundles: gzipped lines of `name<TAB>json`, one schema each, or
//! `name<TAB>=other` for the same schema under another version.
//!
//! A line is unpacked, made compact and dropped again; only compact schemas stay in memory.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::read::GzDecoder;
use serde_json::Value;

use super::{Object, Schema, Shape, parse};
use crate::kind::{Family, KindId};

const KUBERNETES: &[u8] = include_bytes!("../../schemas/kubernetes.gz");
const GATEWAY_API: &[u8] = include_bytes!("../../schemas/gateway-api.gz");
const ISTIO: &[u8] = include_bytes!("../../schemas/istio.gz");
const WEFT: &str = include_str!("../../schemas/weft.json");

/// The name of the metadata that every object has.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What was made compact so far. Filled by need; the sources are constants, so it is only a
/// memory of pure answers.
static MEMO: Mutex<Option<Memo>> = Mutex::new(None);

#[derive(Default)]
struct Memo {
    kinds: HashMap<(KindId, &'static str), Arc<Schema>>,
    components: HashMap<String, Arc<Schema>>,
}

/// The schema of a kind in one of its served versions (the stored one when it is not served).
pub fn of(kind: KindId, version: &str) -> Arc<Schema> {
    let row = kind.row();
    let version = row.versions.iter().find(|v| **v == version).unwrap_or(&row.versions[0]);
    let mut guard = lock();
    let memo = guard.get_or_insert_default();
    if let Some(found) = memo.kinds.get(&(kind, *version)) {
        return found.clone();
    }
    let made = match row.family {
        Family::Builtin => memo.component(&component_name(kind, version)),
        Family::Custom => memo.custom(kind, version),
    };
    memo.kinds.insert((kind, version), made.clone());
    made
}

/// A schema of the Kubernetes bundle by its full name, such as
/// `io.k8s.api.authorization.v1.SelfSubjectAccessReview`.
pub fn component(name: &str) -> Arc<Schema> {
    lock().get_or_insert_default().component(name)
}

/// The full name of a built-in kind in the Kubernetes OpenAPI.
pub fn component_name(kind: KindId, version: &str) -> String {
    let row = kind.row();
    let package = match row.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("io.k8s.api.{package}.{version}.{}", row.kind)
}

/// The raw schema, descriptions included, of a kind: for `explain` and for editors.
pub fn raw(kind: KindId, version: &str) -> Value {
    let row = kind.row();
    match row.family {
        Family::Builtin => raw_components(&[component_name(kind, version)])
            .into_iter()
            .next()
            .map_or(Value::Null, |(_, v)| v),
        Family::Custom => raw_custom(kind, version),
    }
}

/// Named raw schemas of the Kubernetes bundle and all that they refer to, by name.
pub fn raw_components(names: &[String]) -> Vec<(String, Value)> {
    let all: HashMap<String, String> = lines(KUBERNETES).collect();
    let mut open: Vec<String> = names.to_vec();
    let mut out: Vec<(String, Value)> = Vec::new();
    while let Some(name) = open.pop() {
        if out.iter().any(|(n, _)| *n == name) {
            continue;
        }
        let Some(text) = all.get(&name) else { continue };
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        refs(&value, &mut open);
        out.push((name, value));
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    // The first asked for stays first, whatever its name.
    if let Some(at) = names.first().and_then(|first| out.iter().position(|(n, _)| n == first)) {
        let first = out.remove(at);
        out.insert(0, first);
    }
    out
}

// === impl Memo ===

impl Memo {
    fn component(&mut self, name: &str) -> Arc<Schema> {
        if let Some(found) = self.components.get(name) {
            return found.clone();
        }
        // One pass over the bundle brings the component and everything below it.
        let raw: HashMap<String, Value> = raw_components(&[name.to_owned()]).into_iter().collect();
        parse::component(name, &raw, &mut self.components)
    }

    /// A custom resource's schema, with the metadata that all objects share.
    fn custom(&mut self, kind: KindId, version: &str) -> Arc<Schema> {
        let mut schema = parse::schema(&raw_custom(kind, version));
        let meta = self.component(OBJECT_META);
        let text =
            Arc::new(Schema { shape: Shape::Text(super::Text::default()), ..Schema::default() });
        if let Shape::Object(object) = &mut schema.shape {
            let mut fields: Vec<_> = std::mem::take(&mut object.fields).into_vec();
            fields.retain(|(n, _)| !matches!(n.as_ref(), "metadata" | "apiVersion" | "kind"));
            fields.push(("metadata".into(), meta));
            fields.push(("apiVersion".into(), text.clone()));
            fields.push(("kind".into(), text));
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            *object = Object { fields: fields.into(), ..std::mem::take(object) };
        }
        Arc::new(schema)
    }
}

fn raw_custom(kind: KindId, version: &str) -> Value {
    let row = kind.row();
    let name = format!("{}/{version}/{}", row.group, row.kind);
    if row.group == "weft.dev" {
        let all: Value = serde_json::from_str(WEFT).unwrap_or_default();
        return all.get(&name).cloned().unwrap_or_default();
    }
    let bundle = if row.group.ends_with("istio.io") { ISTIO } else { GATEWAY_API };
    let find = |name: &str| lines(bundle).find(|(n, _)| n == name).map(|(_, text)| text);
    let mut text = find(&name).unwrap_or_default();
    if let Some(same) = text.strip_prefix('=') {
        text = find(same).unwrap_or_default();
    }
    serde_json::from_str(&text).unwrap_or_default()
}

fn lines(bundle: &'static [u8]) -> impl Iterator<Item = (String, String)> {
    let reader = BufReader::with_capacity(16 * 1024, GzDecoder::new(bundle).take(64 << 20));
    reader.lines().map_while(Result::ok).filter_map(|line| {
        let (name, text) = line.split_once('\t')?;
        Some((name.to_owned(), text.to_owned()))
    })
}

fn refs(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get("$ref") {
                out.extend(to.rsplit('/').next().map(str::to_owned));
            }
            map.values().for_each(|v| refs(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| refs(v, out)),
        _ => {}
    }
}

fn lock() -> MutexGuard<'static, Option<Memo>> {
    // A panic while parsing a constant leaves nothing half done that matters.
    MEMO.lock().unwrap_or_else(PoisonError::into_inner)
}
