// SPDX-License-Identifier: Apache-2.0
//! The Consul HTTP door (port 8500): Consul's API over the registry's catalog and the World.
//!
//! The binary builds one [`Door`] and serves it on a listener. Reads answer from [`view::View`]
//! with the index of exactly what they show; writes go to `weft_registry::catalog`. The door
//! keeps no state of its own besides the index table, and it never runs a check.

mod agent;
mod agent_write;
mod body;
mod catalog;
pub mod duration;
mod error;
mod filter;
mod health;
mod http;
pub mod index;
mod params;
mod register;
mod reply;
mod routes;
mod shapes;
mod stamp;
mod status;
pub mod view;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use weft_base::limits::WATCHERS_MAX;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::NodeRecord;
use weft_registry::catalog::Handle;
use weft_registry::{Registry, WorldChange};

use error::Refusal;
use index::{Indexes, Topic};
use params::Blocking;
use reply::Reply;
use view::{Identity, View};

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
    /// Host names besides IP addresses and localhost that requests may be for.
    pub hosts: Vec<String>,
}

/// The door. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: Arc<Identity>,
    indexes: Arc<Indexes>,
    catalog: Handle,
    hosts: Vec<String>,
    watchers: Semaphore,
    rng: Mutex<Rng>,
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
}

// === impl Door ===

impl Door {
    /// Starts following the registry's World on `tasks`.
    pub fn new(registry: &Registry, config: Config, tasks: &TaskGroup) -> Self {
        let own = Arc::new(config.identity());
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
            hosts: config.hosts,
            watchers: Semaphore::new(WATCHERS_MAX),
            rng: Mutex::new(Rng::from_system()),
            tasks: tasks.clone(),
        }))
    }

    /// The table of indexes, which DNS and others may read the same World from.
    pub fn indexes(&self) -> &Arc<Indexes> {
        &self.0.indexes
    }

    fn own(&self) -> &Arc<Identity> {
        &self.0.own
    }

    fn catalog(&self) -> &Handle {
        &self.0.catalog
    }

    fn view(&self) -> View {
        self.0.indexes.view()
    }

    /// Answers a read; with an index given, once the answer's index is past it.
    async fn read(
        &self,
        topic: Topic,
        blocking: &Blocking,
        build: impl Fn(&View) -> Result<Value, Refusal>,
    ) -> Result<Reply, Refusal> {
        let answer = |view: &View, index: u64| -> Result<Reply, Refusal> {
            Ok(Reply::json(build(view)?).at(index, blocking))
        };
        let (view, index) = self.0.indexes.read(&topic);
        if blocking.index == 0 || index != blocking.index {
            // Past it; or the client's index is of another life of this server.
            return answer(&view, index);
        }
        drop(view);
        let Ok(_place) = self.0.watchers.try_acquire() else {
            return Err(Refusal::new(
                ::http::StatusCode::TOO_MANY_REQUESTS,
                format!("{WATCHERS_MAX} queries are already blocked here; try again later"),
            ));
        };
        let mut moves = self.0.indexes.subscribe(&topic);
        let until = tokio::time::sleep(self.jittered(blocking.wait));
        tokio::pin!(until);
        loop {
            let (view, index) = self.0.indexes.read(&topic);
            if index != blocking.index {
                return answer(&view, index);
            }
            tokio::select! {
                () = moves.moved() => {}
                () = &mut until => return answer(&view, index),
                () = self.0.tasks.draining() => return answer(&view, index),
            }
        }
    }

    fn jittered(&self, wait: Duration) -> Duration {
        let percent = 100 / JITTER_PARTS;
        self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).jitter(wait, percent)
    }
}

#[cfg(test)]
mod tests;
