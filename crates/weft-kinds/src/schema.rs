// SPDX-License-Identifier: Apache-2.0
//! The schema engine's types: a compact form of the upstream structural schemas.
//!
//! Doors and the CLI decode, validate, default, prune and merge raw JSON by these. A kind's
//! schema is read from the committed bundles when it is first needed; descriptions are left out
//! here and re-read by `openapi` when someone asks. Never looks at another object or at `World`.

pub mod bundle;
mod parse;

use std::sync::Arc;

use serde_json::Value;

use crate::kind::KindId;
pub use bundle::{component, of};

/// What a value may be.
#[derive(Debug, Default)]
pub struct Schema {
    pub shape: Shape,
    pub nullable: bool,
    /// Applied when the field is absent. Go's zero values are not defaults.
    pub default: Option<Value>,
    /// Combinators and CEL rules; absent for most nodes.
    pub rules: Option<Box<Rules>>,
}

#[derive(Debug, Default)]
pub enum Shape {
    /// Anything at all.
    #[default]
    Any,
    Object(Object),
    List(List),
    Text(Text),
    Integer(Range),
    Number(Range),
    Boolean,
    /// A whole number or text (Kubernetes' `IntOrString`).
    IntOrString(Text),
    /// A number or text such as `250m`.
    Quantity,
}

/// An object with named fields, a map, or both.
#[derive(Debug, Default)]
pub struct Object {
    /// Sorted by name.
    pub fields: Box<[(Box<str>, Arc<Schema>)]>,
    pub required: Box<[Box<str>]>,
    /// The schema of values under other names: a map.
    pub values: Option<Arc<Schema>>,
    /// Other names are kept as they are.
    pub open: bool,
    /// Server-side apply owns it as one leaf.
    pub atomic: bool,
    /// Strategic merge keeps only the keys that the patch names (`retainKeys`).
    pub retain_keys: bool,
    pub size: Size,
}

#[derive(Debug, Default)]
pub struct List {
    pub items: Arc<Schema>,
    pub kind: ListKind,
    /// Strategic merge: how two lists become one.
    pub patch: PatchMerge,
    pub size: Size,
}

/// Server-side apply's view of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    /// Elements are told apart by these fields.
    Map(Box<[Box<str>]>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub enum PatchMerge {
    #[default]
    Replace,
    /// Scalars are added when they are missing.
    Scalars,
    /// Objects with the same value in this field are one.
    By(Box<str>),
}

#[derive(Debug, Default)]
pub struct Text {
    pub one_of: Box<[Box<str>]>,
    pub pattern: Option<Box<str>>,
    pub format: Option<Box<str>>,
    pub size: Size,
}

/// Bounds of a length or a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub min: Option<u64>,
    pub max: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub min_exclusive: bool,
    pub max_exclusive: bool,
}

/// What a shape alone cannot say.
#[derive(Debug, Default)]
pub struct Rules {
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Schema>,
    pub cel: Vec<CelRule>,
}

/// One `x-kubernetes-validations` entry.
#[derive(Debug)]
pub struct CelRule {
    pub rule: Box<str>,
    pub message: Option<Box<str>>,
}

// === impl Schema ===

impl Schema {
    /// The object form, when this is one.
    pub fn object(&self) -> Option<&Object> {
        match &self.shape {
            Shape::Object(o) => Some(o),
            _ => None,
        }
    }

    /// The schema of a field, or of a map's values.
    pub fn field(&self, name: &str) -> Option<&Arc<Schema>> {
        self.object()?.get(name)
    }

    /// What a person calls the type.
    pub fn type_name(&self) -> &'static str {
        match &self.shape {
            Shape::Any => "any value",
            Shape::Object(o) if o.fields.is_empty() && o.values.is_some() => "a map",
            Shape::Object(_) => "an object",
            Shape::List(_) => "a list",
            Shape::Text(_) => "text",
            Shape::Integer(_) => "a whole number",
            Shape::Number(_) => "a number",
            Shape::Boolean => "true or false",
            Shape::IntOrString(_) => "a whole number or text",
            Shape::Quantity => "a quantity such as 250m or 1Gi",
        }
    }
}

// === impl Object ===

impl Object {
    /// The schema of a named field; else of the map's values.
    pub fn get(&self, name: &str) -> Option<&Arc<Schema>> {
        self.named(name).or(self.values.as_ref())
    }

    /// The schema of a named field only.
    pub fn named(&self, name: &str) -> Option<&Arc<Schema>> {
        let at = self.fields.binary_search_by(|(n, _)| n.as_ref().cmp(name)).ok()?;
        self.fields.get(at).map(|(_, s)| s)
    }
}

// === impl Size ===

impl Size {
    pub fn holds(self, n: usize) -> bool {
        let n = n as u64;
        self.min.is_none_or(|min| n >= min) && self.max.is_none_or(|max| n <= max)
    }
}

/// The schema that a kind's stored version has.
pub fn stored(kind: KindId) -> Arc<Schema> {
    of(kind, kind.row().storage_version())
}

#[cfg(test)]
mod tests;
