// SPDX-License-Identifier: Apache-2.0
//! The engine for several servers: an etcd (3.4 or newer) keeps the log, and every weft server is
//! stateless beside it. etcd's revisions, leases and transactions are the log's own.
//!
//! Called by the binary (`--store etcd://…`). Never writes outside of its prefix. What differs
//! from the other engines: ephemeral keys end with the server that wrote them; leases count
//! whole seconds and end by etcd's clock; other users of the same etcd move the revision, and where
//! there are any, compacting it is left to them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use weft_base::clock::{Clock, Mono, moment};
use weft_base::task::TaskGroup;
use weft_proto::etcdserverpb::kv_client::KvClient;
use weft_proto::etcdserverpb::lease_client::LeaseClient;
use weft_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
    RangeResponse, ResponseHeader,
};

use crate::draft::check;
use crate::history::{History, Retention};
use crate::meter::{Meter, Renewal};
use crate::{
    BoxFuture, DELETE_PREFIX_KEYS_MAX, Entry, Event, LeaseId, Op, Page, Revision, Stats, Store,
    StoreError, Txn, TxnOutcome, Watch, WatchError,
};

mod config;
mod follow;
mod link;
mod look;
mod wire;

pub use config::{EtcdConfig, EtcdConfigError};
use link::{Link, MESSAGE_BYTES_MAX};
use wire::{Names, changed, failed, revision, signed, unsigned};

/// Keys read by one call.
const PAGE_KEYS: usize = 200;
/// How long ephemeral keys outlive the server that wrote them.
pub const SERVER_TTL: Duration = Duration::from_secs(10);
const SERVER_EVERY: Duration = Duration::from_secs(3);
/// How far behind the head etcd's history is forgotten, at least.
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long a write waits for the watch to show what was read.
const SETTLE_MAX: Duration = Duration::from_secs(4);
/// After this a mark is written, in case that the revision waited for is another user's.
const SETTLE_MARK: Duration = Duration::from_millis(250);

/// A log in an etcd.
#[derive(Debug)]
pub struct EtcdStore {
    inner: Arc<Inner>,
    _tasks: Tasks,
}

/// Tasks that end with their owner.
#[derive(Debug, Default)]
struct Tasks(TaskGroup);

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    names: Names,
    history: Arc<History>,
    clock: Clock,
    /// etcd's name of its cluster.
    cluster: u64,
    /// The newest revision that changed something under the prefix.
    last: AtomicU64,
    /// The newest revision that was written from here: the watch will show it.
    awaited: AtomicU64,
    /// One begins a lease at a time.
    leasing: tokio::sync::Mutex<()>,
    /// One mark at a time.
    marking: tokio::sync::Mutex<()>,
    requests: AtomicU64,
    failures: AtomicU64,
    compaction: Mutex<Option<(Mono, Revision)>>,
}

// === impl EtcdStore ===

impl EtcdStore {
    /// Opens the log, and follows it until the store is dropped.
    ///
    /// # Errors
    /// When no member answers, or the user may not read the prefix.
    pub async fn open(
        config: EtcdConfig,
        clock: Clock,
        retention: Retention,
    ) -> Result<Self, StoreError> {
        let names = Names::new(&config.prefix);
        let (link, tasks) = (Arc::new(Link::new(config)?), Tasks::default());
        tasks.0.spawn("etcd members", look::out(link.clone(), names.now()));
        let (at, cluster) = log_now(&link, &names).await?;
        // Nothing ever happened in an etcd at revision 1, so its whole history is known.
        let start = if at.0 <= 1 { Revision(0) } else { at };
        let inner = Arc::new(Inner {
            link,
            names,
            history: History::new(start, retention),
            clock,
            cluster,
            last: at.0.into(),
            awaited: 0.into(),
            leasing: tokio::sync::Mutex::default(),
            marking: tokio::sync::Mutex::default(),
            requests: 0.into(),
            failures: 0.into(),
            compaction: Mutex::default(),
        });
        inner.append(at, Vec::new());
        inner.keep_own().await?;
        tasks.0.spawn("etcd watch", follow::follow(inner.clone()));
        tasks.0.spawn("etcd lease", keep(inner.clone()));
        Ok(Self { inner, _tasks: tasks })
    }

    /// A lease of this very number, for a log that is moved here.
    ///
    /// # Errors
    /// When there is one already, or etcd cannot be reached.
    pub async fn grant_as(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        self.inner.grant(signed(lease.0), ttl).await.map(|_| ())
    }

    /// Ends what only this server says (its ephemeral keys) now, rather than with its lease. Called
    /// last: whatever is written afterwards begins a new one.
    ///
    /// # Errors
    /// When etcd cannot be reached; then the lease ends it.
    pub async fn leave(&self) -> Result<(), StoreError> {
        match LeaseId(unsigned(self.inner.names.lease())) {
            LeaseId(0) => Ok(()),
            lease => self.inner.revoke(lease).await.map(|_| ()),
        }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.inner.history.close();
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Keeps the server's lease alive for ever.
async fn keep(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SERVER_EVERY).await;
        if let Err(err) = inner.keep_own().await {
            tracing::warn!(%err, "the lease of ephemeral keys could not be renewed; trying again");
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Up to where the history here is complete.
    fn head(&self) -> Revision {
        self.history.head()
    }

    fn append(&self, upto: Revision, events: Vec<Event>) {
        if let Some(last) = events.last() {
            self.last.store(last.revision.0, Ordering::Release);
        }
        self.history.append(self.clock.now(), upto, events);
    }

    /// The history begins anew after `at`.
    fn restart(&self, at: Revision) {
        self.last.store(at.0, Ordering::Release);
        self.history.reset(at);
    }

    /// Waits until the history is complete up to `upto`; then the newest revision under the prefix.
    async fn settle(&self, upto: Revision) -> Result<Revision, StoreError> {
        let mut heads = self.history.heads();
        let (stream, _) = self.link.followed();
        let reached = async {
            let shown = heads.wait_for(|h| h.closed || h.revision >= upto);
            if tokio::time::timeout(SETTLE_MARK, shown).await.is_err() {
                self.mark().await?;
            }
            match heads.wait_for(|h| h.closed || h.revision >= upto).await {
                Ok(head) if !head.closed => Ok(()),
                _ => Err(StoreError::Closed),
            }
        };
        match tokio::time::timeout(SETTLE_MAX, reached).await {
            Ok(done) => done.map(|()| Revision(self.last.load(Ordering::Acquire))),
            Err(_) => {
                // The one that was followed all the while; a newer one may show it yet.
                self.link.doubt(stream);
                let why = "its watch does not show what was written".to_owned();
                Err(StoreError::Unreachable { member: "etcd".into(), why, unknown: true })
            }
        }
    }

    async fn mark(&self) -> Result<(), StoreError> {
        // One mark serves all who wait.
        let Ok(_turn) = self.marking.try_lock() else { return Ok(()) };
        let mark = self.names.mark();
        let answer = self.link.call(true, &mark, |channel, request| async move {
            KvClient::new(channel).txn(request).await
        });
        self.await_shown(header(answer.await?.header.as_ref()));
        Ok(())
    }

    /// What was written from here, and is to be shown by the watch soon.
    fn await_shown(&self, at: Revision) {
        self.awaited.fetch_max(at.0, Ordering::AcqRel);
    }

    /// The revision of etcd's whole log, as its majority knows it, and whose log it is.
    async fn log_now(&self) -> Result<(Revision, u64), StoreError> {
        log_now(&self.link, &self.names).await
    }

    fn count<T>(&self, out: Result<T, StoreError>) -> Result<T, StoreError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if out.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        out
    }

    async fn write(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        check(txn)?;
        for op in &txn.ops {
            if let Op::DeletePrefix { prefix } = op {
                self.check_prefix(prefix).await?;
            }
        }
        match self.commit(txn).await {
            Err(err) if lease_is_gone(&err) => {
                let own = txn.ops.iter().find_map(|op| match op {
                    Op::Put { lease, .. } => *lease,
                    _ => None,
                });
                // This server's own ends when it could not reach etcd for long; it begins again.
                self.keep_own().await?;
                let again = self.commit(txn).await;
                again.map_err(|err| match own {
                    Some(lease) if lease_is_gone(&err) => StoreError::NoLease(lease),
                    _ => err,
                })
            }
            out => out,
        }
    }

    async fn commit(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let request = self.names.txn(txn);
        let began = moment();
        let answer = self.link.call(false, &request, |channel, request| async move {
            KvClient::new(channel).txn(request).await
        });
        let answer = answer.await;
        // Those that were given up, too: they are what an operator looks for.
        self.link.meter.committed(moment().duration_since(began), 1);
        let answer = answer?;
        let now = header(answer.header.as_ref());
        if answer.succeeded && changed(&answer.responses) {
            self.await_shown(now);
            return Ok(TxnOutcome { revision: now, succeeded: true, failed: None });
        }
        let revision = self.settle(now).await?;
        let failed = match answer.succeeded {
            true => None,
            false => Some(failed(&txn.compares, &answer.responses).unwrap_or(0)),
        };
        Ok(TxnOutcome { revision, succeeded: answer.succeeded, failed })
    }

    async fn check_prefix(&self, prefix: &crate::Key) -> Result<(), StoreError> {
        let count = RangeRequest { count_only: true, ..under(&self.names, prefix) };
        let found = range(&self.link, &count).await?.count;
        let (keys, max) = (usize::try_from(found).unwrap_or(usize::MAX), DELETE_PREFIX_KEYS_MAX);
        match keys > max {
            true => Err(StoreError::TooManyKeys { prefix: prefix.clone(), keys, max }),
            false => Ok(()),
        }
    }

    async fn read(&self, key: &str) -> Result<(Revision, Option<Entry>), StoreError> {
        let one = RangeRequest { key: self.names.key(key), ..<_>::default() };
        let found = range(&self.link, &one).await?;
        let entry = found.kvs.first().map(|kv| self.names.entry(kv)).transpose()?;
        Ok((header(found.header.as_ref()), entry.map(|(_, entry)| entry)))
    }

    /// Reads by the page, all at the revision of the first one.
    async fn page(
        &self,
        prefix: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page, StoreError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut ask = under(&self.names, prefix);
        if let Some(after) = after {
            ask.key = ask.key.max(self.names.key(&format!("{after}\0")));
        }
        let mut page = Page::default();
        loop {
            let left = limit - page.entries.len();
            ask.limit = signed(left.min(PAGE_KEYS) as u64);
            let found = range(&self.link, &ask).await?;
            if page.revision == Revision(0) {
                page.revision = header(found.header.as_ref());
                ask.revision = signed(page.revision.0);
            }
            for kv in &found.kvs {
                page.entries.push(self.names.entry(kv)?);
            }
            page.more = found.more;
            match found.kvs.last() {
                Some(last) if found.more && page.entries.len() < limit => {
                    ask.key = [&last.key[..], &[0]].concat().into();
                }
                _ => return Ok(page),
            }
        }
    }

    async fn grant(&self, id: i64, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl = signed(ttl.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
        let ask = LeaseGrantRequest { ttl, id };
        // With a number of etcd's choice a second lease may be made: that one ends by itself.
        let made = self.link.call(id == 0, &ask, |channel, request| async move {
            LeaseClient::new(channel).lease_grant(request).await
        });
        made.await.map(|m| LeaseId(unsigned(m.id)))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let kept = self.renew(lease).await;
        self.link.meter.renewal(match &kept {
            Ok(_) => Renewal::Kept,
            Err(StoreError::NoLease(_)) => Renewal::Ended,
            Err(_) => Renewal::Failed,
        });
        kept
    }

    async fn renew(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let ask = LeaseKeepAliveRequest { id: signed(lease.0) };
        let answer = self.link.call(true, &ask, |channel, request| async move {
            let request = request.map(|ask| stream::iter([ask]));
            let mut stream = LeaseClient::new(channel).lease_keep_alive(request).await?;
            let first = stream.get_mut().message().await?;
            let first = first.ok_or_else(|| tonic::Status::unavailable("no answer"))?;
            Ok(tonic::Response::new(first))
        });
        match answer.await?.ttl {
            ..=0 => Err(StoreError::NoLease(lease)),
            seconds => Ok(Duration::from_secs(unsigned(seconds))),
        }
    }

    async fn keep_own(&self) -> Result<(), StoreError> {
        let _turn = self.leasing.lock().await;
        match LeaseId(unsigned(self.names.lease())) {
            LeaseId(0) => {}
            lease => match self.keep_alive(lease).await {
                Err(StoreError::NoLease(_)) => {
                    tracing::warn!("this server's lease in etcd ended, and its ephemeral keys");
                }
                kept => return kept.map(|_| ()),
            },
        }
        let lease = self.grant(0, SERVER_TTL).await?;
        self.names.set_lease(signed(lease.0));
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        let ask = LeaseRevokeRequest { id: signed(lease.0) };
        let answer = self.link.call(false, &ask, |channel, request| async move {
            LeaseClient::new(channel).lease_revoke(request).await
        });
        let answer = answer.await.map_err(|err| match lease_is_gone(&err) {
            true => StoreError::NoLease(lease),
            false => err,
        })?;
        self.settle(header(answer.header.as_ref())).await
    }

    async fn compact(&self, upto: Revision) -> Result<(), StoreError> {
        let last = self.settle(self.log_now().await?.0).await?;
        let upto = upto.min(last);
        self.history.compact(upto);
        self.compact_etcd(upto).await
    }

    /// Whether nobody else keeps keys in this etcd. Who may not see them all is not alone.
    async fn is_alone(&self) -> Result<bool, StoreError> {
        let count = |(key, range_end)| RangeRequest {
            key,
            range_end,
            count_only: true,
            ..RangeRequest::default()
        };
        let every = Bytes::from_static(&[0]);
        let all = match range(&self.link, &count((every.clone(), every))).await {
            Ok(all) => all.count,
            Err(StoreError::Refused { .. }) => return Ok(false),
            Err(err) => return Err(err),
        };
        Ok(all == range(&self.link, &count(self.names.all())).await?.count)
    }

    /// Forgets history that all servers had minutes to read; etcd's own only when it is ours
    /// alone, since its compaction spares nobody.
    async fn forget(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.history.expire(now);
        let upto = {
            let mut mark = self.compaction.lock().unwrap_or_else(PoisonError::into_inner);
            let due = mark.as_ref().is_none_or(|(at, _)| now.since(*at) >= COMPACT_EVERY);
            if !due {
                return Ok(());
            }
            mark.replace((now, self.head())).map(|(_, revision)| revision)
        };
        match upto {
            Some(upto) if self.is_alone().await? => self.compact_etcd(upto).await,
            _ => Ok(()),
        }
    }

    async fn compact_etcd(&self, upto: Revision) -> Result<(), StoreError> {
        let ask = CompactionRequest { revision: signed(upto.0) };
        let done = self.link.call(true, &ask, |channel, request| async move {
            KvClient::new(channel).compact(request).await
        });
        match done.await {
            Err(StoreError::Refused { why, .. }) if why.contains("compacted") => Ok(()),
            out => out.map(|_| ()),
        }
    }
}

fn under(names: &Names, prefix: &str) -> RangeRequest {
    let (key, range_end) = names.under(prefix);
    RangeRequest { key, range_end, ..<_>::default() }
}

async fn range(link: &Link, ask: &RangeRequest) -> Result<RangeResponse, StoreError> {
    let answer = link.call(true, ask, |channel, request| async move {
        KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).range(request).await
    });
    answer.await
}

async fn log_now(link: &Link, names: &Names) -> Result<(Revision, u64), StoreError> {
    let answer = range(link, &names.now()).await?;
    let cluster = answer.header.as_ref().map_or(0, |h| h.cluster_id);
    Ok((header(answer.header.as_ref()), cluster))
}

fn header(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(Revision(0), |h| revision(h.revision))
}

fn lease_is_gone(err: &StoreError) -> bool {
    matches!(err, StoreError::Refused { why, .. } if why.contains("lease not found"))
}

impl Store for EtcdStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        async move { self.inner.count(self.inner.write(&txn).await) }.boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Revision, Option<Entry>), StoreError>> {
        self.inner.read(key).boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.inner.page(prefix, limit, after).boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, WatchError> {
        Watch::new(&self.inner.history, prefix, from)
    }

    fn compact(&self, upto: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(upto).boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move { self.inner.count(self.inner.grant(0, ttl).await) }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration, StoreError>> {
        self.inner.keep_alive(lease).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { self.inner.count(self.inner.revoke(lease).await) }.boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            let (now, _) = self.inner.log_now().await?;
            self.inner.settle(now).await
        }
        .boxed()
    }

    fn stats(&self) -> Stats {
        let (watches, history_events, history_bytes) = self.inner.history.stats();
        let requests = self.inner.requests.load(Ordering::Relaxed);
        let commit_failures = self.inner.failures.load(Ordering::Relaxed);
        Stats {
            revision: self.inner.head(),
            requests,
            commits: requests.saturating_sub(commit_failures),
            commit_failures,
            watches,
            history_events,
            history_bytes,
        }
    }

    fn meter(&self) -> Option<&Meter> {
        Some(&self.inner.link.meter)
    }

    /// Leases end by etcd's own clock: none is counted here.
    fn tick(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move { self.inner.forget().await.map(|()| 0) }.boxed()
    }
}
