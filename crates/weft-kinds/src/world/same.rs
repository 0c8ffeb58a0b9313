// SPDX-License-Identifier: Apache-2.0
//! Texts that several records hold, held once: a record that was read from the log has a copy of
//! everything of its own, and most of it stands in its key, or in others of its service, already.
//! Called by `catalog.rs` as it folds. Changes where a text lies, never what it says.

use std::sync::Arc;

use super::{CheckKey, RegistrationKey};
use crate::views::catalog::{CheckRecord, CheckStatus, Registration};

/// `place`: the node and a namespace of something that is on it.
pub(super) fn registration_key(
    mut key: RegistrationKey,
    place: Option<&(Arc<str>, Arc<str>)>,
    node: Option<&Arc<str>>,
) -> RegistrationKey {
    if let Some((node, namespace)) = place {
        share(&mut key.node, node);
        share(&mut key.namespace, namespace);
    } else if let Some(node) = node {
        share(&mut key.node, node);
    }
    key
}

pub(super) fn check_key(mut key: CheckKey, place: Option<&(Arc<str>, Arc<str>)>) -> CheckKey {
    if let Some((node, namespace)) = place {
        share(&mut key.node, node);
        share(&mut key.namespace, namespace);
    }
    key
}

/// `sibling`: another instance of the service.
pub(super) fn registration(
    new: &mut Registration,
    key: &RegistrationKey,
    sibling: Option<&Registration>,
) {
    share(&mut new.id, &key.id);
    share(&mut new.node, &key.node);
    share(&mut new.namespace, &key.namespace);
    share(&mut new.service, &key.id);
    if let Some(sibling) = sibling {
        share(&mut new.service, &sibling.service);
        share(&mut new.kind, &sibling.kind);
        for tag in &mut new.tags {
            if let Some(same) = sibling.tags.iter().find(|other| *other == tag) {
                *tag = same.clone();
            }
        }
    }
    nothing(&mut new.address);
    nothing(&mut new.kind);
    new.tags.shrink_to_fit();
}

/// `sibling`: a check of another instance of its service, most likely defined alike.
pub(super) fn check(
    new: &mut CheckRecord,
    key: &CheckKey,
    of: Option<&Registration>,
    sibling: Option<&CheckRecord>,
) {
    share(&mut new.id, &key.id);
    share(&mut new.node, &key.node);
    share(&mut new.namespace, &key.namespace);
    if let Some(of) = of {
        share(&mut new.service_id, &of.id);
        share(&mut new.service_name, &of.service);
    }
    if let Some(sibling) = sibling {
        share(&mut new.name, &sibling.name);
        share(&mut new.notes, &sibling.notes);
        share(&mut new.kind, &sibling.kind);
        if new.definition == sibling.definition {
            new.definition.clone_from(&sibling.definition);
        }
    }
    share(&mut new.name, &key.id);
    for text in [&mut new.notes, &mut new.kind, &mut new.service_id, &mut new.service_name] {
        nothing(text);
    }
}

pub(super) fn result(new: &mut CheckStatus, old: Option<&CheckStatus>) {
    if let Some(old) = old {
        share(&mut new.output, &old.output);
        share(&mut new.by, &old.by);
    }
    nothing(&mut new.output);
    nothing(&mut new.by);
}

// === helpers ===

fn share(text: &mut Arc<str>, with: &Arc<str>) {
    if text == with {
        *text = with.clone();
    }
}

/// An empty text that was read takes room; the default one does not.
fn nothing(text: &mut Arc<str>) {
    if text.is_empty() {
        *text = Arc::default();
    }
}
