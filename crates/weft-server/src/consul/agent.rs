// SPDX-License-Identifier: Apache-2.0
//! `/v1/agent/*`, the reading half: this node, its services, its checks.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};
use weft_base::name::fnv1a;
use weft_identity::permission::{Kind, Verb};
use weft_kinds::kind::KindId;
use weft_kinds::views::catalog::{NodeRecord, Status};
use weft_kinds::views::check::SERF_HEALTH;
use weft_kinds::world::RegistrationKey;
use weft_registry::catalog::check_key;
use weft_registry::hosts::JOIN_ANNOTATION;

use super::Door;
use super::body;
use super::error::Refusal;
use super::far::FarAsk;
use super::filter::{Filter, typed};
use super::http::Ask;
use super::index::Topic;
use super::params::WAIT_DEFAULT;
use super::reply::Reply;
use super::view::{Entry, VERSION_META, View, aggregated};
use super::{shapes, status};

/// Serf's words for how a member is.
const ALIVE: u8 = 1;
const FAILED: u8 = 4;
/// Where Consul's agents gossip within a datacentre; a name in answers, nothing more.
const GOSSIP_PORT: u16 = 8301;

impl Door {
    pub(super) async fn agent_self(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let own = self.own();
        ask.who.demand(Verb::Read, Kind::Agent, &ask.namespace, &own.node.node)?;
        let leader = self.leader_known(ask).await;
        let raft = match self.far() {
            Some(_) => json!({}),
            None => json!({
                "num_peers": self.servers().len().saturating_sub(1).to_string(),
                "state": if self.leads() { "Leader" } else { "Follower" },
            }),
        };
        let version = &own.version;
        Ok(Reply::json(json!({
            "Config": {
                "Datacenter": own.datacenter,
                "PrimaryDatacenter": own.datacenter,
                "NodeName": own.node.node,
                "NodeID": own.node.id,
                "Revision": "",
                "Server": self.far().is_none(),
                "Version": version,
                "BuildDate": "1970-01-01T00:00:01Z",
            },
            "DebugConfig": {"SerfAdvertiseAddrLAN": gossip(&own.node.address)},
            "Coord": status::origin(),
            "Member": self.member(ask, false, &Member::of(&self.view(), own.node.clone(), true)),
            "Stats": {
                "agent": {"check_monitors": "0", "check_ttls": "0", "checks": "0", "services": "0"},
                "build": {"prerelease": "", "revision": "", "version": version},
                "consul": {
                    "acl": if self.has_acl(&ask.who) { "enabled" } else { "disabled" },
                    "bootstrap": "true",
                    "known_datacenters": "1",
                    "leader": (self.far().is_none() && self.leads()).to_string(),
                    "leader_addr": leader,
                    "server": if self.far().is_none() { "true" } else { "false" },
                },
                "raft": raft,
                "runtime": {"arch": std::env::consts::ARCH, "os": std::env::consts::OS},
                "serf_lan": {"members": "1"},
                "serf_wan": {"members": "1"},
            },
            "Meta": own.node.meta,
            "xDS": {
                "SupportedProxies": {"envoy": []},
                "Port": -1,
                "Ports": {"Plaintext": -1, "TLS": -1},
            },
        })))
    }

    pub(super) fn agent_version(&self) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!({
            "SHA": "",
            "BuildDate": "1970-01-01T00:00:01Z",
            "HumanVersion": self.own().version,
            "FIPS": "",
        })))
    }

    pub(super) fn agent_host(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        Ok(Reply::json(json!({
            "Memory": null,
            "CPU": null,
            "Host": {
                "hostname": self.own().node.node,
                "os": std::env::consts::OS,
                "kernelArch": std::env::consts::ARCH,
            },
            "Disk": null,
            "CollectionTime": 0,
            "Errors": null,
        })))
    }

    pub(super) fn agent_members(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let mut members = self.members(ask, ask.params.flag("wan"));
        members.retain(|member| {
            ask.who.may(Verb::Read, Kind::Node, &ask.namespace, body::word(member, "Name"))
        });
        Ok(Reply::json(Value::Array(
            filter_of(ask, typed::MEMBER)?.map_or(Ok(members.clone()), |f| f.apply(members))?,
        )))
    }

    /// A machine is in its cluster from its start: it is asked to join what it is with already.
    pub(super) fn agent_join(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Write, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        let named = ask.argument.as_str();
        let is = |address: &str| {
            named == address
                || named.strip_prefix(address).is_some_and(|port| port.starts_with(':'))
        };
        let view = self.view();
        let nodes = view.nodes();
        let known = nodes.iter().any(|node| is(&node.address) || *node.node == *named)
            || is(&self.own().node.address)
            || self
                .servers()
                .iter()
                .any(|server| server.address == named || *server.name == *named);
        match known {
            true => Ok(Reply::empty()),
            false => Err(Refusal::internal(format!(
                "1 error occurred:\n\t* Failed to join {named}: weft has no gossip; that machine \
                 joins with `weft agent --server` and a token of `weft token`"
            ))),
        }
    }

    pub(super) fn agent_services(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let view = self.view();
        let filter = filter_of(ask, typed::SERVICE)?;
        let mut out = Map::new();
        // As in Consul the right to read a service is enough at the agent that it is registered at.
        for entry in own_entries(&view, &ask.namespace).iter().filter(|e| reads(ask, e)) {
            let shape = shapes::agent_service(&entry.service, self.own());
            if filter.as_ref().map_or(Ok(true), |f| f.holds(&shape))? {
                out.insert(entry.service.id.to_string(), shape);
            }
        }
        Ok(Reply::json(Value::Object(out)))
    }

    pub(super) async fn agent_service(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let node = self.own().node.node.clone();
        let known = ask.params.filled("hash").map(str::to_owned);
        let wait = match ask.params.filled("wait") {
            None => WAIT_DEFAULT,
            Some(_) => ask.params.blocking()?.wait,
        };
        let mut moves = self.indexes().subscribe(&Topic::Node(node));
        let (shape, hash) = self.agent_service_now(ask)?;
        if known.as_deref() != Some(hash.as_str()) {
            return Ok(Reply::json(shape).with("X-Consul-ContentHash", hash));
        }
        let _place = self.place()?;
        let until = tokio::time::sleep(self.jittered(wait.max(Duration::from_millis(1))));
        tokio::pin!(until);
        loop {
            // As the rights are now, not as they were.
            let now = Ask { who: self.still_there(ask).await?, ..ask.clone() };
            let (shape, hash) = self.agent_service_now(&now)?;
            if known.as_deref() != Some(hash.as_str()) {
                return Ok(Reply::json(shape).with("X-Consul-ContentHash", hash));
            }
            tokio::select! {
                () = moves.moved() => {}
                () = &mut until => {
                    return Ok(Reply::json(shape).with("X-Consul-ContentHash", hash));
                }
                () = self.0.tasks.draining() => {
                    return Ok(Reply::json(shape).with("X-Consul-ContentHash", hash));
                }
            }
        }
    }

    fn agent_service_now(&self, ask: &Ask) -> Result<(Value, String), Refusal> {
        let view = self.view();
        let key = RegistrationKey {
            namespace: ask.namespace.clone(),
            node: self.own().node.node.clone(),
            id: ask.argument.as_str().into(),
        };
        let Some(service) = view.world.catalog().registration(&key).filter(|r| r.agent) else {
            return Err(Refusal::not_found(format!("unknown service ID: {}", ask.argument)));
        };
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &service.service)?;
        let mut shape = shapes::agent_service(service, self.own());
        let hash = format!("{:016x}", fnv1a(shape.to_string().as_bytes()));
        if let Value::Object(map) = &mut shape {
            map.insert("ContentHash".into(), json!(hash));
        }
        Ok((shape, hash))
    }

    pub(super) fn agent_checks(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let view = self.view();
        let filter = filter_of(ask, typed::CHECK)?;
        let mut out = Map::new();
        for mut check in view.checks_on_node(&ask.namespace, &self.own().node.node) {
            // What others wrote about this node is in the catalog; here is what its agent knows.
            let record = &check.record;
            let may = match record.service_name.is_empty() {
                true => ask.who.may(Verb::Read, Kind::Node, &ask.namespace, &record.node),
                false => {
                    ask.who.may(Verb::Read, Kind::Service, &ask.namespace, &record.service_name)
                }
            };
            if !may || !record.typed().agent {
                continue;
            }
            // The agent knows its own newest output before the catalog does.
            if let Some(newer) = self.catalog().pending_output(&check_key(&check.record)) {
                check.output = newer;
            }
            let shape = shapes::check(&check, (0, 0));
            if filter.as_ref().map_or(Ok(true), |f| f.holds(&shape))? {
                out.insert(check.record.id.to_string(), shape);
            }
        }
        Ok(Reply::json(Value::Object(out)))
    }

    pub(super) fn agent_health_id(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing serviceID"));
        }
        let view = self.view();
        let found = own_entries(&view, &ask.namespace)
            .into_iter()
            .find(|entry| *entry.service.id == *ask.argument);
        let Some(entry) = found else {
            let text = format!("ServiceId {} not found", ask.argument);
            return Ok(
                health_reply(ask, "critical", json!(text)).with_status(StatusCode::NOT_FOUND)
            );
        };
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &entry.service.service)?;
        let shape = shapes::agent_health(&entry, self.own());
        Ok(health_reply(ask, aggregated(&entry.checks), shape))
    }

    pub(super) fn agent_health_name(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing service Name"));
        }
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &ask.argument)?;
        let view = self.view();
        let entries: Vec<Entry> = own_entries(&view, &ask.namespace)
            .into_iter()
            .filter(|entry| *entry.service.service == *ask.argument)
            .collect();
        if entries.is_empty() {
            let text = format!("ServiceName {} Not Found", ask.argument);
            return Ok(
                health_reply(ask, "critical", json!(text)).with_status(StatusCode::NOT_FOUND)
            );
        }
        let shapes: Vec<Value> =
            entries.iter().map(|e| shapes::agent_health(e, self.own())).collect();
        let worst = aggregated(entries.iter().flat_map(|e| &e.checks));
        Ok(health_reply(ask, worst, Value::Array(shapes)))
    }

    /// Where the leader is; of a machine, as its server says now.
    async fn leader_known(&self, ask: &Ask) -> String {
        let Some(far) = self.far() else { return self.leader_address() };
        let shown = ask.secret.as_ref().map(|secret| &*secret.0).unwrap_or_default();
        let asked = FarAsk {
            method: http::Method::GET,
            path: "/v1/status/leader".into(),
            query: String::new(),
            kept: true,
            index: 0,
            wait: Duration::ZERO,
            mode: "",
            token: self.or_default(shown).into_owned(),
            body: bytes::Bytes::new(),
        };
        let said = far.ask(asked).await.ok().filter(|said| said.status == 200);
        said.and_then(|said| serde_json::from_slice(&said.body).ok()).unwrap_or_default()
    }

    /// All servers; within the datacentre also the machines that joined, as this server knows them.
    fn members(&self, ask: &Ask, wan: bool) -> Vec<Value> {
        let view = self.view();
        let servers = view.servers().into_iter().map(|node| Member::of(&view, node, true));
        let mut all: Vec<Member> = servers.collect();
        if !wan {
            all.extend(joined(&view).map(|node| Member::of(&view, node, false)));
        }
        all.iter().map(|member| self.member(ask, wan, member)).collect()
    }

    fn member(&self, ask: &Ask, wan: bool, member: &Member) -> Value {
        let (own, node) = (self.own(), &member.node);
        let name = match wan {
            true => format!("{}.{}", node.node, own.datacenter),
            false => node.node.to_string(),
        };
        json!({
            "Name": name,
            "Addr": node.address,
            "Port": if wan { 8302 } else { GOSSIP_PORT },
            "Tags": {
                "acls": if self.has_acl(&ask.who) { "1" } else { "0" },
                "build": node.meta.get(VERSION_META).unwrap_or(&own.version),
                "dc": own.datacenter,
                "id": node.id,
                "port": "8300",
                "role": if member.serves && self.far().is_none() { "consul" } else { "node" },
                "vsn": "2",
            },
            "Status": if member.alive { ALIVE } else { FAILED },
            "ProtocolMin": 1,
            "ProtocolMax": 5,
            "ProtocolCur": 2,
            "DelegateMin": 2,
            "DelegateMax": 5,
            "DelegateCur": 4,
        })
    }
}

/// Who is in the cluster, as Consul's gossip would know of it.
struct Member {
    node: Arc<NodeRecord>,
    serves: bool,
    alive: bool,
}

// === impl Member ===

impl Member {
    fn of(view: &View, node: Arc<NodeRecord>, serves: bool) -> Self {
        let mut health = view.node_checks(&node.node).into_iter();
        let health = health.find(|check| *check.record.id == *SERF_HEALTH);
        let alive = health.is_none_or(|check| check.status != Status::Critical);
        Self { node, serves, alive }
    }
}

// === helpers ===

/// The machines that joined, with their addresses.
fn joined(view: &View) -> impl Iterator<Item = Arc<NodeRecord>> {
    let machines = view.world.objects(KindId::Node, None).filter(|object| {
        let joined = object.meta.annotation(JOIN_ANNOTATION).is_some();
        joined && !view.is_server(&object.key.name)
    });
    machines.map(|object| {
        let name = &object.key.name;
        if let Some(record) = view.world.catalog().node(name) {
            return record.clone();
        }
        let addresses = object.raw.pointer("/status/addresses").and_then(Value::as_array);
        let mut addresses = addresses.into_iter().flatten();
        let address = addresses.find(|a| body::word(a, "type") == "InternalIP");
        let address = address.map(|a| Arc::<str>::from(body::word(a, "address")));
        let address = address.unwrap_or_default();
        Arc::new(NodeRecord { node: name.clone(), address, ..NodeRecord::default() })
    })
}

/// The filter that a request gives, if any, of a list whose items have these fields: judged before
/// there are any.
pub(super) fn filter_of(ask: &Ask, fields: typed::Fields) -> Result<Option<Filter>, Refusal> {
    ask.params.filled("filter").map(|text| Filter::of(text, fields)).transpose()
}

/// Where Consul's gossip would be answered, as `agent/members` has it; a name, nothing more.
fn gossip(address: &str) -> String {
    match address.contains(':') {
        true => format!("tcp://[{address}]:{GOSSIP_PORT}"),
        false => format!("tcp://{address}:{GOSSIP_PORT}"),
    }
}

fn reads(ask: &Ask, entry: &Entry) -> bool {
    ask.who.may(Verb::Read, Kind::Service, &ask.namespace, &entry.service.service)
}

/// What is registered with this node's agent.
fn own_entries(view: &View, ns: &str) -> Vec<Entry> {
    let mut out = view.on_node(ns, &view.own.node.node);
    out.retain(|entry| entry.service.agent);
    out
}

/// 200 passing, 429 warning, 503 anything worse; `?format=text` is the word alone.
fn health_reply(ask: &Ask, status: &str, shape: Value) -> Reply {
    let code = match status {
        "passing" => StatusCode::OK,
        "warning" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let reply = match ask.params.get("format") {
        Some("text") => Reply::text(code, status),
        _ => Reply::json(shape).with_status(code),
    };
    reply.with("X-Consul-Reason", status.to_owned())
}
