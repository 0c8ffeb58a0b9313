// SPDX-License-Identifier: Apache-2.0
//! `weft store migrate`: a data directory in this weft's form, or its log copied into an etcd that
//! several servers will share. The directory stays as it is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{StreamExt as _, stream};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_store::redb::tools;
use weft_store::{
    Class, Compare, EtcdStore, LeaseId, Op, RedbStore, Retention, Store, StoreError, Txn,
};

use super::{MigrateArgs, held, progress};
use crate::exit::Usage;
use crate::server::shared;
use crate::server::vault::{CONSUL_CA, Vault};

/// Written first and taken away last: no server begins on what is there until then.
pub const MIGRATING: &str = "/t/migrating";
/// Below it, for each lease that was granted for the copy, a key that ends with it.
const LEASES: &str = "/t/migrating/";
/// Keys of one transaction; etcd takes 128 operations and 1.5 MiB.
const KEYS_AT_ONCE: usize = 100;
const BYTES_AT_ONCE: usize = 512 * 1024;
/// A life that leases are given when the log says none.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// How often leases are kept alive while keys are copied, and how many at a time.
const KEEP_EVERY: Duration = Duration::from_secs(2);
const KEEP_AT_ONCE: usize = 16;

pub async fn run(args: &MigrateArgs) -> Result<()> {
    let (dir, log) = held(&args.at)?;
    let Some(to) = &args.to.to else {
        let report = tools::check(&log, &progress(args.at.quiet))?;
        crate::say!("{} has format {}, this weft's own", log.display(), report.format);
        return Ok(());
    };
    let shared = args.to.access.open(to)?;
    let clock = Clock::system();
    let from = RedbStore::open_file(&log, clock.clone(), Retention::default())?;
    let etcd = EtcdStore::open(shared.config, clock, Retention::default()).await;
    let etcd = Arc::new(etcd.with_context(|| to.clone())?);
    let (target, again) = Target::begin(&*etcd, to).await?;
    let copying = async {
        let known = if again { target.clear().await? } else { BTreeSet::new() };
        let copied = copy(&from, &etcd, &target, (&known, &progress(args.at.quiet))).await?;
        Vault::mesh(&*etcd, &shared.seal).keep(&dir.sub("ca")?).await?;
        // There is none where a server of an older weft ran last.
        let consul = dir.sub(CONSUL_CA)?;
        if consul.join("root.pem").try_exists()? {
            Vault::consul(&*etcd, &shared.seal).keep(&consul).await?;
        }
        target.end().await?;
        Ok::<_, anyhow::Error>(copied)
    };
    let copied = copying.await.with_context(|| {
        format!("the copy in {to} is not whole, and servers refuse it: run the same command again")
    })?;
    etcd.leave().await?;
    crate::say!("copied {copied} keys and the authority's key, sealed, to {to}");
    crate::say!("start servers with `weft server --store {to} --seal-key-file FILE`");
    crate::say!("{} stays as it is; do not start a server on it again", dir.path().display());
    Ok(())
}

/// What is copied into, as long as the mark there is this run's own.
struct Target<'a> {
    to: &'a dyn Store,
    mark: Compare,
}

// === impl Target ===

impl<'a> Target<'a> {
    /// Marks a prefix that is empty, or that an earlier copy left marked; whether it did.
    async fn begin(to: &'a dyn Store, named: &str) -> Result<(Self, bool)> {
        let holds = || {
            bail!(Usage(format!(
                "{named} holds a mesh already; name another prefix: etcd://HOST:2379/PREFIX"
            )))
        };
        let at = MIGRATING.into();
        let (_, old) = to.get(MIGRATING).await?;
        let mark = match &old {
            Some(old) => Compare::ModRevision(at, old.modified),
            None if !to.range("", 1, None).await?.entries.is_empty() => return holds(),
            None => Compare::Absent(at),
        };
        let before = Self { to, mark };
        // Unlike that of any other run.
        let own = format!("{:016x}", Rng::from_system().next_u64());
        before.write(Txn::of([Op::put(MIGRATING, own.clone())])).await?;
        let (_, new) = to.get(MIGRATING).await?;
        let Some(new) = new.filter(|new| new.value == own) else { bail!(ANOTHER) };
        let target = Self { to, mark: Compare::ModRevision(MIGRATING.into(), new.modified) };
        if old.is_none() && to.range("", 2, None).await?.entries.len() > 1 {
            // A server began at the same moment.
            target.write(Txn::of([Op::delete(MIGRATING)])).await?;
            return holds();
        }
        Ok((target, old.is_some()))
    }

    /// Removes what an earlier copy wrote, but for its mark; the leases that it granted.
    async fn clear(&self) -> Result<BTreeSet<LeaseId>> {
        let (mut leases, mut after) = (BTreeSet::new(), None::<Arc<str>>);
        loop {
            let page = self.to.range("", KEYS_AT_ONCE, after.as_deref()).await?;
            let mut txn = Txn::default();
            for (key, entry) in &page.entries {
                if key.starts_with(LEASES) {
                    leases.extend(entry.lease);
                } else if &**key != MIGRATING {
                    txn.ops.push(Op::delete(key.clone()));
                }
            }
            self.write(txn).await?;
            match page.entries.last() {
                Some((last, _)) => after = Some(last.clone()),
                None => return Ok(leases),
            }
        }
    }

    /// The copy is whole: servers may begin on it.
    async fn end(&self) -> Result<()> {
        loop {
            let page = self.to.range(LEASES, KEYS_AT_ONCE, None).await?;
            if page.entries.is_empty() {
                return self.write(Txn::of([Op::delete(MIGRATING)])).await;
            }
            let keys = page.entries.into_iter().map(|(key, _)| key);
            self.write(Txn::of(keys.map(Op::delete))).await?;
        }
    }

    /// Writes, also when an answer is lost: what was written then is found.
    async fn write(&self, mut txn: Txn) -> Result<()> {
        let Some(first) = txn.ops.first().cloned() else { return Ok(()) };
        txn.compares.push(self.mark.clone());
        let lost = AtomicBool::new(false);
        let done = shared::patiently(|| async {
            let done = self.to.txn(txn.clone()).await;
            note_lost(&done, &lost);
            done
        });
        if done.await?.succeeded {
            return Ok(());
        }
        let (_, found) = self.to.get(first.key()).await?;
        let written = match (&first, found) {
            (Op::Put { value, .. }, Some(found)) => found.value == *value,
            (Op::Put { .. }, None) | (_, Some(_)) => false,
            (_, None) => true,
        };
        if !(written && lost.into_inner()) {
            bail!(ANOTHER);
        }
        Ok(())
    }
}

const ANOTHER: &str = "somebody else writes to that prefix; nothing more was copied";

fn note_lost<T>(done: &Result<T, StoreError>, lost: &AtomicBool) {
    if matches!(done, Err(StoreError::Unreachable { unknown: true, .. })) {
        lost.store(true, Ordering::Relaxed);
    }
}

async fn copy(
    from: &RedbStore,
    to: &EtcdStore,
    target: &Target<'_>,
    (known, progress): (&BTreeSet<LeaseId>, &tools::Progress),
) -> Result<usize> {
    let granted = Mutex::<Vec<LeaseId>>::default();
    let copying = async {
        for leases in from.leases().chunks(KEYS_AT_ONCE) {
            let mut notes = Txn::default();
            for (lease, ttl) in leases {
                grant(to, *lease, (*ttl).max(LEASE_MIN), known.contains(lease)).await?;
                granted.lock().unwrap_or_else(PoisonError::into_inner).push(*lease);
                let key = format!("{LEASES}{}", lease.0).into();
                let (value, class, lease) = (Vec::new().into(), Class::Synced, Some(*lease));
                notes.ops.push(Op::Put { key, value, class, lease });
            }
            target.write(notes).await?;
        }
        copy_keys(from, target, progress).await
    };
    tokio::select! {
        copied = copying => copied,
        why = keep(to, &granted) => Err(why),
    }
}

/// Keeps what was granted alive; why that failed.
async fn keep(to: &EtcdStore, granted: &Mutex<Vec<LeaseId>>) -> anyhow::Error {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let all = granted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let calls = stream::iter(all).map(|lease| to.lease_keep_alive(lease));
        let mut answers = calls.buffer_unordered(KEEP_AT_ONCE);
        while let Some(kept) = answers.next().await {
            match kept {
                Ok(_) => {}
                Err(why) if why.is_passing() => tracing::debug!(%why, "a lease was not kept"),
                Err(why) => return anyhow!(why).context("a lease ended during the copy"),
            }
        }
    }
}

/// A lease of this number: a new one, or one that an earlier copy (`known`) or an attempt whose
/// answer was lost made.
async fn grant(to: &EtcdStore, lease: LeaseId, ttl: Duration, known: bool) -> Result<()> {
    let lost = AtomicBool::new(known);
    let made = shared::patiently(|| async {
        let made = to.grant_as(lease, ttl).await;
        note_lost(&made, &lost);
        made
    });
    match made.await {
        Err(StoreError::Refused { why, .. })
            if lost.into_inner() && why.contains("already exists") =>
        {
            to.lease_keep_alive(lease).await?;
            Ok(())
        }
        made => made.with_context(|| {
            format!("lease {} is taken in that etcd: use one of its own", lease.0)
        }),
    }
}

async fn copy_keys(
    from: &RedbStore,
    target: &Target<'_>,
    progress: &tools::Progress,
) -> Result<usize> {
    let page = from.range("", 0, None).await?;
    let of = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
    let (mut txn, mut bytes, mut done) = (Txn::default(), 0, 0);
    for (key, entry) in page.entries {
        if txn.ops.len() == KEYS_AT_ONCE || bytes + entry.value.len() > BYTES_AT_ONCE {
            target.write(std::mem::take(&mut txn)).await?;
            bytes = 0;
            progress("copying keys", u64::try_from(done).unwrap_or(0), of);
        }
        bytes += key.len() + entry.value.len();
        txn.compares.push(Compare::Absent(key.clone()));
        txn.ops.push(Op::Put { key, value: entry.value, class: entry.class, lease: entry.lease });
        done += 1;
    }
    target.write(txn).await?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::doctored::Doctored;

    fn store() -> Arc<Doctored> {
        Doctored::new(Clock::system())
    }

    async fn keys(store: &Doctored) -> Vec<String> {
        let page = store.range("", 0, None).await.unwrap();
        page.entries.into_iter().map(|(key, _)| key.to_string()).collect()
    }

    #[tokio::test]
    async fn what_an_earlier_copy_left_is_cleared_and_it_writes_no_more() {
        let store = store();
        let (first, again) = Target::begin(&*store, "there").await.unwrap();
        assert!(!again);
        let lease = store.lease_grant(LEASE_MIN).await.unwrap();
        let (key, value) = (format!("{LEASES}7").into(), Vec::new().into());
        let note = Op::Put { key, value, class: Class::Synced, lease: Some(lease) };
        first.write(Txn::of([Op::put("/a", "1"), Op::put("/z", "1"), note])).await.unwrap();
        let (second, again) = Target::begin(&*store, "there").await.unwrap();
        assert!(again);
        assert_eq!(second.clear().await.unwrap(), BTreeSet::from([lease]));
        assert_eq!(keys(&store).await, [MIGRATING, "/t/migrating/7"]);
        let late = first.write(Txn::of([Op::put("/late", "1")])).await.unwrap_err();
        assert!(late.to_string().contains("somebody else"), "{late}");
        second.write(Txn::of([Op::put("/a", "2")])).await.unwrap();
        second.end().await.unwrap();
        assert_eq!(keys(&store).await, ["/a"]);
        let refused = Target::begin(&*store, "there").await.err().unwrap().to_string();
        assert!(refused.contains("holds a mesh already"), "{refused}");
    }

    #[tokio::test]
    async fn a_write_whose_answer_is_lost_is_found() {
        let store = store();
        store.lose_an_answer();
        let (target, _) = Target::begin(&*store, "there").await.unwrap();
        store.lose_an_answer();
        let put = || Txn::of([Op::put("/a", "1")]).when(Compare::Absent("/a".into()));
        target.write(put()).await.unwrap();
        assert!(target.write(put()).await.is_err(), "nothing was lost: it was there before");
        store.lose_an_answer();
        target.end().await.unwrap();
        assert_eq!(keys(&store).await, ["/a"]);
    }
}
