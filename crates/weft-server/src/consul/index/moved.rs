// SPDX-License-Identifier: Apache-2.0
//! Which topics' answers differ between two looks at the World. Pure. Only what the change is about
//! is compared: services by their entries, nodes by what of those is on them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::catalog::Status;
use weft_kinds::world::{CheckKey, ReadKey, WorldDelta};

use super::Topic;
use crate::consul::stamp::Stamps;
use crate::consul::view::{
    CONSUL_SERVICE, CheckView, DEFAULT_NAMESPACE, Entry, View, speaks_connect,
};

/// What differs, of a node that the change is about.
#[derive(Clone, Copy, Debug, Default)]
struct OnNode {
    instances: bool,
    checks: bool,
}

/// Two looks, and what was found to differ so far.
struct Found<'a> {
    before: &'a View,
    after: &'a View,
    nodes: BTreeMap<Arc<str>, OnNode>,
    /// The states that checks left and came to, or that those of a changed node are in.
    states: BTreeSet<Status>,
    topics: Vec<Topic>,
    /// Of those, what no instance of a changed service speaks for any more.
    left: HashSet<Topic>,
}

/// The entries of a group before and after.
type Pair<'a> = (Vec<&'a Entry>, Vec<&'a Entry>);

/// The topics whose answer differs between two looks, and which of those of Connect may be about
/// nothing any more.
pub(super) fn moved(
    before: &View,
    after: &View,
    delta: &WorldDelta,
    stamps: &mut Stamps,
) -> (Vec<Topic>, HashSet<Topic>) {
    let (nodes, states, topics) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    let mut found = Found { before, after, nodes, states, topics, left: HashSet::new() };
    let services = found.about(delta);
    let now = after.world.revision();
    // With each, whether names or tags of its services differ.
    let mut namespaces: BTreeMap<Arc<str>, bool> = BTreeMap::new();
    for service in &services {
        let (was, is) = (entries(before, service), entries(after, service));
        if was != is {
            stamps.entries(&was, &is, now);
            found.service((&was, &is), service);
            let names = shown(&was) != shown(&is);
            *namespaces.entry(service.namespace.as_str().into()).or_default() |= names;
        }
    }
    for (node, on) in std::mem::take(&mut found.nodes) {
        found.node(&node, on, stamps);
    }
    if !found.states.is_empty() {
        found.topics.push(Topic::Checks);
    }
    found.topics.extend(found.states.iter().map(|state| Topic::State(*state)));
    for (ns, names) in namespaces {
        found.topics.push(Topic::Instances(ns.clone()));
        if names {
            found.topics.push(Topic::Services(ns));
        }
    }
    (found.topics, found.left)
}

// === impl Found ===

impl Found<'_> {
    /// The services that the change may be about; nodes are noted.
    fn about(&mut self, delta: &WorldDelta) -> BTreeSet<ServiceKey> {
        let mut services = BTreeSet::new();
        for key in delta.iter() {
            match key {
                ReadKey::Instances(service) | ReadKey::Catalog(service) => {
                    services.insert(service.clone());
                }
                ReadKey::CatalogNode(name) => {
                    self.nodes.entry(name.clone()).or_default();
                }
                ReadKey::Node(name) => {
                    self.nodes.entry(name.clone()).or_default();
                    services.extend(on_node(self.before, name));
                    services.extend(on_node(self.after, name));
                }
                _ => {}
            }
        }
        services
    }

    /// A service whose entries differ.
    fn service(&mut self, (was, is): (&[Entry], &[Entry]), service: &ServiceKey) {
        let (ns, slug): (Arc<str>, Arc<str>) =
            (service.namespace.as_str().into(), service.name.as_str().into());
        for (name, (was, is)) in grouped(was, is, |e| vec![e.node.node.clone()]) {
            // A node may be listed only for the pods on it.
            if was.is_empty() != is.is_empty()
                && self.before.has_node(&name) != self.after.has_node(&name)
            {
                self.topics.push(Topic::Nodes);
            }
            let own = |entries: &[&Entry]| -> Vec<CheckView> {
                let all = entries.iter().flat_map(|e| &e.checks);
                all.filter(|c| !c.record.service_id.is_empty()).cloned().collect()
            };
            let (checks, now) = (own(&was), own(&is));
            let states = self.states_of(&checks, &now);
            if was.first().map(|e| &e.node) != is.first().map(|e| &e.node) {
                self.seen_by_node(&checks, &now);
            }
            let on = self.nodes.entry(name).or_default();
            on.instances |= !same_instances(&was, &is);
            on.checks |= states;
        }
        self.topics.push(Topic::Health(ns.clone(), slug.clone()));
        if !same_instances(&all(was), &all(is)) {
            self.topics.push(Topic::Catalog(ns.clone(), slug));
        }
        let speaks = |e: &Entry| speaks_connect(&e.service).collect();
        for (of, (was, is)) in grouped(was, is, speaks) {
            if was == is {
                continue;
            }
            let of: Arc<str> = of.as_str().into();
            let mut topics = vec![Topic::ConnectHealth(ns.clone(), of.clone())];
            if !same_instances(&was, &is) {
                topics.push(Topic::Connect(ns.clone(), of));
            }
            if is.is_empty() {
                self.left.extend(topics.iter().cloned());
            }
            self.topics.extend(topics);
        }
    }

    fn node(&mut self, node: &Arc<str>, on: OnNode, stamps: &mut Stamps) {
        let (before, after) = (self.before, self.after);
        let known = |view: &View| view.world.catalog().node(node).is_some();
        let (now, own) = (after.world.revision(), *node == after.own.node.node);
        let shown = before.node(node) != after.node(node);
        let record = shown || (!own && known(before) != known(after));
        if record {
            stamps.node_changed(node, own || known(before), own || known(after), now);
            self.topics.push(Topic::Nodes);
        }
        let (was, is) = (listed_checks(before, node), listed_checks(after, node));
        if shown {
            self.seen_by_node(&was, &is);
        }
        stamps.checks(&was, &is, now);
        let checks = self.states_of(&was, &is);
        if record || on.instances {
            self.topics.push(Topic::Node(node.clone()));
        }
        if checks || on.checks {
            self.topics.push(Topic::NodeHealth(node.clone()));
        }
        if before.is_server(node) || after.is_server(node) {
            self.server(record, checks);
        }
    }

    /// The servers' own service is on a node whose record or checks differ.
    fn server(&mut self, record: bool, checks: bool) {
        let (ns, service): (Arc<str>, Arc<str>) = (DEFAULT_NAMESPACE.into(), CONSUL_SERVICE.into());
        if record {
            self.topics.push(Topic::Catalog(ns.clone(), service.clone()));
        }
        if record || checks {
            self.topics.push(Topic::Health(ns, service));
        }
    }

    /// Notes the states of a node's checks: they may be asked for by what the node says of itself.
    fn seen_by_node(&mut self, was: &[CheckView], is: &[CheckView]) {
        self.states.extend(was.iter().chain(is).map(|check| check.status));
    }

    /// Notes the states of checks that differ; whether any does.
    fn states_of(&mut self, was: &[CheckView], is: &[CheckView]) -> bool {
        let by_key = |checks: &[CheckView]| -> BTreeMap<CheckKey, CheckView> {
            let key = |c: &CheckView| CheckKey {
                namespace: c.record.namespace.clone(),
                node: c.record.node.clone(),
                id: c.record.id.clone(),
            };
            checks.iter().map(|check| (key(check), check.clone())).collect()
        };
        if was == is {
            return false;
        }
        let (was, is) = (by_key(was), by_key(is));
        let left = was.iter().filter(|(key, check)| is.get(*key) != Some(check));
        let came = is.iter().filter(|(key, check)| was.get(*key) != Some(check));
        self.states.extend(left.chain(came).map(|(_, check)| check.status));
        true
    }
}

// === helpers ===

/// Whether this is the service that every datacentre lists.
pub(super) fn is_server(ns: &str, slug: &str) -> bool {
    ns == DEFAULT_NAMESPACE && slug == CONSUL_SERVICE
}

fn entries(view: &View, service: &ServiceKey) -> Vec<Entry> {
    view.entries_by_slug(service.namespace.as_str(), service.name.as_str())
}

/// The checks of a node itself, where it is listed.
fn listed_checks(view: &View, node: &str) -> Vec<CheckView> {
    match view.has_node(node) {
        true => view.node_checks(node),
        false => Vec::new(),
    }
}

fn all(entries: &[Entry]) -> Vec<&Entry> {
    entries.iter().collect()
}

fn grouped<'a, K: Ord>(
    was: &'a [Entry],
    is: &'a [Entry],
    keys: impl Fn(&Entry) -> Vec<K>,
) -> BTreeMap<K, Pair<'a>> {
    let mut out: BTreeMap<K, Pair<'a>> = BTreeMap::new();
    for entry in was {
        for key in keys(entry) {
            out.entry(key).or_default().0.push(entry);
        }
    }
    for entry in is {
        for key in keys(entry) {
            out.entry(key).or_default().1.push(entry);
        }
    }
    out
}

fn same_instances(was: &[&Entry], is: &[&Entry]) -> bool {
    was.len() == is.len()
        && was.iter().zip(is).all(|(a, b)| a.node == b.node && a.service == b.service)
}

/// The names of a service, each with its tags.
fn shown(entries: &[Entry]) -> BTreeMap<Arc<str>, BTreeSet<Arc<str>>> {
    let mut out: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
    for entry in entries {
        let tags = out.entry(entry.service.service.clone()).or_default();
        tags.extend(entry.service.tags.iter().cloned());
    }
    out
}

fn on_node(view: &View, node: &str) -> Vec<ServiceKey> {
    let here = view.world.catalog().on_node(node);
    here.filter_map(|(key, r)| {
        ServiceKey::new(&key.namespace, &weft_base::name::service_slug(&r.service)).ok()
    })
    .collect()
}
