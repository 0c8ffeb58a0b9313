// SPDX-License-Identifier: Apache-2.0
//! `/v1/status/*`, `/v1/coordinate/*`, and what answers say of a leader: which servers there are,
//! and whether the store that they share can be reached. All are at the origin of space. Decides
//! nothing: `weft_registry::consul::Contact` knows.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{COORDINATES, ConsulError, Topic, keys};

use super::Door;
use super::body;
use super::error::Refusal;
use super::http::Ask;
use super::params::Blocking;
use super::reply::Reply;
use super::view::SERVER_RPC_PORT;

const LAST_CONTACT: &str = "X-Consul-LastContact";
const KNOWN_LEADER: &str = "X-Consul-KnownLeader";
const CONSISTENCY: &str = "X-Consul-Effective-Consistency";

/// How far this server may be behind another one, at most, before a client is told so.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// A server, as Consul's clients are told of one.
#[derive(Debug)]
pub(super) struct Server {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub address: String,
    pub leads: bool,
}

impl Door {
    pub(super) fn status_leader(&self) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!(self.leader_address())))
    }

    pub(super) fn status_peers(&self) -> Result<Reply, Refusal> {
        let servers = self.servers();
        Ok(Reply::json(servers.into_iter().map(|server| server.address).collect()))
    }

    /// Waits until what is here shows what was acknowledged before, for who asks for that.
    pub(super) async fn caught_up(&self, ask: &Ask) -> Result<(), Refusal> {
        let asks = matches!(ask.method, Method::GET | Method::HEAD);
        if asks && ask.params.flag("consistent") {
            Box::pin(self.barrier()).await?;
        }
        Ok(())
    }

    /// Waits until reads here show what any server acknowledged before.
    async fn barrier(&self) -> Result<(), ConsulError> {
        let revision = self.consul().barrier().await?;
        self.0.indexes.reached(revision).await;
        Ok(())
    }

    /// How a read is answered where servers share a store, once this one is not behind. A client
    /// that was told more by another server waits until that is known here: what it is told never
    /// goes back. Who takes no stale answer is shown what any server acknowledged before, as by
    /// Consul's leader; when the store cannot say, the answer is stale and says so.
    pub(super) async fn catch_up(&self, blocking: &Blocking) -> Blocking {
        let mut blocking = blocking.clone();
        let contact = self.consul().contact();
        if !contact.is_shared() || blocking.over {
            return blocking;
        }
        let reached = self.0.indexes.reached(blocking.index);
        // An index of another life of the store is never reached.
        let _ = tokio::time::timeout(CATCH_UP_MAX, reached).await;
        if !blocking.stale && !blocking.consistent {
            let fresh = async { contact.is_known() && self.barrier().await.is_ok() };
            blocking.stale = !tokio::time::timeout(CATCH_UP_MAX, fresh).await.unwrap_or(false);
        }
        blocking
    }

    /// The same for reads that answer at once, whatever their index: how to say that they did.
    pub(super) async fn fresh(&self, ask: &Ask) -> Result<Blocking, Refusal> {
        Ok(Box::pin(self.catch_up(&ask.params.blocking()?)).await)
    }

    /// What an answer says of the leader made true, where others share the store.
    pub(super) fn in_contact(&self, mut reply: Reply) -> Reply {
        let contact = self.consul().contact();
        if !contact.is_shared() {
            return reply;
        }
        let (since, known) = (contact.since(), contact.is_known());
        let said = |reply: &Reply, mode: &str| {
            reply.headers.iter().any(|(name, value)| name == CONSISTENCY && value == mode)
        };
        // Who asked for it consistent got it so, or no answer at all.
        if said(&reply, "consistent") || known && !said(&reply, "stale") {
            return reply;
        }
        for (name, value) in &mut reply.headers {
            match name {
                Cow::Borrowed(LAST_CONTACT) => *value = since.as_millis().to_string(),
                Cow::Borrowed("Age") => *value = since.as_secs().to_string(),
                Cow::Borrowed(KNOWN_LEADER) => *value = known.to_string(),
                Cow::Borrowed(CONSISTENCY) => *value = "stale".to_owned(),
                _ => {}
            }
        }
        reply
    }

    /// All servers that are there. One that has its store to itself is the only one, and leads.
    pub(super) fn servers(&self) -> Vec<Server> {
        let (contact, own) = (self.consul().contact(), &self.own().node);
        if !contact.is_shared() {
            let (id, name) = (own.id.clone(), own.node.clone());
            return vec![Server { id, name, address: self.own_address(), leads: true }];
        }
        let leading = contact.leading().map(|peer| peer.name);
        let server = |peer: weft_registry::consul::Peer| Server {
            leads: leading.as_ref() == Some(&peer.name),
            id: peer.id.into(),
            name: peer.name,
            address: peer.api,
        };
        contact.peers().into_iter().map(server).collect()
    }

    /// Whether this server is the one that leads.
    pub(super) fn leads(&self) -> bool {
        self.servers().iter().any(|server| server.leads && server.name == self.own().node.node)
    }

    /// Consul shows them to everybody; a node's name is for who may read the node.
    pub(super) fn coordinate_datacenters(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let mut servers = self.view().servers();
        servers.retain(|node| ask.who.may(Verb::Read, Kind::Node, &ask.namespace, &node.node));
        let here = servers.iter().map(|node| {
            let name = format!("{}.{}", node.node, self.own().datacenter);
            json!({"Node": name, "Coord": origin()})
        });
        let here: Vec<Value> = here.collect();
        Ok(Reply::json(json!([{
            "Datacenter": self.own().datacenter, "AreaID": "wan", "Coordinates": here,
        }])))
    }

    pub(super) async fn coordinate_nodes(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let topic = Topic::Under(keys::record(COORDINATES, "").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let told = state.records(COORDINATES).into_iter().map(|(record, _)| (*record).clone());
            let mut all: Vec<Value> = told.collect();
            let told = |all: &[Value], node: &str| {
                all.iter().any(|known| body::word(known, "Node") == node)
            };
            for server in self.view().servers().iter().rev() {
                if !told(&all, &server.node) {
                    let shape = json!({"Node": server.node, "Segment": "", "Coord": origin()});
                    all.insert(0, shape);
                }
            }
            all.retain(|one| {
                let node = self.node_named(body::word(one, "Node"));
                let may = ask.who.may(Verb::Read, Kind::Node, &ask.namespace, &node);
                may && self.is_placed(state, &node)
            });
            Ok(Reply::json(Value::Array(all)))
        })
        .await
    }

    /// Where the leader is; empty while there is none. A server that shares its store is known by
    /// the address of its own API.
    pub(super) fn leader_address(&self) -> String {
        match self.consul().contact() {
            contact if contact.is_shared() => contact.leading().map_or_else(String::new, |p| p.api),
            _ => self.own_address(),
        }
    }

    fn own_address(&self) -> String {
        let address = &self.own().node.address;
        match address.contains(':') {
            true => format!("[{address}]:{SERVER_RPC_PORT}"),
            false => format!("{address}:{SERVER_RPC_PORT}"),
        }
    }
}

/// A network coordinate that says nothing: weft picks by locality, not by coordinates.
pub(super) fn origin() -> Value {
    json!({"Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": 0, "Height": 0.00001})
}
