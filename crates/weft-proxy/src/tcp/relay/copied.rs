// SPDX-License-Identifier: Apache-2.0
//! Moves the bytes of one relayed connection, for as long as its backend lets it last, and counts
//! them. Part of `relay`, which opened both sides and logs what became of them.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Seen, labels, reset};
use crate::observe::metrics::TcpSeries;
use crate::table::BackendEntry;
use crate::tcp::joined::{Ended, Tally, join};
use crate::tcp::prefixed::Prefixed;
use crate::tcp::socket::Socket;
use crate::upstream::pick::LocalEndpoint;
use crate::upstream::pool::{InFlight, Tunnel};
use crate::worker::{Conn, Worker};

/// A connection lasted for as long as its backend's connections may.
pub(super) struct Cut(pub(super) Duration);

/// Moves bytes both ways until both sides have ended, and counts them.
///
/// # Errors
/// It was cut for its age; what else ends it early is no matter of the caller's.
pub(super) async fn copy<I>(
    worker: &Rc<Worker>,
    conn: &Conn,
    seen: &Seen,
    (mut io, mut upstream): (I, Prefixed<Tunnel>),
    picked: &Rc<LocalEndpoint>,
) -> Result<(), Cut>
where
    I: Socket,
{
    let _flight = InFlight::begin(picked, worker.id);
    let backend = seen.backend.as_deref();
    let series = worker.metrics.tcp(labels(worker, conn, backend, Some(picked)));
    series.opened.fetch_add(1, Ordering::Relaxed);
    let idle = seen.idle.unwrap_or(worker.config.limits.tunnel_idle_timeout);
    let counted = Counted { series: &series, seen };
    let moving = join(&mut io, &mut upstream, idle, &counted);
    let age = age_max(backend).into_iter().chain(seen.longest).min();
    let copied = match age {
        None => Ok(moving.await),
        Some(age) => tokio::time::timeout(age, moving).await.map_err(|_| Cut(age)),
    };
    series.closed.fetch_add(1, Ordering::Relaxed);
    let broken = match &copied {
        Ok(Err(error)) => {
            tracing::debug!(remote = %conn.remote, %error, "a relayed connection broke");
            matches!(error, Ended::Broke(_))
        }
        Ok(Ok(())) => false,
        Err(_) => true,
    };
    // What was cut short on one side must not look whole on the other.
    if broken {
        reset(&io);
        reset(&upstream);
    }
    copied.map(drop)
}

/// How long connections of a backend last at most.
fn age_max(backend: Option<&BackendEntry>) -> Option<Duration> {
    let said = backend?.backend.policy.connections.as_ref()?.age_ms_max;
    said.filter(|ms| *ms > 0).map(Duration::from_millis)
}

/// Counts what is read, as it is read.
struct Counted<'a> {
    series: &'a TcpSeries,
    seen: &'a Seen,
}

impl Tally for Counted<'_> {
    fn first(&self, bytes: usize) {
        self.series.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.seen.moved.received.set(self.seen.moved.received.get() + bytes as u64);
    }

    fn second(&self, bytes: usize) {
        self.series.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.seen.moved.sent.set(self.seen.moved.sent.get() + bytes as u64);
    }
}
