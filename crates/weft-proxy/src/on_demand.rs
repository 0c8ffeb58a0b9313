// SPDX-License-Identifier: Apache-2.0
//! Requests and connections for a host that the table does not hold, when it may hold a part only:
//! they wait, bounded in time and number, until control was asked. The phases, the relay and the
//! captured door call [`known`] before they look a destination up; `ingest::wants` asks.
//!
//! A table that holds everything costs one look at a flag here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use weft_model::decide::{Captured, by_original_dst};

use crate::config::OnDemandLimits;
use crate::table::{Door, Table};
use crate::worker::{Conn, Worker};

/// Questions that may wait for ingest to read them.
const ASKS_MAX: usize = 64;

/// A name that a request needs judged.
#[derive(Debug)]
pub struct Ask {
    pub name: Arc<str>,
    pub answer: oneshot::Sender<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every worker's table holds it now.
    Held,
    /// It is no host of the mesh that this proxy may see.
    Absent,
}

/// The workers' end of the questions.
#[derive(Clone, Debug)]
pub struct OnDemand {
    asks: mpsc::Sender<Ask>,
    /// Of all workers.
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    wait: Duration,
}

/// One that waits.
struct Waiting<'a>(&'a AtomicUsize);

/// Both ends of the questions.
pub fn channel(limits: &OnDemandLimits) -> (OnDemand, mpsc::Receiver<Ask>) {
    let (asks, rx) = mpsc::channel(ASKS_MAX);
    let (waiting_max, wait) = (limits.waiting_max, limits.wait);
    (OnDemand { asks, waiting: Arc::default(), waiting_max, wait }, rx)
}

/// Waits until the worker's table can judge what a connection is for, and `host`, the name in its
/// request. Afterwards the newest table must be used. Cancel-safe.
///
/// # Errors
/// Why that is not known, when it may well be in the mesh.
pub async fn known(worker: &Worker, conn: &Conn, host: Option<&str>) -> Result<(), String> {
    let names = unknown(&worker.table(), conn, host, worker.clock.now().0);
    let on_demand = &worker.shared.on_demand;
    let until = Instant::now() + on_demand.wait;
    for name in names {
        if let Err(why) = on_demand.ask(name.clone(), until).await {
            // Names of this mesh's own never leave it unasked; the others have a life outside,
            // which must not end with the server.
            if is_of_mesh(&name, &worker.config.cluster_domain) {
                return Err(format!("whether {name} is a service is not known yet: {why}"));
            }
        }
    }
    Ok(())
}

/// Whether there is anything to wait for. Notes that what is there is in use.
pub fn is_unknown(worker: &Worker, conn: &Conn, host: Option<&str>) -> bool {
    let table = worker.table();
    table.unheld.partial && !unknown(&table, conn, host, worker.clock.now().0).is_empty()
}

/// The names that decide where a connection goes, if the table cannot judge them.
fn unknown(table: &Table, conn: &Conn, host: Option<&str>, now_ms: u64) -> Vec<Arc<str>> {
    if !table.unheld.partial {
        return Vec::new();
    }
    let mut names: Vec<Arc<str>> = Vec::new();
    match &conn.door {
        Door::Forward => {
            let tunnel = conn.tunnel.as_ref().map(|target| target.host.as_str());
            names.extend(tunnel.or(host).map(Into::into));
        }
        Door::Outbound => {
            let to = conn.dialled();
            match by_original_dst(table, to) {
                Captured::Service { host, .. } | Captured::NoSuchPort { host } => {
                    names.push(host.name.clone());
                }
                Captured::Instance(found) => names.push(found.host.name.clone()),
                Captured::Outside => {
                    names.push(to.ip().to_canonical().to_string().into());
                    names.extend(host.map(Into::into));
                }
            }
        }
        Door::Gateway(_)
        | Door::Datagrams(_)
        | Door::Mesh
        | Door::Inbound
        | Door::Upstream { .. } => {}
    }
    names.retain(|name| match table.host(name) {
        Some(entry) => {
            entry.touch(now_ms);
            false
        }
        None => !table.unheld.absent.contains(name),
    });
    names
}

/// Whether nobody but this mesh would know a name.
fn is_of_mesh(name: &str, cluster_domain: &str) -> bool {
    let of_domain = name.strip_suffix(cluster_domain).is_some_and(|rest| rest.ends_with('.'));
    of_domain || name.ends_with(".svc") || !name.contains(['.', ':'])
}

// === impl OnDemand ===

impl OnDemand {
    async fn ask(&self, name: Arc<str>, until: Instant) -> Result<Answer, String> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.waiting_max {
            return Err(format!("{before} requests wait for such answers already"));
        }
        let asking = async {
            let (answer, rx) = oneshot::channel();
            self.asks.send(Ask { name, answer }).await.ok()?;
            rx.await.ok()
        };
        match tokio::time::timeout_at(until, asking).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("this proxy is going down".to_owned()),
            Err(_) => Err(format!("the server did not answer within {:?}", self.wait)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::is_of_mesh;

    #[test]
    fn names_of_the_mesh_are_told_from_others() {
        for (name, of_mesh) in [
            ("user", true),
            ("user.shop.svc", true),
            ("user.shop.svc.cluster.local", true),
            ("user.shop", false),
            ("api.example.com", false),
            ("notcluster.local", false),
            ("10.0.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_of_mesh(name, "cluster.local"), of_mesh, "{name}");
        }
    }
}
