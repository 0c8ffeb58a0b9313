// SPDX-License-Identifier: Apache-2.0
//! A new downstream connection: which door it came to, TLS if the door has it, what it speaks,
//! and who serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use weft_base::limits::SNIFF_MS_MAX;
use weft_identity::outside::client_names;
use weft_model::decide::pick_section;
use weft_model::{Protocol, mesh_server_port};

use super::sniff::{Spoken, sniff, sniff_http};
use super::socket::Socket;
use super::{hello, preface, proxy_header, relay};
use crate::capture::{inbound, outbound};
use crate::http::serve::serve;
use crate::observe::flags::Flag;
use crate::table::{Door, GatewayEntry};
use crate::upstream::pool::Wire;
use crate::worker::{Conn, OpenConnection, Worker};

/// A draining proxy waits this long for what a connected client may be about to ask.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A connection as its door took it.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    pub remote: SocketAddr,
    pub door: Door,
    pub open: Option<Rc<OpenConnection>>,
}

/// Serves one connection to its end, or until it has left HTTP.
pub async fn connection(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, remote, door, open } = accepted;
    let Ok(local) = stream.local_addr() else { return };
    let mut conn = Conn::new(door, local, remote);
    conn.open = open;
    if let (Door::Outbound | Door::Inbound, Some(capture)) = (&conn.door, &worker.config.capture) {
        conn.original = capture.original.of(&stream).unwrap_or_else(|error| {
            tracing::warn!(%remote, %error, "the system does not tell where a connection goes");
            None
        });
    }
    match &conn.door {
        // Each branch is boxed: a connection pays for its own door only.
        Door::Mesh => Box::pin(mesh(worker, stream, conn)).await,
        Door::Outbound => Box::pin(outbound::connection(worker, stream, conn)).await,
        Door::Inbound => Box::pin(inbound::connection(worker, stream, conn)).await,
        Door::Gateway(name) => {
            let entry = worker.table().gateway(name).cloned();
            if let Some(entry) = entry {
                Box::pin(gateway(worker, stream, conn, &entry)).await;
            }
        }
        // Those have no connections.
        Door::Datagrams(_) => {}
        Door::Forward => http(worker, stream, Rc::new(conn)).await,
        Door::Upstream { host, port } => {
            let declared = crate::http::route::declared(&worker.table(), host, *port);
            let conn = Rc::new(conn);
            if let Some(protocol) = declared {
                Box::pin(by_protocol(worker, stream, conn, protocol)).await;
            }
        }
    }
}

/// Serves a stream as its declared protocol says; an undeclared one is looked at.
pub async fn by_protocol<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>, protocol: Protocol)
where
    I: Socket + Send + 'static,
{
    match protocol {
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => http(worker, io, conn).await,
        Protocol::Detect => match sniff(io, Duration::from_millis(SNIFF_MS_MAX)).await {
            Ok((Spoken::Http1, io)) => serve(io, worker, conn, Wire::H1).await,
            Ok((Spoken::Http2, io)) => serve(io, worker, conn, Wire::H2).await,
            Ok((Spoken::Opaque, io)) => relay::opaque(worker, io, conn).await,
            Err(_) => {}
        },
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => relay::opaque(worker, io, conn).await,
    }
}

/// HTTP of either version, by its first bytes; garbage gets HTTP/1.1's 400.
pub async fn http<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>)
where
    I: Socket + Send + 'static,
{
    let limits = &worker.config.limits;
    let looking = sniff_http(io, limits.idle_timeout, limits.header_timeout);
    let looked = tokio::select! {
        biased;
        looked = looking => looked,
        // Nothing was asked: a draining proxy does not wait for it.
        () = last_words(&worker) => return,
    };
    match looked {
        Ok((Spoken::Http2, io)) => Box::pin(serve(io, worker, conn, Wire::H2)).await,
        Ok((_, io)) => Box::pin(serve(io, worker, conn, Wire::H1)).await,
        Err(_) => {}
    }
}

/// Resolves when a draining proxy need not wait any longer for what a client may ask.
pub async fn last_words(worker: &Worker) {
    worker.conns.draining().await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// Mesh TLS from another sidecar, on the mesh port or on a captured one.
pub async fn mesh<I>(worker: Rc<Worker>, stream: I, mut conn: Conn)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = worker.shared.server_tls.clone() else { return };
    let config = match tls.config() {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, "mesh TLS cannot be served");
            return;
        }
    };
    let shaking = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(worker.config.limits.handshake_timeout, shaking).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(remote = %conn.remote, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let (_, session) = stream.get_ref();
    match weft_identity::tls::peer(session.peer_certificates(), &worker.clock) {
        Ok(leaf) => conn.peer = Some(leaf.id),
        Err(error) => {
            tracing::debug!(remote = %conn.remote, %error, "a peer has no usable identity");
            return;
        }
    }
    conn.scheme = "https";
    conn.server_name = session.server_name().map(Arc::from);
    conn.door = Door::Mesh;
    // On a captured port that port is meant, whatever the name says.
    let named = || conn.server_name.as_deref().and_then(mesh_server_port);
    conn.app_port = conn.app_port.or_else(named);
    conn.app = conn.app_port.and_then(|port| worker.app_at(&conn, port));
    let wire = if session.alpn_protocol() == Some(b"h2") { Wire::H2 } else { Wire::H1 };
    Box::pin(serve(stream, worker, Rc::new(conn), wire)).await;
}

/// A client of a gateway: who it is, when somebody in front tells, and then what its port serves.
async fn gateway(worker: Rc<Worker>, stream: TcpStream, mut conn: Conn, entry: &GatewayEntry) {
    let header = entry.listener.proxy_header;
    if header.is_off() {
        return gateway_port(worker, stream, conn, entry).await;
    }
    let limit = worker.config.limits.handshake_timeout;
    match proxy_header::read(stream, header, limit).await {
        Ok((told, io)) => {
            conn.remote = told.map_or(conn.remote, |(client, _)| client);
            Box::pin(gateway_port(worker, io, conn, entry)).await;
        }
        Err(why) => relay::refused_for(&worker, &conn, Flag::DPE, why),
    }
}

async fn gateway_port<I>(worker: Rc<Worker>, io: I, conn: Conn, entry: &GatewayEntry)
where
    I: Socket + Send + 'static,
{
    if entry.is_opaque() {
        relay::opaque(worker, io, Rc::new(conn)).await;
    } else if entry.passes_tls_on() {
        Box::pin(by_server_name(worker, io, conn, entry)).await;
    } else if preface::is_only(entry) {
        preface::connection(worker, io, Rc::new(conn)).await;
    } else if entry.tls.is_empty() {
        http(worker, io, Rc::new(conn)).await;
    } else {
        Box::pin(gateway_tls(worker, io, conn, entry)).await;
    }
}

/// A port that passes TLS on for some names, and may end it for others.
async fn by_server_name<I>(worker: Rc<Worker>, io: I, mut conn: Conn, entry: &GatewayEntry)
where
    I: Socket + Send + 'static,
{
    let (name, io) = hello::read(io, worker.config.limits.handshake_timeout).await;
    let name = match name {
        Ok(name) => name,
        Err(why) => {
            relay::refused_for(&worker, &conn, Flag::DPE, why);
            return relay::reset(&io);
        }
    };
    let section = pick_section(&entry.listener, name.as_deref().unwrap_or_default());
    if section.is_some_and(|s| s.tls.is_some()) {
        return Box::pin(gateway_tls(worker, io, conn, entry)).await;
    }
    // Also when no section serves it: the relay says so.
    conn.server_name = name;
    relay::opaque(worker, io, Rc::new(conn)).await;
}

async fn gateway_tls<I>(worker: Rc<Worker>, stream: I, mut conn: Conn, entry: &GatewayEntry)
where
    I: Socket + Send + 'static,
{
    let limit = worker.config.limits.handshake_timeout;
    let shaking = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let name = start.client_hello().server_name().map(Arc::<str>::from);
        let config = entry.tls_for(name.as_deref()).ok_or_else(|| {
            std::io::Error::other(format!("no certificate serves the name {name:?}"))
        })?;
        Ok::<_, std::io::Error>((start.into_stream(config).await?, name))
    };
    let (stream, name) = match tokio::time::timeout(limit, shaking).await {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(error)) => {
            tracing::debug!(remote = %conn.remote, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    conn.scheme = "https";
    let section = pick_section(&entry.listener, name.as_deref().unwrap_or_default());
    let bytes = section.is_some_and(|s| !s.protocol.is_http());
    conn.server_name = name;
    if bytes {
        return relay::opaque(worker, stream, Rc::new(conn)).await;
    }
    let session = stream.get_ref().1;
    match client_names(session.peer_certificates()) {
        Ok(names) => conn.client_names = names,
        Err(error) => {
            // What denies by a name could not see it.
            tracing::debug!(remote = %conn.remote, %error, "a client's names cannot be read");
            return;
        }
    }
    let h2 = session.alpn_protocol() == Some(b"h2");
    serve(stream, worker, Rc::new(conn), if h2 { Wire::H2 } else { Wire::H1 }).await;
}
