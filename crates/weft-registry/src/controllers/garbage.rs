// SPDX-License-Identifier: Apache-2.0
//! Garbage: dependents whose owners are gone are deleted; an owner that is deleted in the
//! foreground waits for its dependents; one that is deleted as `orphan` lets them go first.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::views::OwnerReference;
use weft_kinds::world::{Index, KindId, Object, ObjectKey, World};

use super::plan::Context;
use crate::Propagation;
use crate::objects::meta;

/// What has become of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    /// It is being deleted in the foreground, and waits for us.
    Waiting,
    Gone,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    if let Some(propagation) = collection(&object) {
        collect(ctx, &object, propagation);
    } else if !object.meta.is_deleting() {
        judge(ctx, &object);
    }
}

/// Which collection an object that is being deleted waits for. Asked of everything that is written,
/// so it reads no more of most than that they are not being deleted.
pub fn collection(object: &Object) -> Option<Propagation> {
    match object.meta.is_deleting() {
        true => meta::collection(&object.raw.fresh()),
        false => None,
    }
}

/// The owner that a reference means, if weft has it: same kind, name and uid.
pub fn owner<'w>(
    world: &'w World,
    dependent: &ObjectKey,
    owner: &OwnerReference,
) -> Option<&'w Arc<Object>> {
    let kind = KindId::by_api(&owner.api_version, &owner.kind)?;
    let namespace = if kind.row().namespaced { &*dependent.namespace } else { "" };
    world.get(kind, namespace, &owner.name).filter(|o| o.meta.uid == owner.uid)
}

/// An object with owners: does any of them still want it?
fn judge(ctx: &mut Context<'_>, object: &Object) {
    let owners = &object.meta.owner_references;
    if owners.is_empty() {
        return;
    }
    let state = |reference: &OwnerReference| {
        if KindId::by_api(&reference.api_version, &reference.kind).is_none() {
            // A kind that weft does not know cannot be judged.
            return Owner::Solid;
        }
        match owner(ctx.world, &object.key, reference).map(|o| collection(o)) {
            Some(Some(Propagation::Foreground)) => Owner::Waiting,
            Some(_) => Owner::Solid,
            None => Owner::Gone,
        }
    };
    let states: Vec<Owner> = owners.iter().map(state).collect();
    if !states.contains(&Owner::Solid) {
        let how = match states.contains(&Owner::Waiting) {
            true => Propagation::Foreground,
            false => Propagation::Background,
        };
        return ctx.delete(object, how);
    }
    if states.contains(&Owner::Gone) {
        let gone = |uid: &str| {
            let at = owners.iter().position(|o| &*o.uid == uid);
            at.and_then(|i| states.get(i)) == Some(&Owner::Gone)
        };
        ctx.write(object, without_owners(&object.raw.fresh(), gone));
    }
}

/// An owner that is being deleted: deals with its dependents, then lets it go.
fn collect(ctx: &mut Context<'_>, object: &Object, propagation: Propagation) {
    let dependents: Vec<Arc<Object>> =
        ctx.world.index(Index::ByOwner, &object.meta.uid).cloned().collect();
    let ours = |o: &OwnerReference| o.uid == object.meta.uid;
    match propagation {
        Propagation::Orphan => {
            for dependent in &dependents {
                let gone = |uid: &str| uid == &*object.meta.uid;
                ctx.write(dependent, without_owners(&dependent.raw.fresh(), gone));
            }
            if !dependents.is_empty() {
                return;
            }
        }
        Propagation::Foreground | Propagation::Background => {
            // Each dependent judges itself; those that block are waited for.
            let blocks = |d: &Arc<Object>| {
                d.meta.owner_references.iter().any(|o| ours(o) && o.block_owner_deletion)
            };
            if dependents.iter().any(blocks) {
                return;
            }
        }
    }
    let finalizer = meta::collection_finalizer(propagation);
    ctx.write(object, meta::without_finalizer(&object.raw.fresh(), finalizer));
}

/// The object without some of its owner references.
fn without_owners(raw: &Value, gone: impl Fn(&str) -> bool) -> Value {
    let mut out = raw.clone();
    let owners = raw["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let left: Vec<Value> =
        owners.into_iter().filter(|o| !gone(o["uid"].as_str().unwrap_or(""))).collect();
    match left.is_empty() {
        true => meta::metadata_mut(&mut out).remove("ownerReferences"),
        false => meta::metadata_mut(&mut out).insert("ownerReferences".into(), json!(left)),
    };
    out
}
