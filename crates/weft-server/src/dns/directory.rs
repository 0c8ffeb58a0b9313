// SPDX-License-Identifier: Apache-2.0
//! What a look at the World would have to search for: names of nodes that somebody wrote in another
//! case, who has an address, what speaks for a service, patterns of prepared queries. Each part is
//! made when it is first asked for and thrown away with the World that it was made of, so a
//! question costs the same however much there is, and however many ask for what is not there. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;
use weft_base::limits::DNS_PATTERNS_MAX;
use weft_identity::permission::Kind;
use weft_kinds::views::catalog::{NodeRecord, Registration};
use weft_kinds::world::{RegistrationKey, World};
use weft_registry::consul::State;

use super::names::Zones;
use crate::consul::query_run;
use crate::consul::view::{DEFAULT_NAMESPACE, View};

/// A namespace and a name in lower case.
type Named = (Box<str>, Box<str>);

#[derive(Debug, Default)]
pub struct Directory {
    /// The World that the parts below were made of.
    world: Option<Arc<World>>,
    nodes: Option<HashMap<Box<str>, Arc<NodeRecord>>>,
    holders: Option<BTreeMap<IpAddr, Holder>>,
    connect: Option<HashMap<Named, Vec<RegistrationKey>>>,
    /// Prepared queries as of a revision of the records.
    queries: Option<(u64, Vec<Arc<Value>>)>,
    patterns: HashMap<String, Option<Regex>>,
}

/// Who has an address.
#[derive(Clone, Debug)]
pub struct Holder {
    /// As DNS names it.
    pub name: String,
    /// A node or a service, and what it is called itself.
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub own: Arc<str>,
}

// === impl Directory ===

impl Directory {
    /// Whether it was about this World; if not, it is from now on.
    pub fn turn_to(&mut self, world: &Arc<World>) -> bool {
        if self.world.as_ref().is_some_and(|known| Arc::ptr_eq(known, world)) {
            return true;
        }
        let (queries, patterns) = (self.queries.take(), std::mem::take(&mut self.patterns));
        *self = Self { world: Some(world.clone()), queries, patterns, ..Self::default() };
        false
    }

    /// A node by a name in lower case.
    pub fn node(&mut self, view: &View, name: &str) -> Option<Arc<NodeRecord>> {
        let own = &view.own.node.node;
        if own.eq_ignore_ascii_case(name) {
            return Some(view.node(own));
        }
        if let Some(known) = view.world.catalog().node(name) {
            return Some(known.clone());
        }
        let nodes = self.nodes.get_or_insert_with(|| {
            let all = view.nodes().into_iter();
            all.map(|node| (node.node.to_ascii_lowercase().into(), node)).collect()
        });
        nodes.get(name).cloned()
    }

    /// The name that goes with an address that was registered: a node's, or else a service's.
    /// Loopback is everybody's own.
    pub fn holder(&mut self, view: &View, zones: &Zones, address: IpAddr) -> Option<Holder> {
        let holders = self.holders.get_or_insert_with(|| {
            let catalog = view.world.catalog();
            let mut out = BTreeMap::new();
            let mut put = |text: &str, holder: Holder| {
                if let Ok(address) = text.parse::<IpAddr>()
                    && !address.is_loopback()
                    && !address.is_unspecified()
                {
                    out.insert(address, holder);
                }
            };
            for (key, registration) in catalog.registrations() {
                let holder = Holder {
                    name: service_name(key, registration, &zones.datacenter),
                    kind: Kind::Service,
                    namespace: key.namespace.clone(),
                    own: registration.service.clone(),
                };
                put(&registration.address, holder);
            }
            for (name, node) in catalog.nodes() {
                let holder = Holder {
                    name: format!("{name}.node.{}.consul", zones.datacenter),
                    kind: Kind::Node,
                    namespace: DEFAULT_NAMESPACE.into(),
                    own: name.clone(),
                };
                put(&node.address, holder);
            }
            out
        });
        holders.get(&address).cloned()
    }

    /// What speaks Connect for a service: its sidecars, and its instances that do it themselves.
    pub fn connect(&mut self, view: &View, namespace: &str, service: &str) -> Vec<RegistrationKey> {
        let connect = self.connect.get_or_insert_with(|| {
            let mut out: HashMap<Named, Vec<RegistrationKey>> = HashMap::new();
            for (key, registration) in view.world.catalog().registrations() {
                for served in registration.speaks_for() {
                    let named = (key.namespace.as_ref().into(), served.to_ascii_lowercase().into());
                    out.entry(named).or_default().push(key.clone());
                }
            }
            out
        });
        connect.get(&(namespace.into(), service.into())).cloned().unwrap_or_default()
    }

    /// A prepared query by name, template or id, filled in.
    pub fn query(&mut self, state: &State, name: &str) -> Option<Value> {
        let revision = state.revision();
        if self.queries.as_ref().is_none_or(|(at, _)| *at != revision) {
            self.queries = Some((revision, query_run::all(state)));
        }
        let (_, queries) = self.queries.as_ref()?;
        let patterns = &mut self.patterns;
        query_run::resolve_among(queries, name, &mut |text: &str| {
            if patterns.len() >= DNS_PATTERNS_MAX && !patterns.contains_key(text) {
                patterns.clear();
            }
            let compile = || query_run::pattern(text);
            patterns.entry(text.to_owned()).or_insert_with(compile).clone()
        })
    }
}

// === helpers ===

/// The whole name, as Consul writes it, with the datacentre.
fn service_name(key: &RegistrationKey, registration: &Registration, datacenter: &str) -> String {
    match &*key.namespace {
        "default" => format!("{}.service.{datacenter}.consul", registration.service),
        namespace => {
            format!("{}.service.{namespace}.ns.{datacenter}.dc.consul", registration.service)
        }
    }
}
