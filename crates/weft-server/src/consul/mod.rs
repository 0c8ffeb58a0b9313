// SPDX-License-Identifier: Apache-2.0
//! The Consul HTTP door (port 8500): Consul's API over the registry's catalog and the World.
//!
//! The binary builds one [`Door`] and serves it on a listener. Reads answer from [`view::View`]
//! with the index of exactly what they show; writes go to `weft_registry::catalog`. The door
//! keeps no state of its own besides the index table, and it never runs a check.

mod acl;
mod admit;
mod agent;
mod agent_write;
mod alone;
mod body;
mod ca;
mod catalog;
mod config;
mod connect;
mod dispatch;
pub mod duration;
mod error;
mod event;
pub mod far;
mod filter;
mod flow;
pub mod fuzz;
pub(crate) mod gateways;
mod health;
pub mod host;
mod http;
pub mod index;
mod intention;
mod kv;
mod line;
pub(crate) mod near;
mod operator;
mod own_node;
mod params;
mod query;
pub(crate) mod query_run;
mod query_text;
mod register;
mod render;
mod reply;
mod routes;
pub mod secure;
mod session;
mod shapes;
mod shared;
mod sidecar;
mod snapshot;
mod stamp;
mod status;
pub mod sync;
mod tar;
mod txn;
mod txn_catalog;
pub mod view;
mod wait;
pub(crate) mod who;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use weft_base::clock::Clock;
use weft_base::limits::WATCHERS_MAX;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::NodeRecord;
use weft_registry::catalog::Handle;
use weft_registry::{Registry, WorldChange, consul};

use acl::Acl;
pub use acl::AclConfig;
pub use ca::Ca;
use error::Refusal;
use far::Far;
use index::{Indexes, Topic};
pub use own_node::node_id;
use params::Blocking;
use reply::Reply;
use view::{Identity, VERSION_META, View};
use wait::Later;
pub(crate) use who::Who;

use crate::meter::Meter;

/// Blocked queries end up to this part of their wait later, so that they do not end together.
const JITTER_PARTS: u32 = 16;

/// What the door is told about this server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's node: what `agent/service/register` registers on.
    pub node_name: String,
    /// A UUID.
    pub node_id: String,
    pub address: std::net::IpAddr,
    pub datacenter: String,
    /// weft's own version.
    pub version: String,
    /// Host names that requests may be for besides IP addresses, localhost and the names that
    /// Consul's DNS has for this server.
    pub hosts: Vec<String>,
}

/// What clients may do. By default everything that a loopback door admits, but for ending the
/// server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Access lists; off when absent.
    pub acl: Option<AclConfig>,
    /// Told when a client ends this server; absent when clients may not.
    pub leave: Option<Arc<Notify>>,
    /// Signs for Consul's clients; absent where nobody does.
    pub ca: Option<Arc<Ca>>,
    /// The server, where this door is the one of a machine that has none of its own.
    pub far: Option<Arc<dyn Far>>,
}

/// The door. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: Arc<Identity>,
    indexes: Arc<Indexes>,
    catalog: Handle,
    consul: consul::Handle,
    acl: Acl,
    leave: Option<Arc<Notify>>,
    ca: Option<Arc<Ca>>,
    far: Option<Arc<dyn Far>>,
    tokens: far::Tokens,
    meter: Arc<Meter>,
    clock: Clock,
    hosts: Vec<String>,
    watchers: Arc<Semaphore>,
    shared: shared::Shared,
    /// Queries of machines.
    waits: host::Waits,
    /// One place: see `http.rs`.
    snapshots: Semaphore,
    /// Sidecars are given ports one after the other.
    sidecars: tokio::sync::Mutex<()>,
    rng: Mutex<Rng>,
    patterns: event::Patterns,
    tasks: TaskGroup,
}

// === impl Config ===

impl Config {
    /// Who this agent is to its clients, over HTTP and DNS alike.
    pub fn identity(&self) -> Identity {
        let node = NodeRecord {
            id: self.node_id.as_str().into(),
            node: self.node_name.as_str().into(),
            address: self.address.to_string().into(),
            datacenter: self.datacenter.as_str().into(),
            ..NodeRecord::default()
        };
        Identity {
            node: Arc::new(node),
            datacenter: self.datacenter.as_str().into(),
            version: format!("1.21.0+weft.{}", self.version).into(),
        }
    }

    /// The node of a server that shares its store, as every server lists it.
    pub fn server_node(&self) -> NodeRecord {
        let Identity { node, version, .. } = self.identity();
        let meta = [(VERSION_META.into(), version)].into_iter().collect();
        NodeRecord { meta, server: true, ..NodeRecord::clone(&node) }
    }
}

// === impl Door ===

impl Door {
    /// Starts following the registry's World on `tasks`.
    pub fn new(registry: &Registry, config: Config, tasks: &TaskGroup) -> Self {
        Self::with_access(registry, config, Access::default(), tasks)
    }

    /// The same where clients may do less, or more, than usual.
    pub fn with_access(
        registry: &Registry,
        config: Config,
        access: Access,
        tasks: &TaskGroup,
    ) -> Self {
        let own = match registry.leader().is_shared() {
            true => Identity { node: Arc::new(config.server_node()), ..config.identity() },
            false => config.identity(),
        };
        let own = Arc::new(own);
        let hosts = http::own_names(&own, config.hosts);
        let (world, mut changes) = registry.watch_world();
        let indexes = Arc::new(Indexes::new(own.clone(), world));
        let (table, group) = (indexes.clone(), tasks.clone());
        tasks.spawn("consul indexes", async move {
            loop {
                let change = tokio::select! {
                    () = group.draining() => return,
                    change = changes.next() => change,
                };
                match change {
                    Some(WorldChange::Delta(world, delta)) => table.advance(world, Some(&delta)),
                    Some(WorldChange::Reset(world)) => table.advance(world, None),
                    None => return,
                }
            }
        });
        Self(Arc::new(Inner {
            own,
            indexes,
            catalog: registry.catalog().clone(),
            consul: registry.consul().clone(),
            acl: Acl::new(access.acl),
            leave: access.leave,
            ca: access.ca,
            far: access.far,
            tokens: far::Tokens::new(registry.clock().clone()),
            meter: Arc::default(),
            clock: registry.clock().clone(),
            hosts,
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            shared: shared::Shared::default(),
            waits: host::Waits::default(),
            snapshots: Semaphore::new(1),
            sidecars: tokio::sync::Mutex::default(),
            rng: Mutex::new(Rng::from_system()),
            patterns: event::Patterns::default(),
            tasks: tasks.clone(),
        }))
    }

    /// The table of indexes, which DNS and others may read the same World from.
    pub fn indexes(&self) -> &Arc<Indexes> {
        &self.0.indexes
    }

    /// Who this server is to its clients, over HTTP and DNS alike.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.0.own
    }

    /// What this door did, and the DNS door beside it.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.0.meter
    }

    /// The same in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.0.meter.text(self.blocked())
    }

    fn far(&self) -> Option<&Arc<dyn Far>> {
        self.0.far.as_ref()
    }

    fn own(&self) -> &Arc<Identity> {
        &self.0.own
    }

    fn catalog(&self) -> &Handle {
        &self.0.catalog
    }

    fn consul(&self) -> &consul::Handle {
        &self.0.consul
    }

    fn acl(&self) -> &Acl {
        &self.0.acl
    }

    fn wall_ms(&self) -> u64 {
        self.0.clock.wall_ms()
    }

    /// How many queries wait now.
    fn blocked(&self) -> usize {
        WATCHERS_MAX.saturating_sub(self.0.watchers.available_permits())
    }

    fn view(&self) -> View {
        self.0.indexes.view()
    }

    /// Answers a read; with an index given, once the answer's index is past it: until then it is
    /// asked again ([`wait`]).
    async fn read(
        &self,
        topic: Topic,
        blocking: &Blocking,
        build: impl Fn(&View) -> Result<Value, Refusal>,
    ) -> Result<Reply, Refusal> {
        self.read_as(topic, blocking, |view| Ok(Reply::json(build(view)?))).await
    }

    /// The same for who has the answer's bytes already.
    async fn read_as(
        &self,
        topic: Topic,
        blocking: &Blocking,
        build: impl Fn(&View) -> Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        let blocking = &Box::pin(self.catch_up(blocking)).await;
        let head = self.0.indexes.head();
        let answer =
            |(view, index): (View, u64)| Ok(build(&view)?.at(blocking.told(index, head), blocking));
        let now = self.0.indexes.read(&topic);
        if blocking.is_answered_by(now.1, head) {
            return answer(now);
        }
        drop(now);
        // Looked at again with the wait begun: nothing is missed.
        let moves = self.0.indexes.subscribe(&topic);
        let now = self.0.indexes.read(&topic);
        match blocking.is_answered_by(now.1, head) {
            true => answer(now),
            false => Ok(Reply::later(Later::new(moves, blocking.wait))),
        }
    }

    /// The same of what only Consul's API knows.
    async fn read_shelf(
        &self,
        topic: consul::Topic,
        blocking: &Blocking,
        build: impl Fn(&consul::State) -> Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        let blocking = &Box::pin(self.catch_up(blocking)).await;
        // The shelf may be ahead of the catalog's table.
        let look = || {
            let state = self.consul().state();
            let (index, head) = (state.index(&topic), state.revision());
            (state, index, head.max(self.0.indexes.head()))
        };
        let answer = |(state, index, head): (consul::State, u64, u64)| {
            Ok(build(&state)?.at(blocking.told(index, head), blocking))
        };
        let now = look();
        if blocking.is_answered_by(now.1, now.2) {
            return answer(now);
        }
        drop(now);
        let moves = self.consul().shelf().wait(topic.clone());
        let now = look();
        match blocking.is_answered_by(now.1, now.2) {
            true => answer(now),
            false => Ok(Reply::later(Later::new(moves, blocking.wait))),
        }
    }

    /// A place to wait in.
    fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.0.watchers.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(
                ::http::StatusCode::TOO_MANY_REQUESTS,
                format!("{WATCHERS_MAX} queries are already blocked here; try again later"),
            )
        })
    }

    fn jittered(&self, wait: Duration) -> Duration {
        let percent = 100 / JITTER_PARTS;
        self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).jitter(wait, percent)
    }
}

#[cfg(test)]
mod tests;
