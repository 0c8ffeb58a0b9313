// SPDX-License-Identifier: Apache-2.0
//! A service's discovery chain, compiled from config entries: its router, splitters and resolvers
//! with their subsets, redirects and failovers, as Consul compiles it. Pure; also the judge of
//! whether entries go together.

mod parts;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

pub use self::parts::related;
use self::parts::{merged, node};
use super::judge::items;
use crate::consul::body::{part, word};

/// Splits, redirects and splitters on a way: longer ones are mistakes.
const SPLITS_MAX: usize = 1_000;
const DEPTH_MAX: usize = 64;
const CONNECT_TIMEOUT: &str = "5s";

/// Entries by kind and name.
pub type Entries<'a> = &'a dyn Fn(&str, &str) -> Option<Map<String, Value>>;

/// What a chain is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    pub service: String,
    pub datacenter: String,
    pub trust_domain: String,
    /// Instead of what the entries say; empty for theirs.
    pub protocol: String,
    pub connect_timeout: String,
    pub mesh_gateway: String,
}

/// # Errors
/// Why the entries make no chain.
pub fn compile(asked: &Asked, entries: Entries) -> Result<Value, String> {
    let mut compiler = Compiler {
        asked,
        entries,
        protocol: None,
        plain: !asked.protocol.is_empty() && !is_http(&asked.protocol),
        advanced: false,
        customized: BTreeSet::new(),
        nodes: BTreeMap::new(),
        targets: BTreeMap::new(),
    };
    compiler.chain()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    service: String,
    subset: String,
    namespace: String,
    partition: String,
    datacenter: String,
    peer: String,
}

/// One way of a splitter, through those below it.
#[derive(Clone, Debug)]
struct Split {
    definition: Map<String, Value>,
    weight: f64,
    next: String,
}

struct Compiler<'a> {
    asked: &'a Asked,
    entries: Entries<'a>,
    protocol: Option<String>,
    /// Routers and splitters do not count.
    plain: bool,
    /// Some did.
    advanced: bool,
    customized: BTreeSet<&'static str>,
    nodes: BTreeMap<String, Value>,
    /// Those that something leads to.
    targets: BTreeMap<String, Value>,
}

// === impl Target ===

impl Target {
    fn id(&self) -> String {
        let Self { service, subset, namespace, partition, datacenter, peer } = self;
        if !peer.is_empty() {
            return format!("{service}.{namespace}.default.external.{peer}");
        }
        let whole = format!("{service}.{namespace}.{partition}.{datacenter}");
        if subset.is_empty() { whole } else { format!("{subset}.{whole}") }
    }

    /// The name that TLS asks for, in a trust domain.
    fn sni(&self, domain: &str) -> String {
        let Self { service, subset, namespace, datacenter, .. } = self;
        let whole = format!("{service}.{namespace}.{datacenter}.internal.{domain}");
        if subset.is_empty() { whole } else { format!("{subset}.{whole}") }
    }
}

// === impl Compiler ===

impl Compiler<'_> {
    fn chain(&mut self) -> Result<Value, String> {
        let asked = self.asked;
        let name = &asked.service;
        let start = match self.entry("service-router", name).filter(|_| !self.skips()) {
            Some(router) => self.router(&router)?,
            None => self.split_or_resolved(&self.target(name))?,
        };
        let protocol = self.protocol.clone().unwrap_or_else(|| "tcp".into());
        if self.advanced && !is_http(&protocol) {
            return Err(format!(
                "discovery chain {name:?} uses a protocol {protocol:?} that does not permit \
                 advanced routing or splitting behavior"
            ));
        }
        let shown = match asked.protocol.as_str() {
            "" => protocol,
            text if text == protocol => protocol,
            text => {
                self.customized.insert("protocol");
                text.to_owned()
            }
        };
        let first = self.nodes.get(&start).cloned().unwrap_or_default();
        let own = self.target(name).id();
        let resolver = part(&first, "Resolver");
        let is_default = *part(resolver, "Default") == true && word(resolver, "Target") == own;
        let mut chain = Map::new();
        let mut put = |key: &str, value: Value| chain.insert(key.to_owned(), value);
        put("ServiceName", json!(name));
        put("Namespace", json!("default"));
        put("Partition", json!("default"));
        put("Datacenter", json!(asked.datacenter));
        if !self.customized.is_empty() {
            let text = format!("{asked:?} {:?}", self.customized);
            let sum = format!("{:016x}", weft_base::name::fnv1a(text.as_bytes()));
            put("CustomizationHash", json!(sum.get(..8)));
        }
        if is_default {
            put("Default", json!(true));
        }
        put("Protocol", json!(shown));
        if let Some(meta) = self.field("service-defaults", name, "Meta") {
            put("ServiceMeta", meta);
        }
        let of = |kind, name| self.field(kind, name, "EnvoyExtensions");
        let extensions = [of("proxy-defaults", "global"), of("service-defaults", name)];
        let extensions: Vec<Value> = extensions
            .into_iter()
            .flatten()
            .flat_map(|list| list.as_array().cloned().unwrap_or_default())
            .collect();
        if !extensions.is_empty() {
            put("EnvoyExtensions", json!(extensions));
        }
        put("StartNode", json!(start));
        put("Nodes", json!(self.nodes));
        put("Targets", json!(self.targets));
        Ok(json!({"Chain": chain}))
    }

    /// Whether routers and splitters are left out; who asks so is answered another chain.
    fn skips(&mut self) -> bool {
        if self.plain {
            self.customized.insert("protocol");
        }
        self.plain
    }

    fn router(&mut self, router: &Map<String, Value>) -> Result<String, String> {
        let name = self.asked.service.clone();
        self.advanced = true;
        self.speaks(&name)?;
        let router = Value::Object(router.clone());
        let mut routes = Vec::new();
        for route in items(&router, "Routes") {
            let to = part(route, "Destination");
            let target = self.at(&self.target(&name), to);
            let next = match target.subset.is_empty() {
                true => self.split_or_resolved(&target)?,
                false => self.resolved(target, false)?.0,
            };
            routes.push(json!({"Definition": route, "NextNode": next}));
        }
        // What no route matches.
        let next = self.split_or_resolved(&self.target(&name))?;
        let all = json!({
            "Match": {"HTTP": {"PathPrefix": "/"}},
            "Destination": {"Service": name, "Namespace": "default", "Partition": "default"},
        });
        routes.push(json!({"Definition": all, "NextNode": next}));
        let id = format!("{name}.default.default");
        let start = format!("router:{id}");
        let node = json!({"Type": "router", "Name": id, "Routes": routes});
        self.nodes.insert(start.clone(), node);
        Ok(start)
    }

    fn split_or_resolved(&mut self, target: &Target) -> Result<String, String> {
        match self.splitter(target)? {
            Some(node) => Ok(node),
            None => Ok(self.resolved(target.clone(), false)?.0),
        }
    }

    fn splitter(&mut self, target: &Target) -> Result<Option<String>, String> {
        let id = splitter_id(target);
        let start = format!("splitter:{id}");
        if self.nodes.contains_key(&start) {
            return Ok(Some(start));
        }
        let Some(splits) = self.splits(target, &mut Vec::new())? else { return Ok(None) };
        // Of hash-based balancers there can be one.
        let balancer = splits.iter().find_map(|split| {
            let balancer = part(self.nodes.get(&split.next)?, "LoadBalancer");
            ["ring_hash", "maglev"].contains(&word(balancer, "Policy")).then(|| balancer.clone())
        });
        let shown: Vec<Value> = splits
            .into_iter()
            .map(|s| json!({"Definition": s.definition, "Weight": s.weight, "NextNode": s.next}))
            .collect();
        let mut node = json!({"Type": "splitter", "Name": id, "Splits": shown});
        if let (Some(balancer), Value::Object(node)) = (balancer, &mut node) {
            node.insert("LoadBalancer".into(), balancer);
        }
        self.nodes.insert(start.clone(), node);
        Ok(Some(start))
    }

    /// The ways of a splitter, those of splitters below it among them.
    fn splits(
        &mut self,
        target: &Target,
        above: &mut Vec<String>,
    ) -> Result<Option<Vec<Split>>, String> {
        let Some(splitter) = self.entry("service-splitter", &target.service) else {
            return Ok(None);
        };
        if self.skips() {
            return Ok(None);
        }
        let own = format!("splitter:{}", splitter_id(target));
        let circle = above.contains(&own);
        above.push(own);
        if circle || above.len() > DEPTH_MAX {
            return Err(format!("detected circular reference: [{}]", above.join(" -> ")));
        }
        self.advanced = true;
        let splitter = Value::Object(splitter);
        let mut out = Vec::new();
        for split in items(&splitter, "Splits") {
            let definition = split.as_object().cloned().unwrap_or_default();
            let weight = part(split, "Weight").as_f64().unwrap_or(0.0);
            let next = self.at(&Target { subset: String::new(), ..target.clone() }, split);
            let other = next.service != target.service && next.subset.is_empty();
            let below = if other { self.splits(&next, above)? } else { None };
            match below {
                Some(below) => out.extend(below.into_iter().map(|one| Split {
                    weight: (weight * one.weight).round() / 100.0,
                    definition: merged(&definition, one.definition),
                    next: one.next,
                })),
                None => {
                    let next = self.resolved(next, false)?.0;
                    out.push(Split { definition, weight, next });
                }
            }
            if out.len() > SPLITS_MAX {
                let name = &self.asked.service;
                return Err(format!("discovery chain {name:?} has more than {SPLITS_MAX} splits"));
            }
        }
        above.pop();
        Ok(Some(out))
    }

    /// The resolver that a target comes to in the end: its node, and its id.
    fn resolved(
        &mut self,
        mut target: Target,
        as_failover: bool,
    ) -> Result<(String, String), String> {
        let mut order: Vec<String> = Vec::new();
        let resolver = loop {
            let id = target.id();
            let node = format!("resolver:{id}");
            if self.nodes.contains_key(&node) {
                return Ok((node, id));
            }
            if target.peer.is_empty() {
                self.speaks(&target.service)?;
            }
            // How a peer's service is resolved is that one's affair.
            let own = target.peer.is_empty();
            let resolver = self.entry("service-resolver", &target.service).filter(|_| own);
            let resolver = Value::Object(resolver.unwrap_or_default());
            let circle = order.contains(&id);
            order.push(id.clone());
            if circle || order.len() > DEPTH_MAX {
                let way = order.join(" -> ");
                return Err(format!("detected circular resolver redirect: [{way}]"));
            }
            let redirected = self.at(&target, part(&resolver, "Redirect"));
            let usual = word(&resolver, "DefaultSubset");
            if redirected.id() != id {
                target = redirected;
            } else if target.subset.is_empty() && !usual.is_empty() {
                target.subset = usual.to_owned();
            } else {
                break resolver;
            }
        };
        let id = target.id();
        let subset = part(part(&resolver, "Subsets"), &target.subset);
        if !target.subset.is_empty() && subset.is_null() {
            return Err(format!(
                "service {:?} does not have a subset named {:?}",
                target.service, target.subset
            ));
        }
        let timeout = self.timeout(&resolver);
        self.keep(&target, &resolver, (subset, &timeout))?;
        let key = format!("resolver:{id}");
        if as_failover {
            return Ok((key, id));
        }
        // Known before its failovers are looked at, which may lead back here.
        self.nodes.insert(key.clone(), node(&resolver, &id, &timeout, None));
        if let Some(failover) = self.failover(&resolver, &target)? {
            self.nodes.insert(key.clone(), node(&resolver, &id, &timeout, Some(failover)));
        }
        Ok((key, id))
    }

    fn timeout(&mut self, resolver: &Value) -> String {
        let told = word(resolver, "ConnectTimeout");
        let told = if told.is_empty() { CONNECT_TIMEOUT } else { told };
        match self.asked.connect_timeout.as_str() {
            "" => told.to_owned(),
            other => {
                if other != told {
                    self.customized.insert("timeout");
                }
                other.to_owned()
            }
        }
    }

    /// Takes a target down as it is shown.
    fn keep(
        &mut self,
        target: &Target,
        resolver: &Value,
        (subset, timeout): (&Value, &str),
    ) -> Result<(), String> {
        let service = &target.service;
        let own_sni = self.field("service-defaults", service, "ExternalSNI");
        if own_sni.is_some() {
            for (field, what) in
                [("Redirect", "redirects"), ("Subsets", "subsets"), ("Failover", "failover")]
            {
                if !part(resolver, field).is_null() {
                    return Err(format!(
                        "service {service:?} has an external SNI set; cannot define {what} for \
                         external services"
                    ));
                }
            }
        }
        let name = match target.peer.is_empty() {
            true => target.sni(&self.asked.trust_domain),
            false => String::new(),
        };
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            if value != json!("") && value != json!(false) {
                out.insert(key.to_owned(), value);
            }
        };
        put("ID", json!(target.id()));
        put("Service", json!(service));
        put("ServiceSubset", json!(target.subset));
        put("Namespace", json!(target.namespace));
        put("Partition", json!(target.partition));
        put("Datacenter", json!(target.datacenter));
        put("Peer", json!(target.peer));
        let subset = if subset.is_null() { json!({}) } else { subset.clone() };
        put("Subset", subset);
        put("ConnectTimeout", json!(timeout));
        put("External", json!(own_sni.is_some()));
        put("SNI", own_sni.clone().unwrap_or_else(|| json!(name)));
        put("Name", json!(name));
        let (gateway, direct) = match own_sni {
            Some(_) => (String::new(), false),
            None => self.ways(service),
        };
        put("MeshGateway", if gateway.is_empty() { json!({}) } else { json!({"Mode": gateway}) });
        let direct = if direct { json!({"DialedDirectly": true}) } else { json!({}) };
        put("TransparentProxy", direct);
        self.targets.insert(target.id(), Value::Object(out));
        Ok(())
    }

    /// Through which gateways a service is reached, and whether its instances are dialled.
    fn ways(&mut self, service: &str) -> (String, bool) {
        let (mut mode, mut direct) = (String::new(), false);
        for (kind, name) in [("service-defaults", service), ("proxy-defaults", "global")] {
            let entry = Value::Object(self.entry(kind, name).unwrap_or_default());
            if mode.is_empty() {
                mode = word(part(&entry, "MeshGateway"), "Mode").to_owned();
            }
            direct |= *part(part(&entry, "TransparentProxy"), "DialedDirectly") == true;
        }
        match self.asked.mesh_gateway.as_str() {
            "" => {}
            other => {
                if other != mode {
                    self.customized.insert("gateway");
                }
                mode = other.to_owned();
            }
        }
        (mode, direct)
    }

    fn failover(&mut self, resolver: &Value, target: &Target) -> Result<Option<Value>, String> {
        let all = part(resolver, "Failover");
        let own = match part(all, &target.subset) {
            Value::Null => part(all, "*"),
            own => own,
        };
        if own.is_null() {
            return Ok(None);
        }
        let (datacenters, targets) = (items(own, "Datacenters"), items(own, "Targets"));
        let mut wanted: Vec<Target> = match (datacenters.is_empty(), targets.is_empty()) {
            (false, _) => {
                let elsewhere = datacenters.iter().filter_map(Value::as_str);
                elsewhere
                    .map(|dc| Target { datacenter: dc.to_owned(), ..self.at(target, own) })
                    .collect()
            }
            (true, false) => targets.iter().map(|one| self.at(target, one)).collect(),
            (true, true) => vec![self.at(target, own)],
        };
        wanted.retain(|one| one.id() != target.id());
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut ids = Vec::new();
        for one in wanted {
            ids.push(self.resolved(one, true)?.1);
        }
        let mut out = Map::new();
        out.insert("Targets".into(), json!(ids));
        let policy = match word(part(own, "Policy"), "Mode") {
            "" => self.field("proxy-defaults", "global", "FailoverPolicy"),
            _ => Some(part(own, "Policy").clone()),
        };
        if let Some(policy) = policy {
            out.insert("Policy".into(), policy);
        }
        Ok(Some(Value::Object(out)))
    }

    fn target(&self, service: &str) -> Target {
        Target {
            service: service.to_owned(),
            subset: String::new(),
            namespace: "default".into(),
            partition: "default".into(),
            datacenter: self.asked.datacenter.clone(),
            peer: String::new(),
        }
    }

    /// Where something leads to from a target: what it does not say stays.
    fn at(&self, from: &Target, to: &Value) -> Target {
        let mut out = from.clone();
        let (service, peer) = (word(to, "Service"), word(to, "Peer"));
        if !service.is_empty() && service != out.service {
            // A subset is its service's.
            out = Target { service: service.to_owned(), subset: String::new(), ..out };
        }
        let set = |field: &mut String, name: &str| {
            if !word(to, name).is_empty() {
                *field = word(to, name).to_owned();
            }
        };
        set(&mut out.subset, "ServiceSubset");
        set(&mut out.namespace, "Namespace");
        set(&mut out.partition, "Partition");
        set(&mut out.datacenter, "Datacenter");
        if !peer.is_empty() {
            out.peer = peer.to_owned();
            out.datacenter.clear();
            out.partition = "default".into();
        }
        out
    }

    /// All services of a chain speak one protocol.
    fn speaks(&mut self, service: &str) -> Result<(), String> {
        let own = self.entry("service-defaults", service).map(|entry| {
            entry.get("Protocol").and_then(Value::as_str).unwrap_or_default().to_owned()
        });
        let usual = || {
            let config = self.field("proxy-defaults", "global", "Config")?;
            Some(config.get("protocol")?.as_str()?.to_ascii_lowercase())
        };
        let protocol = own.or_else(usual).filter(|p| !p.is_empty());
        let protocol = protocol.unwrap_or_else(|| "tcp".into());
        match &self.protocol {
            Some(known) if *known != protocol => Err(format!(
                "discovery chain {:?} uses inconsistent protocols; service {service:?} has \
                 {protocol:?} which is not {known:?}",
                self.asked.service
            )),
            _ => {
                self.protocol = Some(protocol);
                Ok(())
            }
        }
    }

    fn entry(&self, kind: &str, name: &str) -> Option<Map<String, Value>> {
        (self.entries)(kind, name)
    }

    fn field(&self, kind: &str, name: &str, field: &str) -> Option<Value> {
        self.entry(kind, name)?.remove(field).filter(|value| !value.is_null())
    }
}

// === helpers ===

/// Whether a protocol has requests.
pub fn is_http(protocol: &str) -> bool {
    ["http", "http2", "grpc"].contains(&protocol.to_ascii_lowercase().as_str())
}

fn splitter_id(target: &Target) -> String {
    format!("{}.{}.{}", target.service, target.namespace, target.partition)
}
