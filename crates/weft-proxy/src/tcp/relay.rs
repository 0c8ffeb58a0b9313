// SPDX-License-Identifier: Apache-2.0
//! Opaque bytes: from a CONNECT or an upstream port to an endpoint, and from the mesh to the app.
//! Both directions end on their own (half close). Nothing is sent twice: another endpoint is
//! tried only while no connection was established.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use weft_model::Protocol;
use weft_model::decide::{Authority, Outcome};

use super::prefixed::Prefixed;
use super::route::{self, Way, Who};
use super::socket::Socket;
use super::{accept, proxy_header, through};
use crate::capture::{self, race};
use crate::h1::Handover;
use crate::http::body::Heir;
use crate::http::recorded;
use crate::http::reply::{Cause, Refusal};
use crate::observe::access_log::Relayed;
use crate::observe::facts;
use crate::observe::flags::{Flag, Flags};
use crate::observe::metrics::{Labels, Reporter, RequestProtocol};
use crate::observe::record::Record;
use crate::on_demand;
use crate::sys::pooled::Pooled;
use crate::table::{BackendEntry, Door};
use crate::upstream::ask::Key;
use crate::upstream::breaker::{Found, Taken};
use crate::upstream::connect::{self, ConnectError};
use crate::upstream::pick::{Ask, LocalBackend, LocalEndpoint};
use crate::upstream::pool::Tunnel;
use crate::worker::{Conn, Worker};

mod copied;

use copied::{Cut, copy};

/// Endpoints tried before a connection is given up.
const TRIES_MAX: usize = 3;
const LEFT: &str = "the client went away before it was told that it may speak";

/// What a CONNECT leads to: the connection that goes on inside it, and what that speaks.
pub async fn inside(
    worker: &Rc<Worker>,
    outer: &Rc<Conn>,
    target: Authority,
    version: Version,
) -> (Rc<Conn>, Protocol) {
    if outer.door == Door::Mesh {
        return match outer.hbone(worker, &target, version) {
            None => (outer.clone(), Protocol::Tcp),
            Some((inner, protocol)) => (Rc::new(inner), protocol),
        };
    }
    let mut inner = Conn::new(Door::Forward, outer.local, outer.remote);
    inner.open = outer.open.clone();
    inner.admitted.set(true);
    let (host, port) = (target.host.clone(), target.port.unwrap_or(80));
    inner.tunnel = Some(target);
    // Whoever serves it says so when this is not known in time.
    let _ = on_demand::known(worker, &inner, None).await;
    let protocol = crate::http::route::declared(&worker.table(), &host, port);
    (Rc::new(inner), protocol.unwrap_or(Protocol::Detect))
}

/// Serves what goes on inside a CONNECT once its answer is out.
pub fn after_connect(worker: &Rc<Worker>, inner: Rc<Conn>, client: Handover, protocol: Protocol) {
    let (tasks, worker) = (worker.conns.clone(), worker.clone());
    let work = async move {
        let Some(io) = client.stream().await else { return };
        accept::by_protocol(worker, io, inner, protocol).await;
    };
    // A tunnel serves requests, which may be tunnels: the box ends the type's recursion.
    let work: Pin<Box<dyn Future<Output = ()>>> = Box::pin(work);
    tasks.spawn_local("tunnel", work);
}

/// Relays a stream that is not HTTP to where its connection is bound for.
pub async fn opaque<I: Socket>(worker: Rc<Worker>, io: I, conn: Rc<Conn>) {
    let opening = begin(&worker, &conn).await;
    if let Err(io) = finish(&worker, &conn, io, opening, Bytes::new()).await {
        reset(&io);
    }
}

/// A connection to where a downstream one is bound for, or why there is none.
#[derive(Debug)]
pub struct Opening {
    started: Instant,
    seen: Seen,
    pub upstream: Option<(Rc<LocalEndpoint>, Tunnel)>,
}

/// What happened to one connection.
#[derive(Debug, Default)]
struct Seen {
    wall_ms: u64,
    backend: Option<Arc<BackendEntry>>,
    /// What the rule says of silence.
    idle: Option<Duration>,
    /// And of how long it may last.
    longest: Option<Duration>,
    endpoint: Option<Rc<LocalEndpoint>>,
    upstream: Option<Rc<facts::Upstream>>,
    tries: u32,
    flags: Flags,
    sentence: Option<String>,
    moved: Moved,
}

/// What moved, and the record of the request that asked for that, which is written at its end.
#[derive(Debug, Default)]
struct Moved {
    received: Cell<u64>,
    sent: Cell<u64>,
    record: Option<Pooled<Record>>,
}

/// Opens the upstream of a connection.
pub async fn begin(worker: &Rc<Worker>, conn: &Conn) -> Opening {
    let mut seen = Seen { wall_ms: worker.clock.wall_ms(), ..Seen::default() };
    let started = Instant::now();
    let upstream = match destination(worker, conn).await {
        Ok(Way { backend, idle, longest }) => {
            seen.backend = Some(backend.clone());
            (seen.idle, seen.longest) = (idle, longest);
            open(worker, &backend, conn, &mut seen).await
        }
        Err(why) => {
            seen.flags.add(Flag::NR);
            seen.sentence = Some(why);
            None
        }
    };
    Opening { started, seen, upstream }
}

/// The same where the rule that leads there is known already.
pub async fn begin_at(worker: &Rc<Worker>, conn: &Conn, way: Way) -> Opening {
    let mut seen = Seen { wall_ms: worker.clock.wall_ms(), ..Seen::default() };
    let started = Instant::now();
    let Way { backend, idle, longest } = way;
    (seen.backend, seen.idle, seen.longest) = (Some(backend.clone()), idle, longest);
    let upstream = open(worker, &backend, conn, &mut seen).await;
    Opening { started, seen, upstream }
}

/// Waits for the upstream that a client asked for, who will be told whether there is one. What goes
/// nowhere is logged and counted as a connection too, and so is a client that leaves meanwhile.
///
/// # Errors
/// Why there is none, as the client is told.
pub async fn asked(
    worker: &Worker,
    conn: &Conn,
    opening: impl Future<Output = Opening>,
) -> Result<Opening, Refusal> {
    let (started, wall_ms) = (Instant::now(), worker.clock.wall_ms());
    let mut waiting = Waiting { worker, conn, started, wall_ms, over: false };
    let opening = opening.await;
    waiting.over = true;
    let Some(refusal) = opening.refusal() else { return Ok(opening) };
    let Opening { started, seen, .. } = opening;
    let labels = labels(worker, conn, seen.backend.as_deref(), None);
    nowhere(worker, conn, seen, labels, started);
    Err(refusal)
}

/// A client waits for its answer, unless it leaves before that is over.
struct Waiting<'a> {
    worker: &'a Worker,
    conn: &'a Conn,
    started: Instant,
    wall_ms: u64,
    over: bool,
}

/// Joins a client that leaves HTTP with an upstream that is open, once its answer is out.
/// The record of its request is written when both have ended.
pub fn go_on(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    (client, heir): (Handover, Heir),
    mut opening: Opening,
) {
    let (tasks, worker, conn) = (worker.conns.clone(), worker.clone(), conn.clone());
    let work = async move {
        let record = heir.await.ok();
        if let (Some(longest), Some(record)) = (&mut opening.seen.longest, &record) {
            // From the request's beginning on.
            *longest = longest.saturating_sub(record.started.elapsed());
        }
        opening.seen.moved.record = record;
        let Some(io) = client.stream().await else { return unread(&worker, &conn, opening) };
        // There is an upstream: nothing comes back.
        drop(finish(&worker, &conn, io, opening, Bytes::new()).await);
    };
    let work: Pin<Box<dyn Future<Output = ()>>> = Box::pin(work);
    tasks.spawn_local("tunnel", work);
}

/// Relays until both sides have ended, or gives the stream back when there is no upstream; logs
/// and counts either. `said` is what the upstream said already.
///
/// # Errors
/// The stream, of which nothing was taken.
pub async fn finish<I: Socket>(
    worker: &Rc<Worker>,
    conn: &Conn,
    io: I,
    opening: Opening,
    said: Bytes,
) -> Result<(), I> {
    let Opening { started, mut seen, upstream } = opening;
    match upstream {
        Some((picked, tunnel)) => {
            seen.endpoint = Some(picked.clone());
            seen.upstream = tunnel.facts();
            let upstream = Prefixed::new(said, tunnel);
            let ended = copy(worker, conn, &seen, (io, upstream), &picked).await;
            if let Err(Cut(age)) = ended {
                seen.flags.add(Flag::DT);
                let ms = age.as_millis();
                seen.sentence = Some(format!("it was open for {ms} ms, its longest duration"));
            }
        }
        None => {
            let labels = labels(worker, conn, seen.backend.as_deref(), None);
            nowhere(worker, conn, seen, labels, started);
            return Err(io);
        }
    }
    log(worker, conn, seen, started);
    Ok(())
}

/// The client was gone before it could be told that it may speak.
fn unread(worker: &Worker, conn: &Conn, opening: Opening) {
    let Opening { started, mut seen, upstream } = opening;
    seen.flags.add(Flag::DC);
    seen.sentence = Some(LEFT.to_owned());
    seen.endpoint = upstream.map(|(picked, _)| picked);
    let labels = labels(worker, conn, seen.backend.as_deref(), seen.endpoint.as_deref());
    nowhere(worker, conn, seen, labels, started);
}

/// Logs and counts a connection that goes nowhere.
pub fn refused(worker: &Worker, conn: &Conn, why: &str) {
    let flag = if conn.door.is_inbound() { Flag::UAEX } else { Flag::NR };
    refused_for(worker, conn, flag, why);
}

/// The same for a reason with a flag of its own.
pub fn refused_for(worker: &Worker, conn: &Conn, flag: Flag, why: &str) {
    let mut seen = Seen { wall_ms: worker.clock.wall_ms(), ..Seen::default() };
    seen.flags.add(flag);
    seen.sentence = Some(why.to_owned());
    nowhere(worker, conn, seen, labels(worker, conn, None, None), Instant::now());
}

/// Counts and logs a connection over which no byte went.
fn nowhere(worker: &Worker, conn: &Conn, seen: Seen, labels: Labels, started: Instant) {
    let series = worker.metrics.tcp(Labels { flags: seen.flags, ..labels });
    series.opened.fetch_add(1, Ordering::Relaxed);
    series.closed.fetch_add(1, Ordering::Relaxed);
    log(worker, conn, seen, started);
}

fn log(worker: &Worker, conn: &Conn, mut seen: Seen, started: Instant) {
    let (bytes, mut record) = (seen.moved.bytes(), seen.moved.record.take());
    if let Some(record) = &mut record {
        record.tunnelled(bytes, seen.flags, seen.sentence.clone());
    }
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    worker.log.relayed(&Relayed {
        conn,
        wall_ms: seen.wall_ms,
        ms,
        backend: seen.backend.as_deref(),
        endpoint: seen.endpoint.as_deref(),
        upstream: seen.upstream.as_deref(),
        handshake: false,
        tries: seen.tries,
        flags: seen.flags,
        received: bytes.0,
        sent: bytes.1,
        sentence: seen.sentence,
    });
}

/// Makes a connection's end a reset and not an orderly one.
pub fn reset(io: &impl Socket) {
    let lingering = io.socket().map(|s| SockRef::from(s).set_linger(Some(Duration::ZERO)));
    if let Some(Err(error)) = lingering {
        tracing::debug!(%error, "a connection is closed and not reset");
    }
}

/// The address of a destination outside the mesh.
///
/// # Errors
/// Why its name has none.
pub async fn resolve(worker: &Worker, target: &Authority) -> Result<SocketAddr, String> {
    let port = target.port.unwrap_or(80);
    if let Some(ip) = target.ip() {
        return Ok(SocketAddr::new(ip, port));
    }
    Ok(SocketAddr::new(worker.address_of(&target.host).await?, port))
}

async fn destination(worker: &Rc<Worker>, conn: &Conn) -> Result<Way, String> {
    on_demand::known(worker, conn, None).await?;
    if let (Door::Gateway(name), None) = (&conn.door, &conn.tunnel) {
        let (table, who) = (worker.table(), Who::of(conn));
        return route::backend_of_listener(&table, name, who, &mut worker.rng.borrow_mut());
    }
    let backend = unruled(worker, conn).await?;
    Ok(Way { backend, idle: None, longest: None })
}

/// Where no rule of a listener leads.
async fn unruled(worker: &Rc<Worker>, conn: &Conn) -> Result<Arc<BackendEntry>, String> {
    let table = worker.table();
    let of_service = |host: &str, port: u16| {
        route::backend_of(&table, host, port, Who::of(conn), &mut worker.rng.borrow_mut())
    };
    match &conn.door {
        Door::Mesh | Door::Inbound => {
            let port = conn.app_port.unwrap_or_default();
            match (table.inbound(port), conn.app) {
                (Some(entry), Some(app)) if entry.listener.app != app => {
                    Ok(BackendEntry::app(app, Some(entry)))
                }
                (Some(entry), _) => Ok(entry.backend.clone()),
                (None, Some(app)) => Ok(BackendEntry::app(app, None)),
                (None, None) => Err(format!("no app port {port} here")),
            }
        }
        Door::Outbound => {
            let to = conn.original.ok_or("it was not redirected")?;
            capture::backend(worker, &table, to, Who::of(conn))
        }
        Door::Upstream { host, port } => of_service(host, *port)
            .unwrap_or_else(|| Err(format!("{host}:{port} is not known here"))),
        Door::Forward | Door::Gateway(_) | Door::Datagrams(_) => {
            let target = conn.tunnel.as_ref().ok_or("it names no destination")?;
            let port = target.port.unwrap_or(80);
            if let Some(known) = of_service(&target.host, port) {
                return known;
            }
            if worker.config.unknown == crate::config::UnknownDestinations::Deny {
                return Err(format!("{}:{port} is not in the mesh", target.host));
            }
            let address = resolve(worker, target).await?;
            Ok(BackendEntry::outside(address, worker.config.workers))
        }
    }
}

async fn open(
    worker: &Rc<Worker>,
    entry: &Arc<BackendEntry>,
    conn: &Conn,
    seen: &mut Seen,
) -> Option<(Rc<LocalEndpoint>, Tunnel)> {
    let backend = worker.backend(entry);
    let policy = &entry.backend.policy;
    let limit = Duration::from_millis(policy.connect_timeout_ms.max(1));
    let opening = connect::Opening::of(limit, policy.connections.as_deref());
    let mut tried: Vec<Rc<LocalEndpoint>> = Vec::new();
    let hash = Key::of_connection(&entry.backend.policy.lb, conn.remote.ip());
    let (healthy, total) = {
        let newest = &backend.borrow().entry;
        (newest.healthy, newest.total())
    };
    let next = Cause::NoInstance.row().next(worker.config.from_file);
    let sentence = |what: &str| {
        let backend = entry.label();
        format!("{what}; backend: {backend}; instances healthy: {healthy} of {total}; next: {next}")
    };
    while tried.len() < TRIES_MAX {
        let picked = {
            let (mut rng, now) = (worker.rng.borrow_mut(), worker.clock.now());
            let mut backend = backend.borrow_mut();
            backend.pick(Ask { hash, tried: &tried }, &mut rng, now)
        };
        let again = |p: &Rc<LocalEndpoint>| tried.iter().any(|t| Rc::ptr_eq(t, p));
        if picked.as_ref().is_some_and(again) {
            // There is no other one, and its failure is fresh.
            return None;
        }
        let Some(picked) = picked else {
            seen.flags.add(Flag::UH);
            seen.sentence = Some(sentence("no instance can take the connection"));
            return None;
        };
        let taken = match place(worker, &backend) {
            Ok(taken) => taken,
            Err(most) => {
                seen.flags.add(Flag::UO);
                seen.sentence = Some(format!(
                    "{most} connections to {} are open, its limit; raise it or wait for others to \
                     end",
                    entry.label()
                ));
                return None;
            }
        };
        seen.tries += 1;
        let opened = introduced(&picked, (entry, taken), conn, opening).await;
        let outcome = if opened.is_ok() { Outcome::Success } else { Outcome::Local };
        worker.shared.reporter.note(entry, &picked.entry, outcome, worker.id);
        match opened {
            Ok(tunnel) => {
                (seen.flags, seen.sentence) = (Flags::default(), None);
                return Some((picked, tunnel));
            }
            Err(error) => {
                seen.flags.add(Flag::UF);
                seen.sentence = Some(sentence(&error.to_string()));
                tried.push(picked);
            }
        }
    }
    None
}

/// What another connection to a backend is counted by. What is idle gives way.
///
/// # Errors
/// The limit, which is reached.
fn place(worker: &Worker, backend: &RefCell<LocalBackend>) -> Result<Option<Taken>, u32> {
    let backend = backend.borrow();
    let Some(most) = backend.entry.backend.policy.limits.connections_max else { return Ok(None) };
    match backend.breaker.place(most) {
        Found::Room(taken) => Ok(Some(taken)),
        Found::Soon | Found::Nothing => {
            worker.shared.neighbours.ask_for_way(worker.id, &backend.entry);
            Err(most)
        }
    }
}

/// Opens a stream, which begins with who the client is where a backend wants to know.
async fn introduced(
    picked: &LocalEndpoint,
    (entry, taken): (&BackendEntry, Option<Taken>),
    conn: &Conn,
    opening: connect::Opening,
) -> Result<Tunnel, ConnectError> {
    let version = entry.backend.policy.proxy_protocol;
    let greeting = version.map(|v| proxy_header::written(v, conn.remote, conn.dialled()));
    let mut tunnel = picked.pool.tunnel(opening, greeting.clone(), taken).await?;
    // The app behind a sidecar is told through it.
    if let Some(greeting) = greeting.filter(|_| picked.pool.peer.is_mesh()) {
        let address = conn.dialled();
        let failed = |e: io::Error| ConnectError::Tcp { address, reason: e.to_string().into() };
        let writing = tokio::time::timeout(opening.limit, tunnel.write_all(&greeting)).await;
        writing.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    }
    let terms = entry.backend.policy.connections.as_ref();
    if let Some(further) = terms.and_then(|terms| terms.through.as_ref()) {
        through::ask(&mut tunnel, further, picked.pool.peer.connect, opening.limit).await?;
    }
    Ok(tunnel)
}

fn labels(
    worker: &Worker,
    conn: &Conn,
    backend: Option<&BackendEntry>,
    picked: Option<&LocalEndpoint>,
) -> Labels {
    let names = &worker.names;
    let inbound = conn.door.is_inbound();
    let peer = conn.peer.as_ref().map(|p| Arc::<str>::from(p.as_str()));
    let upstream = picked.and_then(|p| p.entry.endpoint.identity.clone());
    let unknown = || names.unknown.clone();
    let mtls = if inbound { peer.is_some() } else { upstream.is_some() };
    let workload = picked.map_or_else(unknown, |p| p.entry.endpoint.workload.clone());
    Labels {
        reporter: if inbound { Reporter::Destination } else { Reporter::Source },
        source_workload: if inbound { unknown() } else { names.workload.clone() },
        source_namespace: if inbound { unknown() } else { names.namespace.clone() },
        source_principal: match (inbound, mtls) {
            (_, false) => unknown(),
            (true, true) => peer.unwrap_or_else(unknown),
            (false, true) => names.principal(),
        },
        destination_workload: if inbound { names.workload.clone() } else { workload },
        destination_namespace: if inbound {
            names.namespace.clone()
        } else {
            backend.map_or_else(unknown, |b| b.namespace.clone())
        },
        destination_principal: match (inbound, mtls) {
            (_, false) => unknown(),
            (true, true) => names.principal(),
            (false, true) => upstream.unwrap_or_else(unknown),
        },
        destination_service: match backend {
            Some(backend) => backend.backend.service.clone(),
            None if inbound => unknown(),
            None => names.black_hole.clone(),
        },
        protocol: RequestProtocol::Tcp,
        code: 0,
        grpc_status: None,
        flags: Flags::default(),
        mtls,
    }
}

// === impl Opening ===

impl Opening {
    /// How many instances were asked for a connection.
    pub fn tries(&self) -> u32 {
        self.seen.tries
    }

    /// Why there is no upstream, as a client is told that asked for one.
    pub fn refusal(&self) -> Option<Refusal> {
        if self.upstream.is_some() {
            return None;
        }
        let why = self.seen.sentence.as_deref().unwrap_or("no connection to an instance");
        let cause = [
            (Flag::NR, Cause::NoService),
            (Flag::UO, Cause::Overload),
            (Flag::UF, Cause::ConnectFailed),
            (Flag::UH, Cause::NoInstance),
        ];
        let cause = cause.into_iter().find(|(flag, _)| self.seen.flags.has(*flag));
        Some(Refusal::new(cause.map_or(Cause::ConnectFailed, |(_, cause)| cause), why))
    }
}

impl race::Upstream for Opening {
    type Io = Tunnel;

    fn io(&mut self) -> Option<&mut Tunnel> {
        self.upstream.as_mut().map(|(_, tunnel)| tunnel)
    }
}

// === impl Moved ===

impl Moved {
    fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

/// Its worker ended before the tunnel did.
impl Drop for Moved {
    fn drop(&mut self) {
        let bytes = self.bytes();
        if let Some(record) = &mut self.record {
            record.tunnelled(bytes, Flag::DC.into(), Some(recorded::CUT_OFF.to_owned()));
        }
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut seen = Seen { wall_ms: self.wall_ms, ..Seen::default() };
        seen.flags.add(Flag::DC);
        seen.sentence = Some(LEFT.to_owned());
        // Where it would have led may not be known yet, which is not to lead nowhere.
        let destination_service = self.worker.names.unknown.clone();
        let labels = labels(self.worker, self.conn, None, None);
        let labels = Labels { destination_service, ..labels };
        nowhere(self.worker, self.conn, seen, labels, self.started);
    }
}

#[cfg(test)]
mod tests;
