// SPDX-License-Identifier: Apache-2.0
//! What a controller writes, as data. Each change of an object is a transaction that holds only
//! while the object is as the controller saw it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use weft_base::rng::Rng;
use weft_kinds::kind::KindId;
use weft_kinds::views::{self, View, meta::MetaOnly};
use weft_kinds::world::{Object, ObjectKey, World};
use weft_store::{Compare, Op, Revision, Txn};

use super::autoscaler::Memory;
use crate::objects::admit::{self, Extra};
use crate::objects::meta::{self, Birth, Deletion};
use crate::{DeleteOptions, EventNote, ObjectError, Part, Propagation, Usage};

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub txns: Vec<Txn>,
    /// Said once the transactions hold.
    pub notes: Vec<EventNote>,
    /// Look again after this long even if nothing changes.
    pub again: Option<Duration>,
    /// To be told at the next look, if this one is carried out.
    pub memory: Option<Memory>,
}

/// A controller's view of the world and its pen.
#[derive(Debug)]
pub struct Context<'w> {
    pub world: &'w World,
    pub wall_ms: u64,
    rng: Rng,
    plan: Plan,
    usage: Arc<Usage>,
    memory: Option<Memory>,
}

// === impl Context ===

impl<'w> Context<'w> {
    pub fn new(world: &'w World, wall_ms: u64, seed: u64) -> Self {
        let (rng, plan) = (Rng::seeded(seed), Plan::default());
        Self { world, wall_ms, rng, plan, usage: Arc::default(), memory: None }
    }

    /// With what pods use, and what the last plan for this item asked to be told.
    #[must_use]
    pub fn knowing(mut self, usage: Arc<Usage>, memory: Option<Memory>) -> Self {
        (self.usage, self.memory) = (usage, memory);
        self
    }

    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    pub fn remember(&mut self, memory: Memory) {
        self.plan.memory = Some(memory);
    }

    pub fn into_plan(self) -> Plan {
        self.plan
    }

    pub fn now(&self) -> String {
        meta::timestamp(self.wall_ms)
    }

    /// An object, if it is of a form that can be changed. One that is not was never let in by a
    /// door; it is left alone.
    pub fn object(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        // Looked at and let go of: what mirrors is kept as its text.
        let sound = |o: &&Arc<Object>| meta::check_form(key.kind, &o.raw.fresh()).is_ok();
        self.world.object(key).filter(sound).cloned()
    }

    /// Looks again no later than after this long.
    pub fn again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |a| a.min(after)));
    }

    /// Says what is done, for `kubectl describe`.
    pub fn note(&mut self, note: EventNote) {
        self.plan.notes.push(note);
    }

    /// A new object; its name when it can be written. Nothing new in a namespace that goes.
    pub fn create(&mut self, kind: KindId, namespace: &str, raw: Value) -> Option<String> {
        let home = self.world.get(KindId::Namespace, "", namespace);
        if kind.row().namespaced && home.is_some_and(|ns| ns.meta.is_deleting()) {
            return None;
        }
        let birth = Birth::new(self.wall_ms, &mut self.rng);
        let made = meta::create(kind, namespace, raw, &birth, true).and_then(|mut new| {
            readable(kind, &new)?;
            let extra = admit::complete(self.world, kind, None, &mut new)?;
            Ok((new, extra))
        });
        let (new, extra) = self.noted(kind, made).ok()?;
        let name = meta::text(&new, "name").to_owned();
        let scope = if kind.row().namespaced { namespace } else { "" };
        if self.world.get(kind, scope, &name).is_some() {
            // Its predecessor is still on its way out, and wakes whoever waits when it is gone.
            return None;
        }
        let key = kind.row().key(namespace, &name);
        let op = Op::put(key.as_str(), new.to_string());
        self.push(Txn::of([op]).when(Compare::Absent(key.into())), extra);
        Some(name)
    }

    /// `new` in place of an object as it was seen; nothing when they are equal.
    pub fn write(&mut self, old: &Object, new: Value) {
        self.write_with(old, new, Extra::default());
    }

    /// The same with more to write along.
    pub fn write_with(&mut self, old: &Object, new: Value, extra: Extra) {
        let (kind, was) = (old.key.kind, old.raw.fresh());
        let updated = meta::update(kind, &was, new, Part::All).and_then(|mut new| {
            let more = admit::complete(self.world, kind, Some(&was), &mut new)?;
            Ok((new, more))
        });
        let Ok((new, more)) = self.noted(kind, updated) else { return };
        if new == *was && extra.ops.is_empty() {
            return;
        }
        if meta::may_go(kind, &new) {
            let extra = admit::release(self.world, kind, &new);
            let op = Op::delete(old.key.store_key());
            return self.push(Txn::of([op]).when(seen(old)), extra);
        }
        let op = Op::put(old.key.store_key(), new.to_string());
        let mut txn = Txn::of([op]).when(seen(old));
        txn.compares.extend(more.compares);
        txn.ops.extend(more.ops);
        self.push(txn, extra);
    }

    /// `new` in place of an object as it was seen, to be written along with another one: both
    /// or neither. `None` when nothing changes or it cannot be.
    pub fn along(&mut self, old: &Object, new: Value) -> Option<Extra> {
        let (kind, was) = (old.key.kind, old.raw.fresh());
        let updated = meta::update(kind, &was, new, Part::All);
        let new = self.noted(kind, updated).ok()?;
        if new == *was || meta::may_go(kind, &new) {
            return None;
        }
        let op = Op::put(old.key.store_key(), new.to_string());
        Some(Extra { compares: vec![seen(old)], ops: vec![op] })
    }

    /// A status in place of the one that was seen.
    pub fn status(&mut self, old: &Object, status: Value) {
        let mut new = old.raw.fresh().into_owned();
        new["status"] = status;
        self.write(old, new);
    }

    pub fn delete(&mut self, old: &Object, propagation: Propagation) {
        let propagation = Some(propagation);
        self.delete_with(old, &DeleteOptions { propagation, ..DeleteOptions::default() });
    }

    pub fn delete_with(&mut self, old: &Object, options: &DeleteOptions) {
        let (kind, was) = (old.key.kind, old.raw.fresh());
        if meta::check_form(kind, &was).is_err() {
            let op = Op::delete(old.key.store_key());
            return self.push(Txn::of([op]).when(seen(old)), Extra::default());
        }
        let (op, extra) = match meta::delete(kind, &was, options, &self.now()) {
            Deletion::Pending => return,
            Deletion::Mark(new) => {
                (Op::put(old.key.store_key(), new.to_string()), Extra::default())
            }
            Deletion::Remove => {
                (Op::delete(old.key.store_key()), admit::release(self.world, kind, &was))
            }
        };
        self.push(Txn::of([op]).when(seen(old)), extra);
    }

    fn push(&mut self, mut txn: Txn, extra: Extra) {
        txn.compares.extend(extra.compares);
        txn.ops.extend(extra.ops);
        self.plan.txns.push(txn);
    }

    /// What cannot be written now is tried again; the log says why.
    fn noted<T>(&mut self, kind: KindId, made: Result<T, ObjectError>) -> Result<T, ObjectError> {
        made.inspect_err(|e| {
            tracing::warn!(kind = %kind, error = %e, "a controller could not write an object");
            self.again(Duration::from_secs(5));
        })
    }
}

/// What is made must be known again, by its owner above all; otherwise it is made for ever.
fn readable(kind: KindId, new: &Value) -> Result<(), ObjectError> {
    let name = meta::text(new, "name").to_owned();
    let read = views::read::<MetaOnly>(new).map(drop);
    let read = match View::read(kind, new) {
        View::Invalid(issues) => read.and(Err(issues)),
        _ => read,
    };
    read.map_err(|issues| ObjectError::Invalid { kind, name, issues })
}

/// The object is still as it was seen.
fn seen(object: &Object) -> Compare {
    Compare::ModRevision(object.key.store_key().into(), Revision(object.revision))
}

/// A reference from a dependent to the object that manages it.
pub fn controller_ref(owner: &Object) -> Value {
    serde_json::json!({
        "apiVersion": owner.key.kind.row().api_version(),
        "kind": owner.key.kind.row().kind,
        "name": &*owner.key.name,
        "uid": &*owner.meta.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The same JSON whatever the order its fields were written in.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by(|a, b| a.0.cmp(b.0));
            let fields = fields.into_iter().map(|(k, v)| format!("{k:?}:{}", canonical(v)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}
