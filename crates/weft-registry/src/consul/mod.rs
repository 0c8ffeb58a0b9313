// SPDX-License-Identifier: Apache-2.0
//! What only Consul's API knows: pairs, sessions and their locks, events, and tables of records.
//! Catalog and checks are next door (`catalog`), since every door shares them.
//!
//! The Consul door reads [`State`] and waits on the [`Shelf`]; for writes it calls [`Handle`],
//! which plans on a look at the state, writes one store transaction that holds only if nothing
//! that the plan saw has changed, and plans again when something has. It returns once reads show
//! what was written.

mod barrier;
mod contact;
mod error;
mod event;
pub mod keys;
pub mod kv;
mod records;
mod session;
mod shelf;
mod snapshot;
mod state;
mod txn;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::world::World;
use weft_store::{Compare, Op, Store, Txn};

pub use contact::{Contact, Peer, SILENT_AFTER};
pub use error::ConsulError;
pub use event::{Event, PAYLOAD_BYTES_MAX};
pub use kv::{Draft, Pair, Seen, VALUE_BYTES_MAX};
pub use records::{COORDINATES, Change, RECORDS_MAX};
pub use session::{Behavior, LOCK_DELAY_MS_MAX, Session};
pub use shelf::{Shelf, Waiter};
pub use snapshot::Dump;
pub use state::{Item, State, Topic, What};
pub use txn::{CatalogDraft, CatalogOp, UNWRITTEN};

use crate::catalog::CatalogError;
use crate::{Leader, WorldWatch, catalog};
pub(crate) use barrier::Barriers;

/// How often a plan that was overtaken is made anew.
const ATTEMPTS: usize = 100;
/// Requests about one key follow each other; those about different ones need not.
const STRIPES: usize = 64;
/// Keys deleted in one transaction.
const DELETE_AT_ONCE: usize = 120;

/// The writing end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    world: Snapshot<World>,
    shelf: Arc<Shelf>,
    catalog: catalog::Handle,
    tasks: TaskGroup,
    leader: Leader,
    contact: Arc<Contact>,
    stripes: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
}

// === impl Handle ===

impl Handle {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        world: Snapshot<World>,
        shelf: Arc<Shelf>,
        catalog: catalog::Handle,
        tasks: TaskGroup,
        leader: Leader,
    ) -> Self {
        let stripes = (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect();
        let hasher = RandomState::new();
        let contact = Arc::new(Contact::new(leader.clone()));
        Self(Arc::new(Inner {
            store,
            world,
            shelf,
            catalog,
            tasks,
            leader,
            contact,
            stripes,
            hasher,
        }))
    }

    /// Ends what is over until the tasks drain.
    pub(crate) fn run(&self, changes: WorldWatch) {
        let handle = self.clone();
        self.0.tasks.spawn("consul sessions", handle.watch_sessions(changes));
        if self.contact().is_shared() {
            let following =
                self.0.contact.clone().follow(self.0.store.clone(), self.0.tasks.clone());
            self.0.tasks.spawn("contact with the store", following);
        }
    }

    /// Whether the store can be reached, and by whom.
    pub fn contact(&self) -> &Contact {
        &self.0.contact
    }

    /// What is true now.
    pub fn state(&self) -> State {
        self.0.shelf.state()
    }

    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.0.shelf
    }

    /// Waits until reads here show every write that was acknowledged before, by any server; the
    /// revision that does.
    ///
    /// # Errors
    /// When the store cannot say, or the registry stops.
    pub async fn barrier(&self) -> Result<u64, ConsulError> {
        self.barrier_since(self.begun()).await
    }

    /// The same of what was acknowledged when so many barriers were begun: who waits for a turn
    /// first shares one with all who do.
    async fn barrier_since(&self, before: u64) -> Result<u64, ConsulError> {
        let revision = self.catalog().barriers().pass(before, &*self.0.store).await?;
        self.reached(revision.0).await?;
        Ok(revision.0)
    }

    fn begun(&self) -> u64 {
        self.catalog().barriers().begun()
    }

    /// Does verbs on pairs; `verbs` may run several times, each time on a newer state. Returns
    /// the revision written, or looked at when nothing changed.
    ///
    /// # Errors
    /// What `verbs` refuses with, or when the store does.
    pub async fn pairs<T>(
        &self,
        key: &str,
        verbs: impl Fn(&mut Draft) -> Result<T, ConsulError>,
    ) -> Result<(u64, T), ConsulError> {
        let begun = self.begun();
        let _turn = self.turn(key).await;
        let plan = |state: &State| {
            let mut draft = Draft::new(state);
            let out = verbs(&mut draft)?;
            Ok::<_, ConsulError>((draft.into_txn()?, out))
        };
        self.attempt_given(Some(begun), &[], plan).await
    }

    /// Deletes every pair under a prefix, in parts when there are many.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn delete_tree(&self, prefix: &str) -> Result<(), ConsulError> {
        self.caught_up().await?;
        loop {
            let state = self.state();
            let keys = state.under(prefix).map(|(key, _)| key.clone());
            let txn = Txn::of(keys.take(DELETE_AT_ONCE).map(Op::delete));
            if txn.ops.is_empty() {
                return Ok(());
            }
            self.attempt(|_| Ok::<_, ConsulError>((txn.clone(), ()))).await?;
        }
    }

    /// Waits, where other servers write to the store, until reads here show what any of them
    /// acknowledged before. What depends on all that is under a prefix asks for it first: what is
    /// not known yet cannot be compared.
    ///
    /// # Errors
    /// As [`Handle::barrier`].
    pub async fn caught_up(&self) -> Result<(), ConsulError> {
        match self.contact().is_shared() {
            true => self.barrier().await.map(|_| ()),
            false => Ok(()),
        }
    }

    /// Plans and writes until a plan holds.
    ///
    /// # Errors
    /// What the plan refuses with; [`ConsulError::Contended`] when it was always overtaken.
    pub async fn attempt<T, E: From<ConsulError>>(
        &self,
        plan: impl Fn(&State) -> Result<(Txn, T), E>,
    ) -> Result<(u64, T), E> {
        self.attempt_given(Some(self.begun()), &[], plan).await
    }

    /// The same, as long as all of `given` holds; that no newer plan can mend.
    ///
    /// What looks done already, or cannot be done, may be another matter in what another server
    /// acknowledged before: until that is said the plan is made on a state that has it. `begun`:
    /// the barriers that were begun when the request came; `None` where such a state is here.
    async fn attempt_given<T, E: From<ConsulError>>(
        &self,
        mut begun: Option<u64>,
        given: &[Compare],
        plan: impl Fn(&State) -> Result<(Txn, T), E>,
    ) -> Result<(u64, T), E> {
        begun = begun.filter(|_| self.contact().is_shared());
        for _ in 0..ATTEMPTS {
            let state = self.state();
            let planned = plan(&state);
            let writes = planned.as_ref().is_ok_and(|(txn, _)| !txn.ops.is_empty());
            if let (false, Some(begun)) = (writes, begun.take_if(|_| !writes)) {
                self.barrier_since(begun).await?;
                continue;
            }
            let (mut txn, out) = planned?;
            if txn.ops.is_empty() {
                return Ok((state.revision(), out));
            }
            let own = txn.compares.len();
            let more: Vec<Compare> =
                given.iter().filter(|one| !txn.compares.contains(one)).cloned().collect();
            txn.compares.extend(more);
            let done = self.0.store.txn(txn).await.map_err(ConsulError::from)?;
            self.reached(done.revision.0).await?;
            if done.succeeded {
                return Ok((done.revision.0, out));
            }
            if done.failed.is_some_and(|at| at >= own) {
                return Err(ConsulError::from(CatalogError::Overtaken).into());
            }
        }
        Err(ConsulError::Contended.into())
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    fn catalog(&self) -> &catalog::Handle {
        &self.0.catalog
    }

    fn world(&self) -> Arc<World> {
        self.0.world.load()
    }

    fn leader(&self) -> &Leader {
        &self.0.leader
    }

    fn tasks(&self) -> &TaskGroup {
        &self.0.tasks
    }

    async fn reached(&self, revision: u64) -> Result<(), ConsulError> {
        let mut world = self.0.world.clone();
        while world.load().revision() < revision {
            if !world.changed().await {
                return Err(ConsulError::Closed);
            }
        }
        Ok(())
    }

    /// Waits for one's turn to change what a key names.
    async fn turn(&self, key: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let at = self.0.hasher.hash_one(key) % STRIPES as u64;
        match usize::try_from(at).ok().and_then(|at| self.0.stripes.get(at)) {
            Some(stripe) => Some(stripe.lock().await),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests;
