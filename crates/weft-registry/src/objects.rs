// SPDX-License-Identifier: Apache-2.0
//! Kubernetes-style objects as raw JSON: create, change, delete and watch with optimistic
//! concurrency. `metadata.resourceVersion` is the store's revision and is never stored.
//!
//! Called by the Kubernetes door, the binary (manifests), the agent's link and control's
//! statuses. Reading is the World's; a write returns only when the World has it.

pub mod addresses;
pub mod admit;
mod error;
pub mod mesh_ports;
pub mod meta;
mod watch;

use bytes::Bytes;
use serde_json::Value;
use weft_base::limits;
use weft_base::name::ServiceKey;
use weft_kinds::kind::KindId;
use weft_kinds::world::{OWNER_ANNOTATION, World};
use weft_store::{Class, Compare, Entry, Op, Revision, Txn};

pub use error::ObjectError;
pub use watch::{ObjectEvent, ObjectWatch};

use self::admit::Extra;
use self::meta::{Birth, Deletion, text};
use crate::{Registry, leader};

/// Tries before a write that others keep overtaking is given up.
const TRIES: usize = 32;

/// The objects API. Cloning shares the registry.
#[derive(Clone, Debug)]
pub struct Objects {
    registry: Registry,
    /// What has to hold for its writes, besides.
    given: Vec<Compare>,
}

/// How something is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Say what would be written, and write nothing.
    pub dry_run: bool,
    /// Written by weft itself: statuses are taken, objects of other doors may be changed.
    pub system: bool,
}

/// Which part of an object a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status, where the kind has a status subresource.
    Spec,
    /// Only the status.
    Status,
    /// Everything: weft's own writes.
    All,
}

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// What the object must be for a deletion to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub revision: Option<u64>,
}

/// How something is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Absent means background.
    pub propagation: Option<Propagation>,
    /// Seconds a pod is given; its own choice when absent. 0 from the agent: the process ended.
    pub grace_s: Option<i64>,
    pub preconditions: Preconditions,
    pub write: WriteOptions,
    /// The namespace controller found the namespace empty.
    pub(crate) finished: bool,
}

/// What a deletion did.
#[derive(Clone, Debug, PartialEq)]
pub struct Deleted {
    /// As it is now, or as it was last.
    pub object: Value,
    /// It is gone; otherwise it is marked and goes when its finalizers or process are done.
    pub gone: bool,
}

/// An object as stored, and at which revision.
struct Stored {
    raw: Value,
    revision: Revision,
}

// === impl WriteOptions ===

impl WriteOptions {
    /// weft's own writes.
    pub const SYSTEM: Self = Self { dry_run: false, system: true };
}

// === impl Objects ===

impl Objects {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, given: Vec::new() }
    }

    /// The same, but it writes only while this server leads.
    #[must_use]
    pub fn as_leader(mut self) -> Self {
        self.given.extend(self.registry.leader().fence());
        self
    }

    /// The same, but it writes only while this holds.
    #[must_use]
    pub(crate) fn when(mut self, compare: Compare) -> Self {
        self.given.push(compare);
        self
    }

    /// One object as doors show it, from the World.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`].
    pub fn get(&self, kind: KindId, namespace: &str, name: &str) -> Result<Value, ObjectError> {
        let world = self.registry.now();
        let object = world.get(kind, scope(kind, namespace), name);
        let object = object.ok_or_else(|| not_found(kind, name))?;
        Ok(meta::present(&object.raw.fresh(), object.revision))
    }

    /// All objects of a kind, and the revision to watch from.
    pub fn list(&self, kind: KindId, namespace: Option<&str>) -> (u64, Vec<Value>) {
        let world = self.registry.now();
        let namespace = namespace.filter(|_| kind.row().namespaced);
        let items =
            world.objects(kind, namespace).map(|o| meta::present(&o.raw.fresh(), o.revision));
        (world.revision(), items.collect())
    }

    /// Changes after `resource_version`: what a list was read at.
    ///
    /// # Errors
    /// [`ObjectError::Expired`] when the log no longer holds it.
    pub fn watch(
        &self,
        kind: KindId,
        namespace: Option<&str>,
        resource_version: u64,
    ) -> Result<ObjectWatch, ObjectError> {
        ObjectWatch::new(&**self.registry.store(), kind, namespace, resource_version)
    }

    /// Writes a new object and returns it as doors show it.
    ///
    /// # Errors
    /// When it exists, its namespace does not, or it is not acceptable.
    pub async fn create(
        &self,
        kind: KindId,
        namespace: &str,
        raw: Value,
        options: WriteOptions,
    ) -> Result<Value, ObjectError> {
        check_owner(kind, &raw, options)?;
        for _ in 0..TRIES {
            let world = self.registry.now();
            check_namespace(&world, kind, namespace, options)?;
            let wall = self.registry.clock().wall_ms();
            let birth = self.registry.with_rng(|rng| Birth::new(wall, rng));
            let mut new = meta::create(kind, namespace, raw.clone(), &birth, options.system)?;
            let extra = admit::complete(&world, kind, None, &mut new)?;
            let name = text(&new, "name").to_owned();
            check_catalog(&world, kind, namespace, &name, options)?;
            let value = encode(kind, &new)?;
            let key = kind.row().key(namespace, &name);
            if options.dry_run {
                return match world.get(kind, scope(kind, namespace), &name) {
                    Some(_) => Err(ObjectError::AlreadyExists { kind, name }),
                    None => Ok(new),
                };
            }
            let mut txn = Txn::of([self.put(kind, &key, value).await?])
                .when(Compare::Absent(key.as_str().into()));
            if kind.row().namespaced && !options.system {
                let home = KindId::Namespace.row().key("", namespace);
                txn = txn.when(Compare::Exists(home.into()));
            }
            match self.commit(txn, extra).await? {
                Ok(revision) => return Ok(meta::present(&new, revision.0)),
                Err(0) if text(&raw, "name").is_empty() => {}
                Err(0) => return Err(ObjectError::AlreadyExists { kind, name }),
                Err(_) => self.catch_up().await?,
            }
        }
        Err(busy(kind))
    }

    /// Replaces an object (or its status). With a `metadata.resourceVersion` it must be the
    /// present one.
    ///
    /// # Errors
    /// When it is gone, was changed meanwhile, or is not acceptable.
    pub async fn update(
        &self,
        kind: KindId,
        namespace: &str,
        raw: Value,
        part: Part,
        options: WriteOptions,
    ) -> Result<Value, ObjectError> {
        let name = text(&raw, "name").to_owned();
        let expected = match text(&raw, "resourceVersion") {
            "" => None,
            version => Some(version.parse::<u64>().map_err(|_| {
                ObjectError::BadRequest(format!("resourceVersion {version:?} is not a number"))
            })?),
        };
        let change = Change { kind, namespace, name: &name, part, options };
        self.change(change, |_, revision| match expected {
            Some(expected) if expected != revision => Err(ObjectError::stale(kind, &name)),
            _ => Ok(raw.clone()),
        })
        .await
    }

    /// Reads an object, lets `f` change it and writes it, again from the start when somebody
    /// else wrote meanwhile. `f` sees the object with its resourceVersion.
    ///
    /// # Errors
    /// When it is gone, or `f` or the result is not acceptable.
    pub async fn modify(
        &self,
        change: Change<'_>,
        mut f: impl FnMut(&Value) -> Result<Value, ObjectError>,
    ) -> Result<Value, ObjectError> {
        self.change(change, |raw, revision| f(&meta::present(raw, revision))).await
    }

    async fn change(
        &self,
        change: Change<'_>,
        mut f: impl FnMut(&Value, u64) -> Result<Value, ObjectError>,
    ) -> Result<Value, ObjectError> {
        let Change { kind, namespace, name, part, options } = change;
        for _ in 0..TRIES {
            let old = self.stored(kind, namespace, name).await?;
            check_owner(kind, &old.raw, options)?;
            let wanted = f(&old.raw, old.revision.0)?;
            let mut new = meta::update(kind, &old.raw, wanted, part)?;
            check_owner(kind, &new, options)?;
            let world = self.registry.now();
            let extra = match part {
                Part::Status => Extra::default(),
                Part::Spec | Part::All => admit::complete(&world, kind, Some(&old.raw), &mut new)?,
            };
            let value = encode(kind, &new)?;
            if new == old.raw || options.dry_run {
                return Ok(meta::present(&new, old.revision.0));
            }
            let key = kind.row().key(namespace, name);
            let (op, extra) = match meta::may_go(kind, &new) {
                true => (Op::delete(key.as_str()), admit::release(&world, kind, &new)),
                false => (self.put(kind, &key, value).await?, extra),
            };
            let txn = Txn::of([op]).when(Compare::ModRevision(key.into(), old.revision));
            match self.commit(txn, extra).await? {
                Ok(revision) => return Ok(meta::present(&new, revision.0)),
                Err(0) => {}
                Err(_) => self.catch_up().await?,
            }
        }
        Err(busy(kind))
    }

    /// Writes a status when it differs from the one that is there. Returns whether it did.
    ///
    /// # Errors
    /// When the object is gone.
    pub async fn write_status(
        &self,
        kind: KindId,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<bool, ObjectError> {
        let world = self.registry.now();
        let known = world.get(kind, scope(kind, namespace), name);
        if known.is_some_and(|o| o.raw.get("status") == Some(status)) {
            return Ok(false);
        }
        let options = WriteOptions::SYSTEM;
        let change = Change { kind, namespace, name, part: Part::Status, options };
        let mut wrote = false;
        self.change(change, |raw, _| {
            let mut new = raw.clone();
            new["status"] = reported(kind, raw, status);
            wrote = new != *raw;
            Ok(new)
        })
        .await?;
        Ok(wrote)
    }

    /// Deletes an object, or marks it so that its finalizers or its process can finish.
    ///
    /// # Errors
    /// When it is not there, a precondition does not hold, or it may not be deleted.
    pub async fn delete(
        &self,
        kind: KindId,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, ObjectError> {
        for _ in 0..TRIES {
            let old = self.stored(kind, namespace, name).await?;
            check_owner(kind, &old.raw, options.write)?;
            meta::check_preconditions(kind, &old.raw, old.revision.0, &options.preconditions)?;
            if kind == KindId::Namespace && matches!(name, "default" | "kube-system") {
                let why = "this namespace may not be deleted".into();
                return Err(ObjectError::Forbidden { kind, name: name.into(), why });
            }
            let now = meta::timestamp(self.registry.clock().wall_ms());
            let key = kind.row().key(namespace, name);
            let (op, extra, object, gone) = match meta::delete(kind, &old.raw, options, &now) {
                Deletion::Pending => {
                    let object = meta::present(&old.raw, old.revision.0);
                    return Ok(Deleted { object, gone: false });
                }
                Deletion::Remove => {
                    let extra = admit::release(&self.registry.now(), kind, &old.raw);
                    (Op::delete(key.as_str()), extra, old.raw, true)
                }
                Deletion::Mark(new) => {
                    let value = encode(kind, &new)?;
                    (self.put(kind, &key, value).await?, Extra::default(), new, false)
                }
            };
            if options.write.dry_run {
                let object = meta::present(&object, old.revision.0);
                return Ok(Deleted { object, gone });
            }
            let txn = Txn::of([op]).when(Compare::ModRevision(key.into(), old.revision));
            if let Ok(revision) = self.commit(txn, extra).await? {
                let object = meta::present(&object, revision.0);
                return Ok(Deleted { object, gone });
            }
        }
        Err(busy(kind))
    }

    async fn stored(
        &self,
        kind: KindId,
        namespace: &str,
        name: &str,
    ) -> Result<Stored, ObjectError> {
        let key = kind.row().key(namespace, name);
        let (_, entry) = self.registry.store().get(&key).await?;
        let Entry { value, modified, .. } = entry.ok_or_else(|| not_found(kind, name))?;
        let raw =
            serde_json::from_slice(&value).map_err(|_| weft_store::StoreError::Corrupt { key })?;
        Ok(Stored { raw, revision: modified })
    }

    /// How a kind is kept: Events in memory and for about an hour, everything else on disk.
    async fn put(&self, kind: KindId, key: &str, value: Bytes) -> Result<Op, ObjectError> {
        if kind != KindId::Event {
            return Ok(Op::put(key, value));
        }
        let lease = Some(self.registry.event_lease().get().await?);
        Ok(Op::Put { key: key.into(), value, class: Class::Ephemeral, lease })
    }

    /// Commits and waits until the World has it; the inner error is the comparison that failed.
    async fn commit(
        &self,
        mut txn: Txn,
        extra: Extra,
    ) -> Result<Result<Revision, usize>, ObjectError> {
        txn.compares.extend(extra.compares);
        txn.ops.extend(extra.ops);
        let own = txn.compares.len();
        txn.compares.extend_from_slice(&self.given);
        let outcome = self.registry.store().txn(txn).await?;
        if !outcome.succeeded {
            if let Some(given) = outcome.failed.and_then(|at| at.checked_sub(own)) {
                let fenced = self.given.get(given).is_some_and(|c| &**c.key() == leader::KEY);
                let why = if fenced { "another server leads now" } else { "it was overtaken" };
                return Err(ObjectError::Busy(why.to_owned()));
            }
            return Ok(Err(outcome.failed.unwrap_or(0)));
        }
        self.registry.wait_revision(outcome.revision).await;
        Ok(Ok(outcome.revision))
    }

    /// Waits for the World to see what another writer did.
    async fn catch_up(&self) -> Result<(), ObjectError> {
        let head = self.registry.store().barrier().await?;
        self.registry.wait_revision(head).await;
        Ok(())
    }
}

/// What [`Objects::modify`] changes.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub kind: KindId,
    pub namespace: &'a str,
    pub name: &'a str,
    pub part: Part,
    pub options: WriteOptions,
}

/// The namespace part of a key: empty for cluster-scoped kinds.
fn scope(kind: KindId, namespace: &str) -> &str {
    if kind.row().namespaced { namespace } else { "" }
}

fn not_found(kind: KindId, name: &str) -> ObjectError {
    ObjectError::NotFound { kind, name: name.to_owned() }
}

fn busy(kind: KindId) -> ObjectError {
    ObjectError::Busy(format!("{} keep changing under this request", kind.row().resource()))
}

fn encode(kind: KindId, object: &Value) -> Result<Bytes, ObjectError> {
    let text = object.to_string();
    let (bytes, max) = (text.len(), limits::STORE_VALUE_BYTES_MAX);
    match bytes > max {
        true => {
            let name = text_of(object);
            Err(ObjectError::TooLarge { kind, name, bytes, max })
        }
        false => Ok(text.into()),
    }
}

fn text_of(object: &Value) -> String {
    text(object, "name").to_owned()
}

/// Objects that another door made are read-only here, and nobody may pretend to be one.
fn check_owner(kind: KindId, raw: &Value, options: WriteOptions) -> Result<(), ObjectError> {
    match admit::annotation(raw, OWNER_ANNOTATION) {
        "" | "kubernetes" => Ok(()),
        _ if options.system => Ok(()),
        owner => {
            let owner = owner.split('/').next().unwrap_or(owner).to_owned();
            Err(ObjectError::Owned { kind, name: text_of(raw), owner })
        }
    }
}

/// A name that Consul clients registered first is theirs, even before its mirror is there.
fn check_catalog(
    world: &World,
    kind: KindId,
    namespace: &str,
    name: &str,
    options: WriteOptions,
) -> Result<(), ObjectError> {
    if kind != KindId::Service || options.system {
        return Ok(());
    }
    let service = ServiceKey::new(namespace, name);
    let taken = service.is_ok_and(|s| world.catalog().of_service(&s).next().is_some());
    match taken && world.get(kind, namespace, name).is_none() {
        true => {
            let owner = crate::controllers::mirror::OWNER.to_owned();
            Err(ObjectError::Owned { kind, name: name.to_owned(), owner })
        }
        false => Ok(()),
    }
}

fn check_namespace(
    world: &World,
    kind: KindId,
    namespace: &str,
    options: WriteOptions,
) -> Result<(), ObjectError> {
    if !kind.row().namespaced || options.system {
        return Ok(());
    }
    let Some(home) = world.get(KindId::Namespace, "", namespace) else {
        return Err(not_found(KindId::Namespace, namespace));
    };
    match home.meta.is_deleting() {
        true => {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being \
                 terminated"
            );
            Err(ObjectError::Forbidden { kind, name: namespace.to_owned(), why })
        }
        false => Ok(()),
    }
}

/// What an agent says of a pod, with what it need not know: the address that was given when the
/// pod was placed, and that a pod which is always restarted does not end. An agent that is being
/// stopped ends its processes too; they run again when it is back, in the same pods.
fn reported(kind: KindId, object: &Value, status: &Value) -> Value {
    let mut new = status.clone();
    if kind != KindId::Pod || !new.is_object() {
        return new;
    }
    let old = &object["status"];
    for field in ["podIP", "podIPs"] {
        if let Some(known) = old.get(field) {
            new[field] = known.clone();
        }
    }
    let policy = object["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    let ended = matches!(new["phase"].as_str(), Some("Succeeded" | "Failed"));
    // One that was evicted says why.
    let evicted = new["reason"].as_str().is_some_and(|r| !r.is_empty());
    let was = old["phase"].as_str().filter(|p| !matches!(*p, "Succeeded" | "Failed"));
    if ended && !evicted && policy == "Always" && !meta::is_deleting(object) {
        new["phase"] = Value::from(was.unwrap_or("Pending"));
    }
    new
}

#[cfg(test)]
mod tests;
