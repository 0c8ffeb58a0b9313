// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Events: what happened to an object, in a sentence, for `kubectl describe` and
//! `kubectl get events`. Kept in memory for about an hour; losing one is no harm, and nothing
//! waits for one.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use weft_base::clock::{Clock, Mono};
use weft_base::name::fnv1a;
use weft_base::snapshot::Snapshot;
use weft_kinds::world::{KindId, Object, ObjectKey, World};
use weft_store::{Class, LeaseId, Op, Store, StoreError, Txn};

use crate::objects::meta;

/// Notes that may wait to be written; more are dropped.
pub(crate) const QUEUE: usize = 256;
/// Events of one namespace; the oldest make room.
const PER_NAMESPACE_MAX: usize = 500;
/// Events share a lease for this long, and live this long after that.
const LEASE_EVERY: Duration = Duration::from_secs(600);
const KEPT: Duration = Duration::from_secs(3600);
const MESSAGE_BYTES_MAX: usize = 1024;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNote {
    pub about: ObjectKey,
    pub uid: String,
    pub warning: bool,
    /// One word, such as `Scheduled`.
    pub reason: Cow<'static, str>,
    pub message: String,
    /// Who says so, such as `deployment-controller`.
    pub component: &'static str,
}

/// The task that writes notes down.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub store: Arc<dyn Store>,
    pub world: Snapshot<World>,
    pub clock: Clock,
    pub notes: mpsc::Receiver<EventNote>,
    pub lease: Arc<EventLease>,
}

/// The lease of the Events written now: one for many of them, so that forgetting costs little.
#[derive(Debug)]
pub(crate) struct EventLease {
    store: Arc<dyn Store>,
    clock: Clock,
    current: tokio::sync::Mutex<Option<(LeaseId, Mono)>>,
}

// === impl EventNote ===

impl EventNote {
    pub fn about(object: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            about: object.key.clone(),
            uid: object.meta.uid.to_string(),
            warning: false,
            reason: reason.into(),
            message: message.into(),
            component: "weft",
        }
    }

    #[must_use]
    pub fn warning(mut self) -> Self {
        self.warning = true;
        self
    }

    #[must_use]
    pub fn by(mut self, component: &'static str) -> Self {
        self.component = component;
        self
    }

    /// Where its Event is; the same words about the same object are one Event, counted.
    fn key(&self) -> ObjectKey {
        let words = format!("{}/{}/{}/{}", self.uid, self.reason, self.message, self.component);
        let name = format!("{}.{:016x}", self.about.name, fnv1a(words.as_bytes()));
        ObjectKey::new(KindId::Event, self.namespace(), name)
    }

    /// Events about objects without a namespace are in `default`.
    fn namespace(&self) -> &str {
        if self.about.namespace.is_empty() { "default" } else { &self.about.namespace }
    }

    fn object(&self, key: &ObjectKey, known: Option<&Value>, wall_ms: u64, uid: String) -> Value {
        let now = meta::timestamp(wall_ms);
        let mut message = self.message.clone();
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|i| message.is_char_boundary(*i));
        message.truncate(cut.unwrap_or(0).min(message.len()));
        if let Some(known) = known {
            let mut out = known.clone();
            out["count"] = json!(known["count"].as_u64().unwrap_or(1) + 1);
            out["lastTimestamp"] = json!(now);
            return out;
        }
        let row = self.about.kind.row();
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": &*key.name,
                "namespace": &*key.namespace,
                "uid": uid,
                "creationTimestamp": now,
            },
            "involvedObject": {
                "apiVersion": row.api_version(),
                "kind": row.kind,
                "name": &*self.about.name,
                "namespace": &*self.about.namespace,
                "uid": self.uid,
            },
            "reason": self.reason,
            "message": message,
            "type": if self.warning { "Warning" } else { "Normal" },
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "eventTime": null,
            "source": { "component": self.component },
            "reportingComponent": self.component,
            "reportingInstance": "",
        })
    }
}

// === impl Recorder ===

impl Recorder {
    pub async fn run(mut self, tasks: weft_base::task::TaskGroup) {
        let mut rng = weft_base::rng::Rng::from_system();
        loop {
            let note = tokio::select! {
                () = tasks.draining() => return,
                note = self.notes.recv() => note,
            };
            let Some(note) = note else { return };
            let wall = self.clock.wall_ms();
            let uid = meta::uid(wall, &mut rng);
            if let Err(e) = self.write(&note, wall, uid).await {
                tracing::debug!(error = %e, "an event could not be recorded");
            }
        }
    }

    async fn write(&mut self, note: &EventNote, wall: u64, uid: String) -> Result<(), StoreError> {
        let lease = Some(self.lease.get().await?);
        let world = self.world.load();
        let key = note.key();
        let known = world.object(&key);
        let object = note.object(&key, known.map(|o| &*o.raw), wall, uid);
        let class = Class::Ephemeral;
        let value = object.to_string().into();
        let mut txn = Txn::of([Op::Put { key: key.store_key().into(), value, class, lease }]);
        let all = || world.objects(KindId::Event, Some(&key.namespace));
        if known.is_none() && all().count() >= PER_NAMESPACE_MAX {
            let oldest = all().min_by_key(|o| o.revision);
            txn.ops.extend(oldest.map(|o| Op::delete(o.key.store_key())));
        }
        let outcome = self.store.txn(txn).await?;
        // The next note counts from what this one wrote.
        while self.world.load().revision() < outcome.revision.0 && self.world.changed().await {}
        Ok(())
    }
}

// === impl EventLease ===

impl EventLease {
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { store, clock, current: tokio::sync::Mutex::default() })
    }

    pub async fn get(&self) -> Result<LeaseId, StoreError> {
        let mut current = self.current.lock().await;
        let now = self.clock.now();
        match *current {
            Some((lease, until)) if now < until => Ok(lease),
            _ => {
                let lease = self.store.lease_grant(KEPT + LEASE_EVERY).await?;
                *current = Some((lease, now.plus(LEASE_EVERY)));
                Ok(lease)
            }
        }
    }
}
