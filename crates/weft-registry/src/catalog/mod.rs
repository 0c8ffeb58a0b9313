// SPDX-License-Identifier: Apache-2.0
//! The catalog: what Consul clients register, and what checks say about it.
//!
//! The Consul door calls [`Handle`] for every write; the agent reports check results to it. It
//! plans (`plan.rs`), writes one transaction, and returns once the World shows it. It never
//! answers reads: those come from the World.
//!
//! Architecture invariant: an unchanged heartbeat writes nothing; a change of output alone is
//! written at most every [`OUTPUT_EVERY_MS`] milliseconds per check; a change of status at once.

mod alias;
mod error;
mod minding;
mod nodes;
pub(crate) mod plan;
pub(crate) mod remember;
mod timers;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use weft_base::clock::{Clock, Mono};
use weft_base::limits::CHECK_OUTPUT_BYTES_MAX;
use weft_base::name::{Label, service_slug};
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Status};
use weft_kinds::views::check::{CheckDefinition, NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use weft_kinds::world::{Catalog, CheckKey, KindId, RegistrationKey, StoreKey, World, is_mirror};
use weft_store::{Compare, Revision, Store, Txn};

pub use alias::is_spoken_for;
pub(crate) use alias::{has_joined, liveness_checks};
pub use error::CatalogError;
pub(crate) use error::too_much;
pub use plan::{ServiceRequest, check_key, registration_key};
use timers::{Due, Timers};

use crate::Leader;
use crate::consul::Barriers;

/// A change of output alone is written at most this often: outputs with a time in them would
/// wake every blocked query at every check. Consul waits for five minutes.
pub const OUTPUT_EVERY_MS: u64 = 60_000;
/// Requests about one instance follow each other; those about different ones need not.
const STRIPES: usize = 64;
type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;
/// Due deadlines worked on at a time.
const DUE_AT_ONCE: usize = 32;

/// The catalog's writing end, and what has to hold for its writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>, Arc<[Compare]>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    world: Snapshot<World>,
    clock: Clock,
    stripes: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    leader: Leader,
    timers: Mutex<Timers>,
    /// In which of this server's terms as the leader others' deadlines were taken up last.
    adopted: AtomicU64,
    outputs: Mutex<Outputs>,
    barriers: Barriers,
    /// A deadline was set that may be earlier than the one waited for.
    wake: Notify,
}

/// Outputs by check. Those of checks that are gone are let go when the table has doubled.
#[derive(Debug, Default)]
struct Outputs {
    held: HashMap<CheckKey, Output>,
    prune_at: usize,
}

/// When a check's output was last written, and what waits to be.
#[derive(Debug)]
struct Output {
    written: Mono,
    pending: Option<Arc<str>>,
}

/// The checks of a node that its agent runs, with what to ask, followed through its changes: each
/// definition is read once. TTL checks are not among them: their owner reports.
#[derive(Debug, Default)]
pub struct Runnable {
    read: BTreeMap<CheckKey, (Arc<CheckRecord>, Arc<CheckDefinition>)>,
}

// === impl Runnable ===

impl Runnable {
    /// Those that there are now, in order of their keys.
    pub fn on<'a>(
        &'a mut self,
        catalog: &Catalog,
        node: &str,
    ) -> impl Iterator<Item = (&'a CheckKey, &'a Arc<CheckDefinition>)> {
        let before = std::mem::take(&mut self.read);
        for (key, check) in catalog.asked_on(node) {
            let definition = match before.get(key) {
                Some((was, definition)) if Arc::ptr_eq(was, check) => definition.clone(),
                _ => Arc::new(check.typed()),
            };
            self.read.insert(key.clone(), (check.clone(), definition));
        }
        let all = self.read.iter().map(|(key, (_, definition))| (key, definition));
        all.filter(|(_, definition)| definition.agent && definition.probe.is_asked())
    }
}

// === impl Handle ===

impl Handle {
    /// `world` is the pump's; deadlines of the checks that it has begin now.
    pub fn new(
        store: Arc<dyn Store>,
        world: Snapshot<World>,
        clock: Clock,
        leader: Leader,
    ) -> Self {
        let mut timers = Timers::default();
        let now = clock.now();
        for (_, check) in world.load().catalog().checks() {
            timers.watch(check, now);
        }
        let inner = Inner {
            store,
            world,
            clock,
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            leader,
            timers: Mutex::new(timers),
            adopted: AtomicU64::default(),
            outputs: Mutex::default(),
            barriers: Barriers::default(),
            wake: Notify::new(),
        };
        Self(Arc::new(inner), Arc::default())
    }

    /// The same, but it writes only while these keys are as they were seen: at a revision, or not
    /// there. Else its writes fail with [`CatalogError::Overtaken`].
    #[must_use]
    pub fn given(&self, seen: &[(StoreKey, Option<u64>)]) -> Self {
        Self(self.0.clone(), seen.iter().map(unchanged).collect())
    }

    /// The same, but it writes only while all of this holds.
    fn held(&self, compares: impl IntoIterator<Item = Compare>) -> Self {
        Self(self.0.clone(), self.1.iter().cloned().chain(compares).collect())
    }

    /// The revision that the World has reached: at least that of every write that returned.
    pub fn revision(&self) -> u64 {
        self.0.world.load().revision()
    }

    /// Does what falls due until the group drains.
    pub fn run(&self, tasks: &TaskGroup) {
        self.run_aliases(tasks);
        let (handle, group) = (self.clone(), tasks.clone());
        tasks.spawn("catalog timers", async move {
            loop {
                let next = handle.timers().next();
                let now = handle.0.clock.now();
                let wait = handle.look_soon(next.map(|at| at.since(now)));
                tokio::select! {
                    () = group.draining() => return,
                    () = handle.0.wake.notified() => {}
                    () = sleep(wait) => handle.tick().await,
                }
            }
        });
    }

    /// Registers or replaces an instance; returns once reads show it.
    ///
    /// # Errors
    /// When a limit is passed, another door owns the service, or the store refuses.
    pub async fn register_service(&self, mut request: ServiceRequest) -> Result<(), CatalogError> {
        let new = &mut request.registration;
        if new.id.is_empty() {
            new.id.clone_from(&new.service);
        }
        if new.service.is_empty() || new.node.is_empty() || new.namespace.is_empty() {
            return Err(CatalogError::Invalid(
                "a registration needs a service name, a node and a namespace".to_owned(),
            ));
        }
        if let Err(why) = Label::new(&new.namespace) {
            return Err(CatalogError::Invalid(format!("the namespace does not do: {why}")));
        }
        let key = registration_key(new);
        let service = new.service.clone();
        let ids: Vec<Arc<str>> = request.checks.iter().map(|c| c.id.clone()).collect();
        let others: Vec<CheckKey> = request.others.iter().map(check_key).collect();
        let begun = self.begun();
        if request.replace_checks {
            // Those that are to go are all that there are.
            self.known().await?;
        }
        // Of whatever its checks are, so that none of these goes meanwhile.
        let beside = request.others.iter().map(|check| &*check.service_id);
        let _turns = self.turns(&key.node, beside.chain([&*key.id])).await;
        let plan = |world: &World| {
            refuse_foreign(world, &key.namespace, &service)?;
            plan::register(world.catalog(), request.clone())
        };
        self.change(begun, plan).await?;
        self.watch_checks(&key.namespace, &key.node, &ids);
        others.iter().for_each(|check| self.watch(check));
        Ok(())
    }

    /// Removes an instance and its checks.
    ///
    /// # Errors
    /// When it is unknown, another door's, or the store refuses.
    pub async fn deregister_service(&self, key: &RegistrationKey) -> Result<(), CatalogError> {
        let begun = self.begun();
        // With all checks that it has.
        self.known().await?;
        let _turn = self.turn(&key.node, &key.id).await;
        let plan = |world: &World| {
            if world.catalog().registration(key).is_none()
                && let Some(service) = world.services_of_pod(&key.namespace, &key.id).next()
            {
                return Err(owned(&key.namespace, service.name.as_str()));
            }
            plan::deregister(world.catalog(), key)
        };
        self.change(begun, plan).await
    }

    /// # Errors
    /// When it is unknown, or the store refuses.
    pub async fn deregister_check(&self, key: &CheckKey) -> Result<(), CatalogError> {
        let (world, begun) = (self.0.world.load(), self.begun());
        let of = world.catalog().check(key).map(|c| c.service_id.clone()).unwrap_or_default();
        let _turn = self.turn(&key.node, &of).await;
        self.change(begun, |world| plan::deregister_check(world.catalog(), key)).await?;
        self.timers().forget(key);
        self.outputs().held.remove(key);
        Ok(())
    }

    /// Takes an instance out of service, or puts it back.
    ///
    /// # Errors
    /// When it is unknown, or the store refuses.
    pub async fn service_maintenance(
        &self,
        key: &RegistrationKey,
        enable: bool,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let mut world = self.0.world.load();
        if world.catalog().registration(key).is_none() {
            world = self.known().await?;
        }
        let Some(service) = world.catalog().registration(key) else {
            return Err(CatalogError::UnknownService { id: key.id.to_string() });
        };
        let check = plan::maintenance_check(&key.namespace, &key.node, Some(service), reason);
        debug_assert!(check.id.starts_with(SERVICE_MAINTENANCE));
        self.maintenance(check, enable).await
    }

    /// Takes a whole node out of service, or puts it back.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn node_maintenance(
        &self,
        namespace: &str,
        node: &str,
        enable: bool,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let check = plan::maintenance_check(namespace, node, None, reason);
        debug_assert_eq!(&*check.id, NODE_MAINTENANCE);
        self.maintenance(check, enable).await
    }

    /// A result of a check that something runs: the agent, or software outside.
    ///
    /// # Errors
    /// When the check is unknown, or the store refuses.
    pub async fn report(
        &self,
        key: &CheckKey,
        status: Status,
        output: &str,
    ) -> Result<(), CatalogError> {
        // It was heard, however long others have the turn, and also when who tells it hangs up.
        self.learn(key);
        self.timers().beat(key, self.0.clock.now());
        self.0.wake.notify_one();
        let _turn = self.turn(&key.node, &key.id).await;
        self.tell(key, status, output).await
    }

    /// A sign of life from a TTL check's owner.
    ///
    /// # Errors
    /// When the check is unknown or of another type, or the store refuses.
    pub async fn report_ttl(
        &self,
        key: &CheckKey,
        status: Status,
        output: &str,
    ) -> Result<(), CatalogError> {
        let mut world = self.0.world.load();
        if world.catalog().check(key).is_none() {
            world = self.known().await?;
        }
        let Some(check) = world.catalog().check(key) else {
            return Err(CatalogError::UnknownCheck { id: key.id.to_string() });
        };
        if check.typed().probe.ttl_ms().is_none() {
            return Err(CatalogError::NotTtl { id: key.id.to_string() });
        }
        self.report(key, status, output).await
    }

    /// A newer output of a check than the World shows yet: this agent's own, held back.
    pub fn pending_output(&self, key: &CheckKey) -> Option<Arc<str>> {
        self.outputs().held.get(key).and_then(|held| held.pending.clone())
    }

    /// Does what is due now. The task of [`Handle::run`] calls this; so do tests.
    pub async fn tick(&self) {
        let world = self.0.world.load();
        self.adopt(&world);
        let due = self.timers().step(world.catalog(), self.0.clock.now());
        drop(world);
        futures_util::stream::iter(due)
            .for_each_concurrent(DUE_AT_ONCE, |due| async move {
                if let Err(why) = self.attend(&due).await {
                    tracing::warn!(?due, %why, "a catalog deadline was not attended to");
                    if let Due::Expired(key) = &due
                        && why.is_passing()
                    {
                        self.timers().again(key, self.0.clock.now());
                    }
                }
            })
            .await;
    }
}

// === inside ===

impl Handle {
    async fn attend(&self, due: &Due) -> Result<(), CatalogError> {
        match due {
            Due::Expired(key) if self.is_process(key) => self.let_go(key).await,
            Due::Expired(key) => {
                let _turn = self.turn(&key.node, &key.id).await;
                if !self.timers().is_expired(key, self.0.clock.now()) {
                    return Ok(());
                }
                let world = self.0.world.load();
                if !self.is_mine(&world, key) {
                    return Ok(());
                }
                let Some(writer) = self.minder(key).await? else { return Ok(()) };
                let last = world.catalog().result(key).map(|r| r.output.clone());
                let output = match last.filter(|output| !output.is_empty()) {
                    Some(last) if last.starts_with("TTL expired") => last.to_string(),
                    Some(last) => {
                        format!("TTL expired (last output before timeout follows): {last}")
                    }
                    None => "TTL expired".to_owned(),
                };
                writer.tell(key, Status::Critical, &output).await
            }
            Due::Flush(key) => {
                let _turn = self.turn(&key.node, &key.id).await;
                let Some(output) = self.pending_output(key) else { return Ok(()) };
                let status = self.0.world.load().catalog().status(key);
                self.write_status(key, status, output).await?;
                let written = self.0.clock.now();
                self.outputs().held.insert(key.clone(), Output { written, pending: None });
                Ok(())
            }
            Due::Reap { key, service_id } => self.reap(key, service_id).await,
        }
    }

    /// Writes a status when it says something new. The check's turn is held.
    async fn tell(&self, key: &CheckKey, status: Status, output: &str) -> Result<(), CatalogError> {
        let world = self.0.world.load();
        let Some(check) = world.catalog().check(key) else {
            return Err(CatalogError::UnknownCheck { id: key.id.to_string() });
        };
        let output: Arc<str> = bounded(output, check.typed().output_bytes_max).into();
        let known = world.catalog().result(key);
        let shown = known.map_or_else(|| check.initial_output(), |r| r.output.clone());
        let now = self.0.clock.now();
        let alone = world.catalog().status(key) == status;
        if alone && !self.is_anothers(known.map(|k| &**k)) {
            if shown == output {
                if let Some(held) = self.outputs().held.get_mut(key) {
                    held.pending = None;
                }
                return Ok(());
            }
            let mut outputs = self.outputs();
            if let Some(held) = outputs.held.get_mut(key) {
                let at = held.written.plus(Duration::from_millis(OUTPUT_EVERY_MS));
                if at > now {
                    held.pending = Some(output);
                    drop(outputs);
                    self.timers().flush_at(key, at);
                    self.0.wake.notify_one();
                    return Ok(());
                }
            }
        }
        self.write_status(key, status, output).await?;
        if alone {
            let written = self.0.clock.now();
            self.outputs().held.insert(key.clone(), Output { written, pending: None });
        } else {
            // What was held back is older than this.
            self.outputs().held.remove(key);
        }
        Ok(())
    }

    async fn maintenance(&self, check: CheckRecord, enable: bool) -> Result<(), CatalogError> {
        if check.id.is_empty() {
            return Err(CatalogError::Invalid("a check needs an id".to_owned()));
        }
        let (key, begun) = (check_key(&check), self.begun());
        let _turn = self.turn(&check.node, &check.service_id).await;
        let plan = |world: &World| {
            if enable {
                let node = NodeRecord { node: check.node.clone(), ..NodeRecord::default() };
                plan::register_check(world.catalog(), &node, check.clone())
            } else if world.catalog().check(&key).is_some() {
                plan::deregister_check(world.catalog(), &key)
            } else {
                Ok(Txn::default())
            }
        };
        self.change(begun, plan).await
    }

    /// Starts the deadlines of a definition that a transaction wrote.
    pub(crate) fn watch(&self, check: &CheckKey) {
        self.watch_checks(&check.namespace, &check.node, std::slice::from_ref(&check.id));
    }

    /// Starts the deadlines of definitions just written, and prunes outputs of those gone.
    fn watch_checks(&self, namespace: &Arc<str>, node: &Arc<str>, ids: &[Arc<str>]) {
        let world = self.0.world.load();
        let now = self.0.clock.now();
        for id in ids {
            let (namespace, node, id) = (namespace.clone(), node.clone(), id.clone());
            let key = CheckKey { namespace, node, id };
            if let Some(check) = world.catalog().check(&key) {
                self.timers().watch(check, now);
            }
        }
        let mut outputs = self.outputs();
        if outputs.held.len() > outputs.prune_at {
            outputs.held.retain(|key, _| world.catalog().check(key).is_some());
            outputs.prune_at = 2 * outputs.held.len() + STRIPES;
        }
        drop(outputs);
        self.0.wake.notify_one();
    }

    /// Waits for one's turn to change what this id names on this node.
    async fn turn(&self, node: &str, id: &str) -> Option<Turn<'_>> {
        self.turns(node, [id]).await.pop()
    }

    /// The same of several ids; in one order whoever asks, so that nobody waits in a circle.
    async fn turns<'a>(&self, node: &str, ids: impl IntoIterator<Item = &'a str>) -> Vec<Turn<'_>> {
        let of = |id| usize::try_from(self.0.hasher.hash_one((node, id)) % STRIPES as u64).ok();
        let places: BTreeSet<usize> = ids.into_iter().filter_map(of).collect();
        let mut turns = Vec::with_capacity(places.len());
        for stripe in places.into_iter().filter_map(|at| self.0.stripes.get(at)) {
            turns.push(stripe.lock().await);
        }
        turns
    }

    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.0.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.0.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === helpers ===

pub(crate) fn unchanged((key, modified): &(StoreKey, Option<u64>)) -> Compare {
    let key = key.to_string().into();
    match modified {
        Some(modified) => Compare::ModRevision(key, Revision(*modified)),
        None => Compare::Absent(key),
    }
}

/// A service made through the Kubernetes door is read-only here.
pub(crate) fn refuse_foreign(
    world: &World,
    namespace: &str,
    service: &str,
) -> Result<(), CatalogError> {
    match world.get(KindId::Service, namespace, &service_slug(service)) {
        Some(object) if !is_mirror(&object.meta) => Err(owned(namespace, service)),
        _ => Ok(()),
    }
}

fn owned(namespace: &str, service: &str) -> CatalogError {
    CatalogError::Owned {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        owner: "Kubernetes".to_owned(),
    }
}

/// As much of an output as is kept; 0 is what may be kept at most.
fn bounded(output: &str, most: u64) -> &str {
    let most = match usize::try_from(most) {
        Ok(most @ 1..CHECK_OUTPUT_BYTES_MAX) => most,
        _ => CHECK_OUTPUT_BYTES_MAX,
    };
    let mut end = output.len().min(most);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output.get(..end).unwrap_or_default()
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        // Deadlines count whole milliseconds: a moment more, so that they have passed.
        Some(wait) => tokio::time::sleep(wait + Duration::from_millis(1)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
