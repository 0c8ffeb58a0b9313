// SPDX-License-Identifier: Apache-2.0
//! A new downstream connection: which door it came to, TLS if the door has it, what it speaks,
//! and who serves it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use weft_base::limits::SNIFF_MS_MAX;
use weft_identity::outside::client_names;
use weft_model::decide::pick_section;
use weft_model::{Protocol, mesh_server_port};

use super::sniff::{Patience, Spoken, sniff_http};
use super::socket::Socket;
use super::{hello, named, preface, proxy_header, relay};
use crate::capture::race::{self, Raced};
use crate::capture::{inbound, outbound};
use crate::guards;
use crate::http::bounds::Served;
use crate::http::serve::serve;
use crate::observe::facts::Session;
use crate::observe::flags::Flag;
use crate::table::{Door, GatewayEntry};
use crate::upstream::pool::Wire;
use crate::worker::{Conn, OpenConnection, Worker};

/// A draining proxy waits this long for what a connected client may be about to ask.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What serves a connection. It is boxed where its door is known, so that none pays for another's:
/// anybody may connect and say nothing.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

const SLOW: &str = "it did not come to its end in time";

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
    if let Some(serving) = by_door(worker, accepted) {
        serving.await;
    }
}

fn by_door(worker: Rc<Worker>, accepted: Accepted) -> Option<Serving> {
    let Accepted { stream, remote, door, open } = accepted;
    let local = stream.local_addr().ok()?;
    let mut conn = Conn::new(door, local, remote);
    conn.open = open;
    if let (Door::Outbound | Door::Inbound, Some(capture)) = (&conn.door, &worker.config.capture) {
        conn.original = capture.original.of(&stream).unwrap_or_else(|error| {
            tracing::warn!(%remote, %error, "the system does not tell where a connection goes");
            None
        });
    }
    Some(match &conn.door {
        Door::Mesh => Box::pin(mesh(worker, stream, conn)),
        Door::Outbound => Box::pin(outbound::connection(worker, stream, conn)),
        Door::Inbound => Box::pin(inbound::connection(worker, stream, conn)),
        Door::Gateway(name) => {
            let entry = worker.table().gateway(name).cloned()?;
            gateway(worker, stream, conn, entry)
        }
        // Those have no connections.
        Door::Datagrams(_) => return None,
        Door::Forward => Box::pin(http(worker, stream, Rc::new(conn))),
        Door::Upstream { host, port } => {
            let declared = crate::http::route::declared(&worker.table(), host, *port)?;
            Box::pin(by_protocol(worker, stream, Rc::new(conn), declared))
        }
    })
}

/// Serves a stream as its declared protocol says; an undeclared one is looked at.
pub async fn by_protocol<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>, protocol: Protocol)
where
    I: Socket + Send + 'static,
{
    match protocol {
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => http(worker, io, conn).await,
        Protocol::Detect => Box::pin(whoever_speaks_first(worker, io, conn)).await,
        Protocol::Tls => Box::pin(named::opaque(worker, io, conn)).await,
        Protocol::Tcp | Protocol::Udp => Box::pin(relay::opaque(worker, io, conn)).await,
    }
}

/// Listens to the client and to where its connection is bound for, so that the greeting of a
/// server that speaks first is not held up.
async fn whoever_speaks_first<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>)
where
    I: Socket + Send + 'static,
{
    let limit = Duration::from_millis(SNIFF_MS_MAX);
    let open = relay::begin(&worker, &conn);
    let raced = tokio::select! {
        biased;
        raced = race::race(io, race::http, limit, open) => raced,
        () = last_words(&worker) => return,
        () = tokio::time::sleep(worker.config.limits.tunnel_idle_timeout) => return,
    };
    match raced {
        Raced::Http(wire, io) => serve(io, worker, conn, wire),
        // The judge knows no TLS: to us it is opaque.
        Raced::Tls(_) => {}
        Raced::Opaque { io, upstream, said } => {
            if let Err(io) = relay::finish(&worker, &conn, io, upstream, said).await {
                relay::reset(&io);
            }
        }
    }
}

/// HTTP of either version, by its first bytes; garbage gets HTTP/1.1's 400.
pub async fn http<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>)
where
    I: Socket + Send + 'static,
{
    let looking = sniff_http(io, patience(&worker, &conn));
    let looked = tokio::select! {
        biased;
        looked = looking => looked,
        // Nothing was asked: a draining proxy does not wait for it.
        () = last_words(&worker) => return,
    };
    match looked {
        Ok((Spoken::Http2, io)) => serve(io, worker, conn, Wire::H2),
        Ok((_, io)) => serve(io, worker, conn, Wire::H1),
        Err(_) => {}
    }
}

/// How long is waited for what a client speaks.
pub fn patience(worker: &Worker, conn: &Conn) -> Patience {
    let limits = &worker.config.limits;
    Patience { idle: limits.idle_timeout, head: limits.header_timeout, by: conn.first_by }
}

/// Resolves when a draining proxy need not wait any longer for what a client may ask.
pub async fn last_words(worker: &Worker) {
    worker.conns.draining().await;
    // Boxed: whoever has not said what it speaks holds this future, and few come here.
    Box::pin(tokio::time::sleep(LAST_WORDS)).await;
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
    let shaking = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let start = begun(start.await)?;
        start.into_stream(config).await.map_err(|e| e.to_string())
    };
    let Some(stream) = shaken(&worker, &conn, shaking).await else { return };
    let (_, session) = stream.get_ref();
    match weft_identity::tls::peer(session.peer_certificates(), &worker.clock) {
        Ok(leaf) => conn.peer = Some(leaf.id),
        Err(error) => {
            tracing::debug!(remote = %conn.remote, %error, "a peer has no usable identity");
            return;
        }
    }
    conn.scheme = "https";
    conn.session = noted(&worker, session);
    conn.server_name = session.server_name().map(Arc::from);
    conn.door = Door::Mesh;
    // On a captured port that port is meant, whatever the name says.
    let named = || conn.server_name.as_deref().and_then(mesh_server_port);
    conn.app_port = conn.app_port.or_else(named);
    conn.app = conn.app_port.and_then(|port| worker.app_at(&conn, port));
    let wire = if session.alpn_protocol() == Some(b"h2") { Wire::H2 } else { Wire::H1 };
    serve(stream, worker, Rc::new(conn), wire);
}

/// What a client began a handshake with; one that only sees whether the port is open began none.
fn begun<S>(start: std::io::Result<S>) -> Result<S, String> {
    start.map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => String::new(),
        _ => error.to_string(),
    })
}

/// The rest of a handshake, whose failure is counted and has a line.
async fn shaken<S>(
    worker: &Worker,
    conn: &Conn,
    shaking: impl Future<Output = Result<S, String>>,
) -> Option<S> {
    let began = Instant::now();
    let limit = worker.config.limits.handshake_timeout;
    let shaken = tokio::time::timeout(limit, shaking).await;
    match shaken.unwrap_or_else(|_| Err(SLOW.to_owned())) {
        Ok(shaken) => Some(shaken),
        Err(why) => {
            unshaken(worker, conn, began, why);
            None
        }
    }
}

fn unshaken(worker: &Worker, conn: &Conn, began: Instant, why: String) {
    if why.is_empty() {
        return;
    }
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let why = format!("TLS handshake: {why}");
    worker.log.unshaken(conn, worker.clock.wall_ms(), ms, why);
}

/// A fatal alert, as a record (RFC 8446, section 6): nobody has this name (RFC 6066, section 3), or
/// its certificate cannot be used.
fn alert(entry: &GatewayEntry, name: &str) -> &'static [u8] {
    const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
    const INTERNAL_ERROR: &[u8] = &[21, 3, 3, 0, 2, 2, 80];
    let is_served = pick_section(&entry.listener, name).is_some_and(|s| s.tls.is_some());
    if is_served { INTERNAL_ERROR } else { UNRECOGNIZED_NAME }
}

/// What was agreed on, where lines of the access log tell of it.
fn noted(worker: &Worker, session: &rustls::CommonState) -> Option<Rc<Session>> {
    worker.log.tells_session().then(|| Rc::new(Session::of(session)))
}

/// A client of a gateway: who it is, when somebody in front tells, and then what its port serves.
fn gateway(worker: Rc<Worker>, stream: TcpStream, conn: Conn, entry: Arc<GatewayEntry>) -> Serving {
    if entry.listener.proxy_header.is_off() {
        return gateway_port(worker, stream, conn, entry);
    }
    Box::pin(introduced(worker, stream, conn, entry))
}

async fn introduced(
    worker: Rc<Worker>,
    stream: TcpStream,
    mut conn: Conn,
    entry: Arc<GatewayEntry>,
) {
    let header = entry.listener.proxy_header;
    let limit = worker.config.limits.handshake_timeout;
    match proxy_header::read(stream, header, limit).await {
        Ok((told, io)) => {
            if let Some((client, _)) = told {
                conn.told_by = Some(Box::new(std::mem::replace(&mut conn.remote, client)));
            }
            gateway_port(worker, io, conn, entry).await;
        }
        Err(why) => relay::refused_for(&worker, &conn, Flag::DPE, why),
    }
}

/// When the first request of a connection that begins now must have come: anybody may connect to a
/// gateway and say nothing. Bytes that are passed on unread have no requests.
fn first_by(worker: &Worker, entry: &GatewayEntry) -> Instant {
    let head = Served::new(entry.listener.limits.clone()).head(&worker.config.limits);
    Instant::now() + head
}

fn gateway_port<I>(worker: Rc<Worker>, io: I, mut conn: Conn, entry: Arc<GatewayEntry>) -> Serving
where
    I: Socket + Send + 'static,
{
    conn.first_by = Some(first_by(&worker, &entry));
    if entry.is_opaque() {
        Box::pin(relay::opaque(worker, io, Rc::new(conn)))
    } else if entry.passes_tls_on() {
        Box::pin(by_server_name(worker, io, conn, entry))
    } else if preface::is_only(&entry) {
        Box::pin(preface::connection(worker, io, Rc::new(conn)))
    } else if entry.tls.is_empty() {
        Box::pin(http(worker, io, Rc::new(conn)))
    } else {
        Box::pin(gateway_tls(worker, io, conn, entry))
    }
}

/// A port that passes TLS on for some names, and may end it for others.
async fn by_server_name<I>(worker: Rc<Worker>, io: I, mut conn: Conn, entry: Arc<GatewayEntry>)
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
    Box::pin(relay::opaque(worker, io, Rc::new(conn))).await;
}

async fn gateway_tls<I>(worker: Rc<Worker>, stream: I, mut conn: Conn, entry: Arc<GatewayEntry>)
where
    I: Socket + Send + 'static,
{
    let name = &mut conn.server_name;
    let begin = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let mut start = begun(start.await)?;
        *name = start.client_hello().server_name().map(Arc::<str>::from);
        let named = name.as_deref().unwrap_or("");
        let Some(config) = entry.tls_for(Some(named)) else {
            // Told in vain if it has gone.
            let _ = start.io.write_all(alert(&entry, named)).await;
            return Err(format!("no certificate serves the name {named:?}"));
        };
        Ok((config, start))
    };
    let began = Instant::now();
    let begun = tokio::time::timeout(worker.config.limits.handshake_timeout, begin).await;
    let (config, start) = match begun.unwrap_or_else(|_| Err(SLOW.to_owned())) {
        Ok(begun) => begun,
        Err(why) => return unshaken(&worker, &conn, began, why),
    };
    let shaking = async { start.into_stream(config).await.map_err(|e| e.to_string()) };
    let Some(stream) = shaken(&worker, &conn, shaking).await else { return };
    let name = conn.server_name.clone();
    conn.scheme = "https";
    // A handshake has a time of its own.
    conn.first_by = Some(first_by(&worker, &entry));
    conn.session = noted(&worker, stream.get_ref().1);
    let section = pick_section(&entry.listener, name.as_deref().unwrap_or_default());
    let bytes = section.is_some_and(|s| !s.protocol.is_http());
    let asked = section.and_then(|s| s.tls.as_ref()?.clients.as_ref());
    let believed = asked.is_some_and(|clients| !clients.insecure);
    if bytes {
        return Box::pin(relay::opaque(worker, stream, Rc::new(conn))).await;
    }
    let session = stream.get_ref().1;
    match client_names(session.peer_certificates().filter(|_| believed)) {
        Ok(names) => conn.client_names = names,
        Err(error) => {
            // What denies by a name could not see it.
            tracing::debug!(remote = %conn.remote, %error, "a client's names cannot be read");
            return;
        }
    }
    let h2 = session.alpn_protocol() == Some(b"h2");
    if !guards::on("alpn-spoken") {
        return Box::pin(http(worker, stream, Rc::new(conn))).await;
    }
    serve(stream, worker, Rc::new(conn), if h2 { Wire::H2 } else { Wire::H1 });
}
