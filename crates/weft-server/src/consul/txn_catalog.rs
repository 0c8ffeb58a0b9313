// SPDX-License-Identifier: Apache-2.0
//! The operations of a transaction that are about nodes, services and checks.

use std::sync::Arc;

use serde_json::{Map, Value};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey};
use weft_registry::consul::{CatalogDraft, CatalogOp};

use super::Door;
use super::admit::{Admission, SeenKeys, check_keys, known_check_keys};
use super::body::Fields;
use super::error::Refusal;
use super::http::Ask;
use super::register::bodies;
use super::view::{CheckView, Entry, View};
use super::{register, shapes};

/// `get`, `set`, `cas`, `delete` or `delete-cas` of one record.
#[derive(Debug)]
pub(super) struct CatalogVerb {
    verb: String,
    index: u64,
    of: Record,
    /// It is what the own agent says of its node, and stays as it is.
    kept: bool,
}

#[derive(Debug)]
enum Record {
    Node(Box<NodeRecord>),
    Service(Box<Registration>),
    Check(Box<CheckRecord>),
}

// === impl CatalogVerb ===

impl CatalogVerb {
    /// Whether it changes nothing.
    pub fn reads(&self) -> bool {
        self.verb == "get"
    }

    fn compares(&self) -> bool {
        matches!(self.verb.as_str(), "cas" | "delete-cas")
    }

    fn deletes(&self) -> bool {
        matches!(self.verb.as_str(), "delete" | "delete-cas")
    }

    fn sets(&self) -> bool {
        matches!(self.verb.as_str(), "set" | "cas")
    }

    /// Does it on what those before it left, and says what it shows; or why it cannot be done.
    /// `look`: how the records that no store has are shown.
    pub fn run(
        &self,
        ask: &Ask,
        look: &View,
        catalog: &mut CatalogDraft,
    ) -> Result<Option<(&'static str, Value)>, String> {
        let now = |catalog: &CatalogDraft| View {
            world: Arc::new(catalog.world().clone()),
            ..look.clone()
        };
        if self.compares() {
            let found = self.modified(&now(catalog), &ask.namespace);
            // As in Consul: what is not there cannot be deleted at an index.
            if found != self.index || (self.deletes() && found == 0) {
                let does = if self.deletes() { "delete" } else { "set" };
                return Err(format!("failed to {does} {}, index is stale", self.what()));
            }
        }
        if let Some(change) = self.change() {
            catalog.make(change).map_err(|why| why.to_string())?;
        }
        let shown = self.shown(ask, &now(catalog));
        match shown.is_none() && self.verb == "get" {
            true => Err(format!("{} doesn't exist", self.what())),
            false => Ok(shown),
        }
    }

    /// What it is to make of the catalog.
    fn change(&self) -> Option<CatalogOp> {
        if self.verb == "get" || self.kept {
            return None;
        }
        Some(match (&self.of, self.deletes()) {
            (Record::Node(node), false) => CatalogOp::SetNode((**node).clone()),
            (Record::Node(node), true) => CatalogOp::DeleteNode(node.node.clone()),
            (Record::Service(service), false) => CatalogOp::SetService((**service).clone()),
            (Record::Service(service), true) => CatalogOp::DeleteService(service_key(service)),
            (Record::Check(check), false) => CatalogOp::SetCheck((**check).clone()),
            (Record::Check(check), true) => CatalogOp::DeleteCheck(check_key(check)),
        })
    }

    /// What it shows once it is done: of what is there then, if the caller may see that.
    fn shown(&self, ask: &Ask, view: &View) -> Option<(&'static str, Value)> {
        if self.deletes() {
            return None;
        }
        let ns = &*ask.namespace;
        let may = |kind, name: &str| ask.who.may(Verb::Read, kind, ns, name);
        match &self.of {
            Record::Node(node) => {
                let known = view.has_node(&node.node);
                known.then(|| ("Node", shapes::own_node(view, &node.node)))
            }
            Record::Service(service) => {
                let entry = entry(view, ns, service)?;
                let shape = shapes::service(&entry.service, view.stamps.service(&entry));
                may(Kind::Service, &entry.service.service).then_some(("Service", shape))
            }
            Record::Check(check) => {
                let found = check_view(view, ns, check)?;
                let seen = match &*found.record.service_name {
                    "" => may(Kind::Node, &found.record.node),
                    service => may(Kind::Service, service),
                };
                seen.then(|| ("Check", shapes::check(&found, view.stamps.check(&found))))
            }
        }
    }

    /// Its `ModifyIndex` now; 0 when it is not there.
    fn modified(&self, view: &View, ns: &str) -> u64 {
        match &self.of {
            Record::Node(node) => match view.world.catalog().node(&node.node) {
                Some(known) => view.stamps.node(known).1,
                None => 0,
            },
            Record::Service(service) => {
                entry(view, ns, service).map_or(0, |entry| view.stamps.service(&entry).1)
            }
            Record::Check(check) => {
                check_view(view, ns, check).map_or(0, |found| view.stamps.check(&found).1)
            }
        }
    }

    fn keys(&self) -> Vec<StoreKey> {
        match &self.of {
            Record::Node(node) => vec![StoreKey::Node(node.node.clone())],
            Record::Service(service) => vec![StoreKey::Registration(service_key(service))],
            Record::Check(check) => {
                let key = check_key(check);
                vec![StoreKey::Check(key.clone()), StoreKey::CheckStatus(key)]
            }
        }
    }

    /// What its admission rests on.
    pub fn grounds(&self, view: &View) -> Vec<StoreKey> {
        match &self.of {
            Record::Node(_) => Vec::new(),
            Record::Service(service) => vec![StoreKey::Registration(service_key(service))],
            Record::Check(check) if self.sets() => check_keys(view, check),
            Record::Check(check) => known_check_keys(view, &check_key(check)),
        }
    }

    /// What it writes again as it was seen, but for a part.
    pub fn rewrites(&self) -> Option<(StoreKey, Option<u64>)> {
        match &self.of {
            Record::Service(service) if self.sets() && service.agent => {
                let key = StoreKey::Registration(service_key(service));
                Some((key, Some(service.modified.0)))
            }
            _ => None,
        }
    }

    /// The registration that it makes.
    pub fn makes(&self) -> Option<RegistrationKey> {
        match &self.of {
            Record::Service(service) if self.sets() => Some(service_key(service)),
            _ => None,
        }
    }

    pub fn admit(&self, by: &Admission) -> Result<(), Refusal> {
        let verb = if self.verb == "get" { Verb::Read } else { Verb::Write };
        let ask = by.ask;
        match &self.of {
            Record::Node(node) => ask.who.demand(verb, Kind::Node, &ask.namespace, &node.node),
            Record::Service(service) if self.sets() => by.service(service, &[]),
            Record::Service(service) => by.instance(&service_key(service), verb),
            Record::Check(check) if self.sets() => by.check(check, verb),
            Record::Check(check) => by.known_check(&check_key(check), verb),
        }
    }

    fn what(&self) -> String {
        match &self.of {
            Record::Node(node) => format!("node {:?}", &*node.node),
            Record::Service(of) => format!("service {:?} on node {:?}", &*of.id, &*of.node),
            Record::Check(of) => format!("check {:?} on node {:?}", &*of.id, &*of.node),
        }
    }
}

impl Door {
    pub(super) fn read_catalog_op(
        &self,
        ask: &Ask,
        what: &str,
        part: &Map<String, Value>,
    ) -> Result<CatalogVerb, Refusal> {
        bodies::fields(part, bodies::TXN_OF)?;
        let fields = Fields::new(part, "");
        let verb = fields.text("Verb")?;
        if !["get", "set", "cas", "delete", "delete-cas"].contains(&verb.as_str()) {
            return Err(Refusal::bad(format!("unknown {what} verb {verb:?}")));
        }
        let writes = matches!(verb.as_str(), "set" | "cas");
        let Some(body) = fields.object(what)? else {
            return Err(Refusal::bad(format!("{what}: the record itself is missing")));
        };
        let own = Fields::new(body, "");
        let index = own.number("ModifyIndex", u64::MAX)?.unwrap_or(0);
        let view = self.view();
        let of = match what {
            "Node" => Record::Node(Box::new(self.txn_node(body, writes)?)),
            "Service" => {
                register::known::fields(body, register::known::SERVICE)?;
                let mut service = match writes {
                    true => register::service(body, "Service.", "Service", false)?,
                    false => Registration { id: own.text("ID")?.into(), ..Default::default() },
                };
                service.node = view.spelled(&fields.text("Node")?);
                service.namespace.clone_from(&ask.namespace);
                let taken = self.as_its_agent_has_it(service.clone()).filter(|_| writes);
                Record::Service(Box::new(taken.unwrap_or(service)))
            }
            _ => {
                register::known::fields(body, register::known::CHECK)?;
                let mut check = match writes {
                    true => register::catalog_check(body)?,
                    false => CheckRecord {
                        id: own.text_of(&["CheckID", "ID"])?.into(),
                        ..CheckRecord::default()
                    },
                };
                check.node = view.spelled(&own.text("Node")?);
                check.namespace.clone_from(&ask.namespace);
                Record::Check(Box::new(check))
            }
        };
        let mut read = CatalogVerb { verb, index, of, kept: false };
        read.kept = self.keeps(&read);
        Ok(read)
    }

    fn txn_node(&self, body: &Map<String, Value>, writes: bool) -> Result<NodeRecord, Refusal> {
        bodies::fields(body, bodies::TXN_NODE)?;
        let fields = Fields::new(body, "Node.");
        let name = fields.text("Node")?;
        if name.is_empty() {
            return Err(Refusal::bad("Must provide node"));
        }
        let mut node = match writes {
            true => register::node(body, &self.own().datacenter)?,
            false => NodeRecord::default(),
        };
        node.node = self.view().spelled(&name);
        if writes {
            let meta = fields.text_map("Meta")?;
            node.meta.extend(meta.into_iter().map(|(k, v)| (k.into(), v.into())));
            node = self.node_as_it_is(node);
            self.check_id(&node)?;
        }
        Ok(node)
    }

    /// Whether an operation is about what the own agent says of its node.
    fn keeps(&self, op: &CatalogVerb) -> bool {
        match &op.of {
            Record::Node(node) => op.deletes() && self.answers_for(&self.view(), &node.node),
            // With the agent's word in it but for the tags, it is what may be written.
            Record::Service(service) => {
                !service.agent && self.is_agents_instance(&service_key(service))
            }
            Record::Check(check) => self.is_agents_check(&check_key(check)),
        }
    }

    /// What must be as it is now when the operation is done.
    pub(super) async fn seen_before(&self, op: &CatalogVerb) -> Result<SeenKeys, Refusal> {
        let mut seen = SeenKeys::new();
        if let Some((key, modified)) = op.rewrites() {
            self.known_here(&key).await?;
            seen.push((key, modified));
        }
        for key in op.keys().into_iter().filter(|_| op.compares()) {
            let modified = self.consul().modified(&key).await?;
            seen.push((key, modified));
        }
        Ok(seen)
    }
}

// === helpers ===

fn service_key(of: &Registration) -> RegistrationKey {
    weft_registry::catalog::registration_key(of)
}

fn check_key(of: &CheckRecord) -> CheckKey {
    weft_registry::catalog::check_key(of)
}

fn entry(view: &View, ns: &str, of: &Registration) -> Option<Entry> {
    view.instance(&RegistrationKey { namespace: ns.into(), ..service_key(of) })
}

fn check_view(view: &View, ns: &str, of: &CheckRecord) -> Option<CheckView> {
    view.check_of(&CheckKey { namespace: ns.into(), ..check_key(of) })
}
