// SPDX-License-Identifier: Apache-2.0
//! Traffic that the kernel hands over although nobody asked for a proxy: what a pod sends
//! ([`outbound`]), what others send to it ([`inbound`]), and what it asks of DNS ([`dns`]).
//! The doors of these three are opened by `run.rs`; connections come from `tcp/accept.rs`.
//!
//! From here on captured traffic goes the same ways as any other: HTTP through the phases, bytes
//! through the relay. What differs is only how it is found out where it goes (the address that
//! was dialled) and what it speaks (whoever speaks first).
//!
//! Never: a connection that is neither forwarded, nor answered, nor reset and logged.

pub mod dns;
mod hello;
pub mod inbound;
pub mod original;
pub mod outbound;
pub mod race;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use weft_model::decide::{Captured, by_original_dst};
use weft_model::{CaptureListener, Egress, LbPolicy};

use crate::config::UnknownDestinations;
use crate::table::{BackendEntry, Table};
use crate::tcp::route::Who;
use crate::upstream::pick::LocalBackend;
use crate::worker::{Conn, Worker};

/// Where a connection that nothing in the mesh is known about goes.
///
/// # Errors
/// Why it must not go there.
pub fn egress(worker: &Worker, table: &Table, to: SocketAddr) -> Result<Arc<BackendEntry>, String> {
    if worker.config.networks.is_service(to.ip()) {
        return Err(format!("no service has the address {}", to.ip()));
    }
    if worker.config.is_own_port(to.port()) && to.ip().to_canonical() == worker.config.address {
        return Err(format!("{to} is this proxy itself"));
    }
    let denied = table.capture().is_some_and(|c| c.egress == Egress::Deny)
        || worker.config.unknown == UnknownDestinations::Deny;
    if denied {
        return Err(format!("{to} is not in the mesh, and others are denied"));
    }
    Ok(BackendEntry::outside(to, worker.config.workers))
}

/// The backend of a captured connection that is not HTTP.
///
/// # Errors
/// Why there is none.
pub fn backend(
    worker: &Worker,
    table: &Table,
    to: SocketAddr,
    who: Who<'_>,
) -> Result<Arc<BackendEntry>, String> {
    match by_original_dst(table, to) {
        Captured::Service { host, port } => {
            let mut rng = worker.rng.borrow_mut();
            crate::tcp::route::backend_of(table, &host.name, port.port, who, &mut rng)
                .unwrap_or_else(|| Err(format!("{}:{} has no backend", host.name, port.port)))
        }
        Captured::Instance(found) => BackendEntry::instance(table, &found),
        Captured::NoSuchPort { host } => Err(format!("{} has no port {}", host.name, to.port())),
        Captured::Outside => egress(worker, table, to),
    }
}

/// A backend at the address that its client dialled, where its policy wants no balancing. An
/// address of the service itself stands for no instance, and neither does one where others are
/// denied: then it is as it was.
pub fn dialled(
    worker: &Rc<Worker>,
    conn: &Conn,
    table: &Table,
    backend: Rc<RefCell<LocalBackend>>,
) -> Rc<RefCell<LocalBackend>> {
    let Some(to) = conn.original else { return backend };
    let asks = backend.borrow().entry.backend.policy.lb == LbPolicy::Passthrough;
    if !asks || !matches!(by_original_dst(table, to), Captured::Outside) {
        return backend;
    }
    let outside = egress(worker, table, to).ok();
    match outside.and_then(|outside| backend.borrow().entry.dialled(&outside)) {
        Some(there) => worker.backend(&there),
        None => backend,
    }
}

/// How long a client's first bytes may leave the protocol open.
fn sniff_limit(table: &Table) -> Duration {
    let usual = CaptureListener::default().sniff_timeout_ms;
    let ms = table.capture().map_or(usual, |c| c.sniff_timeout_ms);
    Duration::from_millis(ms.min(usual))
}

/// Closes a connection so that its client sees a reset and not an orderly end.
fn reset(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a refused connection is closed and not reset");
    }
    drop(stream);
}
