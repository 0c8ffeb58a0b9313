// SPDX-License-Identifier: Apache-2.0
//! The authorities that several servers share: each one's key lies in the store, sealed, and a copy
//! in each server's data directory, which it can lose. Two servers that begin at once end with one.
//! Called when a server opens its store, and by `weft store migrate`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use weft_identity::seal::SealKey;
use weft_store::{Compare, Op, Store, Txn};

use super::shared::patiently;
use crate::store::put_private;

/// The mesh's authority: key and certificate, sealed.
const MESH: &str = "/t/ca/root.pem";
/// That of Consul's API.
const CONSUL: &str = "/t/ca/consul-root.pem";
/// In the data directory: the authority of Consul's API.
pub const CONSUL_CA: &str = "consul-ca";
const ROOT: &str = "root.pem";
const BUNDLE: &str = "bundle.pem";

/// Where one authority lies in a store.
pub struct Vault<'a> {
    store: &'a dyn Store,
    seal: &'a SealKey,
    key: &'static str,
}

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

// === impl Vault ===

impl<'a> Vault<'a> {
    /// The authority of the mesh's identities.
    pub fn mesh(store: &'a dyn Store, seal: &'a SealKey) -> Self {
        Self { store, seal, key: MESH }
    }

    /// The authority that Consul's API hands out certificates of.
    pub fn consul(store: &'a dyn Store, seal: &'a SealKey) -> Self {
        Self { store, seal, key: CONSUL }
    }

    /// Puts the authority into `dir` before it is opened there; `false` when there is none yet, and
    /// the one that is opened or made there should be shared with [`Vault::begin`].
    ///
    /// # Errors
    /// When it cannot be unsealed, or the directory belongs to another mesh.
    pub async fn fetch(&self, dir: &Path) -> Result<bool> {
        let Some(root) = self.unsealed().await? else { return Ok(false) };
        let path = dir.join(ROOT);
        match fs::read(&path) {
            Ok(own) if own == root => return Ok(true),
            // What a server signed for Consul's clients while it was alone counts nowhere else.
            Ok(_) if self.key == CONSUL => give_way(dir)?,
            Ok(_) => bail!(
                "{} is the authority of another mesh than the store's; name a data directory of \
                 its own, or delete this one",
                path.display()
            ),
            Err(e) => absent(e).with_context(|| path.display().to_string())?,
        }
        put_private(&path, &root)?;
        Ok(true)
    }

    /// Seals the authority in `dir` and puts it into the store, unless the same one is there. The
    /// directory stays as it is.
    ///
    /// # Errors
    /// When there is none in the directory, or the store has another one.
    pub async fn keep(&self, dir: &Path) -> Result<()> {
        if self.put(dir).await? || self.fetch(dir).await? {
            return Ok(());
        }
        bail!("another server made the mesh's authority and took it away again; start again");
    }

    /// The same for one that may have been made there just now; what lay in `dir` before tells. One
    /// that was made just now signed nothing yet, and gives way to another server's.
    ///
    /// # Errors
    /// When an older one would have to give way.
    pub async fn begin(&self, dir: &Path, before: Before) -> Result<()> {
        if before.root {
            return self.keep(dir).await;
        }
        if self.put(dir).await? || self.holds(dir).await? {
            return Ok(());
        }
        // Two servers began a mesh at the same moment.
        fs::remove_file(dir.join(ROOT))?;
        match before.bundle {
            Some(bundle) => fs::write(dir.join(BUNDLE), bundle)?,
            None => fs::remove_file(dir.join(BUNDLE)).or_else(absent)?,
        }
        if !self.fetch(dir).await? {
            bail!("another server made the mesh's authority and took it away again; start again");
        }
        Ok(())
    }

    /// Whether the authority was put; not when there is one.
    async fn put(&self, dir: &Path) -> Result<bool> {
        let path = dir.join(ROOT);
        let root = fs::read(&path)
            .with_context(|| format!("{}, the authority's key, cannot be read", path.display()))?;
        let sealed = self.seal.seal(self.key, &root)?;
        let txn = Txn::of([Op::put(self.key, sealed)]).when(Compare::Absent(self.key.into()));
        Ok(self.store.txn(txn).await?.succeeded)
    }

    /// Whether the store's authority is the directory's: an earlier try may have put it there.
    async fn holds(&self, dir: &Path) -> Result<bool> {
        let Some(root) = self.unsealed().await? else { return Ok(false) };
        Ok(fs::read(dir.join(ROOT))? == root)
    }

    async fn unsealed(&self) -> Result<Option<Vec<u8>>> {
        let (_, entry) = patiently(|| self.store.get(self.key)).await?;
        let Some(entry) = entry else { return Ok(None) };
        let root = self.seal.open(self.key, &entry.value);
        root.map(Some).context("the authority's key in the store")
    }
}

/// Moves an authority aside that the store does not know.
fn give_way(dir: &Path) -> Result<()> {
    for name in [ROOT, BUNDLE] {
        let (path, aside) = (dir.join(name), dir.join(format!("{name}.before")));
        fs::rename(&path, aside).or_else(absent).with_context(|| path.display().to_string())?;
    }
    tracing::warn!(
        "{} had an authority of its own for Consul's clients; the one that all servers share takes \
         its place, and the older one is kept there as {ROOT}.before",
        dir.display()
    );
    Ok(())
}

/// Takes what is not there for nothing.
///
/// # Errors
/// Any other one.
pub fn absent(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_base::clock::Clock;
    use weft_store::MemoryStore;

    fn at<'a>(store: &'a MemoryStore, seal: &'a SealKey) -> Vault<'a> {
        Vault::mesh(store, seal)
    }

    #[tokio::test]
    async fn an_authority_of_consuls_that_a_server_made_alone_gives_way() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, text) in [(&a, "root of a"), (&b, "root of b")] {
            fs::write(dir.path().join(ROOT), text).unwrap();
        }
        let older = || Before { root: true, bundle: None };
        let vault = Vault::consul(&store, &seal);
        vault.begin(a.path(), older()).await.unwrap();
        vault.begin(b.path(), older()).await.unwrap();
        assert_eq!(fs::read(b.path().join(ROOT)).unwrap(), b"root of a");
        assert_eq!(fs::read(b.path().join("root.pem.before")).unwrap(), b"root of b");
        assert!(vault.fetch(b.path()).await.unwrap());
    }

    #[tokio::test]
    async fn two_servers_that_begin_a_mesh_end_with_one_authority() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, text) in [(&a, "root of a"), (&b, "root of b")] {
            assert!(!at(&store, &seal).fetch(dir.path()).await.unwrap());
            fs::write(dir.path().join(ROOT), text).unwrap();
        }
        let nothing = || Before { root: false, bundle: None };
        at(&store, &seal).begin(a.path(), nothing()).await.unwrap();
        at(&store, &seal).begin(a.path(), nothing()).await.unwrap();
        at(&store, &seal).begin(b.path(), nothing()).await.unwrap();
        assert_eq!(fs::read(b.path().join(ROOT)).unwrap(), b"root of a");
        let (_, kept) = store.get(MESH).await.unwrap();
        let kept = kept.unwrap().value;
        assert!(!kept.windows(4).any(|w| w == b"root"), "it is sealed");

        let c = tempfile::tempdir().unwrap();
        assert!(at(&store, &seal).fetch(c.path()).await.unwrap());
        assert_eq!(fs::read(c.path().join(ROOT)).unwrap(), b"root of a");
        fs::write(c.path().join(ROOT), "another").unwrap();
        let err = at(&store, &seal).fetch(c.path()).await.unwrap_err().to_string();
        assert!(err.contains("another mesh"), "{err}");
        let other = SealKey::new(&[6; 32]).unwrap();
        let err = format!("{:#}", at(&store, &other).fetch(a.path()).await.unwrap_err());
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
        assert!(!at(&store, &seal).fetch(older.path()).await.unwrap());
        // The other one is quicker, between the look and the write.
        at(&store, &seal).keep(first.path()).await.unwrap();
        let err = at(&store, &seal).begin(older.path(), before).await.unwrap_err();
        assert!(err.to_string().contains("another mesh"), "{err}");
        let err = at(&store, &seal).keep(older.path()).await.unwrap_err();
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
        at(&store, &seal).begin(older.path(), before).await.unwrap();
        assert_eq!(fs::read(older.path().join(ROOT)).unwrap(), b"root of the first");
        assert_eq!(fs::read(older.path().join(BUNDLE)).unwrap(), b"older bundle.pem");
    }

    #[tokio::test]
    async fn an_authority_that_cannot_be_read_is_no_authority_kept() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let err = at(&store, &seal).keep(dir.path()).await.unwrap_err().to_string();
        assert!(err.contains("root.pem, the authority's key, cannot be read"), "{err}");
        assert_eq!(store.get(MESH).await.unwrap().1, None);
    }

    #[tokio::test]
    async fn authorities_of_two_kinds_lie_side_by_side() {
        let store = MemoryStore::new(Clock::system());
        let seal = SealKey::new(&[5; 32]).unwrap();
        let (mesh, consul) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(mesh.path().join(ROOT), "root of the mesh").unwrap();
        fs::write(consul.path().join(ROOT), "root of Consul's").unwrap();
        Vault::mesh(&store, &seal).keep(mesh.path()).await.unwrap();
        Vault::consul(&store, &seal).keep(consul.path()).await.unwrap();
        for (vault, text) in [
            (Vault::mesh(&store, &seal), "root of the mesh"),
            (Vault::consul(&store, &seal), "root of Consul's"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert!(vault.fetch(dir.path()).await.unwrap());
            assert_eq!(fs::read_to_string(dir.path().join(ROOT)).unwrap(), text);
        }
    }
}
