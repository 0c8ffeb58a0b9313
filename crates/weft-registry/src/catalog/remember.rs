// SPDX-License-Identifier: Apache-2.0
//! What checks said last, over a restart of a server that has its store to itself. A result is in
//! the store's memory: a check that turns waits for no disk, and is taken while the disk is full.
//! A copy follows on disk a moment later, many of them with one write, and a server that starts
//! puts it back before anybody reads. So a restart makes nothing critical: each time to live begins
//! anew, and whoever asks goes on from what was known.
//!
//! Results in a store of several servers are durable themselves: they need no copy, and whoever
//! opens such a store turns copies into results (they come from a log that was moved there).
//!
//! `Registry::open` calls this. It never judges a result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckStatus, Since};
use weft_store::{
    Compare, Entry, Event, EventKind, Op, Revision, Store, StoreError, Txn, Watch, WatchError,
};

/// Results, their copies, and the checks that they are of; the rest of the key is the same.
const RESULTS: &str = "/e/k/";
const COPIES: &str = "/c/r/";
const CHECKS: &str = "/c/k/";
/// Results of this long are copied together: as much as a crash forgets.
const GATHER: Duration = Duration::from_millis(100);
/// When a copy that could not be written is tried again, at first and at last: each try of a store
/// whose disk is full makes it read its file again.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Copies in one transaction; as many comparisons.
const AT_ONCE: usize = 60;

/// By what follows the prefix; `None` where there is none any more.
type Changes = BTreeMap<Arc<str>, Option<Bytes>>;

/// Makes results of the copies, before anybody reads. Those of checks that are gone go.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn recall(store: &dyn Store, shared: bool) -> Result<(), StoreError> {
    // Each time round another server has made a result of one copy at least.
    while !recalled(store, shared).await? {}
    Ok(())
}

/// Whether all copies are results; not when another server wrote one of these meanwhile.
async fn recalled(store: &dyn Store, shared: bool) -> Result<bool, StoreError> {
    let copies = all(store, COPIES).await?.1;
    if copies.is_empty() {
        return Ok(true);
    }
    let checks: BTreeSet<Arc<str>> = all(store, CHECKS).await?.1.into_keys().collect();
    let results = all(store, RESULTS).await?.1;
    let mut txn = Txn::default();
    for (name, copy) in copies {
        let known = checks.contains(&name);
        if known && !results.contains_key(&name) {
            let at = format!("{RESULTS}{name}");
            let value = copy.unwrap_or_default();
            if shared {
                // Another server may have opened it at the same time.
                txn.compares.push(Compare::Absent(at.as_str().into()));
                txn.ops.push(Op::put(at, value));
            } else {
                txn.ops.push(Op::put_ephemeral(at, value));
            }
        }
        if shared || !known {
            txn.ops.push(Op::delete(format!("{COPIES}{name}")));
        }
        if txn.ops.len() > AT_ONCE && !store.txn(std::mem::take(&mut txn)).await?.succeeded {
            return Ok(false);
        }
    }
    Ok(store.txn(txn).await?.succeeded)
}

/// Copies results until the group drains, and then what is left.
pub async fn keep(store: Arc<dyn Store>, tasks: TaskGroup) {
    let mut changes = Changes::new();
    tokio::select! {
        () = tasks.draining() => {}
        () = follow(&*store, &mut changes) => {}
    }
    // Told by the log, and not looked at yet.
    if let Ok(Some((_, behind))) = begin(&*store).await {
        changes = behind;
    }
    if let Err(error) = write(&*store, &mut changes).await {
        tracing::warn!(%error, "the newest results of checks are not on disk");
    }
}

/// Until the store closes. What is in `changes` is not written yet.
async fn follow(store: &dyn Store, changes: &mut Changes) {
    // Before the next try; none while writes work.
    let mut pause = Duration::ZERO;
    loop {
        match begin(store).await {
            Ok(Some((log, behind))) => {
                *changes = behind;
                copy(store, log, changes, &mut pause).await;
            }
            Err(StoreError::Closed) => return,
            other => tracing::debug!(error = ?other.err(), "results of checks cannot be followed"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Copies what the log tells until it is lost.
async fn copy(store: &dyn Store, mut log: Watch, changes: &mut Changes, pause: &mut Duration) {
    let mut due = Instant::now() + *pause;
    loop {
        let idle = changes.is_empty();
        tokio::select! {
            events = log.next() => match events {
                Ok(events) => note(changes, &events),
                Err(_) => return,
            },
            () = tokio::time::sleep_until(due), if !idle => match write(store, changes).await {
                Ok(()) => *pause = Duration::ZERO,
                Err(error) => {
                    *pause = (*pause * 2).clamp(AGAIN, AGAIN_MAX);
                    due = Instant::now() + *pause;
                    tracing::warn!(%error, "results of checks are not on disk yet");
                }
            },
        }
        if idle {
            due = Instant::now() + GATHER;
        }
    }
}

/// The log of results from now on, and where the copies are behind; none when the log has moved on.
async fn begin(store: &dyn Store) -> Result<Option<(Watch, Changes)>, StoreError> {
    let (revision, results) = all(store, RESULTS).await?;
    let log = match store.watch(RESULTS, revision.next()) {
        Ok(log) => log,
        Err(WatchError::Closed) => return Err(StoreError::Closed),
        Err(_) => return Ok(None),
    };
    let copies = all(store, COPIES).await?.1;
    let gone = copies.keys().filter(|name| !results.contains_key(*name));
    let gone: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
    let new = results.into_iter().filter(|(name, value)| copies.get(name) != Some(value));
    Ok(Some((log, new.chain(gone).collect())))
}

fn note(changes: &mut Changes, events: &[Event]) {
    for event in events {
        let Some(name) = event.key.strip_prefix(RESULTS) else { continue };
        let value = (event.kind == EventKind::Put).then(|| dated(&event.value, event.revision));
        changes.insert(name.into(), value);
    }
}

/// Writes all of it. What was not written stays.
async fn write(store: &dyn Store, changes: &mut Changes) -> Result<(), StoreError> {
    loop {
        let part: Vec<Arc<str>> = changes.keys().take(AT_ONCE).cloned().collect();
        if part.is_empty() {
            return Ok(());
        }
        let op = |name: &Arc<str>| match changes.get(name) {
            Some(Some(value)) => Op::put(format!("{COPIES}{name}"), value.clone()),
            _ => Op::delete(format!("{COPIES}{name}")),
        };
        store.txn(Txn::of(part.iter().map(op))).await?;
        part.iter().for_each(|name| drop(changes.remove(name)));
    }
}

/// A result with the revision that it is of: the one that is made of its copy has another.
fn dated(value: &Bytes, revision: Revision) -> Bytes {
    let Ok(mut said) = serde_json::from_slice::<CheckStatus>(value) else { return value.clone() };
    said.modified = said.modified.or(Since(revision.0));
    serde_json::to_vec(&said).map_or_else(|_| value.clone(), Bytes::from)
}

async fn all(store: &dyn Store, prefix: &str) -> Result<(Revision, Changes), StoreError> {
    let page = store.range(prefix, 0, None).await?;
    let name = |key: &str| key.strip_prefix(prefix).map(Arc::from);
    let entries = page.entries.into_iter();
    let value = |entry: Entry| match prefix {
        RESULTS => dated(&entry.value, entry.modified),
        _ => entry.value,
    };
    let named = entries.filter_map(|(key, entry)| Some((name(&key)?, Some(value(entry)))));
    Ok((page.revision, named.collect()))
}

#[cfg(test)]
mod tests;
