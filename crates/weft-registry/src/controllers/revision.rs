// SPDX-License-Identifier: Apache-2.0
//! ControllerRevisions: the templates that a StatefulSet or DaemonSet had, so that `kubectl
//! rollout history` and `undo` find them. Called by those two controllers.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::world::{KindId, Object};

use super::plan::{Context, controller_ref};
use super::replica_set::{owned, template_hash};
use crate::Propagation;

/// On pods: the revision of their template.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
const KEPT: u64 = 10;

/// The present template among those before.
#[derive(Debug)]
pub(super) struct Revisions {
    /// Name of the revision of the present template.
    pub name: String,
    pub hash: String,
    /// By number, oldest first; without the present one when it is new.
    all: Vec<Arc<Object>>,
}

// === impl Revisions ===

impl Revisions {
    /// Writes the present template down when it is new, and as the newest when it was there
    /// before.
    pub(super) fn of(ctx: &mut Context<'_>, owner: &Object) -> Self {
        let template = &owner.raw["spec"]["template"];
        let hash = template_hash(template);
        let name = format!("{}-{hash}", owner.key.name);
        let mut all = owned(ctx.world, owner, KindId::ControllerRevision);
        all.retain(|r| !r.meta.is_deleting());
        all.sort_by_key(|r| (number(r), r.key.name.clone()));
        let newest = all.last().map_or(0, |r| number(r));
        match all.iter().find(|r| *r.key.name == *name) {
            Some(known) if number(known) == newest => {}
            Some(known) => {
                let mut new = Value::clone(&known.raw);
                new["revision"] = json!(newest + 1);
                ctx.write(known, new);
            }
            None => {
                let raw = revision(owner, &name, &hash, newest + 1);
                ctx.create(KindId::ControllerRevision, &owner.key.namespace, raw);
            }
        }
        Self { name, hash, all }
    }

    /// The template of a revision.
    pub(super) fn template(&self, name: &str) -> Option<Value> {
        let found = self.all.iter().find(|r| *r.key.name == *name)?;
        let mut template = found.raw["data"]["spec"]["template"].clone();
        template.as_object_mut()?.remove("$patch");
        Some(template)
    }

    /// Forgets the oldest that nobody needs.
    pub(super) fn forget(&self, ctx: &mut Context<'_>, limit: Option<u64>, live: &BTreeSet<&str>) {
        let keep = usize::try_from(limit.unwrap_or(KEPT)).unwrap_or(usize::MAX);
        let idle = |r: &&Arc<Object>| *r.key.name != *self.name && !live.contains(&*r.key.name);
        let idle: Vec<&Arc<Object>> = self.all.iter().filter(idle).collect();
        let over = idle.len().saturating_sub(keep);
        idle.into_iter().take(over).for_each(|r| ctx.delete(r, Propagation::Background));
    }
}

fn number(revision: &Object) -> i64 {
    revision.raw["revision"].as_i64().unwrap_or(0)
}

fn revision(owner: &Object, name: &str, hash: &str, number: i64) -> Value {
    let mut template = owner.raw["spec"]["template"].clone();
    if template.is_object() {
        template["$patch"] = json!("replace");
    }
    let mut labels = owner.raw["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels["controller.kubernetes.io/hash"] = json!(hash);
    let mut raw = json!({
        "metadata": {
            "name": name,
            "labels": labels,
            "ownerReferences": [controller_ref(owner)],
        },
        "data": { "spec": { "template": template } },
        "revision": number,
    });
    // Why it was changed, as `kubectl rollout history` shows it.
    if let Some(cause) = owner.meta.annotation("kubernetes.io/change-cause") {
        raw["metadata"]["annotations"] = json!({ "kubernetes.io/change-cause": cause });
    }
    raw
}
