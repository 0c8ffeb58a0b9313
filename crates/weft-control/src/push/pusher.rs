// SPDX-License-Identifier: Apache-2.0
//! The pusher: a handle that many hold, a book under one short lock, and one task that pushes when
//! the debounce says so.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use weft_base::clock::Clock;
use weft_base::limits::XDS_RESOURCE_BYTES_MAX;
use weft_base::task::TaskGroup;
use weft_model::{Fail, Resource, ResourceName, Root};
use weft_xds::server::{Asks, Peer, Refusal, Sent, Session, SessionKey, Source};
use weft_xds::{Entry, NodeId, NodeInfo, Rejected, View};

use super::book::{Book, Change, Nodes};
use super::debounce::Debounce;
use super::delta::Delta;
use super::hold::HoldLimits;
use super::status::{Metrics, ProxyStatus};

/// Entries encoded before the task lets others run.
const ENCODE_BATCH: usize = 128;

/// Cloning shares it.
#[derive(Clone)]
pub struct Pusher {
    shared: Arc<Shared>,
}

/// Who had not answered when the time was over. `published` is false when the generation itself
/// was not pushed yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of the connected proxies have not answered generation {generation} yet: {nodes:?}",
    nodes.len())]
pub struct Laggards {
    pub generation: u64,
    pub published: bool,
    pub nodes: Vec<NodeId>,
}

struct Shared {
    nodes: Arc<dyn Nodes>,
    clock: Clock,
    inbox: Mutex<Inbox>,
    wake: Notify,
    book: Mutex<Book>,
    /// Counts changes of the book, for those who wait on it.
    changed: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Default)]
struct Inbox {
    debounce: Debounce,
    pending: Option<Delta>,
}

// === impl Pusher ===

impl Pusher {
    /// Starts the pushing task in `tasks`.
    pub fn start(nodes: Arc<dyn Nodes>, clock: Clock, tasks: &TaskGroup) -> Self {
        Self::start_with(nodes, clock, HoldLimits::default(), tasks)
    }

    /// The same with other limits of what a proxy holds without asking.
    pub fn start_with(
        nodes: Arc<dyn Nodes>,
        clock: Clock,
        limits: HoldLimits,
        tasks: &TaskGroup,
    ) -> Self {
        let shared = Arc::new(Shared {
            nodes,
            clock,
            inbox: Mutex::default(),
            wake: Notify::new(),
            book: Mutex::new(Book::new(limits)),
            changed: watch::channel(0).0,
            metrics: Metrics::default(),
        });
        let (pushing, group) = (shared.clone(), tasks.clone());
        tasks.spawn("push", async move {
            tokio::select! {
                () = group.draining() => {}
                () = pushing.run() => {}
            }
        });
        Self { shared }
    }

    /// Takes what changed; returns at once. The first delta must be the whole mesh: streams that
    /// open before it wait, so that no proxy loses its last good table to a server that starts.
    pub fn submit(&self, delta: Delta) {
        let now = self.shared.clock.now();
        let mut inbox = lock(&self.shared.inbox);
        // An empty one alone is only news of a generation, which costs nothing.
        let urgent = delta.is_urgent() && (!delta.is_empty() || inbox.pending.is_none());
        match &mut inbox.pending {
            Some(pending) => pending.merge(delta),
            None => inbox.pending = Some(delta),
        }
        inbox.debounce.offer(now, urgent);
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// The newest generation that was pushed.
    pub fn generation(&self) -> u64 {
        lock(&self.shared.book).generation()
    }

    /// Every known proxy, by node.
    pub fn status(&self) -> Vec<ProxyStatus> {
        lock(&self.shared.book).status()
    }

    /// Proxies with an open stream.
    pub fn connected(&self) -> usize {
        lock(&self.shared.book).connected()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Everything, in wire form and as values.
    pub fn resources(&self) -> imbl::OrdMap<ResourceName, Arc<Entry>> {
        lock(&self.shared.book).resources()
    }

    /// What a node should hold (`weft proxy config` beside what it says it holds); empty while it
    /// is not connected.
    pub fn view(&self, node: &NodeId) -> Option<Arc<View>> {
        lock(&self.shared.book).view(node)
    }

    /// Counts every change of what [`Self::status`] says.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until every connected proxy that sees `root` (every one, when `None`) has answered
    /// all that was compiled up to `generation`. Proxies that disconnect are not waited for.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those that had not answered after `timeout`.
    pub async fn wait_acked(
        &self,
        root: Option<&Root>,
        generation: u64,
        timeout: Duration,
    ) -> Result<(), Laggards> {
        let check = || {
            let book = lock(&self.shared.book);
            let published = book.generation() >= generation;
            let nodes = book.behind(root, generation);
            (!published || !nodes.is_empty()).then_some(Laggards { generation, published, nodes })
        };
        self.wait(timeout, check).await
    }

    /// Whether the pod's own sidecar has taken the inbound listeners of these ports. Once true it
    /// stays, whatever becomes of the stream, until a listener or the pod is gone.
    pub fn inbound_acked(&self, namespace: &str, pod: &str, ports: &[u16]) -> bool {
        lock(&self.shared.book).inbound_acked(namespace, pod, ports)
    }

    /// Waits for [`Self::inbound_acked`]; `false` after `timeout`. Cancel-safe.
    pub async fn wait_inbound_acked(
        &self,
        namespace: &str,
        pod: &str,
        ports: &[u16],
        timeout: Duration,
    ) -> bool {
        let check = || (!self.inbound_acked(namespace, pod, ports)).then_some(());
        self.wait(timeout, check).await.is_ok()
    }

    /// Runs `check` after every change until it finds nothing to wait for.
    async fn wait<E>(&self, timeout: Duration, check: impl Fn() -> Option<E>) -> Result<(), E> {
        let mut changed = self.changes();
        let sleep = tokio::time::sleep(timeout);
        tokio::pin!(sleep);
        loop {
            changed.mark_unchanged();
            let Some(open) = check() else { return Ok(()) };
            tokio::select! {
                () = &mut sleep => return Err(open),
                // The sender lives as long as the pusher.
                _ = changed.changed() => {}
            }
        }
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    async fn run(&self) {
        loop {
            let due = lock(&self.inbox).debounce.due();
            match due {
                None => self.wake.notified().await,
                Some(due) => {
                    let wait = due.since(self.clock.now());
                    tokio::select! {
                        () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                        () = self.wake.notified(), if !wait.is_zero() => {}
                        else => {}
                    }
                }
            }
            let ready = {
                let mut inbox = lock(&self.inbox);
                let take = inbox.debounce.take(self.clock.now());
                take.then(|| inbox.pending.take()).flatten()
            };
            if let Some(delta) = ready {
                self.push(delta).await;
            }
        }
    }

    /// Encodes outside the lock, then changes the book.
    async fn push(&self, delta: Delta) {
        let mut upserts = Vec::with_capacity(delta.upserts.len());
        let nobody = lock(&self.book).connected() == 0;
        for (i, (name, resource)) in delta.upserts.into_iter().enumerate() {
            if !self.is_sound(&name) {
                continue;
            }
            let entry = self.entry(&name, resource, nobody);
            upserts.push((name, Arc::new(entry)));
            if i % ENCODE_BATCH == ENCODE_BATCH - 1 {
                tokio::task::yield_now().await;
            }
        }
        let concerned = lock(&self.book).concerned(&delta.rescope);
        let scopes = concerned.into_iter().map(|id| (id.clone(), self.nodes.scope(&id))).collect();
        let Delta { generation, removes, .. } = delta;
        lock(&self.book).apply(Change { generation, upserts, removes, scopes });
        self.note();
    }

    /// Whether a proxy reads the name as it is meant: a `/` in a root's own name would be taken
    /// for the beginning of a child.
    fn is_sound(&self, name: &ResourceName) -> bool {
        let sound = ResourceName::try_from(name.to_string()).as_ref() == Ok(name);
        if !sound {
            self.metrics.failed.add(1);
            tracing::error!(%name, "a resource is not pushed: its root's name must not contain /");
        }
        sound
    }

    /// Where nobody is connected, the wire form is not kept.
    fn entry(&self, name: &ResourceName, resource: Arc<Resource>, nobody: bool) -> Entry {
        let made = if nobody { Entry::unsent(resource) } else { Entry::new(resource) };
        let why = match made {
            Ok(entry) if entry.size <= XDS_RESOURCE_BYTES_MAX => return entry,
            Ok(entry) => format!(
                "{name} has {} bytes, the limit is {XDS_RESOURCE_BYTES_MAX}; split the object",
                entry.size
            ),
            Err(error) => format!("{name} {error}"),
        };
        self.metrics.failed.add(1);
        tracing::error!(%name, why, "a resource is replaced by a failure");
        let fail = Fail { reason: why.into(), origin: None };
        Entry::new(Arc::new(Resource::Fail(fail))).expect("one string is always CBOR")
    }

    fn note(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

// === impl Source ===

impl Source for Pusher {
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String> {
        self.shared.nodes.admit(peer, node)
    }

    fn subscribe(&self, node: NodeInfo, peer: &Peer, asks: Asks) -> Result<Session, Refusal> {
        let now_ms = self.shared.clock.wall_ms();
        let session = loop {
            let epoch = lock(&self.shared.book).scope_epoch();
            let scope = self.shared.nodes.scope(&node.id);
            let mut book = lock(&self.shared.book);
            if book.scope_epoch() == epoch {
                break book.open(node, peer, scope, &asks, now_ms)?;
            }
        };
        self.shared.metrics.connects.add(1);
        self.shared.note();
        Ok(session)
    }

    fn wanted(&self, session: &SessionKey, asks: Asks) {
        lock(&self.shared.book).wanted(session, &asks);
        self.shared.note();
    }

    fn sent(&self, session: &SessionKey, sent: Sent) {
        let metrics = &self.shared.metrics;
        metrics.transactions.add(1);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        metrics.resources.add(count(sent.resources));
        metrics.removed.add(count(sent.removed));
        metrics.bytes.add(count(sent.bytes));
        lock(&self.shared.book).sent(session, sent);
        self.shared.note();
    }

    fn answered(&self, session: &SessionKey, view: Arc<View>, rejected: Vec<Rejected>) {
        for r in &rejected {
            tracing::debug!(node = %session.node, refused = %r, "a proxy refuses a resource");
        }
        let now_ms = self.shared.clock.wall_ms();
        if lock(&self.shared.book).answered(session, view, rejected, now_ms) {
            self.shared.metrics.nacks.add(1);
        }
        self.shared.note();
    }

    fn closed(&self, session: &SessionKey, why: &str) {
        let now_ms = self.shared.clock.wall_ms();
        lock(&self.shared.book).closed(session, why, now_ms);
        self.shared.note();
    }
}

/// A panic under the lock is a bug that was counted where it happened; the book stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
