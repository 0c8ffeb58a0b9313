// SPDX-License-Identifier: Apache-2.0
//! The gate in front of routes: which versions wait, and for which backends. The rule is written
//! down in `compiler.rs`; the compiler asks, this module only judges and remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_kinds::world::ObjectKey;
use weft_model::{
    GATEWAYS_MARK, Resource, ResourceName, Root, Route, Target, UDP_MARK, WeightedBackend,
    endpoints_child, udp_endpoints_child,
};

use crate::compile::{Draft, EVERYTHING, UNMATCHED};
use crate::mesh::Mesh;

#[derive(Debug)]
pub(super) struct Gate {
    /// While open everything takes effect.
    open: bool,
    held: BTreeMap<ResourceName, Held>,
    waiting: HashMap<Root, BTreeSet<ResourceName>>,
    objects: BTreeMap<ObjectKey, BTreeSet<ResourceName>>,
}

#[derive(Debug)]
struct Held {
    object: ObjectKey,
    draft: Draft,
    missing: BTreeSet<String>,
    roots: BTreeSet<Root>,
}

/// What a version waits for.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// For people.
    words: BTreeSet<String>,
    /// Hosts whose change may end the waiting.
    roots: BTreeSet<Root>,
}

// === impl Gate ===

impl Gate {
    pub fn open() -> Self {
        Self {
            open: true,
            held: BTreeMap::new(),
            waiting: HashMap::new(),
            objects: BTreeMap::new(),
        }
    }

    pub fn close(&mut self) {
        self.open = false;
    }

    /// What a version of a route must wait for; nothing means that it takes effect.
    pub fn judge(&self, mesh: &Mesh, name: &ResourceName, draft: &Draft) -> Missing {
        let mut missing = Missing::default();
        let Resource::Route(new) = &*draft.resource else { return missing };
        if self.open {
            return missing;
        }
        let old = match mesh.get(name).map(|r| &**r) {
            Some(Resource::Route(route)) => Some(route),
            _ => None,
        };
        // What an object has no rule for is nobody's from when its rules count.
        let rules = name.child.strip_suffix(UNMATCHED).map(|rules| name.root.child(rules));
        let waits = |rules: &ResourceName| mesh.get(rules).is_none();
        // An object's rules for everything change with its others.
        let others = name.child.strip_suffix(EVERYTHING).and_then(|name| name.strip_suffix('/'));
        let with = rules.filter(waits).or_else(|| Some(name.root.child(others?)));
        if let Some(held) = with.and_then(|rules| self.held.get(&rules)) {
            missing.words.clone_from(&held.missing);
            missing.roots.clone_from(&held.roots);
            return missing;
        }
        if draft.unresolved {
            if old.is_some_and(|old| is_sound(mesh, old)) {
                missing.words.insert("what ResolvedRefs names to exist".to_owned());
            }
            return missing;
        }
        let used: BTreeSet<&ResourceName> = old.into_iter().flat_map(targets).collect();
        for target in targets(new).filter(|t| !used.contains(t) && !is_ready(mesh, t)) {
            missing.words.insert(format!("a healthy instance of {}", words(target)));
            missing.roots.insert(target.root.clone());
        }
        missing
    }

    pub fn hold(&mut self, name: ResourceName, object: ObjectKey, draft: Draft, missing: Missing) {
        for root in &missing.roots {
            self.waiting.entry(root.clone()).or_default().insert(name.clone());
        }
        self.objects.entry(object.clone()).or_default().insert(name.clone());
        let held = Held { object, draft, missing: missing.words, roots: missing.roots };
        self.held.insert(name, held);
    }

    /// Takes a version out; the object that it was of.
    pub fn forget(&mut self, name: &ResourceName) -> Option<ObjectKey> {
        let held = self.held.remove(name)?;
        for root in &held.roots {
            if let Some(names) = self.waiting.get_mut(root) {
                names.remove(name);
                if names.is_empty() {
                    self.waiting.remove(root);
                }
            }
        }
        if let Some(names) = self.objects.get_mut(&held.object) {
            names.remove(name);
            if names.is_empty() {
                self.objects.remove(&held.object);
            }
        }
        Some(held.object)
    }

    pub fn held(&self, name: &ResourceName) -> Option<(ObjectKey, Draft)> {
        self.held.get(name).map(|h| (h.object.clone(), h.draft.clone()))
    }

    /// Every route that waits.
    pub fn held_names(&self) -> impl Iterator<Item = ResourceName> {
        self.held.keys().cloned()
    }

    /// Routes that wait for any of these hosts.
    pub fn waiting_for(&self, roots: &BTreeSet<&Root>) -> Vec<ResourceName> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        roots.iter().filter_map(|r| self.waiting.get(*r)).flatten().cloned().collect()
    }

    /// What an object's newest version waits for, as a sentence.
    pub fn pending(&self, object: &ObjectKey) -> Option<String> {
        let names = self.objects.get(object)?;
        let held = names.iter().filter_map(|n| self.held.get(n));
        let words: BTreeSet<&str> = held.flat_map(|h| &h.missing).map(String::as_str).collect();
        let words: Vec<_> = words.into_iter().collect();
        Some(format!(
            "waits for {}; until then the version before this one stays in effect, if there was \
             one",
            words.join(", ")
        ))
    }
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// The backends that a route sends requests to.
fn targets(route: &Route) -> impl Iterator<Item = &ResourceName> {
    named(route).filter(|(_, weight)| *weight > 0).map(|(name, _)| name)
}

/// The backends that a route names, whatever their weights.
pub(crate) fn targets_of(route: &Route) -> impl Iterator<Item = &ResourceName> {
    named(route).map(|(name, _)| name)
}

/// Every backend that a route names, with its weight: a proxy must know them all.
pub(super) fn named(route: &Route) -> impl Iterator<Item = (&ResourceName, u32)> {
    route.targets()
}

fn backends(route: &Route) -> impl Iterator<Item = &WeightedBackend> {
    route.rules.iter().flat_map(|rule| rule.shares())
}

/// Whether everything that a version in effect names is still there.
fn is_sound(mesh: &Mesh, route: &Route) -> bool {
    backends(route).filter(|b| b.weight > 0).all(|b| match &b.target {
        Target::Backend(name) => mesh.get(name).is_some(),
        Target::Fail { .. } => false,
    })
}

/// Whether a backend has an instance that takes requests, or its sentence is all it ever answers.
fn is_ready(mesh: &Mesh, name: &ResourceName) -> bool {
    let backend = match mesh.get(name).map(|r| &**r) {
        Some(Resource::Backend(backend)) => backend,
        Some(Resource::Fail(_)) => return true,
        _ => return false,
    };
    let child = if name.child.ends_with(UDP_MARK) { udp_endpoints_child } else { endpoints_child };
    let set = name.root.child(child(backend.port));
    let Some(Resource::Endpoints(set)) = mesh.get(&set).map(|r| &**r) else { return false };
    set.endpoints.iter().any(|e| e.is_candidate() && backend.selects(e))
}

/// `product.shop.svc.cluster.local port 80 subset v2`
fn words(target: &ResourceName) -> String {
    let child = target.child.strip_suffix(GATEWAYS_MARK).unwrap_or(&target.child);
    let mut parts = child.split('/').skip(1);
    let host = target.root.to_string();
    let host = host.strip_prefix("host:").unwrap_or(&host);
    let port = parts.next().unwrap_or("?");
    match parts.next() {
        Some(subset) => format!("{host} port {port} subset {subset}"),
        None => format!("{host} port {port}"),
    }
}
