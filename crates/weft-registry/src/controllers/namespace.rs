// SPDX-License-Identifier: Apache-2.0
//! Namespaces: each has a service account `default`; one that is deleted is emptied first.

use serde_json::json;
use weft_kinds::world::{KindId, ObjectKey};

use super::plan::Context;
use crate::{DeleteOptions, Propagation};

pub fn reconcile(ctx: &mut Context<'_>, name: &str) {
    let key = ObjectKey::new(KindId::Namespace, "", name);
    let Some(namespace) = ctx.object(&key) else { return };
    if !namespace.meta.is_deleting() {
        if ctx.world.get(KindId::ServiceAccount, name, "default").is_none() {
            let account = json!({ "metadata": { "name": "default" } });
            ctx.create(KindId::ServiceAccount, name, account);
        }
        return;
    }
    let mut empty = true;
    for kind in KindId::all().filter(|k| k.row().namespaced) {
        let objects: Vec<_> = ctx.world.objects(kind, Some(name)).cloned().collect();
        for object in objects {
            empty = false;
            ctx.delete(&object, Propagation::Background);
        }
    }
    if empty {
        ctx.delete_with(&namespace, &DeleteOptions { finished: true, ..DeleteOptions::default() });
    }
}
