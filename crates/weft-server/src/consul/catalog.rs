// SPDX-License-Identifier: Apache-2.0
//! `/v1/catalog/*`: all nodes and services; registrations on behalf of others.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_base::name::service_slug;
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey};
use weft_registry::catalog::{CatalogError, ServiceRequest, check_key, registration_key};

use super::Door;
use super::acl::ANONYMOUS;
use super::admit::{Admission, sees};
use super::agent::filter_of;
use super::body::{self, Fields};
use super::error::Refusal;
use super::filter::typed;
use super::http::Ask;
use super::index::Topic;
use super::near::Near;
use super::register::{self, bodies};
use super::reply::Reply;
use super::shapes;
use super::view::{Entry, View};
use super::who::Who;

impl Door {
    pub(super) async fn catalog_register(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = body::object(&ask.body)?;
        let shown = self.shown_in_body(ask, &body)?;
        let ask = shown.as_ref().unwrap_or(ask);
        self.check_datacenter(&body)?;
        register::known::fields(&body, register::known::REGISTRATION)?;
        let fields = Fields::new(&body, "");
        let mut node = register::node(&body, &self.own().datacenter)?;
        node.node = self.view().spelled(&node.node);
        let node = self.node_as_it_is(node);
        let update_node = !fields.flag("SkipNodeUpdate")?;
        // One that is there will do, and its id is free, by what other servers acknowledged.
        if !update_node || self.check_id(&node).is_err() {
            self.heard().await?;
        }
        self.check_id(&node)?;
        let service = match fields.object("Service")? {
            None => None,
            Some(part) => Some(self.catalog_registration(ask, part, &node)?),
        };
        let checks = register::catalog_checks(&body)?;
        self.admit_registration(ask, &node, service.as_ref(), &checks, update_node)?;
        let checks = self.without_life(&node.node, checks);
        let (own, others): (Vec<_>, Vec<_>) = checks.into_iter().partition(|check| {
            service.as_ref().is_some_and(|service| check.service_id == service.id)
        });
        let others = others.into_iter().map(|check| on_node(ask, &node, check));
        let others: Vec<_> = others.filter(|c| !self.is_agents_check(&check_key(c))).collect();
        // What the own agent says stands, with its checks.
        let service = service.and_then(|service| self.as_its_agent_has_it(service));
        let own = if service.as_ref().is_some_and(|s| s.agent) { Vec::new() } else { own };
        let mut seen = self.seen_registering(ask, (service.as_ref(), &own), &others).await?;
        // All of it at one index, or nothing: who sees the instance sees what is said of its node.
        let done = match service {
            None => self.catalog().given(&seen).register_on((&node, update_node), &others).await,
            Some(registration) => {
                if registration.agent {
                    // Nothing of it but the tags is new.
                    let key = StoreKey::Registration(registration_key(&registration));
                    self.known_here(&key).await?;
                    seen.retain(|(known, _)| *known != key);
                    seen.push((key, Some(registration.modified.0)));
                }
                let request = ServiceRequest {
                    registration,
                    checks: own,
                    others,
                    node,
                    update_node,
                    ..ServiceRequest::default()
                };
                self.catalog().given(&seen).register_service(request).await
            }
        };
        match done {
            Err(why @ CatalogError::NoSuchService { .. }) => {
                return Err(Refusal::internal(why.to_string()));
            }
            other => other?,
        }
        self.settled().await;
        Ok(Reply::json(Value::Bool(true)))
    }

    /// Waits until looks show what other servers acknowledged before.
    pub(super) async fn heard(&self) -> Result<(), Refusal> {
        self.consul().caught_up().await?;
        self.settled().await;
        Ok(())
    }

    /// Waits until a look shows a record as the store has it now: who is too late with what was
    /// looked at before is not too late again.
    pub(super) async fn known_here(&self, key: &StoreKey) -> Result<(), Refusal> {
        self.consul().modified(key).await?;
        self.settled().await;
        Ok(())
    }

    /// All of it before any of it is written. The node only where it would be written.
    fn admit_registration(
        &self,
        ask: &Ask,
        node: &NodeRecord,
        service: Option<&Registration>,
        checks: &[CheckRecord],
        update: bool,
    ) -> Result<(), Refusal> {
        let view = self.view();
        let known = view.world.catalog().node(&node.node);
        let is_new = |known: &NodeRecord| {
            // Whose it is no body says.
            *known != NodeRecord { server: known.server, ..node.clone() }
        };
        if known.is_none_or(|known| update && is_new(known)) {
            ask.who.demand(Verb::Write, Kind::Node, &ask.namespace, &node.node)?;
        }
        let made: Vec<RegistrationKey> = service.map(registration_key).into_iter().collect();
        let admission = Admission { ask, view: &view, made: &made };
        if let Some(service) = service {
            admission.service(service, &[])?;
        }
        for check in checks {
            let mut check = on_node(ask, node, check.clone());
            if let Some(service) = service.filter(|service| service.id == check.service_id) {
                check.namespace.clone_from(&service.namespace);
            }
            admission.check(&check, Verb::Write)?;
        }
        Ok(())
    }

    fn catalog_registration(
        &self,
        ask: &Ask,
        part: &Map<String, Value>,
        node: &NodeRecord,
    ) -> Result<Registration, Refusal> {
        register::known::fields(part, register::known::SERVICE)?;
        let mut registration = register::service(part, "Service.", "Service", false)?;
        let named = Fields::new(part, "Service.").text("Namespace")?;
        registration.namespace =
            if named.is_empty() { ask.namespace.clone() } else { named.into() };
        registration.node.clone_from(&node.node);
        Ok(registration)
    }

    pub(super) async fn catalog_deregister(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::object(&ask.body, bodies::DEREGISTRATION)?;
        let shown = self.shown_in_body(ask, &body)?;
        let ask = shown.as_ref().unwrap_or(ask);
        self.check_datacenter(&body)?;
        let fields = Fields::new(&body, "");
        let node = fields.text("Node")?;
        if node.is_empty() {
            return Err(Refusal::bad("Must provide node"));
        }
        let node = self.view().spelled(&node);
        let namespace = ask.namespace.clone();
        let (service, check) = (fields.text("ServiceID")?, fields.text("CheckID")?);
        let done = if !service.is_empty() {
            let key = RegistrationKey { namespace, node, id: service.into() };
            let catalog = self.for_instance(ask, &key).await?;
            match self.is_agents_instance(&key) {
                true => Ok(()),
                false => catalog.deregister_service(&key).await,
            }
        } else if !check.is_empty() {
            let key = CheckKey { namespace, node, id: check.into() };
            let catalog = self.for_known_check(ask, &key).await?;
            match self.is_agents_check(&key) {
                true => Ok(()),
                false => catalog.deregister_check(&key).await,
            }
        } else {
            ask.who.demand(Verb::Write, Kind::Node, &namespace, &node)?;
            self.heard().await?;
            self.deregister_node(&node).await
        };
        match done {
            // What is gone already is as it was asked to be.
            Ok(())
            | Err(CatalogError::UnknownService { .. } | CatalogError::UnknownCheck { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        self.settled().await;
        Ok(Reply::json(Value::Bool(true)))
    }

    pub(super) fn catalog_datacenters(&self, _ask: &Ask) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!([self.own().datacenter])))
    }

    pub(super) async fn catalog_nodes(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter, meta) =
            (ask.params.blocking()?, filter_of(ask, typed::NODE)?, ask.params.node_meta());
        let near = self.near(ask);
        self.read(Topic::Nodes, &blocking, |view| {
            let mut nodes = if of_a_peer(ask) { Vec::new() } else { view.nodes() };
            if let Some(near) = &near {
                near.sort(&mut nodes, |node| &node.node);
            }
            let may =
                |node: &NodeRecord| ask.who.may(Verb::Read, Kind::Node, &ask.namespace, &node.node);
            let shown = nodes.iter().filter(|node| has_meta(node, &meta) && may(node));
            let shapes =
                shown.map(|node| shapes::node(node, &view.own, view.stamps.node(node))).collect();
            kept(filter.as_ref(), shapes)
        })
        .await
    }

    pub(super) async fn catalog_services(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter, meta) = (
            ask.params.blocking()?,
            filter_of(ask, typed::CATALOG_SERVICE)?,
            ask.params.node_meta(),
        );
        let ns = ask.namespace.clone();
        // A filter may look at anything of a service or its node.
        let topic = match meta.is_empty() && filter.is_none() {
            true => Topic::Services(ns.clone()),
            false => Topic::Instances(ns.clone()),
        };
        self.read(topic, &blocking, |view| {
            let mut out = Map::new();
            for (name, tags) in view.services(&ns) {
                if of_a_peer(ask) || !ask.who.may(Verb::Read, Kind::Service, &ns, &name) {
                    continue;
                }
                if meta.is_empty() && filter.is_none() {
                    out.insert(name.to_string(), json!(tags));
                    continue;
                }
                let mut seen = false;
                let mut tags: Vec<Arc<str>> = Vec::new();
                for entry in view.entries(&ns, &name) {
                    let shape = shapes::catalog_service(&entry, view);
                    let holds = filter.as_ref().map_or(Ok(true), |f| f.holds(&shape))?;
                    if *entry.service.service == *name && has_meta(&entry.node, &meta) && holds {
                        seen = true;
                        tags.extend(entry.service.tags.iter().cloned());
                    }
                }
                tags.sort();
                tags.dedup();
                if seen {
                    out.insert(name.to_string(), json!(tags));
                }
            }
            Ok(Value::Object(out))
        })
        .await
    }

    pub(super) async fn catalog_service(&self, ask: &Ask, connect: bool) -> Result<Reply, Refusal> {
        let wanted = self.wanted(ask, connect)?;
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::CATALOG_SERVICE)?);
        let topic = match connect {
            // Proxies of a service are instances of another one.
            true => Topic::Connect(ask.namespace.clone(), service_slug(&ask.argument).into()),
            false => Topic::Catalog(ask.namespace.clone(), service_slug(&ask.argument).into()),
        };
        self.read(topic, &blocking, |view| {
            let entries = wanted.entries(view);
            let shapes = entries.iter().map(|e| shapes::catalog_service(e, view)).collect();
            kept(filter.as_ref(), shapes)
        })
        .await
    }

    pub(super) async fn catalog_node(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::SERVICE)?);
        let name = self.node_asked(ask)?;
        self.read(Topic::Node(name.as_str().into()), &blocking, |view| {
            if !view.has_node(&name) || !sees_node(ask, &name) || of_a_peer(ask) {
                return Ok(Value::Null);
            }
            let mut services = Map::new();
            for entry in view.on_node(&ask.namespace, &name).iter().filter(|e| sees(ask, e)) {
                let shape = shapes::service(&entry.service, view.stamps.service(entry));
                if filter.as_ref().map_or(Ok(true), |f| f.holds(&shape))? {
                    services.insert(entry.service.id.to_string(), shape);
                }
            }
            let node = shapes::own_node(view, &name);
            Ok(json!({"Node": node, "Services": services}))
        })
        .await
    }

    pub(super) async fn catalog_node_services(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::SERVICE)?);
        let name = self.node_asked(ask)?;
        self.read(Topic::Node(name.as_str().into()), &blocking, |view| {
            if !view.has_node(&name) || !sees_node(ask, &name) || of_a_peer(ask) {
                return Ok(json!({"Node": null, "Services": null}));
            }
            let mut entries = view.on_node(&ask.namespace, &name);
            entries.retain(|entry| sees(ask, entry));
            let shapes = entries
                .iter()
                .map(|e| shapes::service(&e.service, view.stamps.service(e)))
                .collect();
            let node = shapes::own_node(view, &name);
            Ok(json!({"Node": node, "Services": kept(filter.as_ref(), shapes)?}))
        })
        .await
    }

    /// The node that a path names, as it is spelled here.
    pub(super) fn node_asked(&self, ask: &Ask) -> Result<String, Refusal> {
        Ok(self.view().spelled(&node_name(ask)?).to_string())
    }

    /// The same request under the token of its body, `WriteRequest.Token`, where no other was
    /// shown: some clients write it nowhere else.
    fn shown_in_body(&self, ask: &Ask, body: &Map<String, Value>) -> Result<Option<Ask>, Refusal> {
        if !self.acl().is_on() || *ask.who.accessor != *ANONYMOUS {
            return Ok(None);
        }
        let Some(request) = Fields::new(body, "").object("WriteRequest")? else { return Ok(None) };
        let secret = Fields::new(request, "WriteRequest.").text("Token")?;
        if secret.is_empty() {
            return Ok(None);
        }
        let who = Who { host: ask.who.host.clone(), ..self.acl().resolve(self, &secret)? };
        Ok(Some(Ask { who, ..ask.clone() }))
    }

    /// A body may name a datacentre too.
    fn check_datacenter(&self, body: &Map<String, Value>) -> Result<(), Refusal> {
        let dc = Fields::new(body, "").text("Datacenter")?;
        if dc.is_empty() || dc.eq_ignore_ascii_case(&self.own().datacenter) {
            return Ok(());
        }
        Err(Refusal::internal("No path to datacenter"))
    }
}

/// The instances that a query by service name wants.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub namespace: Arc<str>,
    pub service: String,
    pub tags: Vec<String>,
    pub meta: Vec<(String, String)>,
    /// Only what speaks Connect for the service: its proxies, and itself when native.
    pub connect: bool,
    /// Of a cluster peer: weft has none, so nothing is.
    pub foreign: bool,
    pub who: Who,
    /// Nearest first, from there.
    pub near: Option<Near>,
}

impl Door {
    pub(super) fn wanted(&self, ask: &Ask, connect: bool) -> Result<Wanted, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing service name"));
        }
        Ok(Wanted {
            namespace: ask.namespace.clone(),
            service: ask.argument.clone(),
            tags: ask.params.all("tag").filter(|t| !t.is_empty()).map(str::to_owned).collect(),
            meta: ask.params.node_meta(),
            connect: connect || ask.params.flag("connect"),
            foreign: of_a_peer(ask),
            who: ask.who.clone(),
            near: self.near(ask),
        })
    }
}

// === impl Wanted ===

impl Wanted {
    /// The same of another service.
    pub fn named(&self, service: String) -> Self {
        Self { service, ..self.clone() }
    }

    /// Whether everybody who asks for the service is answered the same.
    pub fn is_plain(&self) -> bool {
        let Self { tags, meta, connect, foreign, who, near, .. } = self;
        tags.is_empty()
            && meta.is_empty()
            && !connect
            && !foreign
            && who.table.is_none()
            && near.is_none()
    }

    pub fn entries(&self, view: &View) -> Vec<Entry> {
        let mut found = match self.connect {
            _ if self.foreign => Vec::new(),
            false => view.entries(&self.namespace, &self.service),
            true => self.connected(view),
        };
        found.retain(|entry| {
            let (ns, service) = (&self.namespace, &entry.service.service);
            if !self.who.may(Verb::Read, Kind::Service, ns, service)
                || !self.who.may(Verb::Read, Kind::Node, ns, &entry.node.node)
            {
                return false;
            }
            let tags = &entry.service.tags;
            self.tags.iter().all(|want| tags.iter().any(|t| t.eq_ignore_ascii_case(want)))
                && has_meta(&entry.node, &self.meta)
        });
        if let Some(near) = &self.near {
            near.sort(&mut found, |entry| &entry.node.node);
        }
        found
    }

    fn connected(&self, view: &View) -> Vec<Entry> {
        let mut found = view.speakers(&self.namespace, &self.service);
        found.retain(|entry| {
            entry.service.speaks_for().any(|name| {
                name.eq_ignore_ascii_case(&self.service)
                    && self.who.may(Verb::Read, Kind::Service, &self.namespace, name)
            })
        });
        found
    }
}

// === helpers ===

/// A check as it will be on a node.
fn on_node(ask: &Ask, node: &NodeRecord, check: CheckRecord) -> CheckRecord {
    CheckRecord { namespace: ask.namespace.clone(), node: node.node.clone(), ..check }
}

pub(super) fn has_meta(node: &NodeRecord, wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|(k, v)| node.meta.get(k.as_str()).is_some_and(|found| **found == **v))
}

/// What a filter leaves of a list.
pub(super) fn kept(
    filter: Option<&super::filter::Filter>,
    items: Vec<Value>,
) -> Result<Value, Refusal> {
    Ok(Value::Array(match filter {
        Some(filter) => filter.apply(items)?,
        None => items,
    }))
}

/// Whether what a cluster peer has is asked for: there are none, and nothing is theirs.
pub(super) fn of_a_peer(ask: &Ask) -> bool {
    ask.params.filled("peer").is_some()
}

pub(super) fn sees_node(ask: &Ask, name: &str) -> bool {
    ask.who.may(Verb::Read, Kind::Node, &ask.namespace, name)
}

pub(super) fn node_name(ask: &Ask) -> Result<String, Refusal> {
    match ask.argument.is_empty() {
        true => Err(Refusal::bad("Missing node name")),
        false => Ok(ask.argument.clone()),
    }
}
