// SPDX-License-Identifier: Apache-2.0
//! One worker: an OS thread with a current-thread runtime, its own sockets, turn-keeping and
//! upstream connections. It shares immutable tables and a few atomics with the others, no lock.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::{mpsc, oneshot};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_identity::{ServerTls, SpiffeId};
use weft_model::decide::Authority;
use weft_model::{Edge, Protocol, ResourceName};

use crate::config::ProxyConfig;
use crate::http::cache::Store;
use crate::http::limits::{Buckets, LocalBuckets};
use crate::observe::access_log::{Lines, LogSender};
use crate::observe::facts::{self, Session};
use crate::observe::metrics::WorkerMetrics;
use crate::on_demand::OnDemand;
use crate::overload::{Pressure, dose, stuck};
use crate::pinned::Pinned;
use crate::table::{BackendEntry, Door, EndpointEntry, Table};
use crate::tcp::half_open;
use crate::udp;
use crate::upstream::breaker::{Breakers, Quotas};
use crate::upstream::connect::{Dialer, Peer};
use crate::upstream::outlier::Reporter;
use crate::upstream::pick::LocalBackend;
use crate::upstream::pool::{OwnPools, Pool, PoolContext};
use crate::upstream::recent::Recent;
use crate::upstream::resolver::Resolver;

mod doors;
pub mod neighbours;

use doors::Doors;
use neighbours::{Favour, Neighbours};

pub use doors::Leave;

/// Commands that may wait for a worker.
pub const COMMANDS_MAX: usize = 64;
/// How often idle upstream connections are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Idle limit of connections that belong to no backend.
const LOOSE_IDLE: Duration = Duration::from_secs(60);

/// What the control runtime asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Use this table from now on, and say so.
    Swap(Arc<Table>, oneshot::Sender<()>),
    /// Accept on a socket until it is closed under its number.
    Listen {
        number: u64,
        door: Door,
        socket: std::net::TcpListener,
    },
    /// Take datagrams on a socket until it is closed under its number.
    Datagrams {
        number: u64,
        door: Door,
        socket: std::net::UdpSocket,
    },
    Close(u64),
    /// Take no new connections, and go on with all else.
    Leave(Leave),
    /// Accept nothing more, finish what is open, end. A successor may serve already: then there
    /// is time to let every client ask once more and be told to come again.
    Drain {
        succeeded: bool,
    },
}

/// What all workers are made of.
#[derive(Clone, Debug)]
pub struct Shared {
    pub config: Arc<ProxyConfig>,
    pub clock: Clock,
    pub names: Names,
    pub dialer: Arc<Dialer>,
    pub server_tls: Option<Arc<ServerTls>>,
    pub reporter: Reporter,
    pub on_demand: OnDemand,
    pub buckets: Arc<Buckets>,
    /// Stored answers of rules that ask for it.
    pub cache: Arc<Store>,
    pub pressure: Arc<Pressure>,
    pub neighbours: Arc<Neighbours>,
    pub resolver: Arc<Resolver>,
    pub log_lines: mpsc::Sender<Lines>,
}

/// Names that go into every label set.
#[derive(Clone, Debug)]
pub struct Names {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub unknown: Arc<str>,
    pub passthrough: Arc<str>,
    pub black_hole: Arc<str>,
    /// Own SPIFFE id.
    pub principal: Arc<str>,
    /// This proxy's name, as lines of the log show it.
    pub node: Arc<str>,
}

/// State of one worker; everything on its thread has an `Rc` of it.
#[derive(Debug)]
pub struct Worker {
    pub id: usize,
    pub shared: Shared,
    pub config: Arc<ProxyConfig>,
    pub clock: Clock,
    pub names: Names,
    pub metrics: WorkerMetrics,
    pub log: LogSender,
    pub rng: RefCell<Rng>,
    /// Downstream connections; they are drained.
    pub conns: TaskGroup,
    table: RefCell<Pinned<Table>>,
    backends: RefCell<HashMap<ResourceName, Rc<RefCell<LocalBackend>>>>,
    /// What rules of the table led to.
    recent: Recent,
    breakers: Rc<Breakers>,
    pools: RefCell<HashMap<Peer, Rc<Pool>>>,
    pool_context: Rc<PoolContext>,
    doors: Doors,
    /// Clients that are idle have time to ask once more: another process goes on in the place of
    /// this one, or nothing new is taken while this one goes on.
    patient: Cell<bool>,
    /// Another process goes on in the place of this one.
    succeeded: Cell<bool>,
    /// Flows of datagrams that are open.
    pub flows: udp::Flows,
    /// Copies of requests under way.
    pub mirrors: Cell<usize>,
    pub limits: LocalBuckets,
}

/// One downstream connection, or what arrives inside a CONNECT on one.
#[derive(Debug)]
pub struct Conn {
    pub door: Door,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Whose socket it is, where that has told of another client.
    pub told_by: Option<Box<SocketAddr>>,
    pub scheme: &'static str,
    /// Who is on the other end of mesh TLS.
    pub peer: Option<SpiffeId>,
    /// What the certificate of a gateway's client says, which is no identity of the mesh.
    pub client_names: Box<[Arc<str>]>,
    pub server_name: Option<Arc<str>>,
    /// What its TLS agreed on, where lines of the access log tell of that.
    pub session: Option<Rc<Session>>,
    /// No other connection has it.
    pub number: u64,
    /// The app port that a mesh connection is for.
    pub app_port: Option<u16>,
    /// Where the app is, when its pod has a namespace of its own: any port may be asked for.
    pub app: Option<SocketAddr>,
    /// The address that a captured connection was made to.
    pub original: Option<SocketAddr>,
    /// It is plaintext, and its port takes none.
    pub plaintext_refused: bool,
    /// What a CONNECT on the forward proxy asked for; everything inside goes there.
    pub tunnel: Option<Authority>,
    /// The client proved the forward proxy's credential.
    pub admitted: Cell<bool>,
    /// When its first request must have come, where nobody vouches for who connects.
    pub first_by: Option<tokio::time::Instant>,
    /// Counted while anybody goes on with it, in HTTP or behind it.
    pub open: Option<Rc<OpenConnection>>,
    /// Connections that only its requests use, and what these are told about their client.
    pub(crate) own: OwnPools,
    pub(crate) proved: OnceCell<Box<HeaderValue>>,
}

/// One open downstream connection; counted while it lives.
#[derive(Debug)]
pub struct OpenConnection(Rc<Worker>);

// === impl Names ===

impl Names {
    pub fn of(config: &ProxyConfig, principal: Option<&SpiffeId>) -> Self {
        let name = &config.workload;
        Self {
            workload: if name.is_empty() { config.node.name.clone() } else { name.clone() },
            namespace: config.node.namespace.clone(),
            unknown: "unknown".into(),
            passthrough: "PassthroughCluster".into(),
            black_hole: "BlackHoleCluster".into(),
            principal: principal.map_or_else(|| "unknown".into(), |id| id.as_str().into()),
            node: config.node.to_string().into(),
        }
    }

    /// A copy that shares no counter with another worker's.
    fn own(&self) -> Self {
        let copy = |text: &Arc<str>| Arc::<str>::from(&**text);
        Self {
            workload: copy(&self.workload),
            namespace: copy(&self.namespace),
            unknown: copy(&self.unknown),
            passthrough: copy(&self.passthrough),
            black_hole: copy(&self.black_hole),
            principal: copy(&self.principal),
            node: copy(&self.node),
        }
    }

    pub fn principal(&self) -> Arc<str> {
        self.principal.clone()
    }
}

// === impl Worker ===

impl Worker {
    pub fn new(id: usize, shared: Shared, metrics: WorkerMetrics, table: Arc<Table>) -> Rc<Self> {
        let log = LogSender::new(
            &shared.config.access_log,
            shared.log_lines.clone(),
            metrics.cells.clone(),
        );
        let pool_context = Rc::new(PoolContext {
            dialer: shared.dialer.clone(),
            tasks: TaskGroup::new(),
            opened: Cell::new(0),
            noting: log.tells_upstream(),
        });
        let seed = shared.config.seed.map(|seed| seed.wrapping_add(id as u64));
        Rc::new(Self {
            id,
            config: shared.config.clone(),
            clock: shared.clock.clone(),
            names: shared.names.own(),
            metrics,
            log,
            rng: RefCell::new(seed.map_or_else(Rng::from_system, Rng::seeded)),
            conns: TaskGroup::new(),
            table: RefCell::new(Pinned::new(table)),
            backends: RefCell::default(),
            recent: Recent::default(),
            breakers: Breakers::new(id),
            pools: RefCell::default(),
            pool_context,
            doors: Doors::default(),
            patient: Cell::new(false),
            succeeded: Cell::new(false),
            flows: udp::Flows::default(),
            mirrors: Cell::new(0),
            limits: LocalBuckets::default(),
            shared,
        })
    }

    /// Pins the newest table.
    pub fn table(&self) -> Pinned<Table> {
        self.table.borrow().clone()
    }

    /// A backend's turn and connections on this worker, in its newest form.
    pub fn backend(&self, entry: &Arc<BackendEntry>) -> Rc<RefCell<LocalBackend>> {
        if let Some(local) = self.backends.borrow().get(&entry.name) {
            return local.clone();
        }
        let newest = self.table.borrow().backend(&entry.name).cloned();
        let known = newest.is_some();
        let entry = newest.unwrap_or_else(|| entry.clone());
        let name = entry.name.clone();
        let mut made = LocalBackend::new(entry, &mut self.rng.borrow_mut(), |e| self.pool(e));
        made.set_breakers(self.breakers.clone());
        if self.config.is_gateway() {
            made.set_gated(self.config.workers, self.metrics.cells.clone());
        }
        let made = Rc::new(RefCell::new(made));
        if known {
            self.backends.borrow_mut().insert(name, made.clone());
        }
        made
    }

    /// The same for what `at` in a table names, which `find` looks up.
    ///
    /// # Errors
    /// What `find` says.
    pub fn backend_at<T, E>(
        &self,
        at: &T,
        table: &Table,
        find: impl FnOnce() -> Result<Arc<BackendEntry>, E>,
    ) -> Result<Rc<RefCell<LocalBackend>>, E> {
        // What an older table names may be written elsewhere by now.
        let newest = std::ptr::eq(table, &***self.table.borrow());
        if newest && let Some(known) = self.recent.get(at) {
            return Ok(known);
        }
        let backend = self.backend(&find()?);
        if newest {
            self.recent.set(at, &backend);
        }
        Ok(backend)
    }

    /// The address of a name outside the mesh.
    ///
    /// # Errors
    /// Why it has none.
    pub async fn address_of(&self, name: &str) -> Result<std::net::IpAddr, String> {
        self.shared.resolver.address(&self.pool_context.tasks, name).await
    }

    /// What a gateway's listener says of its clients; `None` when it is gone.
    pub fn edge(&self, gateway: &Arc<str>) -> Option<Edge> {
        self.recent.edge(gateway, || Some(self.table.borrow().gateway(gateway)?.listener.edge))
    }

    fn pool(&self, endpoint: &EndpointEntry) -> Rc<Pool> {
        let peer = Peer::of_entry(endpoint, self.shared.dialer.mesh_port);
        self.pools
            .borrow_mut()
            .entry(peer.clone())
            .or_insert_with(|| Pool::new(peer, self.pool_context.clone()))
            .clone()
    }

    pub(crate) fn swap(&self, table: Arc<Table>) {
        let used: Vec<Peer> = self.shared_pools();
        self.backends.borrow_mut().retain(|name, local| match table.backend(name) {
            None => false,
            Some(entry) => {
                let mut local = local.borrow_mut();
                if !Arc::ptr_eq(&local.entry, entry) {
                    local.update(entry.clone(), |e| self.pool(e));
                }
                true
            }
        });
        self.recent.clear();
        *self.table.borrow_mut() = Pinned::new(table);
        // What no backend uses any more closes its idle connections now; requests that are under
        // way have their own hold and finish.
        let mut pools = self.pools.borrow_mut();
        for peer in used {
            if pools.get(&peer).is_some_and(|pool| Rc::strong_count(pool) == 1) {
                pools.remove(&peer);
            }
        }
    }

    /// Peers whose pools somebody besides this map holds.
    fn shared_pools(&self) -> Vec<Peer> {
        let pools = self.pools.borrow();
        pools.iter().filter(|(_, p)| Rc::strong_count(p) > 1).map(|(k, _)| k.clone()).collect()
    }

    fn drop_unused_pools(&self) {
        self.pools
            .borrow_mut()
            .retain(|_, pool| Rc::strong_count(pool) > 1 || pool.connections() > 0);
    }

    fn sweep(&self) {
        self.breakers.rest();
        for local in self.backends.borrow().values() {
            let local = local.borrow();
            let policy = &local.entry.backend.policy;
            let limit = Duration::from_millis(policy.idle_timeout_ms);
            for candidate in local.candidates() {
                candidate.pool.sweep(limit, policy.connections.as_deref());
            }
        }
        for pool in self.pools.borrow().values().filter(|p| Rc::strong_count(p) == 1) {
            pool.sweep(LOOSE_IDLE, None);
        }
        self.drop_unused_pools();
        self.shared.neighbours.rest(self.id);
    }

    /// Lets another worker have connections that are idle here and counted there.
    fn give_way(&self, quotas: &Arc<Quotas>) {
        self.breakers.known(quotas).iter().for_each(|breaker| breaker.give_way());
    }

    /// Where the app's port is in a pod with a namespace of its own: at the address that the
    /// client knows. `None` otherwise, and for ports that are not the app's.
    pub fn app_at(&self, conn: &Conn, port: u16) -> Option<SocketAddr> {
        let app = self.config.capture.is_some() && !self.config.is_own_port(port);
        app.then(|| SocketAddr::new(conn.dialled().ip(), port))
    }

    /// Resolves when connections on which nothing is asked are to be closed.
    pub async fn idle_is_over(&self) {
        self.conns.draining().await;
        if self.patient.get() {
            // A client may be about to ask on any of them; the next answer tells it to go.
            // Boxed: every idle connection holds this future, and few come here.
            Box::pin(tokio::time::sleep(self.config.drain_grace.mul_f32(0.9))).await;
        }
    }

    /// Counts a connection in, unless there are too many.
    pub fn open_connection(self: &Rc<Self>) -> Option<OpenConnection> {
        if self.shared.pressure.is_high() {
            self.metrics.cells.shed.add(1);
            return None;
        }
        let most = u32::try_from(self.config.limits.connections_max).unwrap_or(u32::MAX);
        if !self.shared.neighbours.clients.take(self.id, most.max(1)) {
            self.metrics.cells.refused_connections.add(1);
            return None;
        }
        dose::note(dose::CONNECTION_BYTES);
        self.shared.neighbours.opened(self.id);
        self.metrics.cells.downstream.add(1);
        self.metrics.cells.downstream_total.add(1);
        Some(OpenConnection(self.clone()))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.shared.neighbours.clients.put(self.0.id);
        self.0.shared.neighbours.closed(self.0.id);
        self.0.metrics.cells.downstream.sub(1);
    }
}

/// Runs a worker until it is drained or its commands end.
pub async fn run(
    worker: Rc<Worker>,
    mut commands: mpsc::Receiver<Command>,
    mut favours: mpsc::Receiver<Favour>,
) {
    let background = worker.pool_context.tasks.clone();
    let sweeper = worker.clone();
    background.spawn_local("sweep", async move {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            sweeper.sweep();
        }
    });
    let cells = worker.metrics.cells.clone();
    background.spawn_local("half-open connections", async move {
        half_open::keep_looking(|ended| cells.half_open.add(ended as u64)).await;
    });
    let (pressure, cells) = (worker.shared.pressure.clone(), worker.metrics.cells.clone());
    let relieving = stuck::relieve(pressure, worker.config.workers, move || cells.shed.add(1));
    background.spawn_local("memory", relieving);
    background.spawn_local("reads", dose::keep(worker.shared.pressure.clone()));
    let logging = worker.clone();
    background.spawn_local("access log", async move { logging.log.keep_flushing().await });
    loop {
        tokio::select! {
            command = commands.recv() => {
                if command.is_none_or(|command| !obey(&worker, command)) {
                    break;
                }
            }
            Some(favour) = favours.recv() => doors::favour(&worker, favour),
        }
    }
    worker.doors.close_all();
    // Clients that others have handed over already are served here.
    worker.shared.neighbours.leaves(worker.id);
    favours.close();
    while let Some(favour) = favours.recv().await {
        doors::favour(&worker, favour);
    }
    let tables = async {
        // Requests in flight still follow the mesh while they end.
        while let Some(command) = commands.recv().await {
            if let Command::Swap(..) = command {
                obey(&worker, command);
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = worker.conns.shutdown(worker.config.grace(worker.succeeded.get())) => {}
        () = tables => {}
    }
    worker.backends.borrow_mut().clear();
    worker.recent.clear();
    worker.pools.borrow_mut().clear();
    worker.log.flush();
    background.shutdown(Duration::ZERO).await;
}

/// Does what the control runtime asks; `false` when it asks to end.
fn obey(worker: &Rc<Worker>, command: Command) -> bool {
    match command {
        Command::Swap(table, done) => {
            worker.swap(table);
            // Nobody waits any more when the proxy is going down.
            let _ = done.send(());
        }
        Command::Listen { number, door, socket } => doors::listen(worker, number, door, socket),
        Command::Datagrams { number, door, socket } => {
            doors::datagrams(worker, number, door, socket);
        }
        Command::Close(number) => worker.doors.close(number),
        Command::Leave(leave) => doors::leave(worker, leave),
        Command::Drain { succeeded } => {
            worker.patient.set(worker.patient.get() || succeeded);
            worker.succeeded.set(succeeded);
            return false;
        }
    }
    true
}

// === impl Conn ===

impl Conn {
    pub fn new(door: Door, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            door,
            local,
            remote,
            told_by: None,
            scheme: "http",
            peer: None,
            client_names: Box::default(),
            server_name: None,
            session: None,
            number: facts::number(),
            app_port: None,
            app: None,
            original: None,
            plaintext_refused: false,
            tunnel: None,
            admitted: Cell::new(false),
            first_by: None,
            open: None,
            own: OwnPools::default(),
            proved: OnceCell::new(),
        }
    }

    /// The address of who is on the other end of the socket.
    pub fn direct(&self) -> SocketAddr {
        self.told_by.as_deref().copied().unwrap_or(self.remote)
    }

    /// The address that the client dialled, as far as it is known.
    pub fn dialled(&self) -> SocketAddr {
        self.original.unwrap_or(self.local)
    }

    /// What goes on inside a CONNECT over HTTP/2 on the mesh port (Istio's HBONE): it names the
    /// app port, and its bytes are looked at like any others for that port.
    pub fn hbone(
        &self,
        worker: &Worker,
        target: &Authority,
        version: http::Version,
    ) -> Option<(Self, Protocol)> {
        let port = target.port.filter(|_| version == http::Version::HTTP_2)?;
        let protocol = worker.table().inbound(port).map(|e| e.listener.protocol);
        let mut inner = Self::new(Door::Mesh, self.local, self.remote);
        inner.scheme = self.scheme;
        inner.peer = self.peer.clone();
        inner.server_name = self.server_name.clone();
        inner.session = self.session.clone();
        inner.app_port = Some(port);
        inner.open = self.open.clone();
        inner.app = worker.app_at(&inner, port);
        Some((inner, protocol.unwrap_or(Protocol::Detect)))
    }
}
