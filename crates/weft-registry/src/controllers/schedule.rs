// SPDX-License-Identifier: Apache-2.0
//! Which node a pod is placed on: of those that fit, the one with the fewest pods of the same
//! owner, then with the fewest pods. Called by `pod.rs`. Pure.
//!
//! Pods that wait at the same time are placed one after the other in thought, so that each
//! decision, made for itself from the same World, agrees with the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{Index, KindId, Object, PROXY_ANNOTATION, World};

use super::gateway::GATEWAY_ANNOTATION;
use super::pod::is_placed;
use crate::hosts::{ALLOWED_ANNOTATION, JOIN_ANNOTATION};
use crate::nodes;

/// A node as it is while pods are being placed.
struct Place {
    node: Arc<Object>,
    pods: usize,
    pods_max: usize,
    /// Pods by owner.
    owners: BTreeMap<Arc<str>, usize>,
}

/// Why nodes did not do.
#[derive(Default)]
struct Refused {
    wrong: usize,
    unready: usize,
    tainted: usize,
    full: usize,
    forbidden: usize,
}

/// The node for a pod.
///
/// # Errors
/// When none does, in Kubernetes' words.
pub fn choose(world: &World, pod: &Object) -> Result<Arc<str>, String> {
    let mut places: Vec<Place> =
        world.objects(KindId::Node, None).map(|node| Place::new(world, node)).collect();
    if places.len() > 1 {
        let waiting = world.objects(KindId::Pod, None).filter(|p| {
            let finished = matches!(&p.view, View::Pod(v) if v.is_finished());
            !is_placed(p) && !p.meta.is_deleting() && !finished
        });
        for other in waiting.take_while(|p| p.key < pod.key) {
            let best = best(world, &places, other).ok();
            if let Some(place) = best.and_then(|at| places.get_mut(at)) {
                place.take(other);
            }
        }
    }
    let at = best(world, &places, pod)?;
    places.get(at).map(|p| p.node.key.name.clone()).ok_or_else(|| "there is no node".to_owned())
}

/// The position of the best place.
fn best(world: &World, places: &[Place], pod: &Object) -> Result<usize, String> {
    let mut refused = Refused::default();
    let mut best = None;
    let wanted = wanted(world, pod);
    for (at, place) in places.iter().enumerate() {
        if !place.fits(pod, &mut refused) {
            continue;
        }
        let same = place.owners.get(&owner(pod)).copied().unwrap_or(0);
        let rank = (wanted.dislikes(place), same, place.pods);
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, at));
        }
    }
    best.map(|(_, at)| at).ok_or_else(|| refused.sentence(places.len()))
}

// === impl Place ===

impl Place {
    fn new(world: &World, node: &Arc<Object>) -> Self {
        let mut place = Self {
            node: node.clone(),
            pods: 0,
            pods_max: pods_max(&node.raw),
            owners: BTreeMap::new(),
        };
        for pod in world.index(Index::PodsByNode, &node.key.name) {
            place.take(pod);
        }
        place
    }

    fn take(&mut self, pod: &Object) {
        self.pods += 1;
        *self.owners.entry(owner(pod)).or_default() += 1;
    }

    fn fits(&self, pod: &Object, refused: &mut Refused) -> bool {
        let (node, spec) = (&self.node, &pod.raw["spec"]);
        let selector: Labels =
            serde_json::from_value(spec["nodeSelector"].clone()).unwrap_or_default();
        if !selector.iter().all(|(k, v)| node.meta.labels.get(k) == Some(v)) {
            refused.wrong += 1;
        } else if node.raw["spec"]["unschedulable"] == true || !may_be_ready(&node.raw) {
            refused.unready += 1;
        } else if is_repelled(&node.raw, spec) {
            refused.tainted += 1;
        } else if self.pods >= self.pods_max {
            refused.full += 1;
        } else if !admits(node, pod) {
            refused.forbidden += 1;
        } else {
            return true;
        }
        false
    }
}

/// A node whose agent never said anything about itself counts as ready, as Kubernetes has it.
fn may_be_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|c| c["type"] == "Ready");
    ready.next().is_none() || nodes::is_ready(node)
}

/// How many pods a node takes; Kubernetes' default when it does not say.
fn pods_max(node: &Value) -> usize {
    let text = node["status"]["allocatable"]["pods"].as_str();
    text.and_then(|n| n.parse().ok()).unwrap_or(110)
}

/// What spreads: pods of one owner.
fn owner(pod: &Object) -> Arc<str> {
    pod.meta.controller().map_or_else(|| pod.meta.uid.clone(), |o| o.uid.clone())
}

/// Whether a taint keeps the pod away that it does not tolerate.
pub(super) fn is_repelled(node: &Value, pod_spec: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let mut hard =
        taints.filter(|t| matches!(t["effect"].as_str(), Some("NoSchedule" | "NoExecute")));
    let tolerations = pod_spec["tolerations"].as_array();
    hard.any(|taint| !tolerations.into_iter().flatten().any(|t| tolerates(t, taint)))
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let effect = text(&toleration["effect"]);
    if !effect.is_empty() && effect != text(&taint["effect"]) {
        return false;
    }
    let key = text(&toleration["key"]);
    match toleration["operator"].as_str().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == text(&taint["key"]),
        _ => key == text(&taint["key"]) && text(&toleration["value"]) == text(&taint["value"]),
    }
}

/// Why a pod that names its node itself may not run there.
pub fn forbidden(world: &World, pod: &Object) -> Option<String> {
    let View::Pod(view) = &pod.view else { return None };
    let (name, account) = (&view.spec.node_name, view.service_account());
    let node = world.get(KindId::Node, "", name)?;
    (!admits(node, pod)).then(|| {
        let namespace = &pod.key.namespace;
        format!("the token of host {name} does not allow the service account {namespace}/{account}")
    })
}

fn admits(node: &Object, pod: &Object) -> bool {
    let View::Pod(view) = &pod.view else { return false };
    is_allowed(node, &pod.key.namespace, view.service_account())
}

/// Whether the token with which the node joined allows an identity there.
pub(super) fn is_allowed(node: &Object, namespace: &str, account: &str) -> bool {
    let Some(allowed) = node.meta.annotation(ALLOWED_ANNOTATION) else { return true };
    let allowed: Value = serde_json::from_str(allowed).unwrap_or_default();
    let pair = serde_json::json!([namespace, account]);
    allowed == "placed" || allowed["only"].as_array().is_some_and(|all| all.contains(&pair))
}

// === where gateways should be ===

/// What a pod would like of its node.
enum Wanted {
    Anything,
    /// A gateway: the machine that has one of its addresses, else the server's own, where the
    /// people are who ask it on loopback.
    Gateway(Vec<IpAddr>),
}

fn wanted(world: &World, pod: &Object) -> Wanted {
    if pod.meta.annotation(PROXY_ANNOTATION) != Some("gateway") {
        return Wanted::Anything;
    }
    let name = pod.meta.annotation(GATEWAY_ANNOTATION).unwrap_or_default();
    let gateway = world.get(KindId::Gateway, &pod.key.namespace, name);
    let asked = gateway.and_then(|g| g.raw["spec"]["addresses"].as_array());
    let ips = asked.into_iter().flatten().filter_map(|a| a["value"].as_str()?.parse().ok());
    Wanted::Gateway(ips.collect())
}

impl Wanted {
    fn dislikes(&self, place: &Place) -> usize {
        let Self::Gateway(asked) = self else { return 0 };
        let own = addresses(&place.node.raw);
        let joined = place.node.meta.annotation(JOIN_ANNOTATION).is_some();
        match asked.iter().any(|ip| own.contains(ip)) {
            true => 0,
            false if !joined => 1,
            false => 2,
        }
    }
}

/// Addresses of a node, as its agent said them.
pub(super) fn addresses(node: &Value) -> Vec<IpAddr> {
    let all = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = all.filter(|a| a["type"] == "InternalIP");
    internal.filter_map(|a| a["address"].as_str()?.parse().ok()).collect()
}

// === impl Refused ===

impl Refused {
    fn sentence(&self, all: usize) -> String {
        let mut out = format!("0/{all} nodes are available");
        for (count, why) in [
            (self.wrong, "did not match the pod's node selector"),
            (self.unready, "were not ready or unschedulable"),
            (self.tainted, "had a taint that the pod does not tolerate"),
            (self.full, "had too many pods"),
            (self.forbidden, "may not run the pod's service account"),
        ] {
            if count > 0 {
                out.push_str(&format!(", {count} {why}"));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
