// SPDX-License-Identifier: Apache-2.0
//! Upstream schema JSON into the compact form. The sources are committed and tested, so what
//! they do not say is simply absent; nothing here fails.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::{CelRule, List, ListKind, Object, PatchMerge, Range, Rules, Schema, Shape, Size, Text};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

type Components = HashMap<String, Arc<Schema>>;

/// Resolves `$ref` while it parses; each component is made once.
struct Parser<'a> {
    /// Kubernetes' own OpenAPI calls Go's zero values defaults; they are not.
    zero_is_default: bool,
    raw: &'a HashMap<String, Value>,
    made: &'a mut Components,
}

/// A component of an OpenAPI document and all that it refers to.
pub(super) fn component(
    name: &str,
    raw: &HashMap<String, Value>,
    made: &mut Components,
) -> Arc<Schema> {
    Parser { zero_is_default: false, raw, made }.component(name)
}

/// A schema without references.
pub(super) fn schema(value: &Value) -> Schema {
    Parser { zero_is_default: true, raw: &HashMap::new(), made: &mut HashMap::new() }.schema(value)
}

// === impl Parser ===

impl Parser<'_> {
    fn component(&mut self, name: &str) -> Arc<Schema> {
        if let Some(done) = self.made.get(name) {
            return done.clone();
        }
        let raw = self.raw;
        let schema = match raw.get(name) {
            _ if name == QUANTITY => Schema { shape: Shape::Quantity, ..Schema::default() },
            Some(value) => self.schema(value),
            None => Schema::default(),
        };
        let schema = Arc::new(schema);
        self.made.insert(name.to_owned(), schema.clone());
        schema
    }

    /// A child: shared when it is nothing but a reference.
    fn child(&mut self, value: &Value) -> Arc<Schema> {
        let target = reference(value);
        let shared = target.filter(|_| self.own_default(value).is_none() && !patches(value));
        match shared {
            Some(name) => self.component(name),
            None => Arc::new(self.schema(value)),
        }
    }

    fn schema(&mut self, value: &Value) -> Schema {
        if let Some(name) = reference(value) {
            // A reference with words of its own: copy the target's parts that differ per use.
            let raw = self.raw;
            let mut schema = match raw.get(name) {
                Some(target) if name != QUANTITY => self.schema(target),
                _ => Schema { shape: Shape::Quantity, ..Schema::default() },
            };
            schema.default = self.own_default(value).or(schema.default);
            if let Shape::Object(object) = &mut schema.shape {
                object.retain_keys |= strategy(value).contains("retainKeys");
                object.atomic |= is(value, "x-kubernetes-map-type", "atomic");
            }
            return schema;
        }
        Schema {
            shape: self.shape(value),
            nullable: value["nullable"] == true,
            default: self.own_default(value),
            rules: self.rules(value).map(Box::new),
        }
    }

    fn own_default(&self, value: &Value) -> Option<Value> {
        let default = value.get("default")?;
        let zero = match default {
            _ if self.zero_is_default => false,
            Value::String(s) => s.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Bool(b) => !b,
            Value::Null | Value::Array(_) => true,
        };
        (!zero).then(|| default.clone())
    }

    fn shape(&mut self, value: &Value) -> Shape {
        if value["x-kubernetes-int-or-string"] == true || is(value, "format", "int-or-string") {
            return Shape::IntOrString(text(value));
        }
        match value["type"].as_str() {
            Some("object") => Shape::Object(self.object(value)),
            Some("array") => Shape::List(self.list(value)),
            Some("string") => Shape::Text(text(value)),
            Some("integer") => Shape::Integer(range(value)),
            Some("number") => Shape::Number(range(value)),
            Some("boolean") => Shape::Boolean,
            _ if value.get("properties").is_some() || value.get("required").is_some() => {
                // Branches of oneOf and anyOf name fields without saying `object`.
                Shape::Object(Object { open: true, ..self.object(value) })
            }
            _ => Shape::Any,
        }
    }

    fn object(&mut self, value: &Value) -> Object {
        let mut fields: Vec<(Box<str>, Arc<Schema>)> = value["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, v)| (name.as_str().into(), self.child(v)))
            .collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        let values = value.get("additionalProperties").filter(|v| v.is_object());
        let values = values.map(|v| self.child(v));
        let preserve = value["x-kubernetes-preserve-unknown-fields"] == true;
        // `type: object` and nothing else is RawExtension, FieldsV1 and their like.
        let bare = fields.is_empty() && values.is_none();
        Object {
            required: names(&value["required"]),
            open: preserve || bare || value["additionalProperties"] == true,
            atomic: is(value, "x-kubernetes-map-type", "atomic"),
            retain_keys: strategy(value).contains("retainKeys"),
            size: size(value, "minProperties", "maxProperties"),
            fields: fields.into(),
            values,
        }
    }

    fn list(&mut self, value: &Value) -> List {
        let kind = match value["x-kubernetes-list-type"].as_str() {
            Some("set") => ListKind::Set,
            Some("map") => ListKind::Map(names(&value["x-kubernetes-list-map-keys"])),
            _ => ListKind::Atomic,
        };
        let merges = strategy(value).contains("merge");
        let patch = match value["x-kubernetes-patch-merge-key"].as_str() {
            Some(key) if merges => PatchMerge::By(key.into()),
            _ if merges => PatchMerge::Scalars,
            _ => PatchMerge::Replace,
        };
        List {
            items: self.child(&value["items"]),
            kind,
            patch,
            size: size(value, "minItems", "maxItems"),
        }
    }

    fn rules(&mut self, value: &Value) -> Option<Rules> {
        let mut branch = |key: &str| -> Vec<Schema> {
            let list = value[key].as_array().into_iter().flatten();
            list.filter(|v| v.get("$ref").is_none()).map(|v| self.schema(v)).collect()
        };
        let int_or_string = value["x-kubernetes-int-or-string"] == true;
        let mut rules = Rules {
            all_of: branch("allOf"),
            // `anyOf: [integer, string]` says again what int-or-string says.
            any_of: if int_or_string { Vec::new() } else { branch("anyOf") },
            one_of: if is(value, "format", "int-or-string") { Vec::new() } else { branch("oneOf") },
            not: None,
            cel: Vec::new(),
        };
        rules.not = value.get("not").map(|v| self.schema(v));
        for rule in value["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules.cel.push(CelRule {
                rule: rule["rule"].as_str().unwrap_or_default().into(),
                message: rule["message"].as_str().map(Into::into),
            });
        }
        let empty = rules.all_of.is_empty()
            && rules.any_of.is_empty()
            && rules.one_of.is_empty()
            && rules.not.is_none()
            && rules.cel.is_empty();
        (!empty).then_some(rules)
    }
}

/// The component that a schema refers to: `$ref`, or `allOf` with one `$ref`.
fn reference(value: &Value) -> Option<&str> {
    let direct = value["$ref"].as_str();
    let wrapped = || match value["allOf"].as_array()?.as_slice() {
        [one] => one["$ref"].as_str(),
        _ => None,
    };
    direct.or_else(wrapped)?.rsplit('/').next()
}

fn patches(value: &Value) -> bool {
    strategy(value).contains("retainKeys") || value.get("x-kubernetes-map-type").is_some()
}

fn strategy(value: &Value) -> &str {
    value["x-kubernetes-patch-strategy"].as_str().unwrap_or_default()
}

fn is(value: &Value, key: &str, what: &str) -> bool {
    value[key].as_str() == Some(what)
}

fn names(value: &Value) -> Box<[Box<str>]> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
}

fn text(value: &Value) -> Text {
    Text {
        one_of: names(&value["enum"]),
        pattern: value["pattern"].as_str().map(Into::into),
        format: value["format"].as_str().filter(|f| *f != "int-or-string").map(Into::into),
        size: size(value, "minLength", "maxLength"),
    }
}

fn size(value: &Value, min: &str, max: &str) -> Size {
    Size { min: value[min].as_u64(), max: value[max].as_u64() }
}

fn range(value: &Value) -> Range {
    let (mut min, mut max) = (value["minimum"].as_f64(), value["maximum"].as_f64());
    match value["format"].as_str() {
        Some("int32") => {
            min = min.or(Some(f64::from(i32::MIN)));
            max = max.or(Some(f64::from(i32::MAX)));
        }
        Some("uint32") => {
            min = min.or(Some(0.0));
            max = max.or(Some(f64::from(u32::MAX)));
        }
        _ => {}
    }
    Range {
        min,
        max,
        min_exclusive: value["exclusiveMinimum"] == true,
        max_exclusive: value["exclusiveMaximum"] == true,
    }
}
