// SPDX-License-Identifier: Apache-2.0
//! A server among several on one store: the authority that they share, and telling the others that
//! this one is there. The authority's key lies in the store sealed; each server keeps a copy in its
//! data directory, which it can lose.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use weft_base::task::TaskGroup;
use weft_identity::provider;
use weft_identity::seal::SealKey;
use weft_registry::leader::SERVERS;
use weft_registry::servers::{Said, Server};
use weft_registry::{Leader, Registry};
use weft_store::{Compare, DataDir, EtcdStore, EventKind, Op, Store, StoreError, Txn};

use crate::store::put_private;

/// The authority's key and certificate, sealed.
const AUTHORITY: &str = "/t/ca/root.pem";
const ROOT: &str = "root.pem";
const BUNDLE: &str = "bundle.pem";
/// In the data directory: what tells it from others.
const PLACE: &str = "server-id";
/// How long a store may take to answer at the start.
const REACH_MAX: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(300);

/// What lay in a directory before an authority was opened or made there.
pub struct Before {
    root: bool,
    bundle: Option<Vec<u8>>,
}

// === impl Before ===

impl Before {
    pub fn of(dir: &Path) -> std::io::Result<Self> {
        let bundle = fs::read(dir.join(BUNDLE)).map(Some).or_else(|e| absent(e).map(|()| None))?;
        Ok(Self { root: dir.join(ROOT).try_exists()?, bundle })
    }
}

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

/// Puts the mesh's authority into `dir` before it is opened there; `false` when there is none yet,
/// and the one that is opened or made there should be shared with [`begin_authority`].
///
/// # Errors
/// When it cannot be unsealed, or the directory belongs to another mesh.
pub async fn fetch_authority(store: &dyn Store, seal: &SealKey, dir: &Path) -> Result<bool> {
    let (_, entry) = patiently(|| store.get(AUTHORITY)).await?;
    let Some(entry) = entry else { return Ok(false) };
    let root = seal.open(AUTHORITY, &entry.value).context("the authority's key in the store")?;
    let path = dir.join(ROOT);
    match fs::read(&path) {
        Ok(own) if own == root => return Ok(true),
        Ok(_) => bail!(
            "{} is the authority of another mesh than the store's; name a data directory of its \
             own, or delete this one",
            path.display()
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    }
    put_private(&path, &root)?;
    Ok(true)
}

/// Seals the authority in `dir` and puts it into the store, unless the same one is there. The
/// directory stays as it is.
///
/// # Errors
/// When there is none in the directory, or the store has another one.
pub async fn keep_authority(store: &dyn Store, seal: &SealKey, dir: &Path) -> Result<()> {
    if put_authority(store, seal, dir).await? || fetch_authority(store, seal, dir).await? {
        return Ok(());
    }
    bail!("another server made the mesh's authority and took it away again; start again");
}

/// The same for one that may have been made there just now; what lay in `dir` before tells. One
/// that was made just now signed nothing yet, and gives way to another server's.
///
/// # Errors
/// When an older one would have to give way.
pub async fn begin_authority(
    store: &dyn Store,
    seal: &SealKey,
    dir: &Path,
    before: Before,
) -> Result<()> {
    if before.root {
        return keep_authority(store, seal, dir).await;
    }
    if put_authority(store, seal, dir).await? || holds(store, seal, dir).await? {
        return Ok(());
    }
    // Two servers began a mesh at the same moment.
    fs::remove_file(dir.join(ROOT))?;
    match before.bundle {
        Some(bundle) => fs::write(dir.join(BUNDLE), bundle)?,
        None => fs::remove_file(dir.join(BUNDLE)).or_else(absent)?,
    }
    if !fetch_authority(store, seal, dir).await? {
        bail!("another server made the mesh's authority and took it away again; start again");
    }
    Ok(())
}

/// Whether the authority was put; not when there is one.
async fn put_authority(store: &dyn Store, seal: &SealKey, dir: &Path) -> Result<bool> {
    let path = dir.join(ROOT);
    let root = fs::read(&path)
        .with_context(|| format!("{}, the authority's key, cannot be read", path.display()))?;
    let sealed = seal.seal(AUTHORITY, &root)?;
    let txn = Txn::of([Op::put(AUTHORITY, sealed)]).when(Compare::Absent(AUTHORITY.into()));
    Ok(store.txn(txn).await?.succeeded)
}

/// Whether the store's authority is the directory's: an earlier try may have put it there.
async fn holds(store: &dyn Store, seal: &SealKey, dir: &Path) -> Result<bool> {
    let (_, entry) = patiently(|| store.get(AUTHORITY)).await?;
    let Some(entry) = entry else { return Ok(false) };
    let root = seal.open(AUTHORITY, &entry.value).context("the authority's key in the store")?;
    Ok(fs::read(dir.join(ROOT))? == root)
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
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
        Err(e) => absent(e).with_context(|| path.display().to_string())?,
    }
    let word: String = provider::random::<16>()?.iter().map(|b| format!("{b:02x}")).collect();
    put_private(&path, word.as_bytes())?;
    Ok(word)
}

/// Tells the other servers that this one is there, until it ends.
pub fn announce(server: Option<&Server>, registry: &Registry, tasks: &TaskGroup) {
    let Some(server) = server.cloned() else { return };
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
    text
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

#[cfg(test)]
mod tests {
    use super::*;
    use weft_base::clock::Clock;
    use weft_store::MemoryStore;

    #[tokio::test]
    async fn two_servers_that_begin_a_mesh_end_with_one_authority() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, text) in [(&a, "root of a"), (&b, "root of b")] {
            assert!(!fetch_authority(&store, &seal, dir.path()).await.unwrap());
            fs::write(dir.path().join(ROOT), text).unwrap();
        }
        let nothing = || Before { root: false, bundle: None };
        begin_authority(&store, &seal, a.path(), nothing()).await.unwrap();
        begin_authority(&store, &seal, a.path(), nothing()).await.unwrap();
        begin_authority(&store, &seal, b.path(), nothing()).await.unwrap();
        assert_eq!(fs::read(b.path().join(ROOT)).unwrap(), b"root of a");
        let (_, kept) = store.get(AUTHORITY).await.unwrap();
        let kept = kept.unwrap().value;
        assert!(!kept.windows(4).any(|w| w == b"root"), "it is sealed");

        let c = tempfile::tempdir().unwrap();
        assert!(fetch_authority(&store, &seal, c.path()).await.unwrap());
        assert_eq!(fs::read(c.path().join(ROOT)).unwrap(), b"root of a");
        fs::write(c.path().join(ROOT), "another").unwrap();
        let err = fetch_authority(&store, &seal, c.path()).await.unwrap_err().to_string();
        assert!(err.contains("another mesh"), "{err}");
        let other = SealKey::new(&[6; 32]).unwrap();
        let err = format!("{:#}", fetch_authority(&store, &other, a.path()).await.unwrap_err());
        assert!(err.contains("another key"), "{err}");
    }

    #[tokio::test]
    async fn an_authority_from_before_is_never_deleted() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let (first, older) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(first.path().join(ROOT), "root of the first").unwrap();
        for name in [ROOT, BUNDLE] {
            fs::write(older.path().join(name), format!("older {name}")).unwrap();
        }
        let before = Before::of(older.path()).unwrap();
        assert!(!fetch_authority(&store, &seal, older.path()).await.unwrap());
        // The other one is quicker, between the look and the write.
        keep_authority(&store, &seal, first.path()).await.unwrap();
        let err = begin_authority(&store, &seal, older.path(), before).await.unwrap_err();
        assert!(err.to_string().contains("another mesh"), "{err}");
        let err = keep_authority(&store, &seal, older.path()).await.unwrap_err();
        assert!(err.to_string().contains("another mesh"), "{err}");
        for name in [ROOT, BUNDLE] {
            let left = fs::read_to_string(older.path().join(name)).unwrap();
            assert_eq!(left, format!("older {name}"));
        }
        // A bundle that was there before stays, too, when what was made beside it gives way.
        fs::remove_file(older.path().join(ROOT)).unwrap();
        let before = Before::of(older.path()).unwrap();
        fs::write(older.path().join(ROOT), "made now").unwrap();
        fs::write(older.path().join(BUNDLE), "made now").unwrap();
        begin_authority(&store, &seal, older.path(), before).await.unwrap();
        assert_eq!(fs::read(older.path().join(ROOT)).unwrap(), b"root of the first");
        assert_eq!(fs::read(older.path().join(BUNDLE)).unwrap(), b"older bundle.pem");
    }

    #[tokio::test]
    async fn an_authority_that_cannot_be_read_is_no_authority_kept() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let err = keep_authority(&store, &seal, dir.path()).await.unwrap_err().to_string();
        assert!(err.contains("root.pem, the authority's key, cannot be read"), "{err}");
        assert_eq!(store.get(AUTHORITY).await.unwrap().1, None);
    }
}
