// SPDX-License-Identifier: Apache-2.0
//! Keeps the addresses of names outside of the mesh that ServiceEntries ask for (resolution DNS):
//! looked up with the machine's resolvers and written as settings, which compile reads. Started by
//! the binary; a name that is not found keeps the addresses that it had.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::Rtype;
use weft_base::clock::Mono;
use weft_base::limits::RESOLVED_NAMES_MAX;
use weft_base::name::Hostname;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::World;
use weft_registry::Registry;

use super::find::Data;
use super::forward::Upstream;

/// A name is looked up again after this long, and sooner when it was not found.
const AGAIN: Duration = Duration::from_secs(15);
const AGAIN_MISSING: Duration = Duration::from_secs(2);
/// What changes within this long is looked at together.
const PAUSE: Duration = Duration::from_millis(100);
/// Look-ups at a time.
const TOGETHER: usize = 16;

/// Follows the World until the registry's tasks drain.
pub async fn run(registry: Registry, upstream: Upstream) {
    let group = registry.tasks().clone();
    tokio::select! {
        () = group.draining() => {}
        () = keep(&registry, &upstream) => {}
    }
}

async fn keep(registry: &Registry, upstream: &Upstream) {
    let mut due: BTreeMap<String, Mono> = BTreeMap::new();
    let mut worlds = registry.world();
    loop {
        let world = worlds.load();
        let wanted = wanted(&world);
        warn(registry.forget_resolved(|name| wanted.contains_key(name)).await);
        due.retain(|name, _| wanted.contains_key(name));
        let now = registry.clock().now();
        for name in wanted.into_keys() {
            due.entry(name).or_insert(now);
        }
        let ready: Vec<String> =
            due.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for some in ready.chunks(TOGETHER) {
            let found = some.iter().map(|name| look_up(upstream, name));
            for (name, found) in some.iter().zip(futures_util::future::join_all(found).await) {
                let after = if found.is_empty() { AGAIN_MISSING } else { AGAIN };
                due.insert(name.clone(), registry.clock().now().plus(after));
                if !found.is_empty() {
                    warn(registry.note_resolved(name, &found).await);
                }
            }
        }
        let now = registry.clock().now();
        let wait = due.values().min().map_or(AGAIN, |at| at.since(now));
        tokio::select! {
            more = worlds.changed() => if !more { return },
            () = tokio::time::sleep(wait) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The names that ServiceEntries want looked up, in lower case; a bounded number.
fn wanted(world: &World) -> BTreeMap<String, ()> {
    let entries = world.objects(KindId::ServiceEntry, None);
    let names = entries.filter_map(|o| match &o.view {
        View::ServiceEntry(entry) => Some(entry.spec.names_to_resolve()),
        _ => None,
    });
    let valid = names.flatten().filter_map(|n| Hostname::new(n).ok());
    valid.map(|n| (n.as_str().to_owned(), ())).take(RESOLVED_NAMES_MAX).collect()
}

async fn look_up(upstream: &Upstream, name: &str) -> Vec<IpAddr> {
    let (v4, v6) =
        tokio::join!(upstream.lookup(name, Rtype::A), upstream.lookup(name, Rtype::AAAA));
    let each = v4.into_iter().chain(v6).filter_map(|(_, data)| match data {
        Data::Address(ip) => Some(ip),
        _ => None,
    });
    let mut out: Vec<IpAddr> = each.collect();
    out.sort();
    out.dedup();
    out
}

fn warn<T, E: std::fmt::Display>(done: Result<T, E>) {
    if let Err(error) = done {
        tracing::warn!(%error, "addresses of names outside were not written");
    }
}

#[cfg(test)]
mod tests;
