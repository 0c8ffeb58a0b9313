// SPDX-License-Identifier: Apache-2.0
//! Sessions: who may hold locks, and what ends them. A session ends with its time to live (the
//! lease of its beat), its node, any of its checks, or on request; what it holds is then given
//! back or deleted, and stays out of reach for its lock delay.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::{SERF_HEALTH, SERF_NAMESPACE};
use weft_kinds::world::{CheckKey, ReadKey, World};
use weft_store::{Class, Compare, LeaseId, Op, Revision, Txn};

use super::error::ConsulError;
use super::kv::Pair;
use super::state::{State, What};
use super::{Handle, keys};
use crate::WorldChange;

/// Bounds of a time to live, and of a lock delay.
pub const TTL_MS_MIN: u64 = 10_000;
pub const TTL_MS_MAX: u64 = 86_400_000;
pub const LOCK_DELAY_MS_MAX: u64 = 60_000;
/// Sessions at a time.
pub const SESSIONS_MAX: usize = 100_000;
/// Consul waits up to twice the time before it ends a session.
const GRACE: u32 = 2;
/// Pairs given back in one transaction.
const RELEASE_AT_ONCE: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Behavior {
    /// What it held is free.
    #[default]
    Release,
    /// What it held is gone.
    Delete,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Session {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub node: Arc<str>,
    pub lock_delay_ms: u64,
    pub behavior: Behavior,
    /// 0 when it does not end by itself.
    pub ttl_ms: u64,
    /// The same as the client wrote it.
    pub ttl: String,
    pub node_checks: Vec<Arc<str>>,
    pub service_checks: Vec<Arc<str>>,
    /// The lease of its beat; 0 for none.
    #[serde(default)]
    pub lease: u64,
    /// It takes no more locks, and what it holds is being given back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

// === impl Session ===

impl Session {
    fn checks(&self) -> impl Iterator<Item = &Arc<str>> {
        self.node_checks.iter().chain(&self.service_checks)
    }

    /// Why the session cannot live in a World.
    pub fn fault(&self, world: &World) -> Option<String> {
        let catalog = world.catalog();
        if catalog.node(&self.node).is_none() {
            return Some(format!("Missing node registration: {:?}", self.node));
        }
        for id in self.checks() {
            let namespace = match **id == *SERF_HEALTH {
                true => SERF_NAMESPACE.into(),
                false => self.namespace.clone(),
            };
            let key = CheckKey { namespace, node: self.node.clone(), id: id.clone() };
            match catalog.check(&key) {
                None if **id == *SERF_HEALTH => {}
                None => return Some(format!("Missing check '{id}' registration")),
                Some(_) if catalog.status(&key) == Status::Critical => {
                    return Some(format!("Check '{id}' is in critical state"));
                }
                Some(_) => {}
            }
        }
        None
    }
}

impl Handle {
    /// Makes a session; its id is fresh. The node must be in the catalog.
    ///
    /// # Errors
    /// When its node or a check is missing or critical, a bound is passed, or the store refuses.
    pub async fn create_session(&self, mut session: Session) -> Result<Session, ConsulError> {
        check_bounds(&session)?;
        if self.state().sessions().count() >= SESSIONS_MAX {
            let (found, max) = (SESSIONS_MAX + 1, SESSIONS_MAX);
            return Err(ConsulError::TooMuch { what: "the list of sessions", found, max });
        }
        if session.fault(&self.world()).is_some() {
            self.caught_up().await?;
        }
        if let Some(fault) = session.fault(&self.world()) {
            return Err(ConsulError::Invalid(fault));
        }
        let lease = match session.ttl_ms {
            0 => None,
            ms => Some(self.store().lease_grant(Duration::from_millis(ms) * GRACE).await?),
        };
        session.lease = lease.map_or(0, |lease| lease.0);
        let at = keys::session(&session.namespace, &session.node, &session.id);
        let value = serde_json::to_vec(&session)?;
        let mut txn = Txn::of([Op::put(at.clone(), value)]).when(Compare::Absent(at.into()));
        if lease.is_some() {
            let key = keys::beat(&session.id).into();
            txn.ops.push(Op::Put { key, value: Vec::new().into(), class: Class::Synced, lease });
        }
        self.attempt(|_| Ok::<_, ConsulError>((txn.clone(), ()))).await?;
        Ok(session)
    }

    /// A sign of life; writes nothing.
    ///
    /// # Errors
    /// When there is no such session, or the store refuses.
    pub async fn renew_session(&self, ns: &str, id: &str) -> Result<Arc<Session>, ConsulError> {
        let unknown = || ConsulError::UnknownSession { id: id.to_owned() };
        if self.state().session(id).is_none() {
            self.caught_up().await?;
        }
        let state = self.state();
        let (_, session, _) = state.session(id).ok_or_else(unknown)?;
        if *session.namespace != *ns || session.ending {
            return Err(unknown());
        }
        if session.lease != 0 {
            let kept = self.store().lease_keep_alive(LeaseId(session.lease)).await;
            kept.map_err(|why| match why {
                weft_store::StoreError::NoLease(_) => unknown(),
                other => other.into(),
            })?;
        }
        Ok(session.clone())
    }

    /// Ends a session and lets go of what it holds. One that is not there has ended.
    ///
    /// First the session is marked: from then on no lock that it asks for is written, so what it
    /// holds is known. Whoever finds one that is marked goes on from there.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn destroy_session(&self, id: &str) -> Result<(), ConsulError> {
        self.end_session(id, &[]).await
    }

    /// The same, as long as all of `given` holds.
    async fn end_session(&self, id: &str, given: &[Compare]) -> Result<(), ConsulError> {
        let begun = Some(self.begun());
        let _turn = self.turn(id).await;
        let (_, session) = self.attempt_given(begun, given, |state| mark(state, id)).await?;
        let holds = self.state().held_by(id).next().is_some();
        let (delay_ms, behavior) = session
            .map_or((0, Behavior::default()), |session| (session.lock_delay_ms, session.behavior));
        let delay = match holds && delay_ms > 0 {
            true => Some(self.store().lease_grant(Duration::from_millis(delay_ms)).await?),
            false => None,
        };
        loop {
            let plan = |state: &State| release(state, id, behavior, delay);
            // Whoever is at the mark knows what there was.
            if self.attempt_given(None, given, plan).await?.1 {
                return Ok(());
            }
        }
    }

    /// Ends sessions whose time, node or check is gone, until the group drains. Of several servers
    /// the one that leads does; its end of a session holds wherever another left off.
    pub(super) async fn watch_sessions(self, mut changes: crate::WorldWatch) {
        let group = self.tasks().clone();
        let mut terms = self.leader().changes();
        self.reap(&self.world(), true).await;
        loop {
            tokio::select! {
                () = group.draining() => return,
                _ = terms.changed() => self.reap(&self.world(), true).await,
                () = self.shelf().sessions_stir.notified() => {
                    self.reap(&self.world(), false).await;
                }
                change = changes.next() => match change {
                    Some(WorldChange::Delta(world, delta)) => {
                        let about = |key: &ReadKey| {
                            matches!(key, ReadKey::CatalogNode(_) | ReadKey::Node(_))
                        };
                        if delta.iter().any(about) {
                            self.reap(&world, true).await;
                        }
                    }
                    Some(WorldChange::Reset(world)) => self.reap(&world, true).await,
                    None => return,
                },
            }
        }
    }

    /// `checked`: nodes and checks may have changed, too.
    async fn reap(&self, world: &World, checked: bool) {
        if !self.leader().is_here() {
            return;
        }
        // Whoever was paused here and overtaken ends none.
        let fence: Vec<Compare> = self.leader().fence().into_iter().collect();
        let state = self.state();
        let mut over = state.ghosts();
        for session in state.sessions() {
            let silent = session.lease != 0 && state.item(&keys::beat(&session.id)).is_none();
            if session.ending || silent || (checked && session.fault(world).is_some()) {
                over.push(session.id.clone());
            }
        }
        for id in over {
            if let Err(why) = self.end_session(&id, &fence).await {
                tracing::warn!(session = &*id, %why, "a session that is over was not ended");
            }
        }
    }
}

// === helpers ===

fn check_bounds(session: &Session) -> Result<(), ConsulError> {
    let ms = session.ttl_ms;
    if ms != 0 && !(TTL_MS_MIN..=TTL_MS_MAX).contains(&ms) {
        return Err(ConsulError::Invalid(format!(
            "Invalid Session TTL '{}', must be between [10s=10000000000, 24h0m0s=86400000000000]",
            ms.saturating_mul(1_000_000)
        )));
    }
    match session.node_checks.len() + session.service_checks.len() {
        0..=64 => Ok(()),
        found => Err(ConsulError::TooMuch { what: "the session's list of checks", found, max: 64 }),
    }
}

/// The first transaction of a session's end: it is `ending`. Without one when it is already, or
/// is not there.
fn mark(state: &State, id: &str) -> Result<(Txn, Option<Arc<Session>>), ConsulError> {
    let Some((key, session, item)) = state.session(id) else { return Ok((Txn::default(), None)) };
    if session.ending {
        return Ok((Txn::default(), Some(session.clone())));
    }
    let marked = serde_json::to_vec(&Session { ending: true, ..(**session).clone() })?;
    let same = Compare::ModRevision(key.clone(), Revision(item.modified));
    Ok((Txn::of([Op::put(key.clone(), marked)]).when(same), Some(session.clone())))
}

/// One of the transactions that follow: some of what it holds and, with the last of it, the
/// session. Whether that was all.
fn release(
    state: &State,
    id: &str,
    behavior: Behavior,
    delay: Option<LeaseId>,
) -> Result<(Txn, bool), ConsulError> {
    let mut txn = Txn::default();
    let held: Vec<&Arc<str>> = state.held_by(id).take(RELEASE_AT_ONCE + 1).collect();
    let last = held.len() <= RELEASE_AT_ONCE;
    for key in held.into_iter().take(RELEASE_AT_ONCE) {
        let Some(item) = state.item(key) else { continue };
        let What::Pair(pair) = &item.what else { continue };
        txn.compares.push(Compare::ModRevision(key.clone(), Revision(item.modified)));
        txn.ops.push(match behavior {
            Behavior::Delete => Op::delete(key.clone()),
            Behavior::Release => {
                let free = Pair { session: "".into(), ..(**pair).clone() };
                Op::put(key.clone(), free.write()?)
            }
        });
        if delay.is_some() {
            let key = keys::delay(key).into();
            let (value, class) = (Vec::new().into(), Class::Ephemeral);
            txn.ops.push(Op::Put { key, value, class, lease: delay });
        }
    }
    if last {
        if let Some((key, ..)) = state.session(id) {
            txn.ops.push(Op::delete(key.clone()));
        }
        if state.item(&keys::beat(id)).is_some() {
            txn.ops.push(Op::delete(keys::beat(id)));
        }
        let tied = state.under(keys::QUERIES).filter(|(_, item)| match &item.what {
            What::Record(query) => query.get("Session").is_some_and(|own| own == id),
            _ => false,
        });
        txn.ops.extend(tied.take(RELEASE_AT_ONCE).map(|(key, _)| Op::delete(key.clone())));
    }
    Ok((txn, last))
}
