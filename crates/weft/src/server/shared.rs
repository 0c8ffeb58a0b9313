// SPDX-License-Identifier: Apache-2.0
//! A server among several on one store: reaching it, telling the others that this one is there, and
//! knowing who they are. The authorities that they share are in `vault`.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use weft_base::task::TaskGroup;
use weft_identity::provider;
use weft_kinds::views::catalog::NodeRecord;
use weft_registry::leader::SERVERS;
use weft_registry::servers::{Said, Server};
use weft_registry::{Leader, Registry};
use weft_store::{DataDir, EtcdStore, EventKind, Meter, Store, StoreError};

use super::vault;
use crate::store::put_private;

/// In the data directory: what tells it from others.
const PLACE: &str = "server-id";
/// How long a store may take to answer at the start.
const REACH_MAX: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(300);

/// Does something with the store until it answers, or for as long as a start may take.
pub async fn patiently<T, F>(mut f: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut last = None;
    let trying = async {
        loop {
            match f().await {
                Err(error @ StoreError::Unreachable { .. }) => {
                    tracing::warn!(%error, "the store does not answer yet");
                    last = Some(error);
                }
                done => return done,
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    match tokio::time::timeout(REACH_MAX, trying).await {
        Ok(done) => done,
        Err(_) => Err(last.unwrap_or(StoreError::Closed)),
    }
}

/// Takes this server's name among those on the store.
///
/// # Errors
/// When another server has it, or the store or the data directory cannot be used.
pub async fn claim(
    store: &Arc<EtcdStore>,
    data: &DataDir,
    leader: &Leader,
    api: SocketAddr,
) -> Result<Server> {
    let name = leader.own_name().cloned().unwrap_or_default();
    let said = Said {
        run: leader.run_id().into(),
        api: api.to_string(),
        id: super::node_id(&name),
        place: place(data)?,
        leaving: false,
    };
    Ok(Server::claim(store.clone(), &name, said).await?)
}

/// A word for a data directory, made when it is asked for first.
fn place(data: &DataDir) -> Result<String> {
    let path = data.path().join(PLACE);
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(e) => vault::absent(e).with_context(|| path.display().to_string())?,
    }
    let word: String = provider::random::<16>()?.iter().map(|b| format!("{b:02x}")).collect();
    put_private(&path, word.as_bytes())?;
    Ok(word)
}

/// Tells the other servers that this one is there, and as which node, until it ends.
pub fn announce(server: Option<&Server>, node: NodeRecord, registry: &Registry, tasks: &TaskGroup) {
    let Some(server) = server.cloned().map(|server| server.of_node(node)) else { return };
    let (registry, group) = (registry.clone(), tasks.clone());
    tasks.spawn("among servers", async move {
        tokio::select! {
            () = group.draining() => {}
            () = server.stay(&registry) => {}
        }
    });
}

/// The servers that are there, by name. Follows the store, so that asking costs nothing.
pub fn follow_servers(registry: &Registry, tasks: &TaskGroup) -> Arc<Servers> {
    let servers = Arc::new(Servers::default());
    if !registry.leader().is_shared() {
        return servers;
    }
    let (all, store, group) = (servers.clone(), registry.store().clone(), tasks.clone());
    tasks.spawn("servers", async move {
        tokio::select! {
            () = group.draining() => {}
            () = all.follow(&*store) => {}
        }
    });
    servers
}

/// The store's own figures, and who leads.
pub fn metrics(registry: &Registry, servers: &Servers) -> String {
    let (stats, leader) = (registry.stats(), registry.leader());
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let others = count(servers.names().len().max(1));
    let rows: [(&str, &str, &str, u64); 7] = [
        ("weft_leader", "gauge", "1 where controllers run", u64::from(leader.is_here())),
        (
            "weft_leader_terms_total",
            "counter",
            "Times that this server began to lead",
            leader.times(),
        ),
        ("weft_servers", "gauge", "Servers on the same store", others),
        (
            "weft_store_requests_total",
            "counter",
            "Writes that the store was asked for",
            stats.store.requests,
        ),
        (
            "weft_store_commit_failures_total",
            "counter",
            "Writes that were not acknowledged, since the store failed",
            stats.store.commit_failures,
        ),
        ("weft_store_watches", "gauge", "Watches that are open", count(stats.store.watches)),
        (
            "weft_store_history_bytes",
            "gauge",
            "Bytes of the log's end that are kept for watches",
            count(stats.store.history_bytes),
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}");
    }
    text + &registry.store().meter().map(Meter::text).unwrap_or_default()
}

/// Names of servers.
#[derive(Debug, Default)]
pub struct Servers(std::sync::Mutex<std::collections::BTreeSet<String>>);

// === impl Servers ===

impl Servers {
    pub fn names(&self) -> Vec<String> {
        self.0.lock().map(|all| all.iter().cloned().collect()).unwrap_or_default()
    }

    async fn follow(&self, store: &dyn Store) {
        loop {
            if let Err(error) = self.once(store).await {
                tracing::debug!(%error, "the servers are listed again");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn once(&self, store: &dyn Store) -> Result<()> {
        let page = store.range(SERVERS, 0, None).await?;
        let named = |key: &str| key.strip_prefix(SERVERS).unwrap_or_default().to_owned();
        if let Ok(mut all) = self.0.lock() {
            let there = page.entries.iter().filter(|(_, e)| !Said::read(&e.value).leaving);
            *all = there.map(|(key, _)| named(key)).collect();
        }
        let mut log = store.watch(SERVERS, page.revision.next())?;
        loop {
            for event in log.next().await? {
                let Ok(mut all) = self.0.lock() else { continue };
                let put = event.kind == EventKind::Put;
                match put && !Said::read(&event.value).leaving {
                    true => drop(all.insert(named(&event.key))),
                    false => drop(all.remove(&named(&event.key))),
                }
            }
        }
    }
}
