// SPDX-License-Identifier: Apache-2.0
//! `/v1/operator/*` and the chores of `/v1/agent/*` and `/v1/coordinate/*`: what can be answered
//! honestly by a server without a Raft of its own; the rest says what is offered instead.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::SERF_HEALTH;
use weft_registry::catalog::is_spoken_for;
use weft_registry::consul::{COORDINATES, Change, State, Topic, keys};

use super::Door;
use super::body::Fields;
use super::config::cas;
use super::error::Refusal;
use super::http::Ask;
use super::register::bodies;
use super::reply::Reply;
use super::view::{CONSUL_SERVICE, DEFAULT_NAMESPACE};

const SETTINGS: &str = "setting";
/// What instances are counted by that speak Connect.
const CONNECT_KINDS: [&str; 6] = [
    "api-gateway",
    "connect-native",
    "connect-proxy",
    "ingress-gateway",
    "mesh-gateway",
    "terminating-gateway",
];

impl Door {
    pub(super) fn operator_raft(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        let index = self.consul().state().revision();
        let servers = self.servers().into_iter().map(|server| {
            json!({
                "ID": server.id,
                "Node": server.name,
                "Address": server.address,
                "Leader": server.leads,
                "ProtocolVersion": "3",
                "Voter": true,
                "LastIndex": index,
            })
        });
        Ok(Reply::json(json!({"Servers": servers.collect::<Vec<_>>(), "Index": 0})))
    }

    pub(super) async fn operator_autopilot(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let write = ask.method == Method::PUT;
        let verb = if write { Verb::Write } else { Verb::Read };
        ask.who.demand(verb, Kind::Operator, &ask.namespace, "")?;
        if !write {
            self.fresh(ask).await?;
            let state = self.consul().state();
            let known = state.record(SETTINGS, "autopilot");
            let (created, modified) = known.map_or((1, 1), |(_, i)| (i.created, i.modified));
            let mut out = autopilot(&Map::new())?;
            if let Some(Value::Object(known)) = known.map(|(value, _)| (**value).clone()) {
                out.extend(known);
            }
            out.insert("CreateIndex".into(), json!(created));
            out.insert("ModifyIndex".into(), json!(modified));
            return Ok(Reply::json(Value::Object(out)));
        }
        let wanted = Value::Object(autopilot(&bodies::object(&ask.body, bodies::AUTOPILOT)?)?);
        let cas = cas(ask)?;
        let plan = |state: &State| {
            let now = state.record(SETTINGS, "autopilot").map_or(1, |(_, item)| item.modified);
            match cas {
                Some(index) if index != now => Ok((Vec::new(), false)),
                _ => {
                    Ok::<_, Refusal>((vec![Change::Put("autopilot".into(), wanted.clone())], true))
                }
            }
        };
        let (_, done) = self.consul().change(SETTINGS, plan).await?;
        Ok(Reply::json(Value::Bool(done)))
    }

    pub(super) fn operator_health(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        let (index, contact) = (self.consul().state().revision(), self.consul().contact());
        let (known, since) = (contact.is_known(), contact.since().as_millis());
        let all = self.servers();
        // Any of them may go, as long as one is left and the store answers.
        let tolerance = if known { all.len().saturating_sub(1) } else { 0 };
        let servers = all.into_iter().map(|server| {
            json!({
                "ID": server.id,
                "Name": server.name,
                "Address": server.address,
                "SerfStatus": "alive",
                "Version": self.own().version,
                "Leader": server.leads,
                "LastContact": if server.leads { "0s".to_owned() } else { format!("{since}ms") },
                "LastTerm": 1,
                "LastIndex": index,
                "Healthy": known,
                "Voter": true,
                "StableSince": "1970-01-01T00:00:00Z",
            })
        });
        let servers: Vec<_> = servers.collect();
        Ok(Reply::json(json!({
            "Healthy": known, "FailureTolerance": tolerance, "Servers": servers,
        })))
    }

    /// The same in the words of Autopilot.
    pub(super) fn operator_state(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        let (index, contact) = (self.consul().state().revision(), self.consul().contact());
        let (known, since) = (contact.is_known(), contact.since().as_millis());
        let all = self.servers();
        let tolerance = if known { all.len().saturating_sub(1) } else { 0 };
        let leader = all.iter().find(|server| server.leads).map(|server| server.id.clone());
        let voters: Vec<_> = all.iter().map(|server| server.id.clone()).collect();
        let shape = |server: &super::status::Server| {
            json!({
                "ID": server.id,
                "Name": server.name,
                "Address": server.address,
                "NodeStatus": "alive",
                "Version": self.own().version,
                "LastContact": if server.leads { "0s".to_owned() } else { format!("{since}ms") },
                "LastTerm": 1,
                "LastIndex": index,
                "Healthy": known,
                "StableSince": "1970-01-01T00:00:00Z",
                "Status": if server.leads { "leader" } else { "voter" },
                "Meta": {},
                "NodeType": "voter",
            })
        };
        let servers = all.iter().map(|server| (server.id.to_string(), shape(server)));
        Ok(Reply::json(json!({
            "Healthy": known,
            "FailureTolerance": tolerance,
            "OptimisticFailureTolerance": tolerance,
            "Servers": servers.collect::<Map<_, _>>(),
            "Leader": leader.unwrap_or_default(),
            "Voters": voters,
        })))
    }

    pub(super) fn operator_usage(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        let view = self.view();
        let services = view.services(DEFAULT_NAMESPACE);
        let servers = view.entries(DEFAULT_NAMESPACE, CONSUL_SERVICE).len();
        let mut connect = CONNECT_KINDS.map(|kind| (kind.to_owned(), 0));
        let mut others = 0;
        for entry in view.entries_in(DEFAULT_NAMESPACE) {
            let (kind, name) = (&*entry.service.kind, &*entry.service.service);
            let is_native = kind.is_empty() && entry.service.speaks_for().next().is_some();
            let kind = if is_native { "connect-native" } else { kind };
            others += usize::from(!name.eq_ignore_ascii_case(CONSUL_SERVICE));
            connect.iter_mut().filter(|(of, _)| of == kind).for_each(|(_, count)| *count += 1);
        }
        let connect: Map<_, _> = connect.into_iter().map(|(of, n)| (of, json!(n))).collect();
        let usage = json!({
            "Nodes": view.nodes().len(),
            "Services": services.len(),
            "ServiceInstances": servers + others,
            "ConnectServiceInstances": connect,
            "BillableServiceInstances": others,
        });
        let mut of = Map::new();
        of.insert(self.own().datacenter.to_string(), usage);
        let index = self.consul().state().revision();
        let shape = json!({
            "Usage": of, "Index": index, "LastContact": 0,
            "KnownLeader": self.consul().contact().is_known(),
            "ConsistencyLevel": "leader", "NotModified": false, "Backend": 0,
            "ResultsFilteredByACLs": false,
        });
        Ok(Reply::json(shape).at(index, &ask.params.blocking()?))
    }

    pub(super) async fn coordinate_update(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::object(&ask.body, bodies::COORDINATE)?;
        let fields = Fields::new(&body, "");
        let node = fields.text("Node")?;
        let mut known = self.node_named(&node);
        if !self.view().has_node(&known) {
            self.heard().await?;
            known = self.node_named(&node);
        }
        if !self.view().has_node(&known) {
            return Err(Refusal::internal(format!("Unknown node {node:?}")));
        }
        ask.who.demand(Verb::Write, Kind::Node, &ask.namespace, &known)?;
        let Some(coord) = fields.object("Coord")? else {
            return Err(Refusal::bad("a coordinate is missing"));
        };
        let numbers = Fields::new(coord, "Coord.").value("Vec").and_then(Value::as_array);
        if !numbers.is_some_and(|v| v.len() == 8 && v.iter().all(Value::is_number)) {
            return Err(Refusal::bad("Bad Coord: Vec must have 8 numbers"));
        }
        let record = json!({
            "Node": known, "Segment": fields.text("Segment")?, "Coord": coord,
        });
        let key = |node: &str| weft_kinds::world::encode(node).into_owned();
        let (name, written) = (key(&known), key(&node));
        let plan = |state: &State| {
            let mut changes = vec![Change::Put(name.clone(), record.clone())];
            // Older versions kept it under the name as it was written.
            if written != name && state.record(COORDINATES, &written).is_some() {
                changes.push(Change::Delete(written.clone()));
            }
            Ok::<_, Refusal>((changes, ()))
        };
        self.consul().change(COORDINATES, plan).await?;
        Ok(Reply::empty())
    }

    /// Of a node by its name, or with its datacentre behind it: then that is what it is called.
    pub(super) async fn coordinate_node(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let asked = super::catalog::node_name(ask)?;
        let node = self.node_named(&asked);
        ask.who.demand(Verb::Read, Kind::Node, &ask.namespace, &node)?;
        let shown = if asked.eq_ignore_ascii_case(&node) { &*node } else { &*asked };
        let name = weft_kinds::world::encode(&node).into_owned();
        let topic = Topic::Key(keys::record(COORDINATES, &name).into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let own = self
                .view()
                .is_server(&node)
                .then(|| json!({"Segment": "", "Coord": super::status::origin()}));
            let there = state.record(COORDINATES, &name).filter(|_| self.is_placed(state, &node));
            let known = there.map(|(record, _)| (**record).clone());
            Ok(match known.or(own) {
                Some(mut found) => {
                    if let Value::Object(map) = &mut found {
                        map.insert("Node".into(), json!(shown));
                    }
                    Reply::json(json!([found]))
                }
                None => Reply::empty().with_status(StatusCode::NOT_FOUND),
            })
        })
        .await
    }

    /// A server reads nothing only at its start: there is nothing to read again. A machine's agent
    /// reads its operator's files then, and does not say that it did so again.
    pub(super) fn agent_reload(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Write, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        if self.far().is_some() {
            return Err(Refusal::not_offered(
                "a machine's agent reads its files when it starts; start it again",
            ));
        }
        Ok(Reply::empty())
    }

    /// Ends this server, where its operator lets clients do that.
    pub(super) fn agent_leave(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Write, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        if self.far().is_some() {
            return Err(Refusal::forbidden(
                "Permission denied: clients may not end a machine's agent; stop it where it was \
                 started",
            ));
        }
        let Some(leave) = &self.0.leave else {
            return Err(Refusal::forbidden(
                "Permission denied: clients may not end this server; start it with \
                 --consul-leave if they may",
            ));
        };
        tracing::warn!("a client of the Consul API ends this server");
        leave.notify_one();
        Ok(Reply::empty())
    }

    pub(super) async fn agent_force_leave(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Write, Kind::Operator, &ask.namespace, "")?;
        let node = self.node_asked(ask)?;
        let view = self.view();
        if !view.has_node(&node) {
            return Err(Refusal::internal(format!("agent: No node found with name '{node}'")));
        }
        // As in Consul: a member that is there stays, whatever is said of it; one that is gone
        // goes. What a server's agent has is nowhere else: that goes on purpose only.
        let mut life = view.node_checks(&node);
        life.retain(|check| *check.record.id == *SERF_HEALTH);
        let is_dead = life.iter().any(|check| check.status == Status::Critical);
        let prune = ask.params.flag("prune");
        let goes = match is_spoken_for(&view.world, &node) {
            true => is_dead && (prune || !view.is_server(&node)),
            false => prune,
        };
        if !self.is_own(&node) && goes {
            self.catalog().deregister_node(&node).await?;
            self.settled().await;
        }
        Ok(Reply::empty())
    }

    pub(super) fn agent_metrics(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        let gauges = self.gauges();
        if ask.params.get("format") == Some("prometheus") {
            let lines = gauges.iter().map(|(name, value)| {
                let name = name.replace('.', "_");
                format!("# TYPE {name} gauge\n{name} {value}\n")
            });
            return Ok(Reply::text(StatusCode::OK, lines.collect::<String>()));
        }
        Ok(Reply::json(self.shaped(&gauges)))
    }

    fn gauges(&self) -> [(&'static str, usize); 5] {
        let view = self.view();
        let state = self.consul().state();
        let catalog = view.world.catalog();
        [
            ("consul.catalog.services", view.services(DEFAULT_NAMESPACE).len()),
            ("consul.catalog.instances", catalog.registration_count()),
            ("consul.state.kv_entries", state.under(keys::PAIRS).count()),
            ("consul.state.sessions", state.under(keys::SESSIONS).count()),
            ("consul.blocking_queries", self.blocked()),
        ]
    }

    /// As `agent/metrics/stream` says them.
    pub(super) fn figures(&self) -> Value {
        self.shaped(&self.gauges())
    }

    fn shaped(&self, gauges: &[(&str, usize)]) -> Value {
        let shape =
            |(name, value): &(&str, usize)| json!({"Name": name, "Value": value, "Labels": {}});
        let ms = i64::try_from(self.wall_ms()).unwrap_or(i64::MAX);
        let now = jiff::Timestamp::from_millisecond(ms).map(|t| t.to_string()).unwrap_or_default();
        json!({
            "Timestamp": now,
            "Gauges": gauges.iter().map(shape).collect::<Vec<_>>(),
            "Points": [],
            "Counters": [],
            "Samples": [],
        })
    }
}

// === helpers ===

/// Autopilot's settings, kept for clients that set them; there is no Raft to drive by them.
fn autopilot(body: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    let fields = Fields::new(body, "");
    let flag = |name: &str, or: bool| match fields.value(name) {
        None => Ok(or),
        Some(_) => fields.flag(name),
    };
    let text =
        |name: &str, or: &str| fields.text(name).map(|t| if t.is_empty() { or.into() } else { t });
    let number = |name: &str, or: u64| fields.number(name, 1 << 32).map(|n| n.unwrap_or(or));
    let mut out = Map::new();
    out.insert("CleanupDeadServers".into(), json!(flag("CleanupDeadServers", true)?));
    out.insert("LastContactThreshold".into(), json!(text("LastContactThreshold", "200ms")?));
    out.insert("MaxTrailingLogs".into(), json!(number("MaxTrailingLogs", 250)?));
    out.insert("MinQuorum".into(), json!(number("MinQuorum", 0)?));
    out.insert("ServerStabilizationTime".into(), json!(text("ServerStabilizationTime", "10s")?));
    out.insert("RedundancyZoneTag".into(), json!(text("RedundancyZoneTag", "")?));
    out.insert("DisableUpgradeMigration".into(), json!(flag("DisableUpgradeMigration", false)?));
    out.insert("UpgradeVersionTag".into(), json!(text("UpgradeVersionTag", "")?));
    Ok(out)
}
