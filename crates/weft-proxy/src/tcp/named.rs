// SPDX-License-Identifier: Apache-2.0
//! TLS of the mesh's own applications, passed on unopened to where the rules for its server name
//! say. Called by `accept` and `capture/outbound.rs` for ports that are declared to carry TLS;
//! nothing is read where no rule asks for a name.

use std::rc::Rc;

use weft_model::decide::{Captured, by_original_dst};

use super::socket::Socket;
use super::{hello, relay, route};
use crate::table::Door;
use crate::worker::{Conn, Worker};

/// Relays a connection by the name in its ClientHello. What is no TLS has none, and no rule by name
/// takes it.
pub async fn opaque<I>(worker: Rc<Worker>, io: I, mut conn: Rc<Conn>)
where
    I: Socket + Send + 'static,
{
    if !is_asked(&worker, &conn) {
        return relay::opaque(worker, io, conn).await;
    }
    let (name, io) = hello::read(io, worker.config.limits.handshake_timeout).await;
    if let (Ok(name), Some(conn)) = (name, Rc::get_mut(&mut conn)) {
        conn.server_name = name;
    }
    relay::opaque(worker, io, conn).await;
}

/// Whether any rule for where a connection is bound asks for a name.
pub fn is_asked(worker: &Worker, conn: &Conn) -> bool {
    let table = worker.table();
    match (&conn.door, &conn.tunnel, conn.original) {
        (Door::Upstream { host, port }, ..) => route::asks_name(&table, host, *port),
        (Door::Outbound, _, Some(to)) => match by_original_dst(&**table, to) {
            Captured::Service { host, port } => route::asks_name(&table, &host.name, port.port),
            _ => false,
        },
        (Door::Forward, Some(target), _) => {
            route::asks_name(&table, &target.host, target.port.unwrap_or(80))
        }
        _ => false,
    }
}
