// SPDX-License-Identifier: Apache-2.0
//! What others send to a pod, past its mesh port: the mode of the app port says whether plaintext
//! may pass. A sidecar's TLS is taken here as well as on the mesh port.
//!
//! Never lets a byte of plaintext reach the app of a port whose mode is strict.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_model::{MtlsMode, Protocol};

use super::outbound::opaque;
use super::race::{self, First, Judge, Raced, look, race};
use super::{hello, reset, sniff_limit};
use crate::http::serve::serve;
use crate::table::Table;
use crate::tcp::prefixed::Prefixed;
use crate::tcp::{accept, relay};
use crate::worker::{Conn, Worker};

/// Clients speak first in TLS; one that is silent for longer is a plaintext one that waits.
const STRICT_SILENCE: Duration = Duration::from_secs(2);

type Io = Prefixed<TcpStream>;

/// Serves one connection to its end.
pub async fn connection(worker: Rc<Worker>, stream: TcpStream, mut conn: Conn) {
    let to = match conn.original {
        Some(to) if !worker.config.is_own_port(to.port()) => to,
        Some(_) => {
            relay::refused(&worker, &conn, "this port is the sidecar's own");
            return reset(stream);
        }
        None => {
            relay::refused(&worker, &conn, "this port only takes connections that were redirected");
            return reset(stream);
        }
    };
    conn.app_port = Some(to.port());
    conn.app = Some(to);
    let table = worker.table();
    let (mode, protocol) = policy(&table, to.port());
    let limit = sniff_limit(&table);
    drop(table);
    match mode {
        MtlsMode::Strict => strict(worker, stream, conn).await,
        MtlsMode::Permissive => open(worker, stream, conn, protocol, limit, true).await,
        MtlsMode::Disable => open(worker, stream, conn, protocol, limit, false).await,
    }
}

/// Who may come to an app port, and what it speaks.
fn policy(table: &Table, port: u16) -> (MtlsMode, Protocol) {
    match table.inbound(port) {
        Some(entry) => (entry.listener.mtls, entry.listener.protocol),
        None => (table.capture().map(|c| c.mtls_of(port)).unwrap_or_default(), Protocol::Detect),
    }
}

/// Plaintext passes; a sidecar's TLS too when `mesh` says so.
#[allow(clippy::too_many_arguments)] // One connection and what was found out about it.
async fn open(
    worker: Rc<Worker>,
    stream: TcpStream,
    conn: Conn,
    protocol: Protocol,
    limit: Duration,
    mesh: bool,
) {
    let judge: Judge = match protocol {
        Protocol::Tcp | Protocol::Tls | Protocol::Udp if mesh => race::tls,
        // Nothing needs to be known: whatever comes is relayed.
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => |_| Some(First::Opaque),
        _ if mesh => race::tls_or_http,
        _ => race::http,
    };
    let raced = if protocol.is_http() {
        // Its clients speak first, and what they say wrongly HTTP answers.
        let looked = tokio::select! {
            biased;
            looked = look(stream, judge, worker.config.limits.idle_timeout) => looked,
            () = accept::last_words(&worker) => return,
        };
        let io = match looked {
            Ok((First::Tls, io)) => return tls(worker, io, conn).await,
            Ok((_, io)) => io,
            Err(_) => return,
        };
        return accept::http(worker, io, Rc::new(conn)).await;
    } else {
        let open = relay::begin(&worker, &conn);
        tokio::select! {
            biased;
            raced = race(stream, judge, limit, open) => raced,
            () = accept::last_words(&worker) => return,
        }
    };
    match raced {
        Raced::Http(wire, io) => serve(io, worker, Rc::new(conn), wire),
        Raced::Tls(io) => tls(worker, io, conn).await,
        Raced::Opaque { io, upstream, said } => opaque(&worker, &conn, io, upstream, said).await,
    }
}

/// A sidecar's TLS ends here; any other is the app's.
async fn tls(worker: Rc<Worker>, io: Io, conn: Conn) {
    let (sidecar, io) = hello::is_sidecar(io, worker.config.limits.handshake_timeout).await;
    if sidecar {
        return accept::mesh(worker, io, conn).await;
    }
    let opening = relay::begin(&worker, &conn).await;
    if let Err(io) = relay::finish(&worker, &conn, io, opening, Bytes::new()).await {
        reset(io.into_inner().into_inner());
    }
}

/// Only a sidecar's TLS passes.
async fn strict(worker: Rc<Worker>, stream: TcpStream, mut conn: Conn) {
    let Ok((first, io)) = look(stream, race::tls_or_http, STRICT_SILENCE).await else { return };
    match first {
        First::Tls => {
            let (sidecar, io) = hello::is_sidecar(io, worker.config.limits.handshake_timeout).await;
            if sidecar {
                return accept::mesh(worker, io, conn).await;
            }
            relay::refused(&worker, &conn, "the port takes mesh mTLS only, and this TLS is not");
            reset(io.into_inner().into_inner());
        }
        First::Http(wire) => {
            // The phases answer it, with flag and reason.
            conn.plaintext_refused = true;
            serve(io, worker, Rc::new(conn), wire);
        }
        First::Opaque => {
            relay::refused(&worker, &conn, "the port takes mesh mTLS only, and this is plaintext");
            reset(io.into_inner());
        }
    }
}
