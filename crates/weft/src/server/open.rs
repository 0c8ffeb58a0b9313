// SPDX-License-Identifier: Apache-2.0
//! What a server stands on: its store, the registry over it, and the authority. The store is the
//! data directory's own, or an etcd that several servers share.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::FutureExt as _;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_identity::{Authority, TrustDomain, provider};
use weft_registry::servers::Server;
use weft_registry::{Leader, Registry};
use weft_server::consul;
use weft_store::{DataDir, EtcdStore, RedbStore, Retention, Store};

use super::vault::{Before, CONSUL_CA, Vault};
use super::{Settings, shared};
use crate::store::MIGRATING;
use crate::store::etcd::Shared;

/// The ground of a running server.
pub struct Ground {
    pub registry: Registry,
    pub authority: Arc<Authority>,
    /// The authority for Consul's clients, of a trust domain of its own.
    pub consul_ca: Arc<consul::Ca>,
    /// The log in the data directory, when it is there.
    pub log: Option<Arc<RedbStore>>,
    /// The etcd, when the log is there, and this server among others on it.
    pub etcd: Option<Arc<EtcdStore>>,
    pub server: Option<Server>,
}

/// Opens what the settings name.
pub async fn ground(
    settings: &Settings,
    data: &Arc<DataDir>,
    name: &str,
    api: SocketAddr,
    (clock, tasks): (&Clock, &TaskGroup),
) -> Result<Ground> {
    let trust_domain = settings.trust_domain.as_deref();
    match &settings.store {
        None => own(data, trust_domain, clock, tasks).await,
        Some(store) => among_others(store, data, trust_domain, (name, api), (clock, tasks)).await,
    }
}

/// Opens the data directory's own store and authority.
async fn own(
    data: &Arc<DataDir>,
    trust_domain: Option<&str>,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<Ground> {
    let authority = authority(data, trust_domain, clock)?;
    let consul_ca = consul_ca(data, clock)?;
    let (registry, log) = own_registry(data, clock, tasks).await?;
    Ok(Ground { registry, authority, consul_ca, log: Some(log), etcd: None, server: None })
}

/// Opens a store that other servers use, too, and takes over or begins their authority.
async fn among_others(
    store: &Shared,
    data: &Arc<DataDir>,
    trust_domain: Option<&str>,
    (name, api): (&str, SocketAddr),
    (clock, tasks): (&Clock, &TaskGroup),
) -> Result<Ground> {
    let named = || format!("the store at {}", store.config.members.join(", "));
    let open = || EtcdStore::open(store.config.clone(), clock.clone(), Retention::default());
    let etcd = Arc::new(shared::patiently(open).await.with_context(named)?);
    let (_, half) = shared::patiently(|| etcd.get(MIGRATING)).await.with_context(named)?;
    if half.is_some() {
        bail!(
            "{} holds a copy that is not whole: wait for `weft store migrate`, or run it again",
            named()
        );
    }
    let leader = Leader::among(name, clock.clone());
    let server = Some(shared::claim(&etcd, data, &leader, api).await.with_context(named)?);
    let vault = Vault::mesh(&*etcd, &store.seal);
    let open = || self::authority(data, trust_domain, clock);
    let authority = together(vault, &data.sub("ca")?, open).await.with_context(named)?;
    let vault = Vault::consul(&*etcd, &store.seal);
    let open = || self::consul_ca(data, clock);
    let consul_ca = together(vault, &data.sub(CONSUL_CA)?, open).await.with_context(named)?;
    let registry = Registry::open_as(etcd.clone(), clock.clone(), tasks.clone(), leader).await;
    let registry = registry.with_context(named)?;
    Ok(Ground { registry, authority, consul_ca, log: None, etcd: Some(etcd), server })
}

/// An authority that all servers on a store have: it is taken from there, or `open` makes it in its
/// directory and it is put there; then it is opened as it is in the end.
async fn together<T>(
    vault: Vault<'_>,
    dir: &Path,
    open: impl Fn() -> Result<Arc<T>>,
) -> Result<Arc<T>> {
    if !vault.fetch(dir).await? {
        // It may be this server's from before, or is made now.
        let before = Before::of(dir).with_context(|| dir.display().to_string())?;
        drop(open()?);
        vault.begin(dir, before).await?;
    }
    open()
}

/// Opens the store and reads all of it. A damaged file is told as such: the engine reports some
/// damage as an error and other damage by a panic.
async fn own_registry(
    data: &Arc<DataDir>,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<(Registry, Arc<RedbStore>)> {
    let opened = AssertUnwindSafe(async {
        let log = Arc::new(RedbStore::open(data.clone(), clock.clone())?);
        let store: Arc<dyn Store> = log.clone();
        Ok((Registry::open(store, clock.clone(), tasks.clone()).await?, log))
    });
    let result: Result<(Registry, Arc<RedbStore>)> = match opened.catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err(anyhow!("its file holds what was never written there")),
    };
    result.with_context(|| refused(data.path()))
}

fn refused(path: &Path) -> String {
    let path = path.display();
    format!(
        "the store in {path} cannot be opened; free the disk, see what `weft store check --data \
         {path}` says, restore the directory from a backup, or delete it and begin anew with \
         `weft reset --data {path}`"
    )
}

/// The authority for Consul's clients. Its trust domain is what Consul would name it: made once.
fn consul_ca(data: &DataDir, clock: &Clock) -> Result<Arc<consul::Ca>> {
    let dir = data.sub(CONSUL_CA)?;
    let begun = dir.join("root.pem").try_exists()?;
    let id = provider::random::<16>()?;
    let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let named = TrustDomain::new(&format!("{id}.consul")).context("the trust domain")?;
    let asked = (!begun).then_some(&named);
    let authority = Authority::open(&dir, asked, clock).context("the authority of Consul's API")?;
    Ok(Arc::new(consul::Ca::new(authority)))
}

fn authority(data: &DataDir, asked: Option<&str>, clock: &Clock) -> Result<Arc<Authority>> {
    let asked = asked.map(TrustDomain::new).transpose().context("--trust-domain")?;
    Ok(Arc::new(Authority::open(&data.sub("ca")?, asked.as_ref(), clock)?))
}
