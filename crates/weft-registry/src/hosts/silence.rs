// SPDX-License-Identifier: Apache-2.0
//! Hosts that fall silent, leave or are removed. `hosts` starts it; it follows the end of their
//! leases and writes what follows from it, again and again until the store takes it. It never says
//! anything of a host that another server hears.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use weft_kinds::kind::KindId;
use weft_kinds::world::{Object, World};
use weft_store::{Compare, EventKind, Revision, StoreError, Watch, WatchError};

use super::{
    ALIVE, HEARTBEAT_EVERY, HostError, Hosts, JOIN_ANNOTATION, SILENCE_MAX, alive_key, node_key,
};
use crate::catalog::liveness_checks;
use crate::{ObjectError, Objects, nodes};

/// How often what is said of removed machines is looked for.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// What is to be done besides following the log.
#[derive(Debug)]
struct Chores {
    /// Hosts whose silence the store did not take.
    unwritten: BTreeSet<String>,
    again: Interval,
    forget: Interval,
}

// === impl Chores ===

impl Chores {
    fn new() -> Self {
        let every = |time| {
            let mut interval = interval(time);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (again, forget) = (every(HEARTBEAT_EVERY), every(FORGET_EVERY));
        Self { unwritten: BTreeSet::new(), again, forget }
    }
}

// === impl Hosts ===

impl Hosts {
    /// Follows the leases until the store closes.
    pub(super) async fn watch(&self, from: Revision) {
        let mut log = self.registry.store().watch(ALIVE, from);
        let mut chores = Chores::new();
        loop {
            match self.follow(log, &mut chores).await {
                WatchError::Closed => return,
                why => tracing::warn!(%why, "the log of the hosts' leases was lost"),
            }
            // What ended meanwhile is found by looking at all.
            log = loop {
                match self.look_again().await {
                    Ok(next) => break self.registry.store().watch(ALIVE, next),
                    Err(error) => {
                        tracing::warn!(%error, "hosts cannot be looked at; trying again");
                        tokio::time::sleep(HEARTBEAT_EVERY).await;
                    }
                }
            };
        }
    }

    async fn follow(&self, log: Result<Watch, WatchError>, chores: &mut Chores) -> WatchError {
        let mut log = match log {
            Ok(log) => log,
            Err(why) => return why,
        };
        loop {
            let events = tokio::select! {
                events = log.next() => match events {
                    Ok(events) => events,
                    Err(why) => return why,
                },
                _ = chores.again.tick(), if !chores.unwritten.is_empty() => {
                    self.write_again(&mut chores.unwritten).await;
                    continue;
                }
                _ = chores.forget.tick() => {
                    if let Err(error) = self.forget_removed().await {
                        tracing::debug!(%error, "removed hosts could not be forgotten");
                    }
                    continue;
                }
            };
            for event in &events {
                let name = event.key.strip_prefix(ALIVE).unwrap_or_default();
                if event.kind == EventKind::Put {
                    // Another server hears it now: this one has no say until it does again.
                    if event.value != self.voice() {
                        self.known.lock().await.remove(name);
                    }
                    continue;
                }
                if let Err(error) = self.ended(name).await {
                    tracing::warn!(host = name, %error, "a silent host cannot be noted yet");
                    chores.unwritten.insert(name.to_owned());
                }
            }
        }
    }

    async fn write_again(&self, unwritten: &mut BTreeSet<String>) {
        for name in unwritten.clone() {
            match self.ended(&name).await {
                Ok(()) => {
                    unwritten.remove(&name);
                }
                Err(error) => {
                    tracing::debug!(host = name, %error, "a silent host cannot be noted yet");
                }
            }
        }
    }

    async fn look_again(&self) -> Result<Revision, HostError> {
        let page = self.registry.store().range(ALIVE, 0, None).await?;
        let mut names: Vec<String> = self.known.lock().await.keys().cloned().collect();
        if self.registry.leader().is_shared() {
            let world = self.registry.now();
            let joined = |n: &&Arc<Object>| n.meta.annotation(JOIN_ANNOTATION).is_some();
            let all = world.objects(KindId::Node, None).filter(joined);
            names.extend(all.map(|n| n.key.name.to_string()));
        }
        for name in names {
            self.ended(&name).await?;
        }
        Ok(page.revision.next())
    }

    /// A host's lease is over, unless it has a new one by now.
    async fn ended(&self, name: &str) -> Result<(), HostError> {
        // Held while writing, so that a heartbeat of this moment comes after.
        let mut all = self.known.lock().await;
        let at = alive_key(name);
        let (_, alive) = self.registry.store().get(&at).await?;
        if alive.is_some() {
            return Ok(());
        }
        // Who leads speaks for servers that are gone with what they heard.
        let heard = all.contains_key(name);
        let leads = self.registry.leader().is_shared() && self.registry.leader().is_here();
        if !heard && !leads {
            return Ok(());
        }
        // Nothing is written once another server hears it, and one that believes to lead and does
        // not is stopped by the store.
        let objects = self.registry.objects().when(Compare::Absent(at.clone()));
        let mut held = vec![Compare::Absent(at)];
        let objects = match heard {
            true => objects,
            false => {
                held.extend(self.registry.leader().fence());
                objects.as_leader()
            }
        };
        // First, so that whoever waits for the pods' change sees this too.
        self.registry.catalog().node_heard(name, false, held).await?;
        let world = self.registry.now();
        if let Some(node) = world.get(KindId::Node, "", name) {
            let why = format!(
                "its agent was not heard of for {} s; its pods take no new requests",
                SILENCE_MAX.as_secs()
            );
            // Others' word for it stands.
            let new = heard || nodes::is_ready(&node.raw);
            if new {
                tracing::warn!(host = name, "a host went silent");
            }
            self.unready(&objects, name, new.then_some(&*why)).await?;
        }
        // Last: what was not written is this server's to write still.
        all.remove(name);
        Ok(())
    }

    /// The agent ended what ran there and goes.
    ///
    /// # Errors
    /// When the store cannot be written. The end of its lease says it then.
    pub async fn leave(&self, name: &str) -> Result<(), HostError> {
        let mut all = self.known.lock().await;
        let Some(known) = all.get(name) else { return Ok(()) };
        match self.registry.store().lease_revoke(known.lease).await {
            Ok(_) | Err(StoreError::NoLease(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let at = alive_key(name);
        let (_, alive) = self.registry.store().get(&at).await?;
        // Unless another server hears it by now.
        if alive.is_none() {
            tracing::info!(host = name, "a host left");
            let held = [Compare::Absent(at.clone())];
            self.registry.catalog().node_heard(name, false, held).await?;
            let objects = self.registry.objects().when(Compare::Absent(at));
            self.unready(&objects, name, Some("its agent was stopped")).await?;
        }
        all.remove(name);
        Ok(())
    }

    /// Its pods count as stopped, and when it is told why, the Node as not ready.
    async fn unready(
        &self,
        objects: &Objects,
        name: &str,
        why: Option<&str>,
    ) -> Result<(), HostError> {
        if let Some(why) = why {
            match self.registry.node_gone_with(objects, name, why).await {
                Ok(()) | Err(ObjectError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let why = ("NodeNotReady", "the agent of its node is not heard of");
        Ok(self.registry.pods_stopped(objects, name, why).await?)
    }

    /// Lets go of what is said of machines that were removed, once nothing is registered there.
    pub(super) async fn forget_removed(&self) -> Result<(), HostError> {
        if !self.registry.leader().is_here() {
            return Ok(());
        }
        // Those of servers say who is gone, and are never forgotten.
        let servers = crate::servers::names(&**self.registry.store()).await?;
        let world = self.registry.now();
        let idle = liveness_checks(world.catalog()).filter(|key| is_idle(&world, &key.node));
        for key in idle.filter(|key| !servers.contains(&key.node)) {
            let mut held =
                vec![Compare::Absent(node_key(&key.node)), Compare::Absent(alive_key(&key.node))];
            held.extend(self.registry.leader().fence());
            self.registry.catalog().node_forgotten(&key.node, held).await?;
        }
        Ok(())
    }
}

/// Whether nothing is left of a machine but what is said of it.
fn is_idle(world: &World, name: &str) -> bool {
    let catalog = world.catalog();
    world.get(KindId::Node, "", name).is_none()
        && !catalog.node(name).is_some_and(|node| node.server)
        && catalog.on_node(name).next().is_none()
        && catalog.checks_on(name).count() <= 1
}
