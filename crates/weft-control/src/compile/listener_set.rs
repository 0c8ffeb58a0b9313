// SPDX-License-Identifier: Apache-2.0
//! ListenerSet: listeners that others than its owner add to a Gateway. What is served, and the
//! status of a set that is taken, is the Gateway's own unit's business, which judges all listeners
//! once; a set's unit gives its status when no Gateway takes it.

use weft_base::limits::GATEWAY_LISTENERS_MAX;

use weft_kinds::views::View;
use weft_kinds::views::gateway::{Gateway, ListenerSet};
use weft_kinds::world::{Index, KindId, Object, pair};

use super::gateway::{self, Addresses};
use super::listeners::{Judged, Whole, in_namespaces};
use super::{Output, Reader};
use crate::status::{Condition, ListenerStatus, StatusBody, StatusUpdate};

/// The Gateway of ours that a set is for; an error when there is none of its name at all.
pub(super) fn parent<'w>(
    reader: &Reader<'w>,
    object: &Object,
    set: &ListenerSet,
) -> Option<Result<(&'w Object, &'w Gateway), String>> {
    let parent = &set.spec.parent_ref;
    if !parent.is_gateway() {
        return None;
    }
    let ns = parent.namespace.as_deref().unwrap_or(&object.key.namespace);
    let Some(found) = reader.object(KindId::Gateway, ns, &parent.name) else {
        return Some(Err(format!("there is no Gateway {ns}/{}", parent.name)));
    };
    let View::Gateway(gateway) = &found.view else { return None };
    gateway::is_ours(reader, gateway).then_some(Ok((found, gateway)))
}

/// Whether a Gateway takes a set.
pub(super) fn is_taken(
    reader: &Reader<'_>,
    (object, gateway): (&Object, &Gateway),
    set: &Object,
) -> bool {
    let allowed = &gateway.spec.allowed_listeners.namespaces;
    in_namespaces(reader, allowed, "None", &object.key.namespace, &set.key.namespace)
}

/// The sets that a Gateway takes, in the order in which they count.
pub(super) fn taken<'w>(
    reader: &Reader<'w>,
    object: &Object,
    gateway: &Gateway,
) -> Vec<&'w Object> {
    if matches!(gateway.spec.allowed_listeners.namespaces.from.as_deref(), None | Some("None")) {
        return Vec::new();
    }
    let at = pair(&object.key.namespace, &object.key.name);
    let found = reader.index(Index::ListenerSetsByGateway, &at);
    let mut sets: Vec<&Object> = found.into_iter().map(|o| &**o).collect();
    sets.retain(|set| is_taken(reader, (object, gateway), set));
    sets.sort_by(|a, b| {
        let age = |o: &Object| o.meta.created_ms();
        let name = |o: &Object| pair(&o.key.namespace, &o.key.name);
        age(a).cmp(&age(b)).then_with(|| name(a).cmp(&name(b)))
    });
    sets
}

pub(super) fn compile(reader: &Reader<'_>, object: &Object, set: &ListenerSet) -> Output {
    let conditions = match parent(reader, object, set) {
        None => return Output::default(),
        Some(Err(text)) => refused("ParentNotAccepted", &text),
        Some(Ok(parent)) if is_taken(reader, parent, object) => return Output::default(),
        Some(Ok((at, _))) => {
            let text = format!("{}: its allowedListeners take no sets of this namespace", at.key);
            refused("NotAllowed", &text)
        }
    };
    Output { status: Some(status(object, conditions, Vec::new())), ..Output::default() }
}

/// What a Gateway says to the sets that it takes; `judged` is in their order.
pub(super) fn statuses(
    whole: &Whole<'_>,
    judged: &[Judged<'_>],
    addresses: &Addresses,
) -> Vec<StatusUpdate> {
    let mut out = Vec::with_capacity(whole.sets.len() + whole.beyond.len());
    let own = |of: &Object, rest: &[Judged<'_>]| {
        rest.iter().take_while(|j| j.owner.key == of.key).count()
    };
    let (_, mut rest) = judged.split_at(own(whole.object, judged));
    for set in &whole.sets {
        let (judged, others) = rest.split_at(own(set, rest));
        rest = others;
        let listeners = judged.iter().map(|j| j.status(addresses.is_ok())).collect();
        let conditions = match gateway::rejection(addresses) {
            Some((_, text)) => refused("ParentNotAccepted", text),
            None => conditions(judged, addresses.as_ref().err().map(|(_, text)| &**text)),
        };
        out.push(status(set, conditions, listeners));
    }
    for set in &whole.beyond {
        let text = format!("the Gateway has {GATEWAY_LISTENERS_MAX} listeners already");
        out.push(status(set, refused("TooManyListeners", &text), Vec::new()));
    }
    out
}

fn status(
    set: &Object,
    conditions: Vec<Condition>,
    listeners: Vec<ListenerStatus>,
) -> StatusUpdate {
    StatusUpdate {
        object: set.key.clone(),
        generation: set.meta.generation,
        body: StatusBody::ListenerSet { conditions, listeners },
    }
}

fn refused(reason: &'static str, text: &str) -> Vec<Condition> {
    let no = |kind| Condition::new(kind, false, reason, text);
    vec![no("Accepted"), no("Programmed")]
}

fn conditions(judged: &[Judged<'_>], pending: Option<&str>) -> Vec<Condition> {
    let (served, failed): (Vec<_>, Vec<_>) = judged.iter().partition(|j| j.is_served());
    let names: Vec<&str> = failed.iter().map(|j| &*j.listener.name).collect();
    let text = format!("see the conditions of listener {}", names.join(", "));
    if served.is_empty() {
        return refused("ListenersNotValid", &text);
    }
    let accepted = match failed.is_empty() {
        true => Condition::new("Accepted", true, "Accepted", "served with the Gateway"),
        false => Condition::new("Accepted", true, "ListenersNotValid", text),
    };
    let programmed = match pending {
        Some(why) => Condition::new("Programmed", false, "ParentNotProgrammed", why),
        None => Condition::new("Programmed", true, "Programmed", "listening with the Gateway"),
    };
    vec![accepted, programmed]
}
