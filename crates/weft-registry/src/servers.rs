// SPDX-License-Identifier: Apache-2.0
//! Servers that share a store. Each says that it is there, under a name that is its alone, in a key
//! that ends with it; and that the agent of the node of its name is heard. Whoever leads says of
//! those that are gone that it is not: what is registered on their nodes is critical, and sessions
//! that depend on them end. Each keeps the record of its own node, so that every server's catalog
//! lists all of them.
//!
//! The binary claims a name before it opens the registry, and stays until it ends. A server that
//! ends in an orderly way keeps its name a while: it may only be started anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;
use weft_base::task::TaskGroup;
use weft_kinds::kind::KindId;
use weft_kinds::views::catalog::NodeRecord;
use weft_kinds::world::StoreKey;
use weft_store::{Class, Compare, Entry, Key, Op, Store, StoreError, Txn};

use crate::catalog::{CatalogError, Handle};
use crate::hosts::{JOIN_ANNOTATION, alive_key};
use crate::leader::SERVERS;
use crate::{Leader, Registry};

/// Names that servers have, or had: their nodes are told from others' by it.
const NAMES: &str = "/t/servers/";
/// How often a server looks whether the others still see it, and the leader who is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a name is waited for: somewhat more than a server that died keeps it.
const CLAIM_MAX: Duration = Duration::from_secs(14);
/// How often it is looked at meanwhile.
const CLAIM_EVERY: Duration = Duration::from_millis(300);
/// How long a server that ended in an orderly way counts as there: as one that died does.
const LEAVING: Duration = Duration::from_secs(10);

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Said {
    /// A word for this run of it.
    pub run: Arc<str>,
    /// Where its own API is.
    pub api: String,
    /// Its node's id.
    pub id: String,
    /// A word for its data directory, which one process has at a time.
    pub place: String,
    /// It has ended, and may be started anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// Why a name is not this server's.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error(
        "another server of the name {name:?} is on this store, its API at {api}; give each server \
         a --node of its own"
    )]
    Taken { name: String, api: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what a server says of itself cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
}

/// This server among others.
#[derive(Clone, Debug)]
pub struct Server {
    store: Arc<dyn Store>,
    name: Arc<str>,
    key: Key,
    said: Said,
    value: String,
    /// Its node, as the catalog is to have it.
    node: Option<Arc<NodeRecord>>,
}

// === impl Said ===

impl Said {
    /// Nothing is known of a server that says what cannot be read.
    pub fn read(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_default()
    }

    /// Whether its name may be another's now: it has ended, or was in the same place.
    fn gives_way_to(&self, other: &Self) -> bool {
        self.leaving || (!self.place.is_empty() && self.place == other.place)
    }
}

// === impl Server ===

impl Server {
    /// Takes a name: at once where nobody has it or had it from the same data directory, else when
    /// the lease of a server that died has ended.
    ///
    /// # Errors
    /// When another server has it and lives, or the store cannot be used.
    pub async fn claim(store: Arc<dyn Store>, name: &str, said: Said) -> Result<Self, ClaimError> {
        Self::claim_within(store, name, said, CLAIM_MAX).await
    }

    pub(crate) async fn claim_within(
        store: Arc<dyn Store>,
        name: &str,
        said: Said,
        patience: Duration,
    ) -> Result<Self, ClaimError> {
        let key = key_of(name);
        let value = serde_json::to_string(&said)?;
        let end = Instant::now() + patience;
        let mut told = false;
        loop {
            let (_, entry) = store.get(&key).await?;
            let other = entry.as_ref().map(|entry| Said::read(&entry.value));
            if other.as_ref().is_none_or(|other| other.gives_way_to(&said)) {
                let put = Op::put_ephemeral(key.clone(), value.clone());
                let txn = Txn::of([put]).when(as_it_is(&key, entry.as_ref()));
                if store.txn(txn).await?.succeeded {
                    let name = name.into();
                    return Ok(Self { store, name, key, said, value, node: None });
                }
            } else if Instant::now() >= end {
                let api = other.map(|other| other.api).unwrap_or_default();
                return Err(ClaimError::Taken { name: name.to_owned(), api });
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(name, "a server of this name was here; waiting until it is gone");
            }
            tokio::time::sleep(CLAIM_EVERY).await;
        }
    }

    /// The same, and it keeps the record of its node as this one, whatever others write of it.
    #[must_use]
    pub fn of_node(self, node: NodeRecord) -> Self {
        Self { node: Some(Arc::new(node)), ..self }
    }

    /// Says that it is there for as long as it is, also after etcd was out of reach for so long
    /// that its key ended.
    pub async fn stay(&self, registry: &Registry) {
        loop {
            if let Err(error) = self.say(registry).await {
                tracing::debug!(%error, "this server could not tell that it is there");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn say(&self, registry: &Registry) -> Result<(), CatalogError> {
        let (_, entry) = self.store.get(&self.key).await?;
        match entry {
            Some(entry) if entry.value == self.value.as_bytes() => {}
            Some(entry) => {
                let other = Said::read(&entry.value).api;
                tracing::error!(
                    name = &*self.name,
                    other,
                    "another server took this one's name while it was away; end one of the two, \
                     and give each a --node of its own"
                );
                return Ok(());
            }
            None => {
                let put = Op::put_ephemeral(self.key.clone(), self.value.clone());
                self.store.txn(Txn::of([put]).when(Compare::Absent(self.key.clone()))).await?;
            }
        }
        // A machine that joined under this name has an agent, which speaks for the node.
        let world = registry.now();
        let node = world.get(KindId::Node, "", &self.name);
        let joined = node.is_some_and(|n| n.meta.annotation(JOIN_ANNOTATION).is_some());
        let held = || [Compare::Exists(self.key.clone())];
        if joined {
            return match registry.catalog().serves(&self.name) {
                Some(false) => mark(&*self.store, &self.name, true, held()).await,
                _ => Ok(()),
            };
        }
        if let Some(node) = &self.node {
            registry.catalog().server_says(node, held()).await?;
        }
        if registry.catalog().is_heard(&self.name) {
            return Ok(());
        }
        self.store.txn(Txn::of([Op::put(format!("{NAMES}{}", self.name), "")])).await?;
        registry.catalog().node_heard(&self.name, true, held()).await
    }

    /// It ends in an orderly way: its name is free, and its node counts as heard for as long as a
    /// start takes.
    ///
    /// # Errors
    /// When the store cannot be used; then its lease says it.
    pub async fn leave(&self) -> Result<(), ClaimError> {
        let (_, entry) = self.store.get(&self.key).await?;
        let own = |entry: &Entry| entry.value == self.value.as_bytes();
        let Some(entry) = entry.filter(own) else { return Ok(()) };
        let said = Said { leaving: true, ..self.said.clone() };
        let lease = self.store.lease_grant(LEAVING).await?;
        let put = Op::Put {
            key: self.key.clone(),
            value: serde_json::to_vec(&said)?.into(),
            class: Class::Ephemeral,
            lease: Some(lease),
        };
        self.store.txn(Txn::of([put]).when(as_it_is(&self.key, Some(&entry)))).await?;
        Ok(())
    }
}

/// Says what becomes of the nodes of servers that are gone, wherever the leader is.
pub(crate) async fn mind(store: Arc<dyn Store>, catalog: Handle, leader: Leader, tasks: TaskGroup) {
    let minding = async {
        loop {
            if leader.is_here()
                && let Err(error) = silence(&*store, &catalog, &leader).await
            {
                tracing::debug!(%error, "servers that are gone could not be noted");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = tasks.draining() => {}
        () = minding => {}
    }
}

pub(crate) async fn silence(
    store: &dyn Store,
    catalog: &Handle,
    leader: &Leader,
) -> Result<(), CatalogError> {
    let there = keys(store, SERVERS).await?;
    let mut known = names(store).await?;
    // Also of those that only a restored catalog knows.
    known.extend(catalog.servers());
    for name in known.difference(&there) {
        if catalog.is_machines(name) && catalog.serves(name) == Some(true) {
            let held = std::iter::once(Compare::Absent(key_of(name))).chain(leader.fence());
            mark(store, name, false, held).await?;
        }
        if catalog.is_silent(name) {
            continue;
        }
        // A machine that joined under its name is heard still: its agent speaks for the node.
        if store.get(&alive_key(name)).await?.1.is_some() {
            continue;
        }
        let held = [Compare::Absent(key_of(name)), Compare::Absent(alive_key(name))];
        catalog.node_heard(name, false, held.into_iter().chain(leader.fence())).await?;
        tracing::warn!(server = &**name, "a server is gone; what is on its node is critical");
    }
    Ok(())
}

/// Says that a name is a machine's now: a server that had it is not there.
pub(crate) async fn is_machines(store: &dyn Store, name: &str) -> Result<(), CatalogError> {
    mark(store, name, false, [Compare::Absent(key_of(name))]).await
}

/// Writes into the record of a node, where there is one, whether it is a server's, and leaves the
/// rest of it as it is. Overtaken it writes nothing: who calls looks again.
async fn mark(
    store: &dyn Store,
    name: &str,
    serves: bool,
    held: impl IntoIterator<Item = Compare>,
) -> Result<(), CatalogError> {
    let key: Key = StoreKey::Node(name.into()).to_string().into();
    let Some(entry) = store.get(&key).await?.1 else { return Ok(()) };
    let mut record: Map<String, Value> = serde_json::from_slice(&entry.value)?;
    let was = match serves {
        true => record.insert("server".into(), true.into()),
        false => record.remove("server"),
    };
    if was == Some(serves.into()) || (was.is_none() && !serves) {
        return Ok(());
    }
    let put = Op::put(key.clone(), serde_json::to_vec(&record)?);
    let mut txn = Txn::of([put]).when(as_it_is(&key, Some(&entry)));
    txn.compares.extend(held);
    store.txn(txn).await?;
    Ok(())
}

/// Runs of the servers that are there.
pub(crate) async fn runs(store: &dyn Store) -> Result<BTreeSet<Arc<str>>, StoreError> {
    let page = store.range(SERVERS, 0, None).await?;
    let said = page.entries.iter().map(|(_, entry)| Said::read(&entry.value));
    Ok(said.filter(|said| !said.leaving).map(|said| said.run).collect())
}

/// The names that servers have or had.
pub(crate) async fn names(store: &dyn Store) -> Result<BTreeSet<Arc<str>>, StoreError> {
    keys(store, NAMES).await
}

async fn keys(store: &dyn Store, prefix: &str) -> Result<BTreeSet<Arc<str>>, StoreError> {
    let page = store.range(prefix, 0, None).await?;
    Ok(page
        .entries
        .iter()
        .filter_map(|(key, _)| key.strip_prefix(prefix))
        .map(Into::into)
        .collect())
}

fn key_of(name: &str) -> Key {
    format!("{SERVERS}{name}").into()
}

fn as_it_is(key: &Key, entry: Option<&Entry>) -> Compare {
    match entry {
        Some(entry) => Compare::ModRevision(key.clone(), entry.modified),
        None => Compare::Absent(key.clone()),
    }
}
