// SPDX-License-Identifier: Apache-2.0
//! What a pod sends: the address that was dialled says which service, instance or outside
//! destination is meant, the declared protocol or whoever speaks first says how it is carried.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_model::Protocol;
use weft_model::decide::{Captured, by_original_dst};

use super::race::{self, Raced, race};
use super::{reset, sniff_limit};
use crate::http::serve::serve;
use crate::on_demand;
use crate::tcp::prefixed::Prefixed;
use crate::tcp::{accept, named, relay};
use crate::worker::{Conn, Worker};

/// Serves one connection to its end.
pub async fn connection(worker: Rc<Worker>, stream: TcpStream, conn: Conn) {
    let Some(to) = conn.original else {
        relay::refused(&worker, &conn, "this port only takes connections that were redirected");
        return reset(stream);
    };
    if let Err(why) = on_demand::known(&worker, &conn, None).await {
        relay::refused(&worker, &conn, &why);
        return reset(stream);
    }
    let table = worker.table();
    let found = by_original_dst(&**table, to);
    let (protocol, limit) = (found.protocol(), sniff_limit(&table));
    if let Captured::NoSuchPort { host } = found {
        let why = format!("{} has no port {}", host.name, to.port());
        relay::refused(&worker, &conn, &why);
        return reset(stream);
    }
    drop(table);
    let conn = Rc::new(conn);
    match protocol {
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
            accept::http(worker, stream, conn).await;
        }
        Protocol::Tls if named::is_asked(&worker, &conn) => {
            let named = named::opaque(worker, stream, conn);
            Box::pin(named).await;
        }
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => {
            let opening = relay::begin(&worker, &conn).await;
            let io = Prefixed::new(Bytes::new(), stream);
            opaque(&worker, &conn, io, opening, Bytes::new()).await;
        }
        Protocol::Detect => {
            let open = relay::begin(&worker, &conn);
            let raced = tokio::select! {
                biased;
                raced = race(stream, race::http, limit, open) => raced,
                // Nothing was said: a draining proxy does not wait for it.
                () = accept::last_words(&worker) => return,
            };
            match raced {
                Raced::Http(wire, io) => serve(io, worker, conn, wire),
                // The judge knows no TLS: to us it is opaque.
                Raced::Tls(_) => {}
                Raced::Opaque { io, upstream, said } => {
                    opaque(&worker, &conn, io, upstream, said).await;
                }
            }
        }
    }
}

/// Relays, or resets what has nowhere to go.
pub(super) async fn opaque(
    worker: &Rc<Worker>,
    conn: &Conn,
    io: Prefixed<TcpStream>,
    opening: relay::Opening,
    said: Bytes,
) {
    if let Err(io) = relay::finish(worker, conn, io, opening, said).await {
        reset(io.into_inner());
    }
}
