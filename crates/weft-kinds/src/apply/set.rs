// SPDX-License-Identifier: Apache-2.0
//! Sets of fields as trees. A path element is kept as `FieldsV1` writes it: `f:name`,
//! `k:{"name":"a"}` or `v:"x"`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::schema::{ListKind, Schema, Shape};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether this path itself is a member.
    pub(super) own: bool,
    pub(super) below: BTreeMap<String, FieldSet>,
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

/// Fields that belong to the server; nobody manages them.
const NOBODYS: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

// === impl FieldSet ===

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.own && self.below.values().all(Self::is_empty)
    }

    pub(super) fn child(&self, element: &str) -> Option<&FieldSet> {
        self.below.get(element)
    }

    fn insert(&mut self, element: String, sub: FieldSet) {
        if !sub.is_empty() {
            self.below.entry(element).or_default().add(&sub);
        }
    }

    pub(super) fn add(&mut self, other: &FieldSet) {
        self.own |= other.own;
        for (element, sub) in &other.below {
            self.below.entry(element.clone()).or_default().add(sub);
        }
    }

    pub(super) fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { own: self.own && other.own, below: BTreeMap::new() };
        for (element, sub) in &self.below {
            if let Some(theirs) = other.below.get(element) {
                out.insert(element.clone(), sub.intersection(theirs));
            }
        }
        out
    }

    /// Takes away the members of `other`, and with `deep` everything below them.
    pub(super) fn subtract(&mut self, other: &FieldSet, deep: bool) {
        if other.own {
            self.own = false;
            if deep {
                self.below.clear();
            }
        }
        for (element, theirs) in &other.below {
            if let Some(sub) = self.below.get_mut(element) {
                sub.subtract(theirs, deep);
            }
        }
        self.below.retain(|_, sub| !sub.is_empty());
    }

    /// Keeps what also exists in `other`, as a member or above one.
    pub(super) fn keep_existing(&mut self, other: &FieldSet) {
        self.below.retain(|element, sub| match other.below.get(element) {
            Some(theirs) => {
                sub.keep_existing(theirs);
                !sub.is_empty()
            }
            None => false,
        });
    }

    /// Every member's written path.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        if self.own {
            out.push(path.to_owned());
        }
        for (element, sub) in &self.below {
            sub.collect(&format!("{path}{}", written(element)), out);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.below.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        map.extend(self.below.iter().map(|(element, sub)| (element.clone(), sub.to_json())));
        Value::Object(map)
    }

    pub(super) fn from_json(value: &Value) -> Self {
        let mut out = Self::default();
        for (element, sub) in value.as_object().into_iter().flatten() {
            if element == "." {
                out.own = true;
                continue;
            }
            let mut sub = Self::from_json(sub);
            sub.own |= sub.below.is_empty();
            out.below.insert(element.clone(), sub);
        }
        out
    }

    fn leaf() -> Self {
        Self { own: true, below: BTreeMap::new() }
    }
}

/// `f:spec` as `.spec`, `k:{"name":"a"}` as `[name="a"]`.
fn written(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(key) = element.strip_prefix("k:") {
        let keys: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
        let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
        return format!("[{}]", keys.join(","));
    }
    format!("[={}]", element.strip_prefix("v:").unwrap_or(element))
}

/// The fields that an object sets, as apply owns them.
pub(super) fn of(schema: &Schema, value: &Value) -> FieldSet {
    without_servers(collect(schema, value, false))
}

/// The same with what is nobody's.
pub(super) fn of_whole(schema: &Schema, value: &Value) -> FieldSet {
    collect(schema, value, false)
}

/// The same with every container as a member too: all that exists.
pub(super) fn of_all(schema: &Schema, value: &Value) -> FieldSet {
    collect(schema, value, true)
}

/// How `new` differs from `old`.
pub(super) fn changes(schema: &Schema, old: &Value, new: &Value) -> Changes {
    let mut out = Changes::default();
    compare(schema, old, new, &mut out);
    Changes {
        added: without_servers(out.added),
        modified: without_servers(out.modified),
        removed: without_servers(out.removed),
    }
}

impl Changes {
    pub(super) fn written(&self) -> FieldSet {
        let mut out = self.added.clone();
        out.add(&self.modified);
        out
    }
}

fn without_servers(mut set: FieldSet) -> FieldSet {
    set.below.remove("f:apiVersion");
    set.below.remove("f:kind");
    if let Some(meta) = set.below.get_mut("f:metadata") {
        for name in NOBODYS {
            meta.below.remove(&format!("f:{name}"));
        }
        meta.own = false;
    }
    set.below.retain(|_, sub| !sub.is_empty());
    set
}

fn collect(schema: &Schema, value: &Value, containers: bool) -> FieldSet {
    let Some(children) = elements(schema, value) else { return FieldSet::leaf() };
    let empty = children.is_empty();
    // An empty list says nothing; an empty object is an answer.
    let mut out =
        FieldSet { own: containers || (empty && value.is_object()), ..FieldSet::default() };
    for (element, inner, child) in children {
        let mut sub = collect(inner, child, containers);
        // An entry of a list or map is owned itself, beside its fields.
        let named = element.strip_prefix("f:").is_some_and(|n| is_named(schema, n));
        sub.own |= !named;
        out.insert(element, sub);
    }
    out
}

/// Whether a name is a field of the schema rather than a key of a map.
fn is_named(schema: &Schema, name: &str) -> bool {
    schema.object().is_some_and(|o| o.named(name).is_some())
}

fn compare(schema: &Schema, old: &Value, new: &Value, out: &mut Changes) {
    let (Some(before), Some(after)) = (elements(schema, old), elements(schema, new)) else {
        if old != new {
            out.modified.own = true;
        }
        return;
    };
    let was: BTreeMap<&str, &Value> = before.iter().map(|(e, _, v)| (e.as_str(), *v)).collect();
    let is: BTreeSet<&str> = after.iter().map(|(e, ..)| e.as_str()).collect();
    for (element, inner, value) in &after {
        match was.get(element.as_str()) {
            None => {
                let mut sub = collect(inner, value, true);
                sub.own = true;
                out.added.insert(element.clone(), sub);
            }
            Some(old) if old == value => {}
            Some(old) => {
                let mut below = Changes::default();
                compare(inner, old, value, &mut below);
                out.added.insert(element.clone(), below.added);
                out.modified.insert(element.clone(), below.modified);
                out.removed.insert(element.clone(), below.removed);
            }
        }
    }
    for (element, inner, value) in &before {
        if !is.contains(element.as_str()) {
            let mut sub = collect(inner, value, true);
            sub.own = true;
            out.removed.insert(element.clone(), sub);
        }
    }
}

/// The parts of a value that are owned one by one; `None` for a leaf.
pub(super) fn elements<'a>(
    schema: &'a Schema,
    value: &'a Value,
) -> Option<Vec<(String, &'a Schema, &'a Value)>> {
    match (&schema.shape, value) {
        (Shape::Object(object), Value::Object(map)) if !object.atomic => {
            if object.fields.is_empty() && object.values.is_none() {
                return None;
            }
            let known = map
                .iter()
                .filter_map(|(name, v)| object.get(name).map(|s| (format!("f:{name}"), &**s, v)));
            Some(known.collect())
        }
        (Shape::List(list), Value::Array(items)) => match &list.kind {
            ListKind::Atomic => None,
            kind => Some(
                items.iter().map(|v| (element_of(kind, &list.items, v), &*list.items, v)).collect(),
            ),
        },
        _ => None,
    }
}

/// The path element of a list's entry.
pub(super) fn element_of(kind: &ListKind, items: &Schema, value: &Value) -> String {
    match kind {
        ListKind::Map(keys) => {
            let mut sorted: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
            sorted.sort_unstable();
            let pairs: Map<String, Value> = sorted
                .into_iter()
                .filter_map(|k| {
                    let default = || items.field(k).and_then(|s| s.default.clone());
                    let own = value.get(k).cloned().or_else(default)?;
                    Some((k.to_owned(), own))
                })
                .collect();
            format!("k:{}", Value::Object(pairs))
        }
        _ => format!("v:{value}"),
    }
}
