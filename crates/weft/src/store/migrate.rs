// SPDX-License-Identifier: Apache-2.0
//! `weft store migrate`: a data directory in this weft's form, or its log copied into an etcd that
//! several servers will share. The directory stays as it is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use weft_base::clock::Clock;
use weft_store::redb::tools;
use weft_store::{Compare, EtcdStore, Op, RedbStore, Retention, Store, Txn};

use super::{MigrateArgs, held, progress};
use crate::exit::Usage;
use crate::server::shared;

/// Keys of one transaction; etcd takes 128 operations and 1.5 MiB.
const KEYS_AT_ONCE: usize = 100;
const BYTES_AT_ONCE: usize = 512 * 1024;
/// A life that leases are given when the log says none.
const LEASE_MIN: Duration = Duration::from_secs(10);

pub async fn run(args: &MigrateArgs) -> Result<()> {
    let (dir, log) = held(&args.at)?;
    let Some(to) = &args.to.to else {
        let report = tools::check(&log, &progress(args.at.quiet))?;
        crate::say!("{} has format {}, this weft's own", log.display(), report.format);
        return Ok(());
    };
    let target = args.to.access.open(to)?;
    let clock = Clock::system();
    let from = RedbStore::open_file(&log, clock.clone(), Retention::default())?;
    let etcd = EtcdStore::open(target.config, clock, Retention::default()).await;
    let etcd = Arc::new(etcd.with_context(|| to.clone())?);
    let there = etcd.range("", 1, None).await?;
    if !there.entries.is_empty() {
        bail!(Usage(format!(
            "{to} holds a mesh already; name another prefix: {}",
            "etcd://HOST:2379/PREFIX"
        )));
    }
    let copied = copy(&from, &etcd, &progress(args.at.quiet)).await?;
    shared::keep_authority(&*etcd, &target.seal, &dir.sub("ca")?).await?;
    etcd.leave().await?;
    crate::say!("copied {copied} keys and the authority's key, sealed, to {to}");
    crate::say!("start servers with `weft server --store {to} --seal-key-file FILE`");
    crate::say!("{} stays as it is; do not start a server on it again", dir.path().display());
    Ok(())
}

async fn copy(from: &RedbStore, to: &EtcdStore, progress: &tools::Progress) -> Result<usize> {
    for (lease, ttl) in from.leases() {
        to.grant_as(lease, ttl.max(LEASE_MIN)).await.with_context(|| {
            format!("lease {} is taken in that etcd: use one of its own", lease.0)
        })?;
    }
    let page = from.range("", 0, None).await?;
    let of = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
    let (mut txn, mut bytes, mut done) = (Txn::default(), 0, 0);
    for (key, entry) in page.entries {
        if txn.ops.len() == KEYS_AT_ONCE || bytes + entry.value.len() > BYTES_AT_ONCE {
            write(to, std::mem::take(&mut txn)).await?;
            bytes = 0;
            progress("copying keys", u64::try_from(done).unwrap_or(0), of);
        }
        bytes += key.len() + entry.value.len();
        txn.compares.push(Compare::Absent(key.clone()));
        txn.ops.push(Op::Put { key, value: entry.value, class: entry.class, lease: entry.lease });
        done += 1;
    }
    write(to, txn).await?;
    Ok(done)
}

async fn write(to: &EtcdStore, txn: Txn) -> Result<()> {
    if !txn.ops.is_empty() && !to.txn(txn).await?.succeeded {
        bail!("somebody else writes to that prefix; nothing more was copied");
    }
    Ok(())
}
