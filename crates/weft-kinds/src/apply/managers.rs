// SPDX-License-Identifier: Apache-2.0
//! `metadata.managedFields`, read, changed and written back.

use serde_json::{Map, Value, json};

use super::set::Changes;
use super::{Conflict, FieldSet, Writer};

/// Managers by update of one object; older ones beyond this are merged into one.
const UPDATERS_MAX: usize = 10;

#[derive(Debug, Default)]
pub(super) struct Managers(Vec<Entry>);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    time: String,
    subresource: String,
    fields: FieldSet,
}

// === impl Entry ===

impl Entry {
    fn is(&self, writer: Writer<'_>, apply: bool) -> bool {
        self.manager == writer.manager
            && self.apply == apply
            && self.subresource == writer.subresource
            && (apply || self.api_version == writer.api_version)
    }

    fn new(writer: Writer<'_>, apply: bool) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            apply,
            api_version: writer.api_version.to_owned(),
            time: writer.time.to_owned(),
            subresource: writer.subresource.to_owned(),
            fields: FieldSet::default(),
        }
    }
}

// === impl Managers ===

impl Managers {
    pub(super) fn read(object: &Value) -> Self {
        let word = |e: &Value, k: &str| e[k].as_str().unwrap_or_default().to_owned();
        let list = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        Self(
            list.map(|e| Entry {
                manager: word(e, "manager"),
                apply: e["operation"] == "Apply",
                api_version: word(e, "apiVersion"),
                time: word(e, "time"),
                subresource: word(e, "subresource"),
                fields: FieldSet::from_json(&e["fieldsV1"]),
            })
            .collect(),
        )
    }

    /// Members of `wanted` that someone else owns.
    pub(super) fn conflicts(&self, writer: Writer<'_>, wanted: &FieldSet) -> Vec<Conflict> {
        let mut out = Vec::new();
        for entry in self.0.iter().filter(|e| !e.is(writer, true)) {
            let fields = entry.fields.intersection(wanted).paths();
            out.extend(fields.into_iter().map(|field| Conflict {
                manager: entry.manager.clone(),
                api_version: entry.api_version.clone(),
                subresource: entry.subresource.clone(),
                updated: (!entry.apply).then(|| entry.time.clone()),
                field,
            }));
        }
        out
    }

    pub(super) fn take_over(&mut self, writer: Writer<'_>, fields: &FieldSet) {
        for entry in self.0.iter_mut().filter(|e| !e.is(writer, true)) {
            entry.fields.subtract(fields, false);
        }
    }

    /// Fields that are no more belong to nobody.
    pub(super) fn removed(&mut self, writer: Writer<'_>, fields: &FieldSet) {
        for entry in self.0.iter_mut().filter(|e| !e.is(writer, true)) {
            entry.fields.subtract(fields, false);
        }
    }

    pub(super) fn applied_by(&self, writer: Writer<'_>) -> FieldSet {
        let own = self.0.iter().find(|e| e.is(writer, true));
        own.map(|e| e.fields.clone()).unwrap_or_default()
    }

    /// What everyone else owns.
    pub(super) fn others(&self, writer: Writer<'_>) -> FieldSet {
        let mut out = FieldSet::default();
        self.0.iter().filter(|e| !e.is(writer, true)).for_each(|e| out.add(&e.fields));
        out
    }

    pub(super) fn set_applied(&mut self, writer: Writer<'_>, fields: FieldSet) {
        let at = self.0.iter().position(|e| e.is(writer, true));
        let entry = match at.and_then(|at| self.0.get_mut(at)) {
            Some(entry) => entry,
            None => {
                self.0.push(Entry::new(writer, true));
                let Some(last) = self.0.last_mut() else { return };
                last
            }
        };
        if entry.fields != fields {
            entry.time = writer.time.to_owned();
        }
        entry.api_version = writer.api_version.to_owned();
        entry.fields = fields;
    }

    /// After an update: what changed belongs to the writer, what is gone to nobody.
    pub(super) fn updated(&mut self, writer: Writer<'_>, changes: &Changes) {
        let written = changes.written();
        for entry in &mut self.0 {
            entry.fields.subtract(&changes.removed, true);
            if !entry.is(writer, false) {
                entry.fields.subtract(&written, false);
            }
        }
        if written.is_empty() {
            return;
        }
        let at = self.0.iter().position(|e| e.is(writer, false));
        let mut entry = match at {
            Some(at) => self.0.remove(at),
            None => Entry::new(writer, false),
        };
        entry.fields.add(&written);
        entry.time = writer.time.to_owned();
        self.0.push(entry);
        self.cap();
    }

    /// The oldest updaters become one, so that the list stays short.
    fn cap(&mut self) {
        while self.0.iter().filter(|e| !e.apply).count() > UPDATERS_MAX {
            let mut old = self.0.iter().enumerate().filter(|(_, e)| !e.apply).map(|(i, _)| i);
            let (Some(first), Some(second)) = (old.next(), old.next()) else { return };
            let gone = self.0.remove(second);
            if let Some(kept) = self.0.get_mut(first) {
                kept.fields.add(&gone.fields);
                kept.manager = "ancient-changes".to_owned();
                kept.time = gone.time;
            }
        }
    }

    pub(super) fn forget_absent(&mut self, existing: &FieldSet) {
        self.0.iter_mut().for_each(|e| e.fields.keep_existing(existing));
        self.0.retain(|e| !e.fields.is_empty());
    }

    /// Writes the list into `object`; entries that did not change keep their time.
    pub(super) fn write(mut self, object: &mut Value, live: Option<&Value>) {
        let before = live.map(Self::read).unwrap_or_default();
        for entry in &mut self.0 {
            let same = before.0.iter().find(|b| {
                b.manager == entry.manager && b.apply == entry.apply && b.fields == entry.fields
            });
            if let Some(same) = same {
                entry.time.clone_from(&same.time);
            }
        }
        let list: Vec<Value> = self.0.iter().map(entry_json).collect();
        let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if list.is_empty() {
            meta.shift_remove("managedFields");
        } else {
            meta.insert("managedFields".into(), Value::Array(list));
        }
    }
}

fn entry_json(entry: &Entry) -> Value {
    let mut out: Map<String, Value> = Map::new();
    out.insert("manager".into(), entry.manager.as_str().into());
    out.insert("operation".into(), if entry.apply { "Apply" } else { "Update" }.into());
    out.insert("apiVersion".into(), entry.api_version.as_str().into());
    out.insert("time".into(), entry.time.as_str().into());
    out.insert("fieldsType".into(), json!("FieldsV1"));
    out.insert("fieldsV1".into(), entry.fields.to_json());
    if !entry.subresource.is_empty() {
        out.insert("subresource".into(), entry.subresource.as_str().into());
    }
    Value::Object(out)
}
