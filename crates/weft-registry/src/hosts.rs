// SPDX-License-Identifier: Apache-2.0
//! Hosts: nodes whose agents run on other machines. Their tokens, their joining, and whether they
//! live: each has a lease that its heartbeats keep, and whose end makes the node not ready.
//!
//! Called by the server's door for agents, which decides who may do what. An unchanged heartbeat
//! writes nothing.

pub mod declared;
mod silence;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use weft_base::clock::Mono;
use weft_base::task::TaskGroup;
use weft_kinds::kind::KindId;
use weft_kinds::world::{ObjectKey, PODS_ANNOTATION, PodsMode};
use weft_store::{Class, Compare, Key, LeaseId, Op, StoreError, Txn};

use crate::catalog::CatalogError;
use crate::nodes::{self, NodeInfo};
use crate::objects::meta;
use crate::{Change, ObjectError, Part, Registry, WriteOptions, servers};

/// On Nodes that joined: which joining of the name this is.
pub const JOIN_ANNOTATION: &str = "weft.dev/join";
/// On Nodes that joined: the identities allowed there, as their token said.
pub const ALLOWED_ANNOTATION: &str = "weft.dev/allowed-identities";
/// On Nodes that joined: the run of the agent that was heard last.
const INSTANCE_ANNOTATION: &str = "weft.dev/agent-instance";
/// A host is not ready when it was not heard of for this long.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often a host should be heard of.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(1500);
/// What a host says of itself is written down no more often than this.
const DESCRIPTION_EVERY: Duration = Duration::from_secs(1);
/// Hosts of one mesh.
pub const HOSTS_MAX: usize = 1_000;
/// Join tokens at a time.
const TOKENS_MAX: usize = 1_000;

const TOKENS: &str = "/t/join/";
const ALIVE: &str = "/e/h/";

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    pub node: NodeInfo,
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub boot_id: String,
    /// New at each start of its agent.
    pub instance: String,
}

/// Why a host or a token was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HostError {
    #[error("a host {0} is in the mesh already; choose another --name, or make a token for it")]
    Taken(String),
    #[error("{0} is a server's own name; choose another --name")]
    Own(String),
    #[error(
        "node {0} is in Consul's catalog, and a host of its name would answer for its checks; \
         choose another --name, or make a token for it with `weft token create --host {0}`"
    )]
    Registered(String),
    #[error("{HOSTS_MAX} hosts are in the mesh; remove some with `weft delete node NAME`")]
    TooMany,
    #[error("{TOKENS_MAX} join tokens wait to be used; delete some with `weft token delete`")]
    TooManyTokens,
    #[error("host {0} was removed from the mesh; join it again with a new token")]
    Removed(String),
    /// What a host declares does not go.
    #[error("{0}")]
    Declared(String),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(Arc<CatalogError>),
}

impl From<CatalogError> for HostError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(Arc::new(error))
    }
}

/// All hosts of a registry. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Hosts {
    registry: Registry,
    /// The server's own name, whether it has a Node or not.
    own: Arc<str>,
    known: Arc<Mutex<HashMap<String, Known>>>,
    /// Held while a declaration is written, since several may share a Service.
    declaring: Arc<Mutex<()>>,
}

/// A host that was heard of.
#[derive(Clone, Debug)]
struct Known {
    lease: LeaseId,
    /// What it said last; `None` when it has not spoken since this server started.
    said: Option<HostInfo>,
    /// When that was written down.
    at: Mono,
}

// === impl Hosts ===

impl Hosts {
    /// Begins to watch over the hosts. Those that are in the mesh from before count as just heard
    /// of: a server that was started again does not stop what runs. `own` is the server's own name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn start(
        registry: Registry,
        own: &str,
        tasks: &TaskGroup,
    ) -> Result<Self, HostError> {
        let (known, declaring) = (Arc::default(), Arc::default());
        let hosts = Self { registry, own: own.into(), known, declaring };
        let from = hosts.registry.store().barrier().await?.next();
        let world = hosts.registry.now();
        let alone = !hosts.registry.leader().is_shared();
        for node in world.objects(KindId::Node, None).filter(|_| alone) {
            if node.meta.annotation(JOIN_ANNOTATION).is_some() {
                let name = node.key.name.to_string();
                let lease = hosts.lease(&name).await?;
                hosts
                    .known
                    .lock()
                    .await
                    .insert(name, Known { lease, said: None, at: Mono::default() });
            }
        }
        hosts.mind_the_unheard(tasks);
        let (watching, group) = (hosts.clone(), tasks.clone());
        tasks.spawn("hosts", async move {
            tokio::select! {
                () = group.draining() => {}
                () = watching.watch(from) => {}
            }
        });
        Ok(hosts)
    }

    /// Whoever begins to lead gives the hosts that no server hears of the usual time to be heard
    /// of again, and then counts them as silent.
    fn mind_the_unheard(&self, tasks: &TaskGroup) {
        if !self.registry.leader().is_shared() {
            return;
        }
        let (hosts, group) = (self.clone(), tasks.clone());
        tasks.spawn("unheard hosts", async move {
            let leader = hosts.registry.leader().clone();
            let mut terms = leader.changes();
            loop {
                if leader.is_here()
                    && let Err(error) = hosts.give_time().await
                {
                    tracing::warn!(%error, "hosts that nobody hears of cannot be looked at");
                    tokio::time::sleep(HEARTBEAT_EVERY).await;
                    continue;
                }
                tokio::select! {
                    () = group.draining() => return,
                    _ = terms.changed() => {}
                }
            }
        });
    }

    async fn give_time(&self) -> Result<(), HostError> {
        let (world, fence) = (self.registry.now(), self.registry.leader().fence());
        for node in world.objects(KindId::Node, None) {
            let joined = node.meta.annotation(JOIN_ANNOTATION).is_some();
            if !joined || !nodes::is_ready(&node.raw) {
                continue;
            }
            let key = alive_key(&node.key.name);
            let lease = self.registry.store().lease_grant(SILENCE_MAX).await?;
            let (value, class) = (self.voice(), Class::Ephemeral);
            let put = Op::Put { key: key.clone(), value, class, lease: Some(lease) };
            let mut txn = Txn::of([put]).when(Compare::Absent(key));
            txn.compares.extend(fence.clone());
            if !self.registry.store().txn(txn).await?.succeeded {
                self.registry.store().lease_revoke(lease).await?;
            }
        }
        Ok(())
    }

    /// Which run of which server hears a host.
    fn voice(&self) -> Bytes {
        json!({ "by": self.registry.leader().run_id() }).to_string().into()
    }

    /// Makes a host known that may be heard of from now on. `named` says that its token was made
    /// for this very name, which then may be one that is in the mesh.
    ///
    /// # Errors
    /// When the name is another's, or there are too many.
    pub async fn join(
        &self,
        name: &str,
        named: bool,
        join: &str,
        allowed: &Value,
    ) -> Result<(), HostError> {
        self.may_join(name, named)?;
        servers::is_machines(&**self.registry.store(), name).await?;
        if self.registry.now().get(KindId::Node, "", name).is_none() {
            let waiting = nodes::ready("False", "AgentNew", "it has joined", &self.now());
            let node = json!({
                "metadata": { "name": name },
                "spec": {},
                "status": { "conditions": [waiting] },
            });
            let objects = self.registry.objects();
            match objects.create(KindId::Node, "", node, WriteOptions::SYSTEM).await {
                Ok(_) => {}
                Err(ObjectError::AlreadyExists { .. }) if !named => {
                    return Err(HostError::Taken(name.to_owned()));
                }
                Err(ObjectError::AlreadyExists { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let marks = [
            (JOIN_ANNOTATION, join.to_owned()),
            (ALLOWED_ANNOTATION, allowed.to_string()),
            // Agents run pods as processes; it is written so that the server's own way of
            // running pods does not count here.
            (PODS_ANNOTATION, PodsMode::Process.as_str().to_owned()),
        ];
        self.change(name, |node| {
            for (key, value) in &marks {
                crate::objects::admit::annotate(node, key, value.clone());
            }
        })
        .await
    }

    /// Whether a host of this name may join now; nothing is written.
    ///
    /// # Errors
    /// As [`Hosts::join`].
    pub fn may_join(&self, name: &str, named: bool) -> Result<(), HostError> {
        let world = self.registry.now();
        let peers = self.registry.consul().contact().peers();
        let mut servers = peers.iter().map(|peer| &*peer.name).chain([&*self.own]);
        if servers.any(|server| server.eq_ignore_ascii_case(name)) {
            return Err(HostError::Own(name.to_owned()));
        }
        // A host speaks for the checks of the node that it is.
        let registered = world.catalog().nodes().any(|(node, _)| node.eq_ignore_ascii_case(name));
        if registered && !named {
            return Err(HostError::Registered(name.to_owned()));
        }
        match world.get(KindId::Node, "", name) {
            Some(node) if node.meta.annotation(JOIN_ANNOTATION).is_none() => {
                Err(HostError::Own(name.to_owned()))
            }
            Some(_) if !named => Err(HostError::Taken(name.to_owned())),
            None if world.objects(KindId::Node, None).count() >= HOSTS_MAX => {
                Err(HostError::TooMany)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A sign of life. Returns whether the host should report everything again.
    ///
    /// # Errors
    /// When the host is not in the mesh, or the store cannot be written.
    pub async fn heartbeat(&self, info: &HostInfo) -> Result<bool, HostError> {
        let name = &info.node.name;
        let known = self.known.lock().await.get(name).cloned();
        let now = self.registry.clock().now();
        if let Some(known) = known {
            // One that describes itself anew all the time is not written down each time.
            let told = known.said.as_ref() == Some(info)
                || (known.said.is_some() && now.since(known.at) < DESCRIPTION_EVERY);
            if told
                && self.registry.store().lease_keep_alive(known.lease).await.is_ok()
                && self.is_ready(name)
                && self.registry.catalog().is_heard(name)
            {
                return Ok(false);
            }
        }
        let mut all = self.known.lock().await;
        if self.is_removed(name).await? {
            all.remove(name);
            let held = [Compare::Absent(node_key(name))];
            self.registry.catalog().node_heard(name, false, held).await?;
            return Err(HostError::Removed(name.clone()));
        }
        let lease = self.lease(name).await?;
        // First, so that its silence is noted whatever becomes of the rest.
        all.insert(name.clone(), Known { lease, said: None, at: now });
        self.register(info).await?;
        tracing::info!(host = name, "a host is here");
        all.insert(name.clone(), Known { lease, said: Some(info.clone()), at: now });
        Ok(true)
    }

    /// Whether there is no Node of this name, in the store either: another server may have made it
    /// just now.
    async fn is_removed(&self, name: &str) -> Result<bool, HostError> {
        if self.registry.now().get(KindId::Node, "", name).is_some() {
            return Ok(false);
        }
        let (_, node) = self.registry.store().get(&node_key(name)).await?;
        if let Some(node) = &node {
            self.registry.wait_revision(node.modified).await;
        }
        Ok(node.is_none())
    }

    fn is_ready(&self, name: &str) -> bool {
        let world = self.registry.now();
        let node = world.get(KindId::Node, "", name);
        node.is_some_and(|n| nodes::is_ready(&n.raw))
    }

    /// A lease for the host's key; an older one has no key any more when it ends.
    async fn lease(&self, name: &str) -> Result<LeaseId, HostError> {
        let store = self.registry.store();
        let lease = store.lease_grant(SILENCE_MAX).await?;
        let key = alive_key(name);
        let (value, class) = (self.voice(), Class::Ephemeral);
        let op = Op::Put { key, value, class, lease: Some(lease) };
        store.txn(Txn::of([op])).await?;
        Ok(lease)
    }

    async fn register(&self, info: &HostInfo) -> Result<(), HostError> {
        let name = &info.node.name;
        let held = [Compare::Exists(alive_key(name)), Compare::Exists(node_key(name))];
        self.registry.catalog().node_heard(name, true, held).await?;
        let world = self.registry.now();
        let node = world.get(KindId::Node, "", name);
        let before = node.and_then(|n| n.meta.annotation(INSTANCE_ANNOTATION)).unwrap_or("");
        if before != info.instance {
            let why = ("AgentRestarted", "the agent started anew and has not run this pod yet");
            self.registry.pods_stopped(&self.registry.objects(), name, why).await?;
        }
        let now = self.now();
        let described = nodes::node(&info.node, &now);
        self.change(name, |node| {
            crate::objects::admit::annotate(node, INSTANCE_ANNOTATION, info.instance.clone());
            nodes::set_labels(node, &described["metadata"]["labels"]);
            nodes::set_labels(node, &json!(info.labels));
            node["status"] = described["status"].clone();
            let more = info.addresses.iter().skip(1);
            let more = more.map(|a| json!({ "type": "InternalIP", "address": a.to_string() }));
            if let Some(list) = node["status"]["addresses"].as_array_mut() {
                list.extend(more);
            }
            node["status"]["nodeInfo"]["bootID"] = json!(info.boot_id);
        })
        .await
    }

    async fn change(&self, name: &str, mut f: impl FnMut(&mut Value)) -> Result<(), HostError> {
        let (kind, options) = (KindId::Node, WriteOptions::SYSTEM);
        let change = Change { kind, namespace: "", name, part: Part::All, options };
        let objects = self.registry.objects();
        let changed = objects.modify(change, |old| {
            let mut new = old.clone();
            f(&mut new);
            Ok(new)
        });
        changed.await?;
        Ok(())
    }

    fn now(&self) -> String {
        meta::timestamp(self.registry.clock().wall_ms())
    }
}

pub(crate) fn alive_key(name: &str) -> Key {
    format!("{ALIVE}{name}").into()
}

fn node_key(name: &str) -> Key {
    ObjectKey::new(KindId::Node, "", name).store_key().into()
}

// === join tokens: records by their hash, which the binary reads and writes ===

impl Hosts {
    /// Keeps a new token's record for as long as it may be used.
    ///
    /// # Errors
    /// When there are too many, or the store cannot be written.
    pub async fn add_token(
        &self,
        id: &str,
        record: &Value,
        ttl: Duration,
    ) -> Result<(), HostError> {
        let store = self.registry.store();
        if store.range(TOKENS, TOKENS_MAX, None).await?.entries.len() >= TOKENS_MAX {
            return Err(HostError::TooManyTokens);
        }
        let lease = store.lease_grant(ttl).await?;
        let op = token_put(id, record, Some(lease));
        store.txn(Txn::of([op])).await?;
        Ok(())
    }

    /// Every token's record by its id, and the revision that wrote it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn tokens(&self) -> Result<Vec<(String, Value)>, HostError> {
        let page = self.registry.store().range(TOKENS, 0, None).await?;
        let read = |(key, entry): &(Arc<str>, weft_store::Entry)| {
            let id = key.strip_prefix(TOKENS)?.to_owned();
            Some((id, serde_json::from_slice(&entry.value).ok()?))
        };
        Ok(page.entries.iter().filter_map(read).collect())
    }

    /// Lets `f` change a token's record, in one transaction: of two that use a token at the same
    /// time one is told that the other was first, by reading what it wrote. `None` when there is
    /// no such token.
    ///
    /// # Errors
    /// What `f` said, or that the store cannot be used.
    pub async fn change_token<E: From<StoreError>>(
        &self,
        id: &str,
        mut f: impl FnMut(Value) -> Result<Value, E>,
    ) -> Result<Option<Value>, E> {
        let store = self.registry.store();
        let key = format!("{TOKENS}{id}");
        loop {
            let (_, entry) = store.get(&key).await?;
            let Some(entry) = entry else { return Ok(None) };
            let Ok(old) = serde_json::from_slice(&entry.value) else { return Ok(None) };
            let new = f(old)?;
            let txn = Txn::of([token_put(id, &new, entry.lease)])
                .when(Compare::ModRevision(key.as_str().into(), entry.modified));
            if store.txn(txn).await?.succeeded {
                return Ok(Some(new));
            }
        }
    }

    /// Whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn delete_token(&self, id: &str) -> Result<bool, HostError> {
        let key: Arc<str> = format!("{TOKENS}{id}").into();
        let txn = Txn::of([Op::delete(key.clone())]).when(Compare::Exists(key));
        Ok(self.registry.store().txn(txn).await?.succeeded)
    }
}

fn token_put(id: &str, record: &Value, lease: Option<LeaseId>) -> Op {
    let (key, value) = (format!("{TOKENS}{id}").into(), record.to_string().into());
    Op::Put { key, value, class: Class::Synced, lease }
}

#[cfg(test)]
mod tests;
